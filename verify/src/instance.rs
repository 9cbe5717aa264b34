//! The scratch instance: PostgreSQL on the restored directory, reachable by a Unix socket in
//! the drill's own directories only, archiving nothing, stopped whatever happens.

mod settings;

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::connection::{ConnectionString, Surroundings};
use seawall::postgres::sql::Client;
use seawall::repository::marker::Marker;

use crate::evidence::{quoted, variables_of_postgres};
use crate::libraries;
use crate::limits::Share;
use crate::scratch::Scratch;
use settings::Basis;

/// The port is a part of the socket's name only.
const PORT: &str = "5432";

/// What an instance is started with.
pub struct Start<'a> {
    /// The server's program.
    pub postgres: &'a Path,
    /// The restored data directory.
    pub data: &'a Path,
    /// The drill's own directories.
    pub scratch: &'a Scratch,
    /// The backup that was restored.
    pub backup: &'a Marker,
    /// What it may take of the host.
    pub share: &'a Share,
    /// `[drill.settings]`.
    pub owner: &'a BTreeMap<String, String>,
    /// What the source's configuration says, as far as it was restored.
    pub source: &'a BTreeMap<String, String>,
}

/// A running PostgreSQL on a scratch directory.
pub struct Instance {
    child: Child,
    command: String,
    socket_directory: PathBuf,
    log: PathBuf,
    superuser: String,
    session_options: String,
    kept: bool,
    adapted: Vec<String>,
    warnings: Vec<String>,
}

impl Instance {
    /// Starts the server and returns at once; it is still recovering.
    pub fn start(start: &Start) -> Result<Self> {
        let own = start.scratch.server();
        let sockets = start.scratch.socket_directory();
        std::fs::create_dir(&own).on("make", &own)?;
        std::fs::set_permissions(&own, Permissions::from_mode(0o700))
            .on("set the mode of", &own)?;
        let file = |name: &str| own.join(name);
        let (settings, hba, ident, log) = (
            file("postgresql.conf"),
            file("pg_hba.conf"),
            file("pg_ident.conf"),
            file("log"),
        );
        let (text, mut adapted) = settings::settings(&Basis {
            data: start.data,
            server: &own,
            sockets: &sockets,
            major: start.backup.major(),
            share: start.share,
            owner: start.owner,
            source: start.source,
        })?;
        let (left_out, warnings) = libraries::left_out(start.source, start.owner, start.postgres);
        adapted.extend(left_out);
        durable::write_file(&settings, text.as_bytes(), 0o600).on("write", &settings)?;
        durable::write_file(&hba, b"local all all trust\n", 0o600).on("write", &hba)?;
        File::create(&ident).on("create", &ident)?;
        let log_file = File::create(&log).on("create", &log)?;
        let config_file = format!("config_file={}", settings.display());
        let words = [
            start.postgres.display().to_string(),
            "-D".to_owned(),
            start.data.display().to_string(),
            "-c".to_owned(),
            config_file.clone(),
        ];
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let mut server = Command::new(start.postgres);
        // Defaults of this user's are none of the server's, nor of what connects from within it.
        // (PG_… is nobody's but perhaps the owner's: what fetches WAL may need it.)
        for variable in variables_of_postgres(std::env::vars_os()) {
            if !variable.as_encoded_bytes().starts_with(b"PG_") {
                server.env_remove(variable);
            }
        }
        let child = server
            .arg("-D")
            .arg(start.data)
            .arg("-c")
            .arg(config_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .env("LC_ALL", "C")
            // A Ctrl-C at the terminal is for us; we end the server in order.
            .process_group(0)
            .spawn()
            .on("run", start.postgres)?;
        Ok(Self {
            child,
            command: words.join(" "),
            socket_directory: sockets,
            log,
            superuser: start.backup.superuser.clone(),
            session_options: libraries::session_options(start.owner),
            kept: false,
            adapted,
            warnings,
        })
    }

    /// Opens a session with `database` as the role that initdb made.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.session(database, "").await
    }

    /// The same, for statements that may hold passwords: nothing of them comes into the log.
    pub async fn connect_unlogged(&self, database: &str) -> Result<Client> {
        self.session(database, settings::UNLOGGED).await
    }

    async fn session(&self, database: &str, more: &str) -> Result<Client> {
        let quoted = |word: &str| word.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!(
            "host='{}' port={PORT} user='{}' dbname='{}' options='{}' sslmode=disable",
            quoted(&self.socket_directory.to_string_lossy()),
            quoted(&self.superuser),
            quoted(database),
            quoted(&format!(
                "{} {} {more}",
                self.session_options,
                settings::NO_STATEMENTS
            ))
        );
        Client::connect(&ConnectionString::parse(
            &text,
            &Surroundings::of_process(),
        )?)
        .await
    }

    /// The command that started it, as a person would type it.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The words that lead a client program here.
    pub fn client_arguments(&self) -> [String; 6] {
        [
            "-h".to_owned(),
            self.socket_directory.to_string_lossy().into_owned(),
            "-p".to_owned(),
            PORT.to_owned(),
            "-U".to_owned(),
            self.superuser.clone(),
        ]
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Where its socket lies.
    pub fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// What had to be different from the source's server.
    pub fn adapted(&self) -> &[String] {
        &self.adapted
    }

    /// What a person should know who recovers on this host in earnest.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What it has logged behind the first so many bytes.
    pub fn log_from(&self, offset: u64) -> Vec<u8> {
        let mut gained = Vec::new();
        if let Ok(mut log) = File::open(&self.log)
            && log.seek(SeekFrom::Start(offset)).is_ok()
        {
            // What cannot be read now is read the next time.
            let _ = log.read_to_end(&mut gained);
        }
        gained
    }

    /// Its exit status, if it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Leave it running when this is dropped. Returns its process.
    pub fn keep(&mut self) -> u32 {
        self.kept = true;
        self.child.id()
    }

    /// Stops it in order, as `pg_checksums` needs it.
    pub async fn stop(&mut self, patience: Duration) -> Result<()> {
        self.signal(Signal::SIGINT);
        let deadline = Instant::now() + patience;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return Err(Error::failed("the scratch instance does not stop"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends it at once, as a drill that is given up must.
    pub fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        // Immediate shutdown; its children end with it. Its own process only, by its id.
        self.signal(Signal::SIGQUIT);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.kept {
            self.end();
        }
    }
}
