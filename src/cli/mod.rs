//! Every program's arguments and exit codes, one file a verb, so that help, man pages and
//! completions know them all. Nothing below the programs uses this module.

pub mod archive;
pub mod backup;
pub mod check;
pub mod copy;
pub mod daemon;
pub mod drill;
pub mod expire;
pub mod fetch;
pub mod heartbeat;
pub mod init;
pub mod list;
mod logging;
pub mod merge;
mod output;
pub mod pin;
pub mod restore;
pub mod restore_point;
pub mod schedule;
pub mod siblings;
pub mod status;
pub mod verify;
pub mod wal;
pub mod wal_resolve;
pub mod wal_verify;

use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, Parser, Subcommand};

pub use logging::{report, say, start_logging};

use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Exit, Result};
use crate::postgres::sql::Client;
use crate::privileges::Account;

/// Backup, WAL archiving and point-in-time recovery for PostgreSQL that proves itself by
/// restoring.
#[derive(Debug, Parser)]
#[command(
    name = "seawall",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Seawall {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs of `seawall`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make the repositories, check the server's settings, print what postgresql.conf lacks
    Init(init::InitArgs),
    /// Examine settings, archiving, gaps, stores, clock, and say what to do about each finding
    Check(check::CheckArgs),
    /// Take a base backup
    Backup(backup::BackupArgs),
    /// Show up to which moment one can recover, what waits, what is missing, what was proven
    Status(status::StatusArgs),
    /// Show backups, WAL, gaps, restore points and what one can recover to
    List(list::ListArgs),
    /// Bring repositories that are copies what their sources hold, once or continuously
    Copy(copy::CopyArgs),
    /// Delete backups and WAL that no rule keeps; or say what would go, and why the rest stays
    Expire(expire::ExpireArgs),
    /// Make a full backup out of a chain of incremental ones, inside the repository
    Merge(merge::MergeArgs),
    /// Keep a backup whatever the rules say
    Pin(pin::PinArgs),
    /// Leave a backup to the rules again
    Unpin(pin::UnpinArgs),
    /// Make a named restore point and record it
    RestorePoint(restore_point::RestorePointArgs),
    /// Write a data directory that is ready to start (runs seawall-restore)
    Restore(restore::RestoreArgs),
    /// Restore into a scratch instance, measure, verify, report (runs seawall-drill)
    Drill(Box<drill::DrillArgs>),
    /// Do everything on its schedule, for all clusters, until it is stopped
    Daemon(daemon::DaemonArgs),
    /// Show the next runs of everything, and what came of the last ones
    Schedule(schedule::ScheduleArgs),
    /// Write a tiny message into the WAL, so that the newest recoverable moment is known
    Heartbeat(heartbeat::HeartbeatArgs),
    /// Read and check stored base backups, without PostgreSQL
    Verify(verify::VerifyArgs),
    /// Verify archived WAL, and settle conflicts in it
    Wal(wal::WalArgs),
    /// Archive one WAL file (runs seawall-archive)
    Archive(archive::ArchiveArgs),
    /// Fetch one WAL file (runs seawall-fetch)
    Fetch(fetch::FetchArgs),
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]
    #[arg(long, value_name = "FILE", global = false)]
    pub config: Option<PathBuf>,
    /// The cluster, where the configuration has several
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// What to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

impl Common {
    /// Reads the configuration.
    pub fn load(&self) -> Result<Config> {
        Config::load(self.config.as_deref())
    }
}

/// Objects and files of ours are for PostgreSQL's user and its group only.
pub fn set_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
}

/// This program once more, to be started as a worker that outlives us: see [`detach`]. It holds
/// none of our files, so that nobody waits for it.
fn worker(program: &str) -> Command {
    // Also where the file was replaced by a newer version meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(program)
        // Measured: glibc's arenas, one a thread, double what the work itself takes.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Makes this process a worker that outlives the server's command which started it: signals
/// for the server and all that it started are none for it, and it keeps none of the server's
/// files open. Up to version 15 PostgreSQL's commands inherit those, and who keeps them keeps
/// the space of every table that is dropped meanwhile.
fn detach() {
    let _ = nix::unistd::setsid();
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inherited: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    // The directory that was read is among them, and closed already.
    for number in inherited {
        let _ = nix::unistd::close(number);
    }
}

/// Runs a verb to its end on a runtime of its own; Ctrl-C, SIGTERM and SIGHUP give it up.
pub fn run<F: Future<Output = Result<Exit>>>(work: F) -> Exit {
    run_on_all_processors(async {
        tokio::select! {
            done = work => done,
            () = interrupted() => {
                say("error: interrupted");
                Ok(Exit::Failed)
            }
        }
    })
}

/// The same for a verb that sees to signals itself.
fn run_on_all_processors<F: Future<Output = Result<Exit>>>(work: F) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&Error::failed("cannot start the runtime").because(error));
        }
    };
    let exit = runtime.block_on(work);
    let exit = exit.unwrap_or_else(|error| report(&error));
    // Threads that still compress must not delay the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    exit
}

/// Runs what PostgreSQL waits for: on one thread for the stores, and tokio's blocking threads for
/// compression and files. A start costs less than with a pool.
fn run_on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("cannot start the runtime").because(error))?;
    let result = runtime.block_on(work);
    // A disk that hangs must not keep us: what is not finished does not count.
    runtime.shutdown_background();
    result
}

/// Waits for Ctrl-C, SIGTERM, the end of the terminal, or of the daemon that started this.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let orphaned = orphaned();
    match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) {
        (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                () = orphaned => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Waits for the death of the daemon that supervises this process: it holds the other end of
/// standard input. What such a process starts itself has another parent, and no supervisor.
async fn orphaned() {
    let supervisor = std::env::var(crate::daemon::child::SUPERVISOR).ok();
    let parent = nix::unistd::getppid().to_string();
    if supervisor != Some(parent) {
        return std::future::pending().await;
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: the runtime would wait at its end for a read that has none.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// The whole of `main` for a program whose work is `verb`: a panic is an ordinary failure.
pub fn main(verb: impl FnOnce() -> Exit + std::panic::UnwindSafe) -> ExitCode {
    set_umask();
    std::panic::catch_unwind(verb)
        .unwrap_or(Exit::Failed)
        .into()
}

/// Connects to the cluster's server.
pub(crate) async fn connect(cluster: &ClusterConfig) -> Result<Client> {
    Client::of_cluster(cluster).await
}

/// As root: becomes the owner of the data directory, so that what is written belongs to
/// PostgreSQL's user. Call it before the runtime starts.
pub(crate) fn become_cluster_owner(cluster: &ClusterConfig) -> Result<()> {
    match &cluster.data_directory {
        Some(data_directory) => become_owner_of(data_directory),
        None => Ok(()),
    }
}

/// The same for the owner of any data directory.
pub(crate) fn become_owner_of(data_directory: &std::path::Path) -> Result<()> {
    if crate::privileges::is_root()
        && let Some(owner) = Account::owner_of(data_directory)
    {
        owner.become_it()?;
    }
    Ok(())
}
