//! Restoring a base backup into a data directory that is ready to start.
//!
//! Nothing is written outside the target, its tablespaces and its WAL directory. `pg_control`
//! is written last, after everything else is durable: a restore that was killed leaves a
//! directory that does not start, and the same command completes it.

mod configuration;
mod delta;
mod engine;
mod floor;
mod host;
mod manifest;
mod objects;
mod only;
mod settings;
pub mod target;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::control::ControlFile;
use seawall::postgres::layout;
use seawall::postgres::primary::Primary;
use seawall::postgres::recovery::{RecoveryAction, RecoveryTarget};
use seawall::progress::Progress;
use seawall::repository::catalogue::{Catalogue, Plan, Request};
use seawall::repository::commit::LostLink;
use seawall::repository::keys::BackupId;
use seawall::repository::leases::{Held, Work};
use seawall::repository::{Repository, System};

use engine::Means;
use manifest::NewManifest;
use only::Only;
use target::{Layout, Target};

pub use host::Differences;
pub use only::LeftOut;
pub use settings::{Archive, RestoreCommand};

/// What a restore needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Where the data directory is written.
    pub to: PathBuf,
    /// Where to stop.
    pub request: Request,
    /// What the server does at the target.
    pub action: RecoveryAction,
    /// Make a standby instead of recovering to a target.
    pub standby: bool,
    /// What a standby is told of its primary.
    pub primary: Primary,
    /// What the restored cluster does about archiving.
    pub archive: Archive,
    /// Keep what `ALTER SYSTEM` set on the source. A drill has settings of its own.
    pub keep_source_settings: bool,
    /// Where tablespaces go.
    pub tablespaces: target::Tablespaces,
    /// The databases to restore, by name or oid; none: all.
    pub only_databases: Vec<String>,
    /// Where pg_wal lies instead of inside the data directory.
    pub waldir: Option<PathBuf>,
    /// Replace a cluster that is there and not running.
    pub force: bool,
    /// Bring a cluster of this system that is there and not running to the backup's state, by
    /// rewriting only what differs.
    pub delta: bool,
    /// Threads that fetch and write.
    pub jobs: usize,
    /// How the restored server fetches WAL.
    pub restore_command: RestoreCommand,
    /// Where PostgreSQL's programs lie on this host, if that is configured.
    pub bin_directory: Option<PathBuf>,
}

/// How long a part of the restore took, and what it moved.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Phase {
    /// Its name: plan, provision, fetch, write, configure, sync.
    pub name: &'static str,
    /// When it began, since the restore did.
    #[serde(serialize_with = "as_seconds", rename = "began_seconds")]
    pub began: Duration,
    /// How long it took. Fetching and writing overlap.
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub duration: Duration,
    /// Bytes that it moved, where that means something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of phases that overlap: the time that threads spent on it, all together. What is left
    /// of their time is decompressing and hashing.
    #[serde(skip)]
    pub busy: Option<Duration>,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// A data directory that is ready to start.
pub struct Restored {
    /// How it was reached.
    pub plan: Plan,
    /// How long each part took.
    pub phases: Vec<Phase>,
    /// Regular files written.
    pub files: u64,
    /// Regular files that were right already, and their bytes; only with `delta`.
    pub kept_files: u64,
    /// Bytes of those files.
    pub kept_bytes: u64,
    /// Bytes of those files.
    pub plain_bytes: u64,
    /// Bytes fetched from the repository, WAL not included.
    pub fetched_bytes: u64,
    /// The databases that were not restored, where only some were.
    pub left_out: Option<LeftOut>,
    /// The SQL that releases archiving where it is on hold.
    pub release: Option<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
    /// What is missing or different on this host; nothing for a restore that leaves the
    /// source's settings out.
    pub host: Differences,
    /// What the source's configuration says, as far as the backup holds it.
    pub source_settings: BTreeMap<String, String>,
    /// Says that the backup is in use. Recovery goes on needing WAL behind it after the restore:
    /// whoever called decides how long.
    pub lease: Option<Held>,
}

/// The system of `cluster` in `repository` that a restore means. After pg_upgrade there are
/// two: the one that holds the backup, where one is named; the newest with a backup that ended
/// before the target, where that is a time, or that has the restore point on record; else the
/// newest.
pub async fn system_for(
    repository: &Repository,
    cluster: &str,
    request: &Request,
) -> Result<System> {
    repository.record().await?;
    let mut systems = repository.systems(cluster).await?;
    let count = systems.len();
    let Some((newest, _)) = systems.pop() else {
        return Err(Error::unreachable(format!("there is no cluster {cluster}"))
            .at(repository.place())
            .hint("`seawall list` shows what the repository holds"));
    };
    if systems.is_empty() || holds(&newest, request).await? {
        return Ok(chosen(newest, count, cluster));
    }
    for (system, _) in systems.into_iter().rev() {
        if holds(&system, request).await? {
            return Ok(chosen(system, count, cluster));
        }
    }
    Ok(chosen(newest, count, cluster))
}

fn chosen(system: System, of: usize, cluster: &str) -> System {
    if of > 1 {
        tracing::warn!(
            "the repository holds {of} systems called {cluster}, as after pg_upgrade; this is {}; choose another by one of its backups, with --backup",
            system.id()
        );
    }
    system
}

/// Whether the system has what the request names.
async fn holds(system: &System, request: &Request) -> Result<bool> {
    if let Some(id) = &request.backup {
        return Ok(system.marker(id).await?.is_some());
    }
    match &request.target {
        RecoveryTarget::Time(time) => {
            let catalogue = Catalogue::load(system).await?;
            let mut backups = catalogue.backups.iter();
            Ok(backups.any(|backup| backup.stop_time <= *time))
        }
        RecoveryTarget::Name(name) => {
            let (points, _) = system.points().await?;
            Ok(points.iter().any(|point| point.name == *name))
        }
        // LSNs, transaction ids and timelines begin anew: nothing tells them apart.
        _ => Ok(false),
    }
}

/// Restores into `settings.to`.
///
/// # Errors
/// Exit code 4 where a directory is in use or could be overwritten, 5 where nothing reaches
/// the target; in both cases nothing was touched.
///
/// A lease names the backup and all that it is on top of from the moment that it is chosen: none
/// of them goes while it is read.
pub async fn restore(system: &System, settings: &Settings) -> Result<Restored> {
    let clock = Clock::start();
    let catalogue = Catalogue::load(system).await?;
    let mut plan = catalogue.plan(&settings.request).await?;
    if settings.delta {
        delta::check_order(&plan.backup)?;
    }
    let layout = Layout::of(&plan.backup, settings)?;
    let only = Only::of(&settings.only_databases, &plan.backup)?;
    let lease = system
        .repository()
        .lease(
            system.cluster(),
            Work::Restore,
            Some(system.id()),
            plan.chain().iter().map(|backup| backup.id.clone()),
        )
        .await;
    let still_there = look_again(system, &mut plan).await;
    let written = match still_there {
        Ok(()) => write(system, settings, plan, layout, only, clock).await,
        Err(error) => Err(error),
    };
    match written {
        Ok(mut restored) => {
            restored.lease = Some(lease);
            Ok(restored)
        }
        Err(error) => {
            lease.release().await;
            Err(error)
        }
    }
}

/// Behind the lease: what is gone by now nobody will bring back, and what is about to go may
/// have been looked at before the lease was there.
async fn look_again(system: &System, plan: &mut Plan) -> Result<()> {
    let ids: Vec<BackupId> = plan
        .chain()
        .iter()
        .map(|backup| backup.id.clone())
        .collect();
    match system.lost_link(&ids).await? {
        None => {}
        Some(LostLink::Gone(id)) => {
            return Err(
                Error::failed(format!("backup {id} was deleted a moment ago"))
                    .at(system.place())
                    .hint("nothing was touched: run the same command again"),
            );
        }
        Some(doomed) => plan.warnings.push(format!(
            "{doomed}; this restore keeps it from that, unless it is going at this moment: pin what is still needed"
        )),
    }
    Ok(())
}

/// Writes what was planned.
async fn write(
    system: &System,
    settings: &Settings,
    plan: Plan,
    layout: Layout,
    only: Option<Only>,
    mut clock: Clock,
) -> Result<Restored> {
    clock.end("plan", None);

    let target = Target::prepare(layout, system, &plan.backup, settings)?;
    clock.end("provision", None);

    if settings.delta {
        let tablespaces = target.tablespace_paths(&plan.backup);
        delta::remove_foreign(system, &plan.backup, target.root(), tablespaces).await?;
    }
    let chain = plan.chain();
    let only = only.map(Arc::new);
    // The stored manifest tells of files that become others here.
    let is_stored = chain.len() == 1 && only.is_none();
    let manifest = (!is_stored).then(|| NewManifest::begin(&plan.backup, target.root()));
    let manifest = manifest.transpose()?.map(Arc::new);
    let progress = Progress::new("restore", Some(plan.backup.restored_bytes()));
    let means = Means {
        root: target.root().to_owned(),
        jobs: settings.jobs,
        delta: settings.delta,
        manifest: manifest.clone(),
        only: only.clone(),
        progress: progress.clone(),
    };
    let written = engine::write_all(system, &chain, means).await;
    progress.clear();
    let written = written?;
    clock.end_both(&written);

    let mut warnings = plan.warnings.clone();
    let added = configuration::restore(system, &plan.backup, target.root(), &mut warnings).await?;
    match manifest {
        Some(manifest) => manifest.finish(system, &plan.backup, &added).await?,
        None => manifest::write(system, &plan.backup, target.root(), added).await?,
    }
    let control = ControlFile::parse(&written.control)?;
    let too_low = floor::too_low(
        target.root(),
        &plan.backup,
        &control,
        settings.keep_source_settings,
    );
    for setting in &too_low {
        warnings.push(format!(
            "{} is {} in the configuration and was {} on the source: PostgreSQL would not recover with less, so postgresql.auto.conf sets it",
            setting.name, setting.found, setting.needed
        ));
    }
    let source_settings = floor::assigned(target.root(), &plan.backup);
    let release = settings::write(target.root(), &plan, settings, &too_low)?;
    clock.end("configure", None);

    target.sync()?;
    // The last file: with it the directory starts, and not before.
    let control = target.root().join(layout::CONTROL_FILE);
    durable::write_file(&control, &written.control, written.control_mode).on("write", &control)?;
    target.finish()?;
    clock.end("sync", None);

    for slot in &plan.backup.logical_slots {
        warnings.push(format!(
            "the logical replication slot {slot} is not restored: its subscriber must be set up anew"
        ));
    }
    let host = match settings.keep_source_settings {
        true => {
            let bin_directory = settings.bin_directory.as_deref();
            Differences::find(&plan.backup, &source_settings, bin_directory)
        }
        false => Differences::default(),
    };
    warnings.extend(host.warnings());
    let left_out = only.map(|only| only.left_out(&plan.backup));
    warnings.extend(left_out.as_ref().and_then(LeftOut::warning));
    Ok(Restored {
        phases: clock.phases,
        files: written.files - left_out.as_ref().map_or(0, |left_out| left_out.files),
        left_out,
        kept_files: written.kept_files,
        kept_bytes: written.kept_bytes,
        plain_bytes: written.plain_bytes,
        fetched_bytes: written.fetched_bytes,
        release,
        warnings,
        host,
        source_settings,
        plan,
        lease: None,
    })
}

/// Measures one phase after the other.
struct Clock {
    start: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            phases: Vec::new(),
        }
    }

    fn end(&mut self, name: &'static str, bytes: Option<u64>) {
        let now = Instant::now();
        self.phases.push(Phase {
            name,
            began: self.last - self.start,
            duration: now - self.last,
            bytes,
            busy: None,
        });
        self.last = now;
    }

    /// Ends the two phases that overlap: while one pack arrives, files of another are written.
    fn end_both(&mut self, written: &engine::Written) {
        let now = Instant::now();
        let parts = [
            ("fetch", written.fetched_bytes, written.waited),
            ("write", written.plain_bytes, written.wrote),
        ];
        for (name, bytes, busy) in parts {
            self.phases.push(Phase {
                name,
                began: self.last - self.start,
                duration: now - self.last,
                bytes: Some(bytes),
                busy: Some(busy),
            });
        }
        self.last = now;
    }
}
