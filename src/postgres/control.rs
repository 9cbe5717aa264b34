//! `global/pg_control`: the one file that says which cluster a data directory is, which
//! version of PostgreSQL wrote it, and where recovery of it starts.
//!
//! The offsets follow from the C structures `ControlFileData` and `CheckPoint` of
//! `src/include/catalog/pg_control.h` on 64-bit little-endian machines; they are the same from
//! 14 to 18 but for the place of the checksum. This module only reads.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::layout::CONTROL_FILE;
use super::{FormatError, Lsn, SegmentSize, SystemId, TimelineId};
use crate::error::{IoContext, Result};

/// What `pg_control` says, for PostgreSQL 14 to 18.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster, unique to each initdb.
    pub system_id: SystemId,
    /// PostgreSQL's major version, 14 to 18, known from the catalog version.
    pub major: u32,
    /// `catalog_version_no`; the name of each tablespace's directory carries it.
    pub catalog_version: u32,
    /// What the cluster was doing when this was last written.
    pub state: ClusterState,
    /// The latest checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint starts.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// The timeline before it, if that checkpoint begins a new one; the same otherwise.
    pub previous_timeline: TimelineId,
    /// Whether `full_page_writes` was on at that checkpoint.
    pub full_page_writes: bool,
    /// The next transaction number at that checkpoint, with its epoch in the high 32 bits.
    pub next_xid: u64,
    /// When that checkpoint was made, in whole seconds.
    pub checkpoint_time: Timestamp,
    /// How far WAL must be replayed before the cluster is consistent; 0 on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of [`min_recovery_point`](Self::min_recovery_point); none on a primary.
    pub min_recovery_timeline: Option<TimelineId>,
    /// The redo position of the backup that is being recovered; 0 otherwise.
    pub backup_start_point: Lsn,
    /// Where a backup taken from a standby ends; 0 otherwise.
    pub backup_end_point: Lsn,
    /// Whether the backup's end must be seen in WAL before the cluster is consistent.
    pub backup_end_required: bool,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `max_connections`; a standby or a restored cluster needs at least this, as with the
    /// four settings that follow.
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_xact: i32,
    /// Bytes of a data page, usually 8192.
    pub block_size: u32,
    /// Pages of one segment file of a relation, usually 131072 (1 GiB).
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL page, usually 8192.
    pub wal_block_size: u32,
    /// `wal_segment_size`
    pub segment_size: SegmentSize,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

/// What the cluster was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Being started for the first time.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// A standby, shut down cleanly.
    ShutDownInRecovery,
    /// Being shut down.
    ShuttingDown,
    /// Replaying WAL after a crash.
    CrashRecovery,
    /// Replaying archived or streamed WAL: a standby, or a restored cluster.
    ArchiveRecovery,
    /// Open for writing.
    InProduction,
}

/// Why bytes are no control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The checksum does not match: PostgreSQL was writing it at that moment, or it is
    /// damaged. Read it again.
    #[error("pg_control: its checksum does not match its content")]
    Torn,
    /// It is none, or of a version that this program does not know.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl From<ControlError> for crate::error::Error {
    fn from(error: ControlError) -> Self {
        Self::failed(error.to_string())
    }
}

impl ClusterState {
    /// Shut down cleanly: nothing is running and nothing needs recovery.
    pub fn is_shut_down(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    /// Either a server is running on it, or one was and did not end cleanly. The control file
    /// alone cannot tell which.
    pub fn is_running_or_crashed(self) -> bool {
        !self.is_shut_down()
    }

    /// A standby or a restore, running, crashed or shut down.
    pub fn is_in_recovery(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::ArchiveRecovery)
    }

    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::CrashRecovery,
            5 => Self::ArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

/// The size of the file; what follows the checksum is zeros.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// `pg_control_version`, and where the CRC-32C of all bytes before it lies.
const FORMATS: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];

/// `catalog_version_no` of the releases. Minor releases never change it.
const CATALOGS: [(u32, u32); 5] = [
    (202_107_181, 14),
    (202_209_061, 15),
    (202_307_071, 16),
    (202_406_281, 17),
    (202_506_291, 18),
];

impl ControlFile {
    /// Reads the file's bytes (the first 296 suffice).
    ///
    /// [`ControlError::Torn`] says that reading the file once more may help.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let field = Fields(bytes);
        let wrong = |why: String| ControlError::Format(FormatError::new("pg_control", why));

        let version = field.u32(8)?;
        let Some((_, crc_at)) = FORMATS.into_iter().find(|(known, _)| *known == version) else {
            return Err(wrong(format!(
                "control version {version} is none of PostgreSQL 14 to 18"
            )));
        };
        if crc32c::crc32c(field.get(0, crc_at)?) != field.u32(crc_at)? {
            return Err(ControlError::Torn);
        }
        let catalog_version = field.u32(12)?;
        let Some((_, major)) = CATALOGS.into_iter().find(|(c, _)| *c == catalog_version) else {
            return Err(wrong(format!(
                "catalog version {catalog_version} is none of the releases 14 to 18"
            )));
        };
        let state = field.u32(16)?;
        let state = ClusterState::from_number(state)
            .ok_or_else(|| wrong(format!("cluster state {state} is unknown")))?;
        let time = field.i64(104)?;
        let checkpoint_time = Timestamp::from_second(time)
            .map_err(|_| wrong(format!("{time} is no time of a checkpoint")))?;
        let size_in = |at, low: u32, high: u32| {
            let size = field.u32(at)?;
            if size.is_power_of_two() && (low..=high).contains(&size) {
                Ok(size)
            } else {
                Err(wrong(format!("block size {size} at offset {at}")))
            }
        };
        let relation_segment_blocks = field.u32(220)?;
        if relation_segment_blocks == 0 {
            return Err(wrong("relation segments of 0 blocks".into()));
        }
        Ok(Self {
            system_id: SystemId(field.u64(0)?),
            major,
            catalog_version,
            state,
            checkpoint: Lsn(field.u64(32)?),
            redo: Lsn(field.u64(40)?),
            timeline: TimelineId::new(field.u32(48)?)?,
            previous_timeline: TimelineId::new(field.u32(52)?)?,
            full_page_writes: field.bool(56)?,
            next_xid: field.u64(64)?,
            checkpoint_time,
            min_recovery_point: Lsn(field.u64(136)?),
            min_recovery_timeline: TimelineId::new(field.u32(144)?).ok(),
            backup_start_point: Lsn(field.u64(152)?),
            backup_end_point: Lsn(field.u64(160)?),
            backup_end_required: field.bool(168)?,
            wal_level: field.i32(172)?,
            max_connections: field.i32(180)?,
            max_worker_processes: field.i32(184)?,
            max_wal_senders: field.i32(188)?,
            max_prepared_xacts: field.i32(192)?,
            max_locks_per_xact: field.i32(196)?,
            block_size: size_in(216, 1 << 10, 1 << 15)?,
            relation_segment_blocks,
            wal_block_size: size_in(224, 1 << 10, 1 << 16)?,
            segment_size: SegmentSize::new(u64::from(field.u32(228)?))?,
            data_checksums: field.u32(252)? == 1,
        })
    }

    /// Reads it from a data directory, again when a read was torn by a running server.
    ///
    /// Errors say which file, and what to look at when it stays damaged.
    pub fn read(data_directory: &Path) -> Result<Self> {
        Self::read_with_bytes(data_directory).map(|(control, _)| control)
    }

    /// Like [`read`](Self::read), with the file's bytes, byte for byte as they were parsed.
    pub fn read_with_bytes(data_directory: &Path) -> Result<(Self, Vec<u8>)> {
        let path = data_directory.join(CONTROL_FILE);
        let mut attempt = 0;
        loop {
            let bytes = std::fs::read(&path).on("read", &path)?;
            match Self::parse(&bytes) {
                Err(ControlError::Torn) if attempt < 20 => attempt += 1,
                Err(ControlError::Torn) => {
                    return Err(crate::error::Error::from(ControlError::Torn)
                        .at(path.display())
                        .hint("it stayed so over many reads: the file is damaged; compare pg_controldata, and restore a backup rather than use pg_resetwal"));
                }
                Err(error) => {
                    return Err(crate::error::Error::from(error)
                        .at(path.display())
                        .hint("is this a data directory of PostgreSQL 14 to 18?"));
                }
                Ok(control) => return Ok((control, bytes)),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The major version of a release's catalog version, 14 to 18.
pub fn major_of_catalog(catalog_version: u32) -> Option<u32> {
    let known = CATALOGS.into_iter().find(|(c, _)| *c == catalog_version);
    known.map(|(_, major)| major)
}

/// Little-endian fields at offsets; never past the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn get(&self, at: usize, length: usize) -> Result<&'a [u8], FormatError> {
        self.0.get(at..at + length).ok_or_else(|| {
            FormatError::new("pg_control", format!("only {} bytes long", self.0.len()))
        })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.get(at, N)?);
        Ok(bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, FormatError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn i32(&self, at: usize) -> Result<i32, FormatError> {
        self.array(at).map(i32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, FormatError> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn i64(&self, at: usize) -> Result<i64, FormatError> {
        self.array(at).map(i64::from_le_bytes)
    }

    fn bool(&self, at: usize) -> Result<bool, FormatError> {
        self.array::<1>(at).map(|[byte]| byte != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// `pg_controldata`'s lines by their titles.
    fn controldata(server: &Server) -> HashMap<String, String> {
        let output = server.run("pg_controldata", &[&server.data().to_string_lossy()]);
        let lines = output.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(title, value)| (title.to_owned(), value.trim().to_owned()))
            .collect()
    }

    #[test]
    fn every_field_is_what_pg_controldata_prints() {
        let mut server = Server::with(
            &["--data-checksums", "--wal-segsize=1"],
            "max_connections = 37\nmax_worker_processes = 9\nmax_wal_senders = 7\n\
             max_prepared_transactions = 5\nmax_locks_per_transaction = 70\n",
        );
        server.sql("create table t as select generate_series(1, 1000); checkpoint");
        let running = ControlFile::read(&server.data()).unwrap();
        assert_eq!(running.state, ClusterState::InProduction);
        assert!(running.state.is_running_or_crashed());
        server.stop();
        let control = ControlFile::read(&server.data()).unwrap();
        assert!(control.state.is_shut_down());

        let said = controldata(&server);
        let said = |title: &str| said.get(title).expect(title).clone();
        assert_eq!(
            control.system_id.to_string(),
            said("Database system identifier")
        );
        assert_eq!(
            control.catalog_version.to_string(),
            said("Catalog version number")
        );
        assert_eq!(control.major, server.major());
        assert_eq!(
            control.checkpoint.to_string(),
            said("Latest checkpoint location")
        );
        assert_eq!(
            control.redo.to_string(),
            said("Latest checkpoint's REDO location")
        );
        assert_eq!(
            control.timeline.to_string(),
            said("Latest checkpoint's TimeLineID")
        );
        assert_eq!(
            control.previous_timeline.to_string(),
            said("Latest checkpoint's PrevTimeLineID")
        );
        let xid = control.next_xid;
        assert_eq!(
            format!("{}:{}", xid >> 32, xid & 0xFFFF_FFFF),
            said("Latest checkpoint's NextXID")
        );
        assert_eq!(
            (
                control.max_connections,
                control.max_worker_processes,
                control.max_wal_senders
            ),
            (37, 9, 7)
        );
        assert_eq!(
            (control.max_prepared_xacts, control.max_locks_per_xact),
            (5, 70)
        );
        assert_eq!(
            control.min_recovery_point.to_string(),
            said("Minimum recovery ending location")
        );
        assert_eq!(control.min_recovery_timeline, None);
        assert_eq!(control.block_size.to_string(), said("Database block size"));
        assert_eq!(
            control.relation_segment_blocks.to_string(),
            said("Blocks per segment of large relation")
        );
        assert_eq!(control.wal_block_size.to_string(), said("WAL block size"));
        assert_eq!(
            control.segment_size.bytes().to_string(),
            said("Bytes per WAL segment")
        );
        assert_eq!(said("Data page checksum version"), "1");
        assert!(control.data_checksums && control.full_page_writes);
        assert_eq!(
            (control.wal_level, said("wal_level setting")),
            (1, "replica".into())
        );
        let age = Timestamp::now().as_second() - control.checkpoint_time.as_second();
        assert!((0..600).contains(&age), "{age} s");
    }

    /// A control file of `major`, with nothing but what `parse` looks at.
    fn made(version: u32, catalog: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_SIZE];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(8, version);
        put(12, catalog);
        put(16, 6);
        put(48, 3);
        put(52, 2);
        put(216, 8192);
        put(220, 131_072);
        put(224, 8192);
        put(228, 16 << 20);
        put(252, 1);
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn each_release_is_known_by_its_catalog_version() {
        for (catalog, major) in CATALOGS {
            let (version, crc_at) = FORMATS[major.saturating_sub(16).min(2) as usize];
            let control = ControlFile::parse(&made(version, catalog, crc_at)).unwrap();
            assert_eq!(control.major, major);
            assert_eq!(control.timeline, TimelineId::new(3).unwrap());
        }
        let other = ControlFile::parse(&made(1300, 202_007_201, 288));
        assert!(matches!(other, Err(ControlError::Format(_))), "{other:?}");
        let other = ControlFile::parse(&made(1900, 202_506_291, 304));
        assert!(matches!(other, Err(ControlError::Format(_))), "{other:?}");
    }

    #[test]
    fn a_torn_read_is_told_apart_from_a_foreign_file() {
        let good = made(1700, 202_406_281, 288);
        let mut torn = good.clone();
        torn[40] ^= 1;
        assert_eq!(ControlFile::parse(&torn), Err(ControlError::Torn));
        for length in [0, 7, 100, 291] {
            let short = ControlFile::parse(&good[..length]);
            assert!(matches!(short, Err(ControlError::Format(_))), "{short:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400)
        ) {
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }

        #[test]
        fn a_file_with_a_right_checksum_and_wrong_fields_never_panics(
            at in 16usize..280, value: u32
        ) {
            let mut bytes = made(1300, 202_209_061, 288);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..288]);
            bytes[288..292].copy_from_slice(&crc.to_le_bytes());
            let _ = ControlFile::parse(&bytes);
        }
    }
}
