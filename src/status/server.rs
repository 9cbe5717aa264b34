//! The server's part of a look.

use std::time::Duration;

use jiff::Timestamp;

use super::background::Background;
use super::{ArchiverStatus, ServerStatus};
use crate::config::ClusterConfig;
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::postgres::{Lsn, SegmentName, SegmentSize};
use crate::wal::backlog::Backlog;

/// What a look at a disk may take at least.
const DISK: Duration = Duration::from_secs(5);

/// Asks one server again and again, and looks at its pg_wal where that is on this host.
pub(super) struct ServerWatch {
    cluster: ClusterConfig,
    /// A disk may hang: then the look at it is waited for, and no other one begun.
    disk: Background<Result<Backlog>>,
}

impl ServerWatch {
    pub(super) fn new(cluster: &ClusterConfig) -> Self {
        Self {
            cluster: cluster.clone(),
            disk: Background::default(),
        }
    }

    pub(super) async fn look(&mut self, patience: Duration) -> ServerStatus {
        let until = tokio::time::Instant::now() + patience;
        let mut status = ServerStatus::default();
        let asked = tokio::time::timeout_at(until, ask(&self.cluster, &mut status)).await;
        let late = |what: &str| format!("{what} within {} s", patience.as_secs());
        status.error = match asked {
            Ok(asked) => asked.err().map(|error| error.one_line()),
            Err(_) => Some(late("no answer")),
        };
        let Some(directory) = self.cluster.data_directory.clone() else {
            return status;
        };
        if self.disk.may_begin(Duration::ZERO) {
            self.disk.begin(async move {
                let look = move || {
                    let control = ControlFile::read(&directory)?;
                    Backlog::look(&directory, control.segment_size)
                };
                let looked = tokio::task::spawn_blocking(look).await;
                looked.unwrap_or_else(|error| Err(Error::failed(error.to_string())))
            });
        }
        // Also where the server took all the time.
        let until = until.max(tokio::time::Instant::now() + DISK);
        match self.disk.ended(Some(until)).await {
            Some(Ok(backlog)) => {
                status.seconds_until_full = backlog.time_left().map(|left| left.as_secs_f64());
                status.backlog = Some(backlog);
            }
            Some(Err(error)) => status.backlog_error = Some(error.one_line()),
            None => status.backlog_error = Some(late("its disk did not answer")),
        }
        status
    }
}

async fn ask(cluster: &ClusterConfig, status: &mut ServerStatus) -> Result<()> {
    let client = Client::of_cluster(cluster).await?;
    status.postgresql_major = Some(client.major());
    let in_recovery = client.is_in_recovery().await?;
    status.in_recovery = Some(in_recovery);
    status.position = match in_recovery {
        true => client.last_replay_lsn().await?,
        false => Some(client.current_wal_lsn().await?),
    };
    status.system_id = Some(client.system_identifier().await?);
    let mut archiver = archiver(&client).await?;
    // What failed before a demotion stays in its statistics.
    archiver.failing &= match client.setting("archive_mode").await?.as_str() {
        "always" => true,
        "on" => !in_recovery,
        _ => false,
    };
    if let Some(position) = status.position.filter(|_| !in_recovery) {
        let size =
            client.query_text("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'");
        let size = size.await?.and_then(|text| text.parse().ok());
        let size = size.and_then(|bytes| SegmentSize::new(bytes).ok());
        archiver.unarchived_bytes =
            size.and_then(|size| behind(archiver.last_archived.as_deref()?, position, size));
    }
    status.archiver = Some(archiver);
    Ok(())
}

async fn archiver(client: &Client) -> Result<ArchiverStatus> {
    let sql = "SELECT archived_count::text, failed_count::text, last_archived_wal, \
         (extract(epoch FROM last_archived_time) * 1000000)::bigint::text, \
         (extract(epoch FROM last_failed_time) * 1000000)::bigint::text, \
         coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)::text \
         FROM pg_stat_archiver";
    let row = client.query_rows(sql).await?.into_iter().next();
    let mut fields = row.unwrap_or_default().into_iter();
    let mut next = || fields.next().flatten();
    let count = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    let moment = |text: Option<String>| Timestamp::from_microsecond(text?.parse().ok()?).ok();
    Ok(ArchiverStatus {
        archived: count(next()),
        failed: count(next()),
        last_archived: next(),
        last_archived_time: moment(next()),
        last_failed_time: moment(next()),
        failing: next().as_deref() == Some("true"),
        unarchived_bytes: None,
    })
}

/// What was written behind the end of the last archived segment; nothing is known where that was
/// no segment.
fn behind(last_archived: &str, position: Lsn, size: SegmentSize) -> Option<u64> {
    let number = last_archived
        .parse::<SegmentName>()
        .ok()?
        .number(size)
        .ok()?;
    Some(position.0.saturating_sub(size.start_of(number + 1).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_archived_counts_from_the_end_of_the_last_segment() {
        let size = SegmentSize::DEFAULT;
        let behind = |name: &str, position: u64| behind(name, Lsn(position), size);
        assert_eq!(behind("000000010000000000000002", 0x300_0010), Some(0x10));
        assert_eq!(
            behind("000000010000000000000002", 0x500_0000),
            Some(2 << 24)
        );
        // The server may have been reset to an older position by a restore.
        assert_eq!(behind("000000010000000000000009", 0x500_0000), Some(0));
        assert_eq!(behind("00000002.history", 0x500_0000), None);
    }
}
