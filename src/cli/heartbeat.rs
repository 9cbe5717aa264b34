//! `seawall heartbeat`.

use clap::Parser;

use super::output::{print, print_json};
use super::{Common, become_cluster_owner, connect};
use crate::error::{Error, Exit, Result};
use crate::heartbeat;

/// Write a tiny message into the WAL, so that the newest recoverable moment is known
///
/// Once, for cron; the daemon does it by itself where heartbeat.interval is set. On a standby
/// it does nothing.
#[derive(Debug, Parser)]
pub struct HeartbeatArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Go on for ever at heartbeat.interval, and switch segments where objectives.rpo would
    /// otherwise be missed
    #[arg(long, conflicts_with = "json")]
    pub follow: bool,
    /// Print where the message is as JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes the message.
pub fn run(args: &HeartbeatArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (_, cluster) = config.cluster(args.common.cluster.as_deref())?;
    let interval = config.heartbeat.interval.map(|interval| interval.0);
    if args.follow && interval.is_none() {
        return Err(Error::usage("heartbeat.interval is not set")
            .at(config.path.display())
            .hint("write [heartbeat] interval = \"1m\", or leave --follow out"));
    }
    become_cluster_owner(cluster)?;
    Ok(super::run(async {
        if let Some(interval) = interval.filter(|_| args.follow) {
            heartbeat::follow(&config, cluster, interval).await;
            return Ok(Exit::Done);
        }
        let client = connect(cluster).await?;
        let beat = heartbeat::beat(&client).await?;
        match beat {
            _ if args.json => print_json(&serde_json::json!({"format": 1, "beat": beat}))?,
            Some(beat) => print(&format!(
                "heartbeat of {:.0}, before {}",
                beat.time, beat.lsn
            )),
            None => print("no heartbeat: the server is a standby"),
        }
        Ok(Exit::Done)
    }))
}
