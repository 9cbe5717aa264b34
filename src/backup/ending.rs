//! How every backup ends, wherever its bytes came from: its WAL is waited for, and a marker with
//! all that is known of it is committed.

use std::path::Path;

use jiff::Timestamp;

use super::server::Answers;
use super::sums::Sums;
use super::{Settings, standby};
use crate::error::Result;
use crate::postgres::control::ControlFile;
use crate::postgres::label::{self, BackupLabel};
use crate::postgres::{Lsn, SegmentName};
use crate::repository::keys::BackupId;
use crate::repository::marker::{ChangeRule, Marker, Parent, Tablespace};
use crate::repository::{FORMAT, System};
use crate::wal::wait;

/// A backup whose bytes are all stored.
pub struct Ending<'a> {
    /// Its name.
    pub id: BackupId,
    /// Of an incremental backup: what it is on top of.
    pub parent: Option<Parent>,
    /// And how changes were told.
    pub change_rule: Option<ChangeRule>,
    /// Whether its files are in the repository's order.
    pub in_order: bool,
    /// `pg_control`, as it is stored.
    pub control: &'a ControlFile,
    /// Whether page checksums were on when it began.
    pub had_checksums: bool,
    /// What the server said of itself.
    pub answers: &'a Answers,
    /// `backup_label`, as the server gave it.
    pub label: &'a BackupLabel,
    /// The server's clock when it began.
    pub start_time: Timestamp,
    /// Where the restored cluster becomes consistent.
    pub stop_lsn: Lsn,
    /// The server's clock just after the stop.
    pub stop_time: Timestamp,
    /// The next transaction id, with its epoch, just after the stop.
    pub next_xid: u64,
    /// The data directory of the source.
    pub data_directory: &'a Path,
    /// Its permission bits.
    pub data_directory_mode: u32,
    /// Tablespaces outside of it.
    pub tablespaces: Vec<Tablespace>,
    /// Configuration outside of it that is stored.
    pub configuration_files: Vec<String>,
    /// And what could not be read.
    pub unread_configuration_files: Vec<String>,
    /// What was stored.
    pub sums: Sums,
}

/// Waits for the backup's WAL and commits it. After `Ok` it is complete.
///
/// # Errors
/// The WAL does not arrive in time, or something of the backup is gone.
pub async fn end(settings: &Settings, system: &System, ending: Ending<'_>) -> Result<Marker> {
    let Ending {
        control,
        answers,
        label,
        mut sums,
        ..
    } = ending;
    // A reader takes packs in order; they were finished in any.
    sums.objects.sort_by(|a, b| a.key.cmp(&b.key));
    let (timeline, size) = (label.timeline, control.segment_size);
    let first = label.start.segment(size);
    let last = ending.stop_lsn.previous_segment(size).max(first);
    let wal = [first, last].map(|number| SegmentName::new(timeline, number, size));
    tracing::info!("data is stored; waiting for WAL up to {}", wal[1]);
    let (range, patience) = ((first, last), settings.wal_timeout);
    match label.from_standby {
        true => {
            let primary = settings.primary.as_ref();
            standby::until_archived(system, timeline, size, range, primary, patience).await?;
        }
        false => wait::until_archived(system, timeline, size, range, patience).await?,
    }
    let marker = Marker {
        format: FORMAT,
        kind: ending.id.kind(),
        id: ending.id,
        whole_bytes: ending.parent.as_ref().map(|_| sums.whole_bytes),
        parent: ending.parent,
        change_rule: ending.change_rule,
        in_order: ending.in_order,
        cluster: settings.cluster.clone(),
        system_id: control.system_id,
        server_version_num: answers.server_version_num,
        catalog_version: control.catalog_version,
        seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
        postmaster_start_time: Some(answers.postmaster_start_time),
        segment_size: size,
        block_size: control.block_size,
        data_checksums: ending.had_checksums && control.data_checksums,
        timeline,
        start_lsn: label.start,
        stop_lsn: ending.stop_lsn,
        start_time: ending.start_time,
        stop_time: ending.stop_time,
        next_xid: ending.next_xid,
        from_standby: label.from_standby,
        wal,
        data_directory: ending.data_directory.display().to_string(),
        data_directory_mode: ending.data_directory_mode,
        tablespaces: ending.tablespaces,
        configuration_files: ending.configuration_files,
        unread_configuration_files: ending.unread_configuration_files,
        collations: answers.collations.clone(),
        superuser: answers.superuser.clone(),
        databases: answers.databases.clone(),
        logical_slots: answers.logical_slots.clone(),
        files: sums.files,
        plain_bytes: sums.plain_bytes,
        stored_bytes: sums.objects.iter().map(|object| object.size).sum(),
        damaged_pages: sums.damaged_pages,
        damaged_page_count: sums.damaged_page_count,
        objects: sums.objects,
        other: serde_json::Map::new(),
    };
    system.commit(&marker).await?;
    Ok(marker)
}

/// The tablespaces that a `tablespace_map` names.
pub fn tablespaces(map: &[u8]) -> Result<Vec<Tablespace>> {
    let mapped = label::parse_tablespace_map(map)?.into_iter();
    let tablespaces = mapped.map(|(oid, location)| Tablespace {
        oid,
        location: location.display().to_string(),
    });
    Ok(tablespaces.collect())
}
