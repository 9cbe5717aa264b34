//! Base backups: read the server's files, write packs, wait for the WAL, commit.
//!
//! The order of writes is the repository's: data and index, configuration, manifest; the
//! backup's WAL confirmed present and the objects listed once more; then the marker; then the
//! same look again, and the marker is withdrawn if something is gone. Whatever ends this
//! early leaves no marker, and so no backup.

mod configuration;
mod ending;
mod file;
pub mod incremental;
mod last;
mod manifest;
pub mod merge;
mod packer;
mod pages;
pub mod remote;
mod resume;
mod scan;
mod server;
mod standby;
mod sums;
pub mod verify;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::Compression;
use crate::error::{Error, IoContext, Result};
use crate::postgres::Lsn;
use crate::postgres::connection::ConnectionString;
use crate::postgres::control::ControlFile;
use crate::postgres::label::{self, BackupLabel};
use crate::postgres::layout;
use crate::postgres::manifest::WalRange;
use crate::postgres::sql::Client;
use crate::progress::Progress;
use crate::repository::chain::members::Members;
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::leases::Work;
use crate::repository::marker::{Marker, Parent};
use crate::repository::waiter::Waiter;
use crate::repository::{Repository, System};

use ending::Ending;
use incremental::parent::{Base, Choice};
use incremental::{Baseline, Comparison, Rule};
use manifest::StreamedManifest;
use packer::Packer;
use packer::tree::TreePacker;
use pages::Pages;
use resume::Earlier;
use scan::Tree;
use server::{Places, Source};
use sums::Sums;

/// What a backup needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Whether to take a full or an incremental backup. Where there is nothing that an
    /// incremental one can be taken on top of, a full one is taken.
    pub kind: BackupKind,
    /// The backup that an incremental one is taken on top of, and no other.
    pub parent: Option<BackupId>,
    /// The data directory on this host; not looked at where the server sends its files.
    pub data_directory: std::path::PathBuf,
    /// How objects are compressed.
    pub compression: Compression,
    /// How many packs are made at once.
    pub jobs: usize,
    /// How long to wait for the backup's own WAL.
    pub wal_timeout: Duration,
    /// Where the server is a standby: its primary.
    pub primary: Option<ConnectionString>,
    /// How long a server that sends a backup may be silent.
    pub server_timeout: Duration,
    /// Ask for an immediate checkpoint instead of a spread one.
    pub fast: bool,
    /// The label that PostgreSQL writes into backup_label.
    pub label: String,
    /// Take over what an interrupted backup has stored, as far as it is the same bytes.
    pub resume: bool,
}

/// A backup that is complete.
#[derive(Debug, serde::Serialize)]
pub struct Taken {
    /// What its marker says.
    #[serde(flatten)]
    pub marker: Marker,
    /// Why it is a full one, where an incremental one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_because: Option<String>,
}

/// Takes a base backup from the server's own files.
///
/// After `Ok` the backup is complete in the repository, its WAL included. After an error, and
/// after a kill at any point, there is no backup: objects without a marker count as nothing.
///
/// # Errors
/// Among others, with exit code 4: the [`parent`](Settings::parent) that is named is there, and
/// cannot be one.
pub async fn take(settings: &Settings, client: &Client, repository: &Repository) -> Result<Taken> {
    let source = server::inspect(client, &settings.data_directory).await?;
    if source.answers.standby {
        standby::check_primary(settings.primary.as_ref(), source.control.system_id).await?;
    }
    let system = repository.system(&settings.cluster, source.control.system_id);
    system
        .register(source.control.major, source.control.segment_size)
        .await?;
    let swept = repository
        .store()
        .sweep_leftovers(&settings.cluster, Duration::from_secs(86_400))
        .await?;
    if swept > 0 {
        tracing::info!("removed {swept} unfinished files of writers that died");
    }

    let choice = match settings.kind {
        BackupKind::Full => Choice::Full { because: None },
        BackupKind::Incremental => {
            incremental::parent::choose(client, &system, &source.control, settings).await?
        }
    };
    let (base, full_because) = match choice {
        Choice::On(base) => (Some(*base), None),
        Choice::Full { because } => (None, because),
    };
    let kind = match &base {
        Some(_) => BackupKind::Incremental,
        None => BackupKind::Full,
    };
    let id = BackupId::new(kind, Timestamp::now());
    // An incremental backup has little to take over, and another parent's would be wrong.
    let earlier = match settings.resume && base.is_none() {
        true => Earlier::find(&system, settings.compression).await,
        false => Earlier::default(),
    };
    // Until it is committed, nothing but this says that the directory and its WAL are in use,
    // and so are those that it is taken on top of, or that it takes something over from.
    let used = base.iter().flat_map(|base| &base.chain);
    let used = used.chain(&earlier.backups).chain([&id]).cloned();
    let lease = repository
        .lease(&settings.cluster, Work::Backup, Some(system.id()), used)
        .await;
    let done = match &base {
        Some(base) => base.still_there(&system).await,
        None => Ok(()),
    };
    let done = match done {
        Ok(()) => run(settings, client, &system, &source, id, base, earlier).await,
        Err(error) => Err(error),
    };
    lease.release().await;
    let marker = done?;
    Ok(Taken {
        marker,
        full_because,
    })
}

/// Takes the backup under its name, from the start to the marker.
async fn run(
    settings: &Settings,
    client: &Client,
    system: &System,
    source: &Source,
    id: BackupId,
    base: Option<Base>,
    earlier: Earlier,
) -> Result<Marker> {
    let repository = system.repository();
    tracing::info!("backup {id} begins: waiting for a checkpoint");
    let start_time = client.clock().await?;
    let places = Places::look(client).await?;
    let start = client.backup_start(&settings.label, settings.fast).await?;
    let pages = Pages {
        block_size: source.control.block_size,
        blocks_per_file: source.control.relation_segment_blocks,
        checksums: source.control.data_checksums,
        backup_start: start,
    };
    let (_stop, waiter) = Waiter::new();
    let baseline = match &base {
        Some(base) => Some(baseline(settings, client, system, source, base, start, &waiter).await?),
        None => None,
    };
    let change_rule = baseline
        .as_ref()
        .map(|baseline| baseline.comparison.rule.name());
    let progress = Progress::new("backup", None);
    for id in &earlier.backups {
        tracing::info!("backup {id} was interrupted: what is still the same is taken over");
    }
    let packer = Packer::new(
        repository.store(),
        system.keys().backup(&id),
        settings.compression,
        progress.clone(),
        waiter,
        settings.jobs,
    );
    let tree_packer = TreePacker {
        packer: packer.clone(),
        pages,
        earlier,
    };
    let manifest = StreamedManifest::new(
        repository.store(),
        &system.keys().backup(&id),
        settings.compression,
        source.control.major,
        source.control.system_id,
    )?;
    let tree = Tree {
        data_directory: settings.data_directory.clone(),
        tablespace_version: layout::tablespace_version_directory(
            source.control.major,
            source.control.catalog_version,
        ),
        tablespaces: scan::tablespace_links(&settings.data_directory)?,
    };
    let scanned = tree.tablespaces.clone();
    let (mut sums, mut manifest) =
        pack_everything(tree_packer, tree, settings.jobs, baseline, manifest).await?;

    let (packs, bytes) = sums.taken_over;
    if packs > 0 {
        tracing::info!("{packs} packs with {bytes} bytes were taken over");
    }

    places.check_unmoved(client).await?;
    // Last of all, and before the stop, as PostgreSQL's own base backup does.
    let (control, control_bytes) = ControlFile::read_with_bytes(&settings.data_directory)?;
    let stop = client.backup_stop().await?;
    let backup_label = BackupLabel::parse(&stop.label)?;
    if backup_label.from_standby {
        standby::same_timeline(backup_label.timeline, client.current_timeline().await?)?;
    }
    if let Some(base) = &base
        && backup_label.timeline != base.history.timeline
    {
        return Err(Error::failed(format!(
            "the server went from timeline {} to {} while the backup began",
            base.history.timeline, backup_label.timeline
        ))
        .hint("take the backup again"));
    }
    let parent = base.map(|base| base.parent);
    let label_bytes = match &parent {
        Some(parent) => label::with_parent(&stop.label, parent.timeline, parent.start_lsn),
        None => stop.label.clone(),
    };
    let tablespaces = ending::tablespaces(&stop.tablespace_map)?;
    let is_mapped = |name: &OsString| {
        let oid = name.to_str().and_then(|name| name.parse().ok());
        oid.is_some_and(|oid: u32| tablespaces.iter().any(|mapped| mapped.oid == oid))
    };
    if let Some(young) = scanned.iter().find(|name| !is_mapped(name)) {
        return Err(Error::failed(format!(
            "the tablespace {} was created while the backup began",
            young.display()
        ))
        .hint("take the backup again"));
    }

    let range = WalRange {
        timeline: backup_label.timeline,
        start: backup_label.start,
        end: stop.lsn,
    };
    let files =
        configuration::outside_files(&source.answers.configuration, &settings.data_directory);
    let last = {
        let (packer, stop, data) = (
            packer.clone(),
            stop.clone(),
            settings.data_directory.clone(),
        );
        blocking(move || {
            let map = &stop.tablespace_map;
            let pack = last::of_files(&packer, &data, &control_bytes, &label_bytes, map)?;
            manifest.add(&pack.files)?;
            let (configuration, paths) = configuration::store(&packer, &files)?;
            let manifest = manifest.finish(range)?;
            Ok((pack, configuration, paths, manifest))
        })
        .await?
    };
    let (pack, configuration, configuration_files, manifest) = last;
    progress.clear();
    sums.add_checked(&pack, control.block_size);
    sums.objects.extend(configuration);
    sums.objects.push(manifest);

    let parent = parent.map(|parent| Parent {
        id: parent.id,
        timeline: parent.timeline,
        start_lsn: parent.start_lsn,
    });
    let ending = Ending {
        id,
        parent,
        change_rule,
        in_order: true,
        control: &control,
        had_checksums: source.control.data_checksums,
        answers: &source.answers,
        label: &backup_label,
        start_time,
        stop_lsn: stop.lsn,
        stop_time: stop.stop_time,
        next_xid: stop.next_xid,
        data_directory: &settings.data_directory,
        data_directory_mode: directory_mode(&settings.data_directory)?,
        tablespaces,
        configuration_files,
        unread_configuration_files: Vec::new(),
        sums,
    };
    ending::end(settings, system, ending).await
}

/// What the parent knows of the files, and by which rule the changed blocks are told.
async fn baseline(
    settings: &Settings,
    client: &Client,
    system: &System,
    source: &Source,
    base: &Base,
    start: Lsn,
    waiter: &Waiter,
) -> Result<Baseline> {
    let parent = &base.parent;
    // A standby that lags would lack what its parent has seen already.
    if parent.stop_lsn > start {
        return Err(Error::failed(format!(
            "this backup would start at {start}, and its parent {} ends at {}",
            parent.id, parent.stop_lsn
        ))
        .hint("take it again after the server's next checkpoint, or a standby's restartpoint"));
    }
    let summaries = source.control.major >= 17 && client.setting("summarize_wal").await? == "on";
    let told = match summaries {
        true => {
            let (data, history) = (&settings.data_directory, &base.history);
            incremental::summaries::changes(data, history, parent.start_lsn, start).await?
        }
        false => Err("summarize_wal is off".to_owned()),
    };
    let rule = match told {
        Ok(changes) => Rule::WalSummaries(changes),
        Err(why) => {
            tracing::info!("every page is read and compared with the parent's start: {why}");
            // Off and on again between the two they would leave no trace; switching them takes a
            // stopped server (up to PostgreSQL 18).
            let started = source.answers.postmaster_start_time;
            let ran_since = parent.postmaster_start_time == Some(started);
            Rule::PageLsn {
                every_change_is_logged: parent.data_checksums
                    && source.control.data_checksums
                    && ran_since,
            }
        }
    };
    Ok(Baseline {
        members: Members::new(system, parent, waiter)?,
        comparison: Comparison {
            start: parent.start_lsn,
            rule,
            block_size: source.control.block_size,
            blocks_per_file: source.control.relation_segment_blocks,
        },
    })
}

/// Packs the tree on threads of its own; the manifest is written there, too.
async fn pack_everything(
    packer: TreePacker,
    tree: Tree,
    jobs: usize,
    baseline: Option<Baseline>,
    mut manifest: StreamedManifest,
) -> Result<(Sums, StreamedManifest)> {
    blocking(move || {
        let mut sums = Sums::default();
        packer.pack(&tree, jobs, baseline, |pack| {
            sums.add_checked(&pack, packer.pages.block_size);
            manifest.add(&pack.files)
        })?;
        Ok((sums, manifest))
    })
    .await
}

fn directory_mode(path: &Path) -> Result<u32> {
    Ok(std::fs::metadata(path)
        .on("look at", path)?
        .permissions()
        .mode()
        & 0o777)
}

/// Runs what may block on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::failed("a thread of the backup died").because(error))?
}
