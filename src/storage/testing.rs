//! **For tests.** Real servers to test stores against, each on free ports, with its data in a
//! temporary directory, and ended with the value that stands for it.
//!
//! The programs come from the package registries and are kept in a cache outside the checkout:
//! the directory that `SEAWALL_TEST_CACHE` names, else `/var/cache/seawall-test`, else
//! `~/.cache/seawall-test`. `make test` installs them there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Options, StoreSettings};

/// Where the programs are kept that tests need and that are no part of this project.
pub fn cache() -> PathBuf {
    if let Some(directory) = std::env::var_os("SEAWALL_TEST_CACHE") {
        return directory.into();
    }
    let shared = PathBuf::from("/var/cache/seawall-test");
    match (shared.is_dir(), std::env::var_os("HOME")) {
        (false, Some(home)) => PathBuf::from(home).join(".cache/seawall-test"),
        _ => shared,
    }
}

fn program(relative: &str) -> PathBuf {
    let path = cache().join(relative);
    assert!(
        path.exists(),
        "{} is missing\n  hint: `make test` installs what the tests need",
        path.display()
    );
    path
}

/// A port of this machine that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A server process, killed by its own id when this is dropped.
struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Server {
    fn start(command: &mut Command, directory: tempfile::TempDir) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, directory }
    }

    /// Waits until `ready`, and shows the server's log if that takes too long.
    fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.directory.path().join("log"));
                panic!(
                    "{what} did not start ({ended:?}): {}",
                    log.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Garage, a real S3 server, on one node. Its two buckets stand for two regions.
///
/// It ignores create-only writes, and knows no versions and no Object Lock.
pub struct GarageServer {
    server: Server,
    /// `http://127.0.0.1:PORT`; buckets are addressed by path.
    pub endpoint: String,
    /// The first bucket.
    pub near: String,
    /// The second bucket.
    pub far: String,
    /// The access key that may do everything in both.
    pub access_key: String,
    /// Its secret.
    pub secret: String,
}

impl GarageServer {
    /// The region that it believes to be in.
    pub const REGION: &str = "garage";

    /// Starts a server with two empty buckets.
    pub fn start() -> Self {
        let program = program("garage-2.5.0/bin/garage");
        let directory = tempfile::tempdir().unwrap();
        let (s3, rpc, admin) = (free_port(), free_port(), free_port());
        let configuration = format!(
            r#"
metadata_dir = "{dir}/meta"
data_dir = "{dir}/data"
db_engine = "sqlite"
metadata_fsync = false
data_fsync = false
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secret}"

[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{s3}"
root_domain = ".s3.garage.localhost"

[admin]
api_bind_addr = "127.0.0.1:{admin}"
"#,
            dir = directory.path().display(),
            secret = hex::encode(rand::random::<[u8; 32]>()),
            region = Self::REGION,
        );
        let file = directory.path().join("garage.toml");
        std::fs::File::create(&file)
            .and_then(|mut file| file.write_all(configuration.as_bytes()))
            .unwrap();
        let access_key = format!("GK{}", hex::encode(rand::random::<[u8; 12]>()));
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let mut command = Command::new(&program);
        command
            .arg("-c")
            .arg(&file)
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_DEFAULT_ACCESS_KEY", &access_key)
            .env("GARAGE_DEFAULT_SECRET_KEY", &secret)
            .env("GARAGE_DEFAULT_BUCKET", "near")
            .env("RUST_LOG", "garage=warn");
        let mut server = Server::start(&mut command, directory);
        server.wait_until("garage", || listens(s3));
        let garage = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            let output = command
                .arg("-c")
                .arg(&file)
                .args(arguments)
                .output()
                .unwrap();
            output.status.success()
        };
        server.wait_until("garage's default bucket", || {
            garage(&["bucket", "info", "near"])
        });
        assert!(garage(&["bucket", "create", "far"]));
        let allow = [
            "bucket", "allow", "--read", "--write", "--owner", "far", "--key",
        ];
        assert!(garage(&[&allow[..], &[&access_key]].concat()));
        Self {
            server,
            endpoint: format!("http://127.0.0.1:{s3}"),
            near: "near".into(),
            far: "far".into(),
            access_key,
            secret,
        }
    }

    /// object_store's options for it.
    pub fn options(&self) -> Options {
        [
            ("aws_endpoint", self.endpoint.as_str()),
            ("aws_region", Self::REGION),
            ("aws_access_key_id", &self.access_key),
            ("aws_secret_access_key", &self.secret),
            ("aws_allow_http", "true"),
        ]
        .into_iter()
        .collect()
    }

    /// Settings of a store in one of its buckets.
    pub fn settings(&self, bucket: &str, prefix: &str) -> StoreSettings {
        StoreSettings {
            options: self.options(),
            ..StoreSettings::new(format!("s3://{bucket}/{prefix}"))
        }
    }

    /// Where its data and log lie.
    pub fn directory(&self) -> &Path {
        self.server.directory.path()
    }

    /// Stops it as a crash would, keeping its data until this value is dropped.
    pub fn kill(&mut self) {
        let _ = self.server.child.kill();
        let _ = self.server.child.wait();
    }
}

/// Azurite, Microsoft's emulator of Azure's blob storage.
pub struct AzuriteServer {
    _server: Server,
    /// `http://127.0.0.1:PORT/devstoreaccount1`
    pub endpoint: String,
    /// An empty container.
    pub container: String,
}

impl AzuriteServer {
    /// The emulator's well-known account.
    pub const ACCOUNT: &str = "devstoreaccount1";
    /// The emulator's well-known key, which is no secret.
    pub const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts a server with one empty container.
    pub fn start() -> Self {
        let program = program("azurite-3.35.0/node_modules/.bin/azurite-blob");
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(directory.path());
        let mut server = Server::start(&mut command, directory);
        server.wait_until("azurite", || listens(port));
        let this = Self {
            _server: server,
            endpoint: format!("http://127.0.0.1:{port}/{}", Self::ACCOUNT),
            container: "container".into(),
        };
        this.create_container(&this.container);
        this
    }

    /// Makes an empty container. object_store can't, so it is one signed request by the
    /// `node` that runs the server.
    pub fn create_container(&self, name: &str) {
        let script = r#"
            const [url, account, key, name] = process.argv.slice(1);
            const date = new Date().toUTCString();
            const headers = `x-ms-date:${date}\nx-ms-version:2021-08-06`;
            const resource = `/${account}/${account}/${name}\nrestype:container`;
            const text = "PUT" + "\n".repeat(12) + headers + "\n" + resource;
            const hmac = require("crypto").createHmac("sha256", Buffer.from(key, "base64"));
            fetch(`${url}/${name}?restype=container`, { method: "PUT", headers: {
                "x-ms-date": date, "x-ms-version": "2021-08-06",
                "Authorization": `SharedKey ${account}:${hmac.update(text).digest("base64")}`,
            }}).then(async (answer) => {
                if (!answer.ok) throw new Error(await answer.text());
            }).catch((error) => { console.error(error); process.exit(1); });
        "#;
        let output = Command::new("node")
            .args(["-e", script, &self.endpoint, Self::ACCOUNT, Self::KEY, name])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "cannot make the container {name}: {error}"
        );
    }

    /// object_store's options for it.
    pub fn options(&self) -> Options {
        [
            ("azure_storage_account_name", Self::ACCOUNT),
            ("azure_storage_account_key", Self::KEY),
            ("azure_storage_endpoint", &self.endpoint),
            ("azure_allow_http", "true"),
        ]
        .into_iter()
        .collect()
    }

    /// Settings of a store in one of its containers.
    pub fn settings(&self, container: &str, prefix: &str) -> StoreSettings {
        StoreSettings {
            options: self.options(),
            ..StoreSettings::new(format!("az://{container}/{prefix}"))
        }
    }
}

/// moto, which plays S3 with create-only writes. For the interface's behaviour, not for speed.
pub struct MotoServer {
    _server: Server,
    port: u16,
    /// `http://127.0.0.1:PORT`; buckets are addressed by path.
    pub endpoint: String,
    /// An empty bucket.
    pub bucket: String,
}

impl MotoServer {
    /// Starts a server with one empty bucket.
    pub fn start() -> Self {
        let program = program("moto-5.2.5/bin/moto_server");
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let mut server = Server::start(&mut command, directory);
        server.wait_until("moto", || listens(port));
        let bucket = "bucket";
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = format!("PUT /{bucket} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.lines().next().unwrap_or_default();
        assert!(status.contains(" 200 "), "cannot make a bucket: {answer}");
        let endpoint = format!("http://127.0.0.1:{port}");
        Self {
            _server: server,
            port,
            endpoint,
            bucket: bucket.into(),
        }
    }

    /// Settings of a store in its bucket.
    pub fn settings(&self, prefix: &str) -> StoreSettings {
        let options = [
            ("aws_endpoint", self.endpoint.as_str()),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "any"),
            ("aws_secret_access_key", "any"),
            ("aws_allow_http", "true"),
        ];
        StoreSettings {
            options: options.into_iter().collect(),
            ..StoreSettings::new(format!("s3://{}/{prefix}", self.bucket))
        }
    }
}

/// Google's XML interface, as far as it is S3's with other header names: moto behind a proxy
/// that translates them. No emulator of the package registries speaks it.
pub struct GoogleServer {
    moto: MotoServer,
    /// `http://127.0.0.1:PORT`
    pub endpoint: String,
}

impl GoogleServer {
    /// Starts a server with one empty bucket.
    pub fn start() -> Self {
        let moto = MotoServer::start();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let port = moto.port;
        // It ends with the process; each connection serves one request.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || translate(client, port));
            }
        });
        Self { moto, endpoint }
    }

    /// Settings of a store in its bucket.
    pub fn settings(&self, prefix: &str) -> StoreSettings {
        // google_skip_signature would not do: object_store then still wants a token for writes.
        let key = r#"{"private_key":"", "private_key_id":"", "client_email":"",
                      "disable_oauth":true}"#;
        let options = [
            ("google_base_url", self.endpoint.as_str()),
            ("google_service_account_key", key),
            ("allow_http", "true"),
        ];
        StoreSettings {
            options: options.into_iter().collect(),
            ..StoreSettings::new(format!("gs://{}/{prefix}", self.moto.bucket))
        }
    }
}

/// Passes one request on to an S3 server, and its answer back.
fn translate(mut client: TcpStream, port: u16) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    let (head, rest) = read_head(&mut client)?;
    let head = head
        .replace("x-goog-if-generation-match: 0", "if-none-match: *")
        .replace("x-goog-", "x-amz-");
    // moto lets nobody delete who has no name.
    let name = "authorization: AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request, \
                SignedHeaders=host, Signature=any";
    server.write_all(format!("{head}{name}\r\nconnection: close\r\n\r\n").as_bytes())?;
    server.write_all(&rest)?;
    let (mut upstream, mut body) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut body, &mut upstream));
    let (head, rest) = read_head(&mut server)?;
    let head = head.replace("x-amz-", "x-goog-");
    client.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    client.write_all(&rest)?;
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)
}

/// The lines of a message's head, but those about the connection and who asks, and what
/// follows it.
fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut message = Vec::new();
    loop {
        if let Some(end) = message.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = message.split_off(end + 4);
            let head = String::from_utf8_lossy(&message[..end]).into_owned();
            let lines = head.lines().filter(|line| {
                let name = line.split(':').next().unwrap_or_default();
                !matches!(
                    name.to_ascii_lowercase().as_str(),
                    "connection" | "authorization"
                )
            });
            return Ok((lines.map(|line| format!("{line}\r\n")).collect(), rest));
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => message.extend_from_slice(&piece[..read]),
        }
    }
}
