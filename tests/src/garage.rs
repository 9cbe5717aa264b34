//! A real S3 server: Garage, one node, two buckets that stand in for two regions.
//!
//! What it does otherwise than AWS matters to the tests: it ignores `If-None-Match` on PUT,
//! and has no versions, Object Lock or bucket policies.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::config::Repository;
use crate::guard;
use crate::postgres::free_port;
use crate::process::{Output, Run, wait_until};
use crate::proxy::FaultProxy;
use crate::scratch::Scratch;
use crate::version::cached;

/// The buckets that every [`Garage`] has.
pub const BUCKETS: [&str; 2] = ["near", "far"];

/// A running Garage; ended by its process id when dropped.
#[derive(Debug)]
pub struct Garage {
    program: PathBuf,
    config: PathBuf,
    address: SocketAddr,
    key_id: String,
    secret: String,
    environment: Vec<(&'static str, String)>,
    server: Option<std::process::Child>,
}

impl Garage {
    /// Starts one in `scratch`/garage with its buckets and a key.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        Self::start_with(scratch, &[])
    }

    /// The same, with more in its environment.
    #[track_caller]
    pub fn start_with(scratch: &Scratch, environment: &[(&'static str, String)]) -> Self {
        let program = cached("garage-")
            .expect("Garage is not installed: run scripts/setup test")
            .join("bin/garage");
        let home = scratch.directory("garage");
        let (rpc, s3) = (free_port(), free_port());
        let config = format!(
            "metadata_dir = \"{home}/meta\"\n\
             data_dir = \"{home}/data\"\n\
             db_engine = \"sqlite\"\n\
             metadata_fsync = false\n\
             data_fsync = false\n\
             replication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_public_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_secret = \"{secret}\"\n\
             [s3_api]\n\
             s3_region = \"garage\"\n\
             api_bind_addr = \"127.0.0.1:{s3}\"\n\
             root_domain = \".s3.garage.localhost\"\n",
            home = home.display(),
            secret = hex(32),
        );
        let mut garage = Self {
            program,
            config: scratch.file("garage/garage.toml", config),
            address: SocketAddr::from(([127, 0, 0, 1], s3)),
            key_id: format!("GK{}", hex(12)),
            secret: hex(32),
            environment: environment.to_vec(),
            server: None,
        };
        garage.launch();
        garage.set_up();
        garage
    }

    /// Starts the server again after [`stop`](Self::stop), on the same port with the same
    /// content.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "Garage runs already");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.config.with_file_name("log"))
            .expect("the log opens");
        let mut command = self
            .command(["server"])
            .env("RUST_LOG", "garage=info")
            .command();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .expect("Garage starts");
        guard::started(child.id());
        self.server = Some(child);
        wait_until("Garage answers", Duration::from_secs(30), || {
            TcpStream::connect(self.address).is_ok() && self.command(["status"]).run().code == 0
        });
    }

    #[track_caller]
    fn set_up(&self) {
        let node = self.run(["node", "id", "-q"]).stdout;
        let node = node.trim().split('@').next().unwrap_or_default().to_owned();
        self.run(["layout", "assign", "-z", "here", "-c", "10G", &node]);
        self.run(["layout", "apply", "--version", "1"]);
        let (key, secret) = (self.key_id.clone(), self.secret.clone());
        self.run(["key", "import", "--yes", "-n", "test", &key, &secret]);
        for bucket in BUCKETS {
            self.run(["bucket", "create", bucket]);
            self.run([
                "bucket", "allow", "--read", "--write", "--owner", bucket, "--key", &key,
            ]);
        }
    }

    /// Makes another access key, which may use `bucket` alone. Returns its id and secret.
    #[track_caller]
    pub fn key_for(&self, bucket: &str) -> (String, String) {
        let (key, secret) = (format!("GK{}", hex(12)), hex(32));
        self.run(["key", "import", "--yes", "-n", bucket, &key, &secret]);
        self.run([
            "bucket", "allow", "--read", "--write", bucket, "--key", &key,
        ]);
        (key, secret)
    }

    /// Runs a command of Garage's own administration.
    #[track_caller]
    pub fn run<const N: usize>(&self, args: [&str; N]) -> Output {
        self.command(args).run().success()
    }

    fn command<const N: usize>(&self, args: [&str; N]) -> Run {
        let mut run = Run::new(&self.program);
        for (name, value) in &self.environment {
            run = run.env(name, value);
        }
        run.arg("-c").arg(&self.config).args(args)
    }

    /// Ends the server at once: the region is gone.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
            guard::ended(child.id());
        }
    }

    /// Where its S3 interface listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The access key's id and secret.
    pub fn key(&self) -> (&str, &str) {
        (&self.key_id, &self.secret)
    }

    /// A repository in one of the [`BUCKETS`].
    pub fn repository(&self, name: &str, bucket: &str, prefix: &str) -> Repository {
        Repository::new(name, &format!("s3://{bucket}/{prefix}"))
            .option("aws_endpoint", &format!("http://{}", self.address))
            .option("aws_region", "garage")
            .option("aws_access_key_id", &self.key_id)
            .option("aws_secret_access_key", &self.secret)
            .option("aws_allow_http", "true")
            .option("aws_virtual_hosted_style_request", "false")
    }

    /// The same repository behind a proxy that can fail.
    pub fn repository_through(
        &self,
        proxy: &FaultProxy,
        name: &str,
        bucket: &str,
        prefix: &str,
    ) -> Repository {
        self.repository(name, bucket, prefix)
            .through("aws_endpoint", &format!("http://{}", proxy.address()))
    }
}

fn hex(bytes: usize) -> String {
    (0..bytes)
        .map(|_| format!("{:02x}", rand::random::<u8>()))
        .collect()
}

impl Drop for Garage {
    fn drop(&mut self) {
        self.stop();
    }
}
