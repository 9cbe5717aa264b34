//! `seawall daemon`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Parser;

use super::report;
use crate::config::Config;
use crate::daemon::{self, Accepted, Options};
use crate::durable;
use crate::error::{Error, Exit, IoContext, Result};
use crate::privileges::{Account, is_root};

const HINT: &str = "make it for the user that the daemon runs as, or set daemon.state_directory";

/// How the names of what lies in a state directory begin.
const FILES: [&str; 3] = ["state.json", "accepted.toml", "probe"];

/// Do everything on its schedule, for all clusters, until it is stopped
///
/// SIGTERM tells what runs to give up and ends with 0; SIGHUP reads the configuration again.
/// Runs each operation as a command of its own. As root it becomes the owner of the data
/// directories; where they have several owners it stays root, and each command becomes its
/// cluster's.
#[derive(Debug, Parser)]
pub struct DaemonArgs {
    /// The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

/// Runs until it is stopped.
pub fn run(args: &DaemonArgs) -> Result<Exit> {
    let accepted = Accepted::load(args.config.as_deref())?;
    let directory = accepted.config.daemon.state_directory.clone();
    prepare(&directory, &accepted.config)?;
    let _lock = lock(&directory)?;
    probe(&directory)?;
    let options = Options {
        program: daemon::child::own_program()
            .map_err(|error| Error::failed("cannot find where this program lies").because(error))?,
        log_level: args.log_level.to_string().to_lowercase(),
        host: crate::host::name(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::failed("cannot start the runtime").because(error))?;
    let ended = runtime.block_on(daemon::run(accepted, options));
    // A disk or a name server that hangs must not delay the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(match ended {
        Ok(()) => Exit::Done,
        Err(error) => report(&error),
    })
}

/// Makes the state directory, and becomes the user that it is to belong to.
fn prepare(directory: &Path, config: &Config) -> Result<()> {
    if !directory.is_dir() {
        std::fs::create_dir_all(directory)
            .on("make", directory)
            .map_err(|error| {
                Error::failed("there is no place for the state")
                    .because(error)
                    .hint(HINT)
            })?;
    }
    if !is_root() {
        return Ok(());
    }
    let owners: Vec<_> = config
        .cluster
        .values()
        .map(|c| c.data_directory.as_deref().and_then(owner))
        .collect();
    let several = owners.windows(2).any(|pair| pair[0] != pair[1]);
    let first = config.cluster.values().next();
    match first.and_then(|c| c.data_directory.as_deref().and_then(Account::owner_of)) {
        Some(account) if !several => {
            hand_over(directory, &account)?;
            account.become_it()
        }
        _ => Ok(()),
    }
}

/// As root: gives the state directory and the files in it to `account`, where they are root's:
/// made by hand, or by a daemon that stayed root. A directory that holds other things, too, is
/// somebody else's (`/var/lib`, say) and is left alone.
fn hand_over(directory: &Path, account: &Account) -> Result<()> {
    let opened = File::open(directory).on("open", directory)?;
    let mut ours = Vec::new();
    for entry in std::fs::read_dir(directory).on("list", directory)? {
        let name = entry.on("list", directory)?.file_name();
        let name = name.to_string_lossy();
        if FILES.iter().any(|file| name.starts_with(file)) {
            ours.push(directory.join(name.as_ref()));
        } else if name != "lost+found" {
            return Ok(());
        }
    }
    for path in ours {
        // Who may write here could have put a link to anything in its place.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&path);
        if let Ok(file) = file {
            let metadata = file.metadata().on("look at", &path)?;
            if metadata.is_file() && metadata.nlink() == 1 && metadata.uid() == 0 {
                account.own_opened(&file, &path)?;
            }
        }
    }
    if opened.metadata().on("look at", directory)?.uid() == 0 {
        account.own_opened(&opened, directory)?;
    }
    Ok(())
}

/// Whether the state can be noted at all. A disk that is full stops no work, now as later.
fn probe(directory: &Path) -> Result<()> {
    let path = directory.join("probe");
    let written = durable::write_file(&path, b"", 0o600);
    let _ = std::fs::remove_file(&path);
    match written {
        Err(error) if is_full(&error) => {
            tracing::warn!("{} cannot be written: {error}", directory.display());
            Ok(())
        }
        written => written.on("write", &path).map_err(|error| {
            Error::failed("the state directory cannot be used")
                .because(error)
                .hint(HINT)
        }),
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn owner(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|metadata| metadata.uid())
}

/// One daemon at a time has the state directory. The directory itself is locked: that takes no
/// space on its disk.
fn lock(directory: &Path) -> Result<File> {
    let lock = File::open(directory).on("open", directory)?;
    let mut tried = lock.try_lock();
    // `seawall schedule` holds it for a moment, to see whether a daemon runs.
    for _ in 0..20 {
        if !matches!(tried, Err(std::fs::TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        tried = lock.try_lock();
    }
    match tried {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::refused("another daemon uses this state directory")
                .at(directory.display())
                .hint("stop it first, or give this one a daemon.state_directory of its own"))
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(Error::failed(format!("cannot lock {}", directory.display())).because(error))
        }
    }
}
