//! A real PostgreSQL server for tests: found, made, started and stopped.
//!
//! Each [`Server`] has its own directory, port and socket, and ends with its value, also when
//! the test panics. Tests that run as root start it as the user `postgres`, since PostgreSQL
//! refuses to run as root. Without PostgreSQL's programs such a test fails and says so: it
//! never passes without having looked.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

/// One cluster and, while it runs, its server.
pub(crate) struct Server {
    bin: PathBuf,
    /// Mode 0755 (PostgreSQL's user must enter it); removed with the value.
    directory: tempfile::TempDir,
    port: u16,
    postmaster: Option<Child>,
}

impl Server {
    /// A running server with data checksums and everything else as initdb makes it.
    pub(crate) fn start() -> Self {
        Self::with(&["--data-checksums"], "")
    }

    /// A running server from initdb with `options`, and `settings` added to postgresql.conf.
    pub(crate) fn with(options: &[&str], settings: &str) -> Self {
        let mut server = Self::create(options, settings);
        server.launch();
        server
    }

    /// A server with TLS: `server.crt`, for the name localhost, by `ca.crt`; `other.crt` is
    /// another authority.
    pub(crate) fn with_tls() -> Self {
        let mut server = Self::create(
            &[],
            "ssl = on\nssl_cert_file = '../server.crt'\nssl_key_file = '../server.key'\n",
        );
        let directory = server.path();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for name in ["ca", "other"] {
            openssl(
                &directory,
                &format!(
                    "req -x509 {key} -keyout {name}.key -out {name}.crt -subj /CN={name} -days 2"
                ),
            );
        }
        openssl(
            &directory,
            &format!("req {key} -keyout server.key -out server.csr -subj /CN=127.0.0.1"),
        );
        server.write(&directory.join("names"), "subjectAltName=DNS:localhost\n");
        openssl(
            &directory,
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names",
        );
        server.give_away(&directory.join("server.key"));
        server.launch();
        server
    }

    /// The same, not yet started.
    pub(crate) fn create(options: &[&str], settings: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("swpg")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        let mut server = Self {
            bin: programs(),
            directory,
            port: free_port(),
            postmaster: None,
        };
        server.give_away(&server.path());
        let data = server.data();
        let data = data.to_string_lossy();
        let mut arguments = vec!["-D", &data, "-U", "postgres", "--no-sync", "-E", "UTF8"];
        arguments.extend(["--locale=C", "-A", "trust"]);
        arguments.extend(options);
        server.run("initdb", &arguments);
        server.configure(&format!(
            "fsync = off\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
             lc_messages = 'C'\nshared_buffers = '16MB'\nmax_wal_size = '256MB'\n{settings}\n",
            server.path().display()
        ));
        server.port = free_port();
        server
    }

    /// Starts it and waits until it answers.
    pub(crate) fn launch(&mut self) {
        for _ in 0..3 {
            self.postmaster = Some(self.spawn());
            let deadline = Instant::now() + Duration::from_secs(60);
            while Instant::now() < deadline {
                let exited = self.postmaster.as_mut().and_then(|c| c.try_wait().ok());
                if exited.flatten().is_some() {
                    break;
                }
                if self.try_sql("select 1").is_ok() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            // Another process may have taken the port between our look and the start.
            self.stop();
            self.port = free_port();
        }
        panic!("PostgreSQL did not start:\n{}", self.log());
    }

    /// Starts a server that is expected to end by itself, and waits for that.
    pub(crate) fn launch_and_wait_for_its_end(&mut self) {
        self.postmaster = Some(self.spawn());
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Some(child) = &mut self.postmaster {
            if child.try_wait().ok().flatten().is_some() {
                self.postmaster = None;
            }
            assert!(Instant::now() < deadline, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn spawn(&self) -> Child {
        let log = self.path().join("log");
        let log = File::options().create(true).append(true).open(log);
        self.command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("postgres starts")
    }

    /// Stops it in the fast way and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Ends it as a crash would.
    pub(crate) fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.postmaster.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
            let _ = child.wait();
        }
    }

    /// Adds lines to postgresql.conf.
    pub(crate) fn configure(&self, settings: &str) {
        let path = self.data().join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(path).expect("conf");
        file.write_all(settings.as_bytes()).expect("written");
    }

    /// Writes a file that PostgreSQL's user owns, mode 0600.
    pub(crate) fn write(&self, path: &Path, content: &str) {
        crate::durable::write_file(path, content.as_bytes(), 0o600).expect("written");
        self.give_away(path);
    }

    /// Makes PostgreSQL's user the owner, if we are root.
    pub(crate) fn give_away(&self, path: &Path) {
        if let Some(user) = postgres_user() {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// A program of PostgreSQL, to be run as PostgreSQL's user.
    pub(crate) fn command(&self, program: &str) -> Command {
        // Some packages hold the server alone.
        let own = self.bin.join(program);
        let found = if own.exists() {
            own
        } else {
            installed().join(program)
        };
        let mut command = Command::new(found);
        command.current_dir(self.path()).env_remove("PGPORT");
        command.env("LC_ALL", "C").env("TZ", "UTC");
        if let Some(user) = postgres_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Runs a program to its end; standard output. Panics with both outputs if it fails.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments)
            .unwrap_or_else(|output| panic!("{program} {arguments:?} failed:\n{output}"))
    }

    /// Runs a program to its end; standard output, or both outputs if it fails.
    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    /// Runs SQL as the superuser; its result, unaligned, tuples only.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql)
            .unwrap_or_else(|output| panic!("{sql}: {output}\n{}", self.log()))
    }

    /// Runs several statements in one session, each in a transaction of its own.
    pub(crate) fn sql_session(&self, statements: &[&str]) -> String {
        self.psql(statements)
            .unwrap_or_else(|output| panic!("{statements:?}: {output}\n{}", self.log()))
    }

    fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.psql(&[sql])
    }

    fn psql(&self, statements: &[&str]) -> Result<String, String> {
        let (host, port) = (self.path(), self.port.to_string());
        let host = host.to_string_lossy();
        let connect = ["-h", &host, "-p", &port, "-U", "postgres", "-d", "postgres"];
        let mut arguments = connect.to_vec();
        arguments.extend(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
        for statement in statements {
            arguments.extend(["-c", statement]);
        }
        let output = self.try_run("psql", &arguments)?;
        Ok(output.trim_end().to_owned())
    }

    /// All that the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// The directory that holds `data`, `log` and the socket; PostgreSQL's user owns it.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Its TCP port, on 127.0.0.1, and the number of its socket.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its major version, from PG_VERSION.
    pub(crate) fn major(&self) -> u32 {
        let text = std::fs::read_to_string(self.data().join("PG_VERSION")).expect("PG_VERSION");
        text.trim().parse().expect("a major version")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Runs openssl in `directory`.
pub(crate) fn openssl(directory: &Path, arguments: &str) {
    let run = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output();
    let output = run.expect("this test needs the program openssl");
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
}

/// The user to run PostgreSQL as, if we are root.
fn postgres_user() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = User::from_name("postgres").ok().flatten();
    Some(user.expect("root runs PostgreSQL as the user postgres, and there is none"))
}

/// The directory of PostgreSQL's server programs: `$SEAWALL_TEST_PG_BIN`, the newest of
/// Debian's, or from $PATH.
fn programs() -> PathBuf {
    if let Some(chosen) = std::env::var_os("SEAWALL_TEST_PG_BIN") {
        return chosen.into();
    }
    installed()
}

fn installed() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = debian
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    found
        .pop()
        .map(|(_, bin)| bin)
        .or_else(|| std::env::split_paths(&path).find(|bin| bin.join("initdb").exists()))
        .expect("this test needs PostgreSQL's programs (initdb, postgres): apt-get install postgresql, or put them in $PATH")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
