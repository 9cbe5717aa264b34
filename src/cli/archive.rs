//! `seawall-archive`, the archive_command. It speaks to PostgreSQL: 0 means durable in as many
//! push targets as `archive_ack` asks for, 1 to 125 that it will be tried again, and nothing
//! else ever comes out, for PostgreSQL hides what ends by a signal or with more than 125.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::sync::watch;

use super::Common;
use crate::config::{ClusterConfig, Config};
use crate::error::{Exit, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::DataDirectory;
use crate::postgres::{SegmentName, WalFileName};
use crate::wal::ahead::spool::{Claim, Spool, Whose};
use crate::wal::ahead::{self, Ahead};
use crate::wal::identity::Identity;
use crate::wal::missing::Missing;
use crate::wal::push::{Engine, WalFile};

/// The exit code after a panic: a failure that PostgreSQL counts and tries again.
pub const PANICKED: u8 = 120;

/// A segment that is being archived ahead is waited for so long before we do it ourselves.
const PATIENCE: Duration = Duration::from_secs(30);

/// Archive one WAL file into every repository: PostgreSQL's archive_command
///
/// Set archive_command = '/usr/bin/seawall-archive %p'. Exit code 0: the file is durable in
/// every push target, or in as many as archive_ack asks for. Exit code 1 to 125: it is not,
/// and PostgreSQL tries again. Where more segments wait, a second process archives them ahead
/// of PostgreSQL's asking and ends by itself; `ahead = 0` below `[archive]` turns that off.
#[derive(Debug, Parser)]
#[command(name = "seawall-archive", version, max_term_width = 100)]
pub struct ArchiveArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Archive what is ready behind this file, not the file itself
    #[arg(long, hide = true)]
    pub work_ahead: bool,
    /// The file, relative to the data directory, as PostgreSQL's %p gives it
    #[arg(value_name = "%p")]
    pub path: PathBuf,
}

/// As root: becomes the owner of the data directory, so that the server's own archive_command
/// may read and extend what this stores. Call it before the runtime starts.
pub fn become_owner(args: &ArchiveArgs) -> Result<()> {
    if !crate::privileges::is_root() {
        return Ok(());
    }
    let config = args.common.load()?;
    let (_, cluster) = config.cluster(args.common.cluster.as_deref())?;
    super::become_owner_of(&data_directory(&args.path, cluster)?)
}

/// Archives the file, or what is behind it.
pub fn run(args: &ArchiveArgs) -> Result<Exit> {
    if args.work_ahead {
        super::detach();
    }
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let data_directory = data_directory(&args.path, cluster_config)?;
    let control = ControlFile::read(&data_directory)?;
    let data = DataDirectory::at(&data_directory);
    let whose = Whose {
        cluster: cluster.to_owned(),
        system_id: control.system_id,
        configuration: config.digest,
    };
    let call = Call {
        missing: Missing::beside(&data.pg_wal()),
        spool: Spool::beside(&data.pg_wal()),
        config: &config,
        whose,
        control,
        data,
    };
    match args.work_ahead {
        true => call.work_ahead(&args.path),
        false => call.archive(&args.path),
    }
}

/// One call of the archive_command.
struct Call<'a> {
    config: &'a Config,
    whose: Whose,
    control: ControlFile,
    data: DataDirectory,
    spool: Spool,
    missing: Missing,
}

impl Call<'_> {
    fn archive(&self, path: &Path) -> Result<Exit> {
        let file = WalFile::open(path, &self.control)?;
        let name = file.name();
        // Working ahead concerns the segments that PostgreSQL itself asks for.
        let asked = match name {
            WalFileName::Segment(segment) if self.data.is_ready(segment) => Some(segment),
            _ => None,
        };
        let ahead = asked.filter(|_| self.config.archive.ahead > 0);
        let mut claim = ahead.and_then(|segment| self.claim(segment));
        if let Some(claim) = &mut claim
            && let Some(lacking) = self.done_ahead(path, claim)
        {
            tracing::debug!("{name}: archived ahead");
            self.note(name, &lacking);
            if let Some(segment) = asked {
                self.start_ahead(segment);
            }
            return Ok(Exit::Done);
        }
        // What is missing and what is ready behind goes its way while we do our part.
        if let Some(segment) = asked {
            self.start_ahead(segment);
        }
        let engine = Arc::new(self.engine()?);
        let within = asked.filter(|_| self.data.adopts_orphans());
        let pushed = super::run_on_one_thread(async {
            let (enough, told) = watch::channel(false);
            let push = async {
                let pushed = engine.push(file).await;
                enough.send_replace(true);
                pushed
            };
            match within {
                Some(segment) => {
                    let ahead = self.ahead(&engine).work(segment, told);
                    tokio::join!(push, ahead).0
                }
                None => push.await,
            }
        })?;
        if let Some(claim) = claim {
            claim.remove();
        }
        self.note(name, &pushed.lacking);
        Ok(Exit::Done)
    }

    /// Takes the segment for ourselves, waiting for the process that archives it ahead. A
    /// spool that cannot be written is no reason not to archive.
    fn claim(&self, segment: SegmentName) -> Option<Claim> {
        self.spool.claim(segment, PATIENCE).unwrap_or_else(|error| {
            tracing::debug!("no spool in {}: {error}", self.spool.directory().display());
            None
        })
    }

    /// Whether the file is already where it must be. Then the repositories that lack it.
    fn done_ahead(&self, path: &Path, claim: &mut Claim) -> Option<Vec<String>> {
        let record = claim.record(&self.whose, &Identity::of(path).ok()?)?;
        let held = |name: &str| record.held_by.iter().any(|held| held == name);
        let (held, lacking): (Vec<_>, Vec<_>) = self.repositories().partition(|name| held(name));
        let needed = self.config.archive_ack.needed(self.config.repository.len());
        (held.len() >= needed).then(|| lacking.into_iter().map(str::to_owned).collect())
    }

    /// Notes what other repositories lack.
    fn note(&self, name: WalFileName, lacking: &[String]) {
        for repository in lacking {
            let trouble = self.missing.trouble(repository).unwrap_or_default();
            tracing::warn!("{name} is archived without repository {repository}. {trouble}");
            if let Err(error) = self.missing.note(repository, name) {
                tracing::warn!("cannot note that; `seawall check` finds it: {error}");
            }
        }
    }

    /// Starts the process that works ahead if there is work and nobody at it.
    fn start_ahead(&self, asked: SegmentName) {
        if self.data.adopts_orphans() {
            return;
        }
        let size = self.control.segment_size;
        let next = asked.number(size).map(|number| {
            let next = SegmentName::new(asked.timeline, number + 1, size);
            self.config.archive.ahead > 0 && self.data.is_ready(next)
        });
        let lacking = self.missing.due(self.repositories()).next().is_some();
        if !next.unwrap_or(false) && !lacking {
            return;
        }
        match self.spool.worker_lock() {
            // Released at once: the process takes it for itself.
            Ok(Some(lock)) => drop(lock),
            Ok(None) => {
                let _ = self.spool.tell(asked);
                return;
            }
            Err(_) => return,
        }
        let started = super::worker("seawall-archive")
            .arg("--work-ahead")
            .arg("--config")
            .arg(&self.config.path)
            .args(["--cluster", &self.whose.cluster])
            .arg(Path::new("pg_wal").join(asked.to_string()))
            .current_dir(self.data.path())
            .spawn();
        if let Err(error) = started {
            // It is no harm: this call does its own part.
            tracing::debug!("cannot start to work ahead: {error}");
        }
    }

    /// The process that works ahead.
    fn work_ahead(&self, path: &Path) -> Result<Exit> {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let asked: SegmentName = name.parse()?;
        // Held until the end.
        let Some(_lock) = ahead::begin(&self.data, self.config.archive.nice)? else {
            return Ok(Exit::Done);
        };
        let engine = Arc::new(self.engine()?);
        super::run_on_one_thread(async {
            let (_never, told) = watch::channel(false);
            self.ahead(&engine).work(asked, told).await;
            Ok(Exit::Done)
        })
    }

    fn repositories(&self) -> impl Iterator<Item = &str> {
        self.config.repository.iter().map(|r| r.name.as_str())
    }

    fn engine(&self) -> Result<Engine> {
        // A repository that is behind is left to the process that works ahead, if there is one.
        let lagging = match self.data.adopts_orphans() {
            true => BTreeSet::new(),
            false => {
                let lacking = self.missing.lacking(self.repositories());
                lacking.map(str::to_owned).collect()
            }
        };
        Engine::open(self.config, &self.whose.cluster, &self.control, lagging)
    }

    fn ahead(&self, engine: &Arc<Engine>) -> Arc<Ahead> {
        Ahead::new(
            Arc::clone(engine),
            self.config,
            self.data.clone(),
            self.whose.clone(),
            self.control.clone(),
        )
    }
}

/// The data directory that the file belongs to: what holds its pg_wal, as PostgreSQL's
/// working directory does, otherwise the configured one.
fn data_directory(path: &Path, cluster: &ClusterConfig) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let holder = absolute.parent().and_then(Path::parent);
    let holder = holder.filter(|directory| {
        directory
            .join(crate::postgres::layout::CONTROL_FILE)
            .is_file()
    });
    let found = holder.map_or_else(|| cluster.data_directory(), Ok)?;
    Ok(found.to_owned())
}
