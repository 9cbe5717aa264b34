//! The heartbeat: a tiny transactional message in the WAL, and a switch of segments before
//! commits wait longer for the archive than the objective allows.
//!
//! What can be lost is what was committed and is not archived. **The live RPO is the age of the
//! newest commit in archived WAL.** On an idle server that age grows although nothing can be
//! lost, so nobody can tell an idle server from one whose archiving has stopped: the heartbeat is
//! a commit with a time, for which this is known. It is local: no standby is waited for, none
//! can hold it up, and a standby itself is left alone.
//!
//! A segment is archived when it is full or switched. Where the oldest commit in the open one
//! gets as old as `objectives.rpo` less a margin, it is switched ([`Watch`]), as archive_timeout
//! would, but only if something was committed. A heartbeat counts as a commit: so an idle server
//! is switched once in its interval at most, and its live RPO stays below the objective.

mod watch;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Result};
use crate::postgres::sql::Client;
use crate::postgres::{Lsn, SegmentSize};
use crate::repository::System;
use crate::repository::catalogue::Catalogue;

pub use watch::Watch;

/// The prefix of the messages.
pub const PREFIX: &str = "seawall";

/// The format of their content.
const FORMAT: u32 = 1;

/// What the server is asked takes no longer, or it counts as away.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the wall clock is looked at: it may jump, and machines sleep.
const TICK: Duration = Duration::from_secs(1);

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The format of this message.
    pub format: u32,
    /// Who wrote it.
    pub host: String,
    /// When, by the writer's clock.
    pub time: Timestamp,
}

/// A heartbeat that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Beat {
    /// Its commit ends here at the latest.
    pub lsn: Lsn,
    /// When it was written.
    pub time: Timestamp,
}

/// Writes one message. None on a standby, which can write nothing.
///
/// After `Ok(Some)` it is committed and durable on the server.
pub async fn beat(client: &Client) -> Result<Option<Beat>> {
    if client.is_in_recovery().await? {
        return Ok(None);
    }
    let host = nix::unistd::gethostname().ok();
    let message = Message {
        format: FORMAT,
        host: host
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default(),
        time: Timestamp::now(),
    };
    let text = serde_json::json!(message).to_string();
    let lsn = client.emit_message(PREFIX, &text).await?;
    Ok(Some(Beat {
        lsn,
        time: message.time,
    }))
}

/// Beats for ever at the configured interval over a session that is kept, and switches
/// segments where `objectives.rpo` asks for it. What is wrong is said once, and once when it
/// is over; it never ends by itself.
pub async fn follow(config: &Config, cluster: &ClusterConfig, interval: Duration) {
    let mut session: Option<Session> = None;
    let mut trouble: Option<(Timestamp, String)> = None;
    let mut last = None;
    loop {
        let now = Timestamp::now();
        let round = one_round(config, cluster, interval, &mut session, &mut last, now);
        let result = match tokio::time::timeout(PATIENCE, round).await {
            Ok(result) => result.map_err(|error| error.one_line()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match result {
            Ok(()) => {
                if let Some((since, _)) = trouble.take() {
                    tracing::info!("the heartbeat is back; it was away since {since:.0}");
                }
            }
            Err(why) => {
                // A new session asks anew what there is.
                session = None;
                if trouble.is_none() {
                    tracing::warn!("no heartbeat until this is over: {why}");
                }
                let since = trouble.map_or(now, |(since, _)| since);
                trouble = Some((since, why));
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// What lasts as long as a session with the server.
struct Session {
    client: Client,
    /// None where nothing is to be switched.
    watch: Option<Watch>,
}

async fn one_round(
    config: &Config,
    cluster: &ClusterConfig,
    interval: Duration,
    session: &mut Option<Session>,
    last: &mut Option<Timestamp>,
    now: Timestamp,
) -> Result<()> {
    let session = match session {
        Some(session) if !session.client.is_closed() => session,
        _ => {
            let client = Client::of_cluster(cluster).await?;
            let watch = match config.objectives.rpo {
                Some(rpo) if client.setting("archive_mode").await? != "off" => {
                    let size = segment_size(&client).await?;
                    Some(Watch::new(size, rpo.0, config.heartbeat.floor()))
                }
                _ => None,
            };
            session.insert(Session { client, watch })
        }
    };
    let interval = SignedDuration::try_from(interval).unwrap_or(SignedDuration::MAX);
    // A clock that was set back must not silence us.
    if last.is_none_or(|last| now.duration_since(last) >= interval || now < last) {
        match beat(&session.client).await? {
            Some(beat) => tracing::debug!("heartbeat, before {}", beat.lsn),
            // A promotion begins with another WAL: what was seen before is void.
            None => {
                *last = Some(now);
                if let Some(watch) = &mut session.watch {
                    watch.forget();
                }
                return Ok(());
            }
        }
        *last = Some(now);
    }
    let Some(watch) = &mut session.watch else {
        return Ok(());
    };
    if !watch.wants_a_look(now) || session.client.is_in_recovery().await? {
        return Ok(());
    }
    let position = session.client.wal_position().await?;
    if watch.see(position) {
        session.client.switch_wal().await?;
        watch.switched(session.client.wal_position().await?);
        tracing::info!("switched to another segment, for objectives.rpo");
    }
    Ok(())
}

async fn segment_size(client: &Client) -> Result<SegmentSize> {
    const NAME: &str = "wal_segment_size";
    let settings = client.settings(&[NAME]).await?;
    let bytes = settings
        .get(NAME)
        .and_then(|found| found.value.parse().ok());
    let bytes = bytes.ok_or_else(|| {
        Error::failed(format!("the server does not tell {NAME}")).at(client.place())
    })?;
    Ok(SegmentSize::new(bytes)?)
}

/// The newest moment that one can recover to from what lies in `system`: the end of the last
/// transaction in archived WAL that a backup leads to, or the end of that backup. None without
/// a backup. `now` less this moment is the live RPO of that repository.
///
/// Reads few segments of WAL, at most 256 MiB for each line of timelines.
///
/// # Errors
/// The repository cannot be read.
pub async fn newest_recoverable(system: &System) -> Result<Option<Timestamp>> {
    let catalogue = Catalogue::load(system).await?;
    let archived = catalogue.everything_archived().await?;
    let windows = catalogue.windows(&archived).await;
    let moments = windows.into_iter().flatten();
    Ok(moments.map(|window| window.to.unwrap_or(window.from)).max())
}
