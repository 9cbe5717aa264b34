//! Base backups without the data directory: the server sends its files over the replication
//! protocol, as it does for `pg_basebackup`.
//!
//! What SQL tells comes from an ordinary session; what lies outside the data directory
//! (Debian's configuration) cannot be read, and the marker says so. The order of the files is
//! the server's: such a backup is no parent of incremental ones.

mod agreement;
mod archive;
mod pieces;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::ending::{self, Ending};
use super::manifest::StreamedManifest;
use super::packer::{DonePack, Packer};
use super::pages::Pages;
use super::server::{self, Answers, Places};
use super::sums::Sums;
use super::{Settings, Taken, blocking, last, standby};
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::label::BackupLabel;
use crate::postgres::layout;
use crate::postgres::manifest::WalRange;
use crate::postgres::replication::Session;
use crate::postgres::replication::base_backup::Request;
use crate::postgres::sql::{Client, Geometry};
use crate::progress::Progress;
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::leases::Work;
use crate::repository::marker::Marker;
use crate::repository::waiter::Waiter;
use crate::repository::{Repository, System};

use archive::{Kept, Streamed};
use pieces::Pieces;

/// The longest that a checkpoint may take: `checkpoint_timeout` ends at a day, but nobody sets
/// it so.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// The server, by what it tells over SQL.
struct Source {
    geometry: Geometry,
    data_directory: PathBuf,
    data_directory_mode: u32,
    answers: Answers,
}

/// Takes a base backup, always a full one, that the server sends over `session`; `client` is an ordinary
/// session with the same server.
///
/// After `Ok` the backup is complete in the repository, its WAL included, every file has the
/// size and checksum that the server's own manifest says, and the server has verified its
/// pages. After an error, and after a kill at any point, there is no backup.
///
/// # Errors
/// Among others, with exit code 2: a [`parent`](Settings::parent) is named.
pub async fn take(
    settings: &Settings,
    client: &Client,
    mut session: Session,
    repository: &Repository,
) -> Result<Taken> {
    if settings.parent.is_some() {
        return Err(
            Error::usage("what the server sends is taken on top of no other backup")
                .hint("leave out --parent, or take the backup from the files"),
        );
    }
    let source = inspect(client, &mut session).await?;
    let geometry = source.geometry;
    if source.answers.standby {
        standby::check_primary(settings.primary.as_ref(), geometry.system_id).await?;
    }
    let system = repository.system(&settings.cluster, geometry.system_id);
    system
        .register(geometry.major, geometry.segment_size)
        .await?;
    let id = BackupId::new(BackupKind::Full, Timestamp::now());
    // Until it is committed, nothing but this says that the directory and its WAL are in use.
    let lease = repository
        .lease(
            &settings.cluster,
            Work::Backup,
            Some(system.id()),
            [id.clone()],
        )
        .await;
    let because = "the server sends all files whole".to_owned();
    let full_because = (settings.kind == BackupKind::Incremental).then_some(because);
    if let Some(because) = &full_because {
        tracing::info!("a full backup is taken: {because}");
    }
    let done = run(settings, client, session, &system, &source, id).await;
    lease.release().await;
    Ok(Taken {
        marker: done?,
        full_because,
    })
}

async fn inspect(client: &Client, session: &mut Session) -> Result<Source> {
    let geometry = client.geometry().await?;
    let identity = session.identify_system().await?;
    let answers = server::ask(client).await?;
    if identity.system_id != geometry.system_id || session.is_standby() != answers.standby {
        return Err(Error::refused("two sessions came to two different servers")
            .at(client.place())
            .hint("name one server in `connection`, or add target_session_attrs=primary"));
    }
    let mode = client.setting("data_directory_mode").await?;
    let mode = u32::from_str_radix(&mode, 8).map_err(|error| {
        Error::failed(format!("data_directory_mode is {mode:?}")).because(error)
    })?;
    Ok(Source {
        geometry,
        data_directory: client.setting("data_directory").await?.into(),
        data_directory_mode: mode,
        answers,
    })
}

/// Takes the backup under its name, from the start to the marker.
async fn run(
    settings: &Settings,
    client: &Client,
    session: Session,
    system: &System,
    source: &Source,
    id: BackupId,
) -> Result<Marker> {
    let repository = system.repository();
    let geometry = source.geometry;
    tracing::info!("backup {id} begins: waiting for a checkpoint");
    let start_time = client.clock().await?;
    let request = Request {
        label: settings.label.clone(),
        fast: settings.fast,
        max_rate: None,
        checkpoint_limit: CHECKPOINT_LIMIT,
        silence_limit: settings.server_timeout,
    };
    let places = Places::look(client).await?;
    let backup = session.base_backup(&request).await?;
    let (start, timeline) = backup.start();
    let pages = Pages {
        block_size: geometry.block_size,
        blocks_per_file: geometry.relation_segment_blocks,
        checksums: geometry.data_checksums,
        backup_start: start,
    };
    let sent = backup.tablespaces().iter().map(|sent| sent.size).sum();
    let progress = Progress::new("backup", Some(sent));
    let directory = system.keys().backup(&id);
    let (_stop, waiter) = Waiter::new();
    let packer = Packer::new(
        repository.store(),
        directory.clone(),
        settings.compression,
        progress.clone(),
        waiter,
        settings.jobs,
    );
    let mut manifest = StreamedManifest::new(
        repository.store(),
        &directory,
        settings.compression,
        geometry.major,
        geometry.system_id,
    )?;
    let pieces = Pieces::of(backup);
    let (thread, jobs) = (packer.clone(), settings.jobs);
    let (streamed, mut sums, mut manifest) = blocking(move || {
        let mut sums = Sums::default();
        let streamed = thread.with_helpers(jobs, || {
            archive::pack_all(&thread, pieces, pages, |pack| {
                sums.add_checked(&pack, pages.block_size);
                manifest.add(&pack.files)
            })
        })?;
        Ok((streamed, sums, manifest))
    })
    .await?;
    places.check_unmoved(client).await?;
    let (stop_time, next_xid) = client.clock_and_next_xid().await?;

    let streamed = Arc::new(streamed);
    let (stop, stop_timeline) = streamed.end;
    standby::same_timeline(timeline, stop_timeline)?;
    let control = ControlFile::parse(&streamed.control.content)?;
    let backup_label = BackupLabel::parse(&streamed.label.content)?;
    if control.system_id != geometry.system_id
        || (backup_label.start, backup_label.timeline) != (start, timeline)
    {
        return Err(
            Error::failed("backup_label or pg_control are of another backup").at(client.place()),
        );
    }
    let map = streamed.map.as_ref().map_or(&[][..], |map| &map.content);
    let tablespaces = ending::tablespaces(map)?;

    let range = WalRange {
        timeline,
        start,
        end: stop,
    };
    let (pack, manifest) = {
        let (packer, streamed) = (packer.clone(), Arc::clone(&streamed));
        blocking(move || {
            let pack = last_pack(&packer, &streamed)?;
            manifest.add(&pack.files)?;
            Ok((pack, manifest.finish(range)?))
        })
        .await?
    };
    progress.clear();
    sums.add_checked(&pack, control.block_size);
    sums.objects.push(manifest);

    let ending = Ending {
        id,
        parent: None,
        change_rule: None,
        in_order: false,
        control: &control,
        had_checksums: geometry.data_checksums,
        answers: &source.answers,
        label: &backup_label,
        start_time,
        stop_lsn: stop,
        stop_time,
        next_xid,
        data_directory: &source.data_directory,
        data_directory_mode: source.data_directory_mode & 0o777,
        tablespaces,
        configuration_files: Vec::new(),
        unread_configuration_files: unread(source),
        sums,
    };
    ending::end(settings, system, ending).await
}

/// Configuration outside the data directory, which the server does not send.
fn unread(source: &Source) -> Vec<String> {
    let mut unread: Vec<String> = source
        .answers
        .configuration
        .iter()
        .filter(|path| path.is_absolute() && !path.starts_with(&source.data_directory))
        .map(|path| path.display().to_string())
        .collect();
    unread.sort();
    unread.dedup();
    if !unread.is_empty() {
        tracing::warn!(
            "the server does not send what lies outside its data directory: {} are not in this backup; keep copies of them",
            unread.join(", ")
        );
    }
    unread
}

/// `pg_control`, `backup_label` and `tablespace_map`, byte for byte as they were sent.
fn last_pack(packer: &Packer, streamed: &Streamed) -> Result<DonePack> {
    let (control, label) = (Some(&streamed.control), Some(&streamed.label));
    let sent = [control, label, streamed.map.as_ref()]
        .into_iter()
        .flatten();
    last::pack(
        packer,
        sent.map(|Kept { member, content }| (member.clone(), &content[..])),
    )
}

/// Whether a backup holds what the server sent under that path: our rules are those of the
/// server, but for what it sends of pg_wal and the like, directories that a server makes anew.
fn belongs(path: &Path, kind: layout::EntryKind) -> bool {
    use layout::{EntryKind, Rule, classify};
    let above = path.ancestors().skip(1);
    let all_kept = above
        .filter(|above| !above.as_os_str().is_empty())
        .all(|above| classify(above, EntryKind::Directory) == Rule::Include);
    let made_by_the_server = [layout::BACKUP_LABEL, layout::TABLESPACE_MAP]
        .iter()
        .any(|name| path == Path::new(name));
    all_kept
        && (made_by_the_server
            || matches!(classify(path, kind), Rule::Include | Rule::SkipContents))
}
