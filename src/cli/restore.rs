//! The arguments of `seawall restore`, which runs `seawall-restore`.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use jiff::Timestamp;

use super::Common;
use crate::error::{Error, Result};
use crate::postgres::primary::{self, Primary};
use crate::postgres::recovery::{RecoveryAction, RecoveryTarget};
use crate::postgres::{Lsn, TimelineId};
use crate::repository::catalogue::Request;
use crate::repository::keys::BackupId;

/// Write a data directory that is ready to start
///
/// Without a target it recovers to the end of the archived WAL.
#[derive(Debug, Parser)]
#[command(name = "seawall-restore", version, max_term_width = 100)]
pub struct RestoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// The data directory to write: empty, or not there yet, but for --delta and --force
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    pub exclusive: bool,
    /// What the server does at the target [default: pause]
    #[arg(long, value_name = "ACTION")]
    pub action: Option<Action>,
    /// Make a standby, which follows the newest timeline, or that of --timeline, and stops
    /// nowhere
    #[arg(long, conflicts_with_all = ["target", "action", "end_at_gap"])]
    pub standby: bool,
    /// How the standby reaches its primary: primary_conninfo, without a password
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    pub primary_conninfo: Option<String>,
    /// The replication slot of the primary that the standby uses: primary_slot_name
    #[arg(long, value_name = "NAME", requires = "standby")]
    pub slot: Option<String>,
    /// The repository to restore from [default: the first]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Put the tablespace that lay at OLD into NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping)]
    pub tablespace: Vec<(PathBuf, PathBuf)>,
    /// Put every tablespace into a directory of its own below DIR, named by its oid
    #[arg(long, value_name = "DIR", conflicts_with = "tablespace")]
    pub tablespaces_under: Option<PathBuf>,
    /// Restore this database (name or oid) and those of initdb; the others become files of
    /// zeros, which can only be dropped; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "standby")]
    pub only_database: Vec<String>,
    /// Put pg_wal there, behind a symbolic link
    #[arg(long, value_name = "DIR")]
    pub waldir: Option<PathBuf>,
    /// Replace a cluster that lies in the target and is not running
    #[arg(long)]
    pub force: bool,
    /// Bring a cluster that lies in the target and is not running to the backup's state:
    /// rewrite only what differs, remove what does not belong there
    #[arg(long, conflicts_with = "force")]
    pub delta: bool,
    /// What the restored cluster does about archiving
    #[arg(long, value_name = "MODE", default_value = "hold")]
    pub archive: ArchiveMode,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where to stop, for `restore` and `drill`.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// Recover to this time, such as '2026-11-20 11:09:25+00'
    #[arg(long, value_name = "TIME", value_parser = time, group = "target")]
    pub time: Option<Timestamp>,
    /// Recover to this position, such as 16/B374D848
    #[arg(long, value_name = "LSN", group = "target")]
    pub lsn: Option<Lsn>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    pub xid: Option<u64>,
    /// Recover to this restore point
    #[arg(long, value_name = "NAME", group = "target")]
    pub name: Option<String>,
    /// Recover no further than to where the backup is consistent
    #[arg(long, group = "target")]
    pub immediate: bool,
    /// Follow this timeline [default: the newest]
    #[arg(long, value_name = "TIMELINE")]
    pub timeline: Option<TimelineId>,
    /// Start from this backup [default: the newest that leads to the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// End recovery where a segment is missing, though later ones are there
    #[arg(long)]
    pub end_at_gap: bool,
}

/// What the server does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Wait, open for reading, until someone decides
    Pause,
    /// Open for writing
    Promote,
    /// Stop
    Shutdown,
}

/// What the restored cluster does about archiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveMode {
    /// archive_mode stays on, with a command that fails until someone releases it
    Hold,
    /// archive_mode is off
    Off,
    /// As the source did
    On,
}

impl From<Action> for RecoveryAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Pause => Self::Pause,
            Action::Promote => Self::Promote,
            Action::Shutdown => Self::Shutdown,
        }
    }
}

impl RestoreArgs {
    /// What the standby is told of its primary.
    ///
    /// # Errors
    /// A password in the connection string, or a name that no slot can have.
    pub fn primary(&self) -> Result<Primary> {
        let conninfo = self.primary_conninfo.as_deref();
        Ok(Primary {
            conninfo: conninfo.map(primary::conninfo).transpose()?,
            slot: self.slot.as_deref().map(primary::slot_name).transpose()?,
        })
    }

    /// What the catalogue is asked for, and what the server does at the target.
    pub fn request(&self) -> Result<(Request, RecoveryAction)> {
        let request = self.target.request(self.exclusive)?;
        let action = self.action.unwrap_or(Action::Pause);
        // PostgreSQL ignores the action there, and opens.
        if request.target == RecoveryTarget::Latest
            && matches!(self.action, Some(Action::Pause | Action::Shutdown))
        {
            return Err(Error::usage(
                "--action goes with a target: at the end of the WAL PostgreSQL always opens",
            )
            .hint("give a target, --immediate say; or leave --action out"));
        }
        Ok((request, action.into()))
    }
}

impl TargetArgs {
    /// What the catalogue is asked for.
    pub fn request(&self, exclusive: bool) -> Result<Request> {
        let target = match (self.time, self.lsn, self.xid, &self.name, self.immediate) {
            (Some(time), ..) => RecoveryTarget::Time(time),
            (_, Some(lsn), ..) => RecoveryTarget::Lsn(lsn),
            (_, _, Some(xid), ..) => RecoveryTarget::Xid(xid),
            (_, _, _, Some(name), _) => RecoveryTarget::Name(name.clone()),
            (.., true) => RecoveryTarget::Immediate,
            _ => RecoveryTarget::Latest,
        };
        let has_edge = matches!(
            target,
            RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_) | RecoveryTarget::Xid(_)
        );
        if exclusive && !has_edge {
            return Err(Error::usage("--exclusive goes with --time, --lsn or --xid"));
        }
        Ok(Request {
            target,
            inclusive: !exclusive,
            timeline: self.timeline,
            backup: self.backup.clone(),
            end_at_gap: self.end_at_gap,
        })
    }
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.into(), new.into())),
        _ => Err("write OLD=NEW, both directories".to_owned()),
    }
}

/// A time must say its offset: at three in the morning nobody remembers which zone was meant.
fn time(text: &str) -> Result<Timestamp, String> {
    text.trim().parse().map_err(|_| {
        format!("{text:?} is no time with its offset, such as '2026-11-20 11:09:25+00' or 2026-11-20T11:09:25Z")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<RestoreArgs, clap::Error> {
        let fixed = ["seawall-restore", "--to", "/x"];
        RestoreArgs::try_parse_from(fixed.iter().chain(arguments))
    }

    #[test]
    fn one_target_is_taken_and_two_are_refused() {
        let args = parse(&["--time", "2026-11-20 11:09:25+00"]).unwrap();
        let request = args.target.request(false).unwrap();
        assert_eq!(
            request.target,
            RecoveryTarget::Time("2026-11-20T11:09:25Z".parse().unwrap())
        );
        assert!(parse(&["--time", "2026-11-20T11:09:25Z", "--lsn", "0/1"]).is_err());
        assert!(parse(&["--name", "x", "--immediate"]).is_err());
    }

    #[test]
    fn a_time_without_its_offset_is_refused() {
        assert!(parse(&["--time", "2026-11-20 11:09:25"]).is_err());
        assert!(parse(&["--time", "yesterday"]).is_err());
        assert!(parse(&["--time", "2026-11-20 11:09:25.5+05:30"]).is_ok());
    }

    #[test]
    fn exclusive_needs_a_target_with_an_edge() {
        assert!(parse(&[]).unwrap().target.request(true).is_err());
        assert!(
            parse(&["--lsn", "0/1"])
                .unwrap()
                .target
                .request(true)
                .is_ok()
        );
    }
}
