//! Sessions with a walsender, over PostgreSQL's physical replication protocol: what
//! `pg_basebackup` and `pg_receivewal` use.
//!
//! tokio-postgres opens no replication connections, and no crate was found that reads what
//! follows the end of a COPY: there lie a backup's stop and the late error by which the server
//! says that pages are damaged. Facts: chapter "Streaming Replication Protocol" of
//! PostgreSQL's documentation, and `src/backend/replication/walsender.c`.

pub mod base_backup;
mod connect;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;

use self::wire::{Message, Wire, columns, tag};
use super::connection::ConnectionString;
use super::{Lsn, SystemId, TimelineId};
use crate::config::ClusterConfig;
use crate::error::{Error, Result};

/// How long a server may think about a question that it can answer at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replication session. After an error it is of no use any more; it ends when this is
/// dropped, and with it a backup that it carries.
pub struct Session {
    wire: Wire,
    major: u32,
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline that it writes, or replays.
    pub timeline: TimelineId,
    /// How far WAL is flushed here.
    pub flushed: Lsn,
}

impl Session {
    /// Connects to the server of `cluster`.
    pub async fn of_cluster(cluster: &ClusterConfig) -> Result<Self> {
        Self::connect(&ConnectionString::of_cluster(cluster)?).await
    }

    /// Connects to the first host that will do.
    ///
    /// Errors name host, port and user, never the password, and are retryable where the
    /// server may merely be starting, down or out of reach.
    pub async fn connect(to: &ConnectionString) -> Result<Self> {
        let mut failures = Vec::new();
        for host in &to.hosts {
            match connect::connect_to(to, host).await {
                Ok(wire) => return Self::settle(wire),
                Err(error) => failures.push(error),
            }
        }
        if failures.len() == 1 {
            return Err(failures.remove(0));
        }
        let all: Vec<_> = failures.iter().map(Error::one_line).collect();
        Err(Error::failed("none of the servers will do")
            .retryable(failures.iter().any(Error::is_retryable))
            .because(all.join("\n  and: ")))
    }

    fn settle(wire: Wire) -> Result<Self> {
        // `15.18 (Debian 15.18-1)`, `18beta1`
        let version = wire.parameters.get("server_version");
        let version = version.map(String::as_str).unwrap_or_default();
        let digits = version
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(version.len());
        let Ok(major) = version[..digits].parse() else {
            return Err(wire.strange(&format!("the version {version:?}")));
        };
        if major < 14 {
            return Err(Error::refused(format!("PostgreSQL {version} is too old"))
                .at(&wire.place)
                .hint("PostgreSQL 14 and later are supported"));
        }
        Ok(Self { wire, major })
    }

    /// Where this session is: `host=… port=… user=… replication=true`.
    pub fn place(&self) -> &str {
        &self.wire.place
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Whether the server said at the beginning that it is in recovery.
    pub fn is_standby(&self) -> bool {
        self.wire
            .parameters
            .get("in_hot_standby")
            .is_some_and(|value| value == "on")
    }

    /// Which cluster this is, and where it stands.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        let command = "IDENTIFY_SYSTEM";
        let row = self.row(command).await?;
        Ok(Identity {
            system_id: SystemId(self.parsed(&row, 0, command)?),
            timeline: self.parsed(&row, 1, command)?,
            flushed: self.parsed(&row, 2, command)?,
        })
    }

    /// One setting, as SHOW prints it.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let command = format!("SHOW {}", quoted(setting, '"'));
        let row = self.row(&command).await?;
        self.text(&row, 0, &command)
    }

    /// The history file of a timeline, with its name.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<(String, Bytes)> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        let row = self.row(&command).await?;
        let name = self.text(&row, 0, &command)?;
        let content = row.get(1).cloned().flatten();
        let content = content.ok_or_else(|| self.wire.strange(&command))?;
        Ok((name, content))
    }

    /// Asks for what is answered by one row.
    async fn row(&mut self, command: &str) -> Result<Vec<Option<Bytes>>> {
        let doing = format!("run {command}");
        self.send(command).await?;
        let mut rows = self.rows(PATIENCE, &doing).await?;
        let ready = self.wire.expect(PATIENCE, &doing).await?;
        match (ready.tag, rows.len()) {
            (tag::READY_FOR_QUERY, 1) => Ok(rows.remove(0)),
            (tag::READY_FOR_QUERY, count) => {
                Err(self.wire.strange(&format!("{count} rows for {command}")))
            }
            _ => Err(self.wire.unexpected(&ready, &doing)),
        }
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message)
            .map_err(|error| Error::usage("a command holds a zero byte").because(error))?;
        self.wire.send(&message).await
    }

    /// One whole result: its rows, up to the end of the command.
    async fn rows(&mut self, limit: Duration, doing: &str) -> Result<Vec<Vec<Option<Bytes>>>> {
        let first = self.wire.expect(limit, doing).await?;
        self.rows_after(first, doing).await
    }

    /// The same, of which the first message has come.
    async fn rows_after(&mut self, first: Message, doing: &str) -> Result<Vec<Vec<Option<Bytes>>>> {
        if first.tag != tag::ROW_DESCRIPTION {
            return Err(self.wire.unexpected(&first, doing));
        }
        let mut rows = Vec::new();
        loop {
            let message = self.wire.expect(PATIENCE, doing).await?;
            match message.tag {
                tag::DATA_ROW => {
                    let row = columns(message.body);
                    rows.push(row.ok_or_else(|| self.wire.strange("a row"))?);
                }
                tag::COMMAND_COMPLETE => return Ok(rows),
                _ => return Err(self.wire.unexpected(&message, doing)),
            }
        }
    }

    fn text(&self, row: &[Option<Bytes>], at: usize, what: &str) -> Result<String> {
        let text = row.get(at).and_then(Option::as_ref);
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        text.map(str::to_owned)
            .ok_or_else(|| self.wire.strange(what))
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        row: &[Option<Bytes>],
        at: usize,
        what: &str,
    ) -> Result<T> {
        let text = self.text(row, at, what)?;
        text.parse()
            .map_err(|_| self.wire.strange(&format!("{what}: {text:?}")))
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, version {})", self.wire.place, self.major)
    }
}

/// In quotes of that kind, as the grammar of replication commands has them.
fn quoted(text: &str, quote: char) -> String {
    let doubled = text.replace(quote, &format!("{quote}{quote}"));
    format!("{quote}{doubled}{quote}")
}
