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

mod tail;
mod watch;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Result};
use crate::postgres::sql::Client;
use crate::postgres::{Lsn, SegmentSize};
use crate::repository::System;
use crate::repository::catalogue::Catalogue;
use crate::time::signed;

pub use tail::Tail;
pub use watch::Watch;

/// The prefix of the messages.
pub const PREFIX: &str = "seawall";

/// The format of their content.
const FORMAT: u32 = 1;

/// What the server is asked takes no longer, or it counts as away.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session that does not answer is given up after [`PATIENCE`], the next after twice as long,
/// and so on up to this: the server keeps the process of each as long as its disk hangs, and has
/// a limited number of them.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1800);

/// The longest pause between two sessions while the server is away or refuses them.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
    let message = Message {
        format: FORMAT,
        host: crate::host::name(),
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
    let mut beating = Beating::default();
    let mut trouble: Option<Trouble> = None;
    loop {
        let now = Timestamp::now();
        let give_up = trouble
            .as_ref()
            .map_or(PATIENCE, |trouble| trouble.patience);
        let mut unanswered = false;
        let result = {
            let round = beating.one_round(config, cluster, interval, now);
            tokio::pin!(round);
            let first = tokio::time::timeout(PATIENCE, &mut round).await;
            match first {
                Ok(result) => result.map_err(|error| error.one_line()),
                Err(_) => {
                    let why = format!("no answer within {} s", PATIENCE.as_secs());
                    trouble.get_or_insert_with(|| Trouble::say(now, &why));
                    unanswered = true;
                    // Another session would only hang beside this one, which the server keeps
                    // until its disk answers: it is waited for, ever longer.
                    match tokio::time::timeout(give_up.saturating_sub(PATIENCE), round).await {
                        Ok(result) => result.map_err(|error| error.one_line()),
                        Err(_) => Err(why),
                    }
                }
            }
        };
        let pause = match result {
            Ok(()) => {
                if let Some(trouble) = trouble.take() {
                    tracing::info!(
                        "the heartbeat is back; it was away since {:.0}",
                        trouble.since
                    );
                }
                TICK
            }
            Err(why) => {
                // A new session asks anew what there is.
                beating.session = None;
                let trouble = trouble.get_or_insert_with(|| Trouble::say(now, &why));
                trouble.next_pause(unanswered)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Since when it does not work, and how long to wait for what.
struct Trouble {
    since: Timestamp,
    pause: Duration,
    patience: Duration,
}

impl Trouble {
    fn say(since: Timestamp, why: &str) -> Self {
        tracing::warn!("no heartbeat until this is over: {why}");
        Self {
            since,
            pause: TICK,
            patience: PATIENCE,
        }
    }

    /// How long to wait before the next session: each may cost the server a process, and a line
    /// in its log.
    fn next_pause(&mut self, unanswered: bool) -> Duration {
        if unanswered {
            self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// What lasts as long as a session with the server.
struct Session {
    client: Client,
    /// None where nothing is to be switched.
    watch: Option<Watch>,
}

/// What is known of the beats so far.
#[derive(Default)]
struct Beating {
    session: Option<Session>,
    last: Option<Timestamp>,
    /// When a switch was last asked for, by the server's clock. It outlasts sessions: one that
    /// ends just after a switch must not lead to another one at once.
    last_switch: Option<Timestamp>,
}

impl Beating {
    async fn one_round(
        &mut self,
        config: &Config,
        cluster: &ClusterConfig,
        interval: Duration,
        now: Timestamp,
    ) -> Result<()> {
        let session = match &mut self.session {
            Some(session) if !session.client.is_closed() => session,
            old => {
                let client = Client::of_cluster(cluster).await?;
                let watch = match config.objectives.rpo {
                    Some(rpo) if client.setting("archive_mode").await? != "off" => {
                        let size = segment_size(&client).await?;
                        let floor = config.heartbeat.floor();
                        Some(Watch::new(size, rpo.0, floor, self.last_switch))
                    }
                    _ => None,
                };
                old.insert(Session { client, watch })
            }
        };
        let interval = signed(interval);
        // A clock that was set back must not silence us.
        if self
            .last
            .is_none_or(|last| now.duration_since(last) >= interval || now < last)
        {
            match beat(&session.client).await? {
                Some(beat) => tracing::debug!("heartbeat, before {}", beat.lsn),
                // A promotion begins with another WAL: what was seen before is void.
                None => {
                    self.last = Some(now);
                    if let Some(watch) = &mut session.watch {
                        watch.forget();
                    }
                    return Ok(());
                }
            }
            self.last = Some(now);
        }
        let Some(watch) = &mut session.watch else {
            return Ok(());
        };
        if !watch.wants_a_look(now) || session.client.is_in_recovery().await? {
            return Ok(());
        }
        let position = session.client.wal_position().await?;
        let time = position.time;
        if watch.see(position) {
            // Whether its answer comes or not, it may have been made.
            self.last_switch = Some(time);
            session.client.switch_wal().await?;
            watch.switched(session.client.wal_position().await?);
            tracing::info!("switched to another segment, for objectives.rpo");
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_in_trouble_is_left_more_and_more_alone() {
        let mut trouble = Trouble::say(Timestamp::now(), "refused");
        let pauses: Vec<_> = (0..8)
            .map(|_| trouble.next_pause(false).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(trouble.patience, PATIENCE);
        // A day with a disk that hangs leaves few processes there.
        let (mut waited, mut sessions) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(86_400) {
            waited += trouble.patience + trouble.next_pause(true);
            sessions += 1;
        }
        assert!(sessions < 60, "{sessions}");
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_not_asked_every_second() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!(
            "[cluster.main]\ndata_directory = \"/main\"\nconnection = \"host=127.0.0.1 port={port} user=x dbname=x\"\n[[repository]]\nname = \"near\"\nurl = \"file:///near\""
        );
        let config = Config::parse(&text, "/x.toml".into()).unwrap();
        let counting = async {
            let (mut count, mut before) = (0, None::<std::time::Instant>);
            loop {
                drop(listener.accept().await.unwrap());
                // With TLS and without count as one.
                let near = Duration::from_millis(500);
                count += usize::from(before.is_none_or(|before| before.elapsed() > near));
                before = Some(std::time::Instant::now());
                // At 0, 1, 3 and 7 seconds.
                assert!(count <= 3, "{count} sessions in five seconds");
            }
        };
        let following = follow(&config, &config.cluster["main"], Duration::from_secs(60));
        let five = tokio::time::sleep(Duration::from_secs(5));
        tokio::select! {
            () = five => {}
            () = following => {}
            () = counting => {}
        }
    }
}
