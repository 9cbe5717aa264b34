//! SQL: one session with a server, and the questions and orders that backups need.
//!
//! Everything works for a role with the least privilege that the documentation names. The
//! functions that PostgreSQL 15 renamed are hidden here. Nothing here streams WAL: tokio-
//! postgres has no replication connections.

mod connect;
mod questions;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage};

pub use questions::{Geometry, WalPosition};

use super::connection::ConnectionString;
use super::{FormatError, Lsn, SegmentName, SystemId, TimelineId};
use crate::error::{Error, Result};

/// A session. It ends, and with it a backup that was started in it, when this is dropped.
pub struct Client {
    session: tokio_postgres::Client,
    /// `host=… port=… user=… dbname=…`
    place: String,
    version: u32,
}

/// What `pg_backup_stop` hands out, and what else is known at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// WAL up to here makes the backup consistent.
    pub lsn: Lsn,
    /// `backup_label`, byte for byte.
    pub label: Vec<u8>,
    /// `tablespace_map`, byte for byte; empty where there are no tablespaces.
    pub tablespace_map: Vec<u8>,
    /// The server's clock just after the stop: no commit after it is in the backup's WAL.
    pub stop_time: Timestamp,
    /// A transaction number, with its epoch in the high 32 bits: whichever transaction has it
    /// or a later one ends after the backup's stop.
    pub next_xid: u64,
}

/// A setting, as `pg_settings` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its value, in units of [`unit`](Self::unit).
    pub value: String,
    /// `8kB`, `ms`, `B`; none for settings without one.
    pub unit: Option<String>,
    /// Whether the configuration file holds another value that waits for a restart.
    pub pending_restart: bool,
}

impl Client {
    /// Connects to the first host that will do.
    ///
    /// Errors name host, port, user and database, never the password, and are retryable where
    /// the server may merely be starting, down or out of reach.
    pub async fn connect(to: &ConnectionString) -> Result<Self> {
        let mut failures = Vec::new();
        for host in &to.hosts {
            match connect::connect_to(to, host).await {
                Ok(client) => return Ok(client),
                Err(error) => failures.push(error),
            }
        }
        match failures.len() {
            1 => Err(failures.remove(0)),
            _ => Err(Error::failed("none of the servers will do")
                .retryable(failures.iter().any(Error::is_retryable))
                .because(
                    failures
                        .iter()
                        .map(Error::one_line)
                        .collect::<Vec<_>>()
                        .join("\n  and: "),
                )),
        }
    }

    /// Where this session is: `host=… port=… user=… dbname=…`.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// `server_version_num`: 150018 for 15.18.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// Whether the session has ended: a backup that was started in it is void.
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// The settings of those names that exist and that this role may see.
    pub async fn settings(&self, names: &[&str]) -> Result<BTreeMap<String, Setting>> {
        let sql = "SELECT name, setting, unit, pending_restart FROM pg_settings \
                   WHERE name = ANY ($1)";
        let rows = self.session.query(sql, &[&names]).await;
        let rows = rows.map_err(|error| self.failed("read settings", error))?;
        rows.iter()
            .map(|row| {
                let setting = Setting {
                    value: self.column::<Option<String>>(row, 1)?.unwrap_or_default(),
                    unit: self.column(row, 2)?,
                    pending_restart: self.column(row, 3)?,
                };
                Ok((self.column(row, 0)?, setting))
            })
            .collect()
    }

    /// The cluster's system identifier.
    pub async fn system_identifier(&self) -> Result<SystemId> {
        self.parsed("SELECT system_identifier FROM pg_control_system()")
            .await
    }

    /// Whether the server is in recovery: a standby, or one that is being restored.
    pub async fn is_in_recovery(&self) -> Result<bool> {
        let answer = self.text("SELECT pg_is_in_recovery()").await?;
        Ok(answer == "t")
    }

    /// The end of the WAL: written on a primary, replayed on a standby.
    pub async fn current_wal_lsn(&self) -> Result<Lsn> {
        self.parsed(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_lsn() END",
        )
        .await
    }

    /// The last position replayed; none on a server that was never in recovery.
    pub async fn last_replay_lsn(&self) -> Result<Option<Lsn>> {
        match self.query_text("SELECT pg_last_wal_replay_lsn()").await? {
            None => Ok(None),
            Some(text) => Ok(Some(text.parse()?)),
        }
    }

    /// The timeline that the server writes, or that a standby replays.
    ///
    /// On a primary it is that of the segment being written, since the control file follows a
    /// promotion only with the next checkpoint. (17 changed which segment is named at a
    /// boundary, never its timeline.) A standby has no such function: there it is the newest
    /// that its control file knows, which may lag by a restartpoint.
    pub async fn current_timeline(&self) -> Result<TimelineId> {
        if self.is_in_recovery().await? {
            return self
                .parsed(
                    "SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) \
                     FROM pg_control_checkpoint() c, pg_control_recovery() r",
                )
                .await;
        }
        let sql = "SELECT pg_walfile_name(pg_current_wal_lsn())";
        let name: SegmentName = self.parsed(sql).await?;
        Ok(name.timeline)
    }

    /// Begins a base backup, which lasts as long as this session; where its replay starts.
    /// `fast` makes the checkpoint at once, otherwise it takes as long as any other.
    pub async fn backup_start(&self, label: &str, fast: bool) -> Result<Lsn> {
        let sql = match self.major() {
            0..=14 => "SELECT pg_start_backup($1, $2, false)::text",
            _ => "SELECT pg_backup_start($1, $2)::text",
        };
        let row = self.session.query_one(sql, &[&label, &fast]).await;
        let row = row.map_err(|error| self.failed("start a backup", error))?;
        Ok(self.column::<String>(&row, 0)?.parse()?)
    }

    /// Ends the base backup of this session. It does not wait for the archive: the caller
    /// watches the repository, which is faster and certain.
    ///
    /// After an error there is no backup, whatever was copied.
    pub async fn backup_stop(&self) -> Result<BackupStop> {
        let sql = match self.major() {
            0..=14 => "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)",
            _ => "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)",
        };
        // Both files hold paths in whatever bytes the file system has. In this encoding the
        // server neither converts nor checks them on the way.
        let stopping = "stop the backup";
        self.execute("SET client_encoding TO 'SQL_ASCII'").await?;
        let row = self.session.query_one(sql, &[]).await;
        let row = row.map_err(|error| self.failed(stopping, error))?;
        self.execute("SET client_encoding TO 'UTF8'").await?;
        let (stop_time, next_xid) = self.clock_and_next_xid().await?;
        Ok(BackupStop {
            lsn: self.column::<String>(&row, 0)?.parse()?,
            label: self.column::<RawText>(&row, 1)?.0,
            tablespace_map: self.column::<RawText>(&row, 2)?.0,
            stop_time,
            next_xid,
        })
    }

    /// The server's clock, and a transaction number (with its epoch in the high 32 bits) that,
    /// like all later ones, belongs to no transaction that has ended by now.
    pub async fn clock_and_next_xid(&self) -> Result<(Timestamp, u64)> {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                   pg_snapshot_xmax(pg_current_snapshot())";
        let rows = self.query_rows(now).await?;
        let mut columns = rows.into_iter().flatten().flatten();
        let (time, xid) = (columns.next(), columns.next());
        let time = time.and_then(|time| Timestamp::from_microsecond(time.parse().ok()?).ok());
        let xid = xid.and_then(|xid| xid.parse().ok());
        time.zip(xid)
            .ok_or_else(|| self.strange("the server's clock").at(&self.place))
    }

    /// Ends the current segment, so that it is archived; its end, or that of the last one if
    /// nothing was written since.
    pub async fn switch_wal(&self) -> Result<Lsn> {
        self.parsed("SELECT pg_switch_wal()").await
    }

    /// Writes a restore point; its position.
    pub async fn create_restore_point(&self, name: &str) -> Result<Lsn> {
        let sql = "SELECT pg_create_restore_point($1)::text";
        let row = self.session.query_one(sql, &[&name]).await;
        let row = row.map_err(|error| self.failed("create a restore point", error))?;
        Ok(self.column::<String>(&row, 0)?.parse()?)
    }

    /// Runs one or several statements without looking at what they return.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let done = self.session.batch_execute(sql).await;
        done.map_err(|error| self.failed(&format!("run {sql:?}"), error))
    }

    /// Runs a statement that somebody else wrote; what it returns is thrown away as it comes.
    ///
    /// # Errors
    /// The server's own words.
    pub async fn run_statement(&self, sql: &str) -> Result<(), StatementError> {
        self.session.batch_execute(sql).await.map_err(|error| {
            let database = error.as_db_error();
            StatementError {
                sqlstate: error.code().map(|code| code.code().to_owned()),
                message: database.map_or_else(
                    || error.to_string(),
                    |database| {
                        let extra = [database.detail(), database.hint()];
                        let words = std::iter::once(database.message());
                        let words = words.chain(extra.into_iter().flatten());
                        words.collect::<Vec<_>>().join("; ")
                    },
                ),
            }
        })
    }

    /// The first column of the first row, as text; none if there is no row or it is null.
    pub async fn query_text(&self, sql: &str) -> Result<Option<String>> {
        let rows = self.query_rows(sql).await?;
        let first = rows.into_iter().next();
        Ok(first.and_then(|row| row.into_iter().next()).flatten())
    }

    /// All rows, as text.
    pub async fn query_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self.session.simple_query(sql).await;
        let messages = messages.map_err(|error| self.failed(&format!("run {sql:?}"), error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|i| row.try_get(i).ok().flatten().map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Rows of a statement with parameters `$1`, `$2`, …
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let rows = self.session.query(sql, parameters).await;
        rows.map_err(|error| self.failed(&format!("run {sql:?}"), error))
    }

    async fn text(&self, sql: &str) -> Result<String> {
        let answer = self.query_text(sql).await?;
        answer.ok_or_else(|| self.strange(sql))
    }

    async fn parsed<T>(&self, sql: &str) -> Result<T>
    where
        T: std::str::FromStr<Err = FormatError>,
    {
        let text = self.text(sql).await?;
        text.parse()
            .map_err(|error| self.strange(sql).because(error))
    }

    fn column<'a, T: FromSql<'a>>(&self, row: &'a Row, at: usize) -> Result<T> {
        row.try_get(at)
            .map_err(|error| self.failed("read the server's answer", error))
    }

    fn strange(&self, what: &str) -> Error {
        Error::failed(format!("PostgreSQL's answer is not understood: {what}")).at(&self.place)
    }

    fn failed(&self, what: &str, error: tokio_postgres::Error) -> Error {
        connect::failure(&format!("cannot {what}"), &self.place, error, None)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({}, version {})", self.place, self.version)
    }
}

/// Why the server did not run a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementError {
    /// The five characters of its class and reason; absent where the session broke.
    pub sqlstate: Option<String>,
    /// Message, detail and hint.
    pub message: String,
}

/// Text in whatever bytes the server has.
struct RawText(Vec<u8>);

impl<'a> FromSql<'a> for RawText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }
}

#[cfg(test)]
mod tests;
