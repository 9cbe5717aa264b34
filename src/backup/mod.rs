//! Base backups: read the server's files, write packs, wait for the WAL, commit.
//!
//! The order of writes is the repository's: data and index, configuration, manifest; the
//! backup's WAL confirmed present and the objects listed once more; then the marker; then the
//! same look again, and the marker is withdrawn if something is gone. Whatever ends this
//! early leaves no marker, and so no backup.

mod configuration;
mod file;
mod manifest;
mod packer;
mod resume;
mod scan;
mod server;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::Compression;
use crate::error::{Error, IoContext, Result};
use crate::postgres::SegmentName;
use crate::postgres::control::ControlFile;
use crate::postgres::label::{self, BackupLabel};
use crate::postgres::layout;
use crate::postgres::manifest::WalRange;
use crate::postgres::sql::{BackupStop, Client};
use crate::progress::Progress;
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::leases::Work;
use crate::repository::marker::{Marker, StoredObject, Tablespace};
use crate::repository::{FORMAT, Repository, System};
use crate::wal::wait;

use file::Pages;
use manifest::StreamedManifest;
use packer::{DonePack, Packer};
use resume::Earlier;
use scan::Tree;
use server::Source;

/// What a backup needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// The data directory on this host.
    pub data_directory: std::path::PathBuf,
    /// How objects are compressed.
    pub compression: Compression,
    /// How many packs are made at once.
    pub jobs: usize,
    /// How long to wait for the backup's own WAL.
    pub wal_timeout: Duration,
    /// Ask for an immediate checkpoint instead of a spread one.
    pub fast: bool,
    /// The label that PostgreSQL writes into backup_label.
    pub label: String,
    /// Take over what an interrupted backup has stored, as far as it is the same bytes.
    pub resume: bool,
}

/// Damaged pages that the marker names; the indexes name all.
const NAMED_DAMAGE: usize = 1000;

/// What the packs of a backup add up to.
#[derive(Debug, Default)]
struct Sums {
    objects: Vec<StoredObject>,
    files: u64,
    plain_bytes: u64,
    damaged_pages: Vec<String>,
    damaged_page_count: u64,
    /// Packs of an interrupted backup, and their bytes as stored.
    taken_over: (u64, u64),
}

impl Sums {
    fn add(&mut self, pack: &DonePack) {
        if pack.taken_over {
            self.taken_over.0 += 1;
            self.taken_over.1 += pack.objects[0].size;
        }
        self.objects.extend(pack.objects.iter().cloned());
        for file in &pack.files {
            self.files += 1;
            self.plain_bytes += file.member.size;
            self.damaged_page_count += file.damaged;
            for block in &file.member.damaged_blocks {
                tracing::error!("page checksum is wrong: {} block {block}", file.member.path);
                if self.damaged_pages.len() < NAMED_DAMAGE {
                    self.damaged_pages
                        .push(format!("{}: block {block}", file.member.path));
                }
            }
        }
    }
}

/// Takes a full base backup from the server's own files.
///
/// After `Ok` the backup is complete in the repository, its WAL included. After an error, and
/// after a kill at any point, there is no backup: objects without a marker count as nothing.
pub async fn full(settings: &Settings, client: &Client, repository: &Repository) -> Result<Marker> {
    let source = server::inspect(client, &settings.data_directory).await?;
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

    let id = BackupId::new(BackupKind::Full, Timestamp::now());
    let earlier = match settings.resume {
        true => Earlier::find(&system, settings.compression).await,
        false => Earlier::default(),
    };
    // Until it is committed, nothing but this says that the directory and its WAL are in use.
    // What is taken over should stay until then, too.
    let lease = repository
        .lease(
            &settings.cluster,
            Work::Backup,
            Some(system.id()),
            earlier.backups.iter().chain([&id]).cloned(),
        )
        .await;
    let done = take(settings, client, &system, &source, id, earlier).await;
    lease.release().await;
    done
}

/// Takes the backup under its name, from the start to the marker.
async fn take(
    settings: &Settings,
    client: &Client,
    system: &System,
    source: &Source,
    id: BackupId,
    earlier: Earlier,
) -> Result<Marker> {
    let repository = system.repository();
    tracing::info!("backup {id} begins: waiting for a checkpoint");
    let start_time = client.clock().await?;
    let start = client.backup_start(&settings.label, settings.fast).await?;
    let pages = Pages {
        block_size: source.control.block_size,
        blocks_per_file: source.control.relation_segment_blocks,
        checksums: source.control.data_checksums,
        backup_start: start,
    };
    let progress = Progress::new("backup", None);
    for id in &earlier.backups {
        tracing::info!("backup {id} was interrupted: what is still the same is taken over");
    }
    let packer = Packer::new(
        repository,
        system.keys().backup(&id),
        settings.compression,
        earlier,
        pages,
        progress.clone(),
    );
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
    let (mut sums, mut manifest) = pack_everything(&packer, tree, settings.jobs, manifest).await?;

    let (packs, bytes) = sums.taken_over;
    if packs > 0 {
        tracing::info!("{packs} packs with {bytes} bytes were taken over");
    }

    // Last of all, and before the stop, as PostgreSQL's own base backup does.
    let (control, control_bytes) = ControlFile::read_with_bytes(&settings.data_directory)?;
    let stop = client.backup_stop().await?;
    let backup_label = BackupLabel::parse(&stop.label)?;
    let mapped = label::parse_tablespace_map(&stop.tablespace_map)?;
    let is_mapped = |name: &OsString| {
        let oid = name.to_str().and_then(|name| name.parse().ok());
        oid.is_some_and(|oid: u32| mapped.iter().any(|(mapped, _)| *mapped == oid))
    };
    if let Some(young) = scanned.iter().find(|name| !is_mapped(name)) {
        return Err(Error::failed(format!(
            "the tablespace {} was created while the backup began",
            young.display()
        ))
        .hint("take the backup again"));
    }
    let tablespaces: Vec<Tablespace> = mapped
        .into_iter()
        .map(|(oid, location)| Tablespace {
            oid,
            location: location.display().to_string(),
        })
        .collect();

    let range = WalRange {
        timeline: backup_label.timeline,
        start: backup_label.start,
        end: stop.lsn,
    };
    let files = configuration::outside_files(&source.configuration, &settings.data_directory);
    let last = {
        let (packer, stop, data) = (
            packer.clone(),
            stop.clone(),
            settings.data_directory.clone(),
        );
        blocking(move || {
            let pack = last_pack(&packer, &data, &control_bytes, &stop)?;
            manifest.add(&pack.files)?;
            let (configuration, paths) = configuration::store(&packer, &files)?;
            let manifest = manifest.finish(range)?;
            Ok((pack, configuration, paths, manifest))
        })
        .await?
    };
    let (pack, configuration, configuration_files, manifest) = last;
    progress.clear();
    sums.add(&pack);
    sums.objects.extend(configuration);
    sums.objects.push(manifest);
    // A reader takes packs in order; they were finished in any.
    sums.objects.sort_by(|a, b| a.key.cmp(&b.key));

    let size = control.segment_size;
    let (first, last) = (
        backup_label.start.segment(size),
        stop.lsn.previous_segment(size),
    );
    let wal = [first, last].map(|n| SegmentName::new(backup_label.timeline, n, size));
    tracing::info!("data is stored; waiting for WAL up to {}", wal[1]);
    wait::until_archived(
        system,
        backup_label.timeline,
        size,
        (first, last),
        settings.wal_timeout,
    )
    .await?;

    let marker = Marker {
        format: FORMAT,
        id: id.clone(),
        kind: BackupKind::Full,
        parent: None,
        change_rule: None,
        in_order: true,
        cluster: settings.cluster.clone(),
        system_id: control.system_id,
        server_version_num: source.server_version_num,
        catalog_version: control.catalog_version,
        seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
        segment_size: size,
        block_size: control.block_size,
        data_checksums: source.control.data_checksums && control.data_checksums,
        timeline: backup_label.timeline,
        start_lsn: backup_label.start,
        stop_lsn: stop.lsn,
        start_time,
        stop_time: stop.stop_time,
        next_xid: stop.next_xid,
        from_standby: backup_label.from_standby,
        wal,
        data_directory: settings.data_directory.display().to_string(),
        data_directory_mode: directory_mode(&settings.data_directory)?,
        tablespaces,
        configuration_files,
        collations: source.collations.clone(),
        superuser: source.superuser.clone(),
        logical_slots: source.logical_slots.clone(),
        files: sums.files,
        plain_bytes: sums.plain_bytes,
        whole_bytes: None,
        stored_bytes: sums.objects.iter().map(|object| object.size).sum(),
        damaged_pages: sums.damaged_pages,
        damaged_page_count: sums.damaged_page_count,
        objects: sums.objects,
        other: serde_json::Map::new(),
    };
    system.commit(&marker).await?;
    Ok(marker)
}

/// Packs the tree on threads of its own; the manifest is written there, too.
async fn pack_everything(
    packer: &Packer,
    tree: Tree,
    jobs: usize,
    mut manifest: StreamedManifest,
) -> Result<(Sums, StreamedManifest)> {
    let packing = packer.clone();
    let task = blocking(move || {
        let mut sums = Sums::default();
        packing.pack_tree(&tree, jobs, |pack| {
            sums.add(&pack);
            manifest.add(&pack.files)
        })?;
        Ok((sums, manifest))
    });
    // Whoever gives this future up (Ctrl-C) ends the threads as well.
    let guard = StopOnDrop(packer);
    let done = task.await;
    std::mem::forget(guard);
    done
}

struct StopOnDrop<'a>(&'a Packer);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// `pg_control`, `backup_label` and `tablespace_map`, byte for byte.
fn last_pack(
    packer: &Packer,
    data_directory: &Path,
    control: &[u8],
    stop: &BackupStop,
) -> Result<DonePack> {
    let control_path = data_directory.join(layout::CONTROL_FILE);
    let metadata = std::fs::metadata(&control_path).on("look at", &control_path)?;
    let mut members = vec![
        (layout::CONTROL_FILE, control),
        (layout::BACKUP_LABEL, &stop.label[..]),
    ];
    if !stop.tablespace_map.is_empty() {
        members.push((layout::TABLESPACE_MAP, &stop.tablespace_map[..]));
    }
    packer.pack(1 << 20, |pack, read| {
        for (path, content) in members {
            let mut member = scan::member(Path::new(path), &metadata)?;
            member.size = content.len() as u64;
            pack.begin_file(member)?;
            pack.write(content)?;
            pack.end_file(Vec::new())?;
            let crc32c = crc32c::crc32c(content);
            read.push(Some(file::FileRead { crc32c, damaged: 0 }));
        }
        Ok(())
    })
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
