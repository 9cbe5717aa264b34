//! `seawall wal resolve`.

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;

use super::Common;
use super::output::{moment, print, print_json, size};
use crate::error::{Error, Exit, Result};
use crate::postgres::{SystemId, WalFileName};
use crate::repository::Repository;
use crate::wal::resolve::{self, Candidate, Choice, Conflict, Settlement};

/// Show files that are archived with different contents, and settle which is right
///
/// Without --keep and --set-aside it only shows. What loses is moved to set-aside/ in the
/// repository, never deleted. Exit code 3: conflicts are left.
#[derive(Debug, Parser)]
pub struct ResolveArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Keep the content with this digest, or its first digits, and set the others of its file
    /// aside; may be repeated
    #[arg(long, value_name = "DIGEST")]
    pub keep: Vec<String>,
    /// With --keep: settle the neighbouring files as well, as far as their records tell which
    /// of them belong to the same branch
    #[arg(long, requires = "keep")]
    pub branch: bool,
    /// Keep what lies in pg_wal of this data directory, that of the right server: of each file
    /// in conflict, and of those that wait there while another server's are stored
    #[arg(long, value_name = "DATA_DIRECTORY", conflicts_with_all = ["keep", "set_aside"])]
    pub keep_from: Option<PathBuf>,
    /// Set the content with this digest aside even if its file has no other: it belongs to a
    /// branch that lost
    #[arg(long, value_name = "DIGEST", requires = "file")]
    pub set_aside: Option<String>,
    /// The file that --keep or --set-aside means
    #[arg(long, value_name = "FILE", value_parser = file_name)]
    pub file: Option<WalFileName>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

fn file_name(text: &str) -> Result<WalFileName, String> {
    text.parse()
        .map_err(|error: crate::postgres::FormatError| error.why)
}

#[derive(Serialize)]
struct Resolved {
    format: u32,
    dry_run: bool,
    /// Whether no conflict is left.
    settled: bool,
    systems: Vec<ResolvedSystem>,
}

#[derive(Serialize)]
struct ResolvedSystem {
    repository: String,
    system_id: SystemId,
    /// What was found.
    conflicts: Vec<Conflict>,
    /// What was done about it, or would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    settlement: Option<Settlement>,
    /// Files that are still in conflict.
    left: Vec<String>,
}

/// Shows the conflicts, and settles those that were decided.
pub fn run(args: &ResolveArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, settings) = config.cluster(args.common.cluster.as_deref())?;
    let choices = choices(args)?;
    super::become_cluster_owner(settings)?;
    Ok(super::run(async {
        let mut systems = Vec::new();
        let mut known_host = args.keep_from.is_none();
        // All plans are made before anything is moved.
        for repository in Repository::open_all(&config, &args.repository)? {
            repository.record_for_writing().await?;
            for (system, record) in repository.systems(cluster).await? {
                let size = record.segment_size;
                let conflicts = resolve::conflicts(&system, size).await?;
                let of_host = match &args.keep_from {
                    Some(directory) => {
                        resolve::choices_from(&system, &conflicts, directory).await?
                    }
                    None => None,
                };
                known_host |= of_host.is_some();
                let of_host = of_host.unwrap_or_default();
                let choices = [&choices[..], &of_host].concat();
                let settlement = resolve::plan(&system, size, &conflicts, &choices).await?;
                let found = ResolvedSystem {
                    repository: repository.name().to_owned(),
                    system_id: system.id(),
                    conflicts,
                    settlement,
                    left: Vec::new(),
                };
                systems.push((system, size, found));
            }
        }
        if let (false, Some(directory)) = (known_host, &args.keep_from) {
            let what = "that data directory is of a system that no repository knows";
            return Err(Error::usage(what)
                .at(directory.display())
                .hint("name the data directory of the server whose WAL is the right one"));
        }
        let nowhere = systems
            .iter()
            .all(|(_, _, found)| found.settlement.is_none());
        if nowhere && !choices.is_empty() {
            return Err(Error::usage("no content has that digest")
                .hint("`seawall wal resolve` shows the conflicts; a file that has only one content is named with --file"));
        }
        let mut resolved = Resolved {
            format: 1,
            dry_run: args.dry_run,
            settled: true,
            systems: Vec::new(),
        };
        for (system, size, mut found) in systems {
            match &found.settlement {
                Some(settlement) if !args.dry_run => {
                    resolve::carry_out(&system, size, settlement).await?;
                    let left = system.conflicts(size).await?;
                    found.left = left.keys().map(ToString::to_string).collect();
                }
                settlement => {
                    let settled = |file: &String| {
                        settlement
                            .as_ref()
                            .is_some_and(|s| s.keep.contains_key(file))
                    };
                    let files = found.conflicts.iter().map(|c| c.file.to_string());
                    found.left = files.filter(|file| !settled(file)).collect();
                }
            }
            let undecided = found
                .settlement
                .as_ref()
                .is_some_and(|s| !s.undecided.is_empty());
            resolved.settled &= found.left.is_empty() && !undecided;
            resolved.systems.push(found);
        }
        if args.json {
            print_json(&resolved)?;
        } else {
            resolved.show();
        }
        Ok(match resolved.settled {
            true => Exit::Done,
            false => Exit::Missed,
        })
    }))
}

fn choices(args: &ResolveArgs) -> Result<Vec<Choice>> {
    let keep = args.keep.iter().map(|digest| (digest, true));
    let aside = args.set_aside.iter().map(|digest| (digest, false));
    keep.chain(aside)
        .map(|(digest, keep)| {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if digest.len() < 4 || digest.len() > 32 || !digest.bytes().all(hex) {
                return Err(Error::usage(format!(
                    "{digest:?} is not the beginning of a digest: 4 to 32 lower-case hex digits"
                ))
                .hint("`seawall wal resolve` prints them"));
            }
            Ok(Choice {
                file: args.file,
                digest: digest.clone(),
                keep,
                branch: keep && args.branch,
            })
        })
        .collect()
}

impl Resolved {
    fn show(&self) {
        for system in &self.systems {
            print(&format!(
                "repository {}, system {}",
                system.repository, system.system_id
            ));
            if system.conflicts.is_empty() {
                print("  no conflicts");
            }
            for conflict in &system.conflicts {
                print(&format!("  {}", conflict.file));
                conflict.contents.iter().for_each(show);
            }
            if let Some(settlement) = &system.settlement {
                self.show_settlement(settlement);
            }
            for file in &system.left {
                print(&format!("  CONFLICT LEFT: {file}"));
            }
        }
        if !self.settled {
            super::say(
                "hint: stop the server that should not archive here, then choose: seawall wal resolve --keep DIGEST --branch [--dry-run]",
            );
        }
    }

    fn show_settlement(&self, settlement: &Settlement) {
        let (keep, aside) = match self.dry_run {
            true => ("would keep", "would set aside"),
            false => ("kept", "set aside"),
        };
        for (file, digest) in &settlement.keep {
            print(&format!("  {keep}: {file}-{digest}"));
        }
        for step in &settlement.set_aside {
            print(&format!("  {aside}: {} -> {}", step.from, step.to));
        }
        for why in &settlement.undecided {
            print(&format!("  UNDECIDED: {why}"));
        }
    }
}

fn show(candidate: &Candidate) {
    print(&format!(
        "    {}  stored {}, {}",
        candidate.digest,
        moment(candidate.stored),
        size(candidate.stored_bytes)
    ));
    let line = |what: &str| print(&format!("      {what}"));
    if let Some(trouble) = &candidate.trouble {
        line(&format!("DAMAGED or unread: {trouble}"));
    }
    if let Some(switch) = &candidate.switch {
        line(&format!("leaves timeline {} at {}", switch.from, switch.at));
    }
    for (what, contents) in [
        ("goes on from", &candidate.follows),
        ("does not go on from", &candidate.breaks_from),
        ("goes on in", &candidate.followed_by),
        ("agrees with", &candidate.agrees_with),
    ] {
        contents
            .iter()
            .for_each(|content| line(&format!("{what} {content}")));
    }
    if let Some(at) = candidate.ends_at {
        line(&format!("its records end at {at}"));
    }
    if let Some(time) = candidate.last_transaction {
        line(&format!("last transaction {}", moment(time)));
    }
}
