//! The scratch instance: PostgreSQL on the restored directory, reachable by a Unix socket in
//! the scratch directory only, archiving nothing, stopped whatever happens.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::connection::{ConnectionString, Surroundings};
use seawall::postgres::control::ControlFile;
use seawall::postgres::recovery::setting;
use seawall::postgres::sql::Client;

use crate::evidence::quoted;

/// The port is a part of the socket's name only.
const PORT: &str = "5432";

/// A running PostgreSQL on a scratch directory.
pub struct Instance {
    child: Child,
    command: String,
    socket_directory: PathBuf,
    log: PathBuf,
    superuser: String,
    kept: bool,
}

impl Instance {
    /// Starts the server and returns at once; it is still recovering.
    pub fn start(
        postgres: &Path,
        data: &Path,
        scratch: &Path,
        superuser: &str,
        owner_settings: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let own = scratch.join("server");
        std::fs::create_dir(&own).on("make", &own)?;
        let settings = own.join("postgresql.conf");
        let hba = own.join("pg_hba.conf");
        let log = own.join("log");
        let text = settings_text(data, &own, owner_settings)?;
        durable::write_file(&settings, text.as_bytes(), 0o600).on("write", &settings)?;
        durable::write_file(&hba, b"local all all trust\n", 0o600).on("write", &hba)?;
        let log_file = File::create(&log).on("create", &log)?;
        let mut words = vec![postgres.display().to_string()];
        words.extend(["-D".to_owned(), data.display().to_string()]);
        let config_file = format!("config_file={}", settings.display());
        words.extend(["-c".to_owned(), config_file.clone()]);
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let child = Command::new(postgres)
            .arg("-D")
            .arg(data)
            .arg("-c")
            .arg(config_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .env("LC_ALL", "C")
            // A Ctrl-C at the terminal is for us; we end the server in order.
            .process_group(0)
            .spawn()
            .on("run", postgres)?;
        Ok(Self {
            child,
            command: words.join(" "),
            socket_directory: own,
            log,
            superuser: superuser.to_owned(),
            kept: false,
        })
    }

    /// Opens a session with `database` as the role that initdb made.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let quoted = |word: &str| word.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!(
            "host='{}' port={PORT} user='{}' dbname='{}' sslmode=disable",
            quoted(&self.socket_directory.to_string_lossy()),
            quoted(&self.superuser),
            quoted(database)
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

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
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

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }
}

/// Ends every process of this user that works in `directory`: the server of a drill that was
/// killed, and what it runs. Each by its id, and only while its working directory says so.
pub(crate) fn end_processes_in(directory: &Path) -> Result<()> {
    let directory = directory.canonicalize().on("find", directory)?;
    let postmaster = std::fs::read_to_string(directory.join("data/postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse::<i32>().ok());
    for (signal, patience) in [(Signal::SIGQUIT, 10), (Signal::SIGKILL, 10)] {
        let deadline = Instant::now() + Duration::from_secs(patience);
        let mut told = Vec::new();
        loop {
            let left = processes_in(&directory);
            if left.is_empty() {
                return Ok(());
            }
            // An immediate shutdown by the postmaster ends the others; without one, each is
            // told itself.
            let leader = left.iter().find(|pid| Some(**pid) == postmaster);
            let addressed: Vec<i32> = match (signal, leader) {
                (Signal::SIGQUIT, Some(leader)) => vec![*leader],
                _ => left,
            };
            for pid in addressed {
                if !told.contains(&pid) {
                    told.push(pid);
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Err(Error::failed("the server of a dead drill does not end").at(directory.display()))
}

/// Processes whose working directory lies in `directory`, as far as this user may see.
fn processes_in(directory: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid > 1)
        .collect()
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.kept || self.ended().is_some() {
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
}

/// Settings of our own, none of production's: they would name its places, its libraries and
/// its memory. What recovery needs to be at least as large as on the source is read from the
/// control file.
fn settings_text(
    data: &Path,
    own: &Path,
    owner_settings: &BTreeMap<String, String>,
) -> Result<String> {
    let control = ControlFile::read(data)?;
    let at_least = |least: i32, there: i32| there.max(least).to_string();
    let own = own.display().to_string();
    let mut settings: BTreeMap<&str, String> = [
        ("data_directory", data.display().to_string()),
        ("hba_file", format!("{own}/pg_hba.conf")),
        ("ident_file", format!("{own}/pg_ident.conf")),
        ("listen_addresses", String::new()),
        ("port", PORT.to_owned()),
        ("unix_socket_directories", own.clone()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("archive_mode", "off".to_owned()),
        // A subscription's workers would connect to its publisher, and take its changes.
        ("max_logical_replication_workers", "0".to_owned()),
        // Nobody reads during recovery, so the source's limits need not be met exactly.
        ("hot_standby", "off".to_owned()),
        ("max_connections", at_least(50, control.max_connections)),
        (
            "max_worker_processes",
            at_least(8, control.max_worker_processes),
        ),
        ("max_wal_senders", at_least(0, control.max_wal_senders)),
        (
            "max_prepared_transactions",
            at_least(0, control.max_prepared_xacts),
        ),
        (
            "max_locks_per_transaction",
            at_least(64, control.max_locks_per_xact),
        ),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("log_line_prefix", "%m ".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("lc_messages", "C".to_owned()),
        ("max_wal_size", "4GB".to_owned()),
    ]
    .into();
    for (name, value) in owner_settings {
        // What isolates the instance is not the owner's to change.
        if !settings.contains_key(name.as_str()) {
            settings.insert(name, value.clone());
        }
    }
    let mut text = String::new();
    for (name, value) in settings {
        text += &setting(name, &value)?;
    }
    std::fs::File::create(Path::new(&own).join("pg_ident.conf")).on("create", &own)?;
    Ok(text)
}
