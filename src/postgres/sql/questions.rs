//! Small questions to a server that several workflows ask.

use jiff::Timestamp;

use super::Client;
use crate::config::ClusterConfig;
use crate::error::{Error, Result};
use crate::postgres::connection::ConnectionString;
use crate::postgres::{Lsn, SegmentSize, SystemId};

/// Where a primary's WAL stands, and what has been written to it; see
/// [`Client::wal_position`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPosition {
    /// Where the next record goes.
    pub lsn: Lsn,
    /// The transactions that had ended just before, as `pg_current_snapshot()` prints them.
    /// Whenever one with a transaction number ends, this is another text.
    pub snapshot: String,
    /// The server's clock.
    pub time: Timestamp,
    /// When the archiver last succeeded.
    pub last_archived: Option<Timestamp>,
    /// Whether it has failed since.
    pub archiver_fails: bool,
}

/// What a cluster is made of, as its control file says it; see [`Client::geometry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The cluster.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub major: u32,
    /// PostgreSQL's catalog version, which names tablespace directories.
    pub catalog_version: u32,
    /// `wal_segment_size`
    pub segment_size: SegmentSize,
    /// Bytes of a data page.
    pub block_size: u32,
    /// Pages of one file of a relation.
    pub relation_segment_blocks: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

impl Client {
    /// What the control file says of the cluster, without a look at the file.
    pub async fn geometry(&self) -> Result<Geometry> {
        let sql = "SELECT s.system_identifier, s.catalog_version_no, i.bytes_per_wal_segment, \
                   i.database_block_size, i.blocks_per_segment, i.data_page_checksum_version \
                   FROM pg_control_system() s, pg_control_init() i";
        let rows = self.query_rows(sql).await?;
        let numbers: Option<Vec<u64>> = rows.first().and_then(|row| {
            // The system identifier is shown as a signed number.
            let number = |text: &String| text.parse().or(text.parse().map(i64::cast_unsigned));
            row.iter().map(|text| number(text.as_ref()?).ok()).collect()
        });
        let strange = || Error::failed("the server did not tell its geometry").at(self.place());
        let Some(&[system, catalog, segment, block, blocks, checksums]) = numbers.as_deref() else {
            return Err(strange());
        };
        let small = |number: u64| u32::try_from(number).map_err(|_| strange());
        Ok(Geometry {
            system_id: SystemId(system),
            major: self.major(),
            catalog_version: small(catalog)?,
            segment_size: SegmentSize::new(segment)?,
            block_size: small(block)?,
            relation_segment_blocks: small(blocks)?,
            data_checksums: checksums == 1,
        })
    }

    /// Connects to the server of `cluster`.
    pub async fn of_cluster(cluster: &ClusterConfig) -> Result<Self> {
        Self::connect(&ConnectionString::of_cluster(cluster)?).await
    }

    /// Writes a logical message with this prefix into the WAL, in a transaction of its own.
    /// After `Ok` it is committed and flushed here (no standby is waited for); where its
    /// commit ends at the latest.
    pub async fn emit_message(&self, prefix: &str, content: &str) -> Result<Lsn> {
        // synchronous_commit is local in every session.
        self.query(
            "SELECT pg_logical_emit_message(true, $1, $2)::text",
            &[&prefix, &content],
        )
        .await?;
        self.current_wal_lsn().await
    }

    /// Where the WAL of this primary stands.
    pub async fn wal_position(&self) -> Result<WalPosition> {
        let sql = "SELECT pg_current_wal_insert_lsn()::text, pg_current_snapshot()::text, \
                   (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                   (extract(epoch FROM last_archived_time) * 1000000)::bigint, \
                   last_failed_time IS NOT NULL \
                   AND (last_archived_time IS NULL OR last_failed_time > last_archived_time) \
                   FROM pg_stat_archiver";
        let strange =
            || Error::failed("the server did not tell where its WAL stands").at(self.place());
        let rows = self.query_rows(sql).await?;
        let row = rows.into_iter().next().ok_or_else(strange)?;
        let [lsn, snapshot, time, archived, fails] =
            <[Option<String>; 5]>::try_from(row).map_err(|_| strange())?;
        let moment = |text: &str| Timestamp::from_microsecond(text.parse().ok()?).ok();
        Ok(WalPosition {
            lsn: lsn.and_then(|lsn| lsn.parse().ok()).ok_or_else(strange)?,
            snapshot: snapshot.ok_or_else(strange)?,
            time: time.as_deref().and_then(moment).ok_or_else(strange)?,
            last_archived: archived.as_deref().and_then(moment),
            archiver_fails: fails.as_deref() == Some("t"),
        })
    }

    /// The server's clock, now.
    pub async fn clock(&self) -> Result<Timestamp> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        self.query_text(sql)
            .await?
            .and_then(|time| Timestamp::from_microsecond(time.parse().ok()?).ok())
            .ok_or_else(|| Error::failed("the server did not tell its clock").at(self.place()))
    }

    /// When the server was started, by its clock.
    pub async fn postmaster_start_time(&self) -> Result<Timestamp> {
        let sql = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";
        let time = self.query_text(sql).await?;
        time.and_then(|time| Timestamp::from_microsecond(time.parse().ok()?).ok())
            .ok_or_else(|| {
                Error::failed("the server did not tell when it was started").at(self.place())
            })
    }

    /// One setting's value, as `SHOW` prints it.
    pub async fn setting(&self, name: &str) -> Result<String> {
        let rows = self.query("SELECT current_setting($1)", &[&name]).await?;
        rows.first()
            .and_then(|row| row.try_get(0).ok())
            .ok_or_else(|| {
                Error::failed(format!("the server does not tell {name}")).at(self.place())
            })
    }

    /// The first column of every row, without NULLs.
    pub async fn query_column(&self, sql: &str) -> Result<Vec<String>> {
        let rows = self.query_rows(sql).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    }
}
