//! `seawall wal verify`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};

use super::output::{print, print_json, size};
use super::{Common, say};
use crate::durable;
use crate::error::{Error, Exit, IoContext, Result};
use crate::postgres::{SegmentName, SystemId, TimelineId};
use crate::progress::Progress as Bar;
use crate::repository::Repository;
use crate::wal::verify::{Finding, Progress, Scope, verify};

/// A run that was interrupted does again what it did in the last seconds.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Read and check every stored WAL object, and whether the segments go on from each other
///
/// Exit code 3: something is wrong; each finding names the key.
#[derive(Debug, Parser)]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Verify this timeline only
    #[arg(long, value_name = "NUMBER")]
    pub timeline: Option<TimelineId>,
    /// Begin with this segment; older timelines come first
    #[arg(long, value_name = "SEGMENT")]
    pub from: Option<SegmentName>,
    /// How many objects are read at once [default: the processors, at most 8]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Keep the progress in this file, and go on from it where it is there
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// The report, and what `--resume` keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    format: u32,
    cluster: String,
    /// What it was asked to verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline: Option<TimelineId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<SegmentName>,
    passed: bool,
    systems: Vec<Verified>,
}

/// One system in one repository.
#[derive(Debug, Serialize, Deserialize)]
struct Verified {
    repository: String,
    system_id: SystemId,
    #[serde(flatten)]
    progress: Progress,
}

/// Verifies.
pub fn run(args: &VerifyArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, settings) = config.cluster(args.common.cluster.as_deref())?;
    super::become_cluster_owner(settings)?;
    let mut report = Report {
        format: 1,
        cluster: cluster.to_owned(),
        timeline: args.timeline,
        from: args.from,
        passed: false,
        systems: Vec::new(),
    };
    if let Some(file) = &args.resume
        && let Some(earlier) = Report::read(file)?
    {
        if (&earlier.cluster, earlier.timeline, earlier.from)
            != (&report.cluster, report.timeline, report.from)
        {
            return Err(Error::usage("the earlier run verified something else")
                .at(file.display())
                .hint("give the same --cluster, --timeline and --from, or another file"));
        }
        report = earlier;
    }
    let scope = Scope {
        timeline: args.timeline,
        from: args.from,
        jobs: args.jobs.map_or_else(processors, usize::from),
    };
    Ok(super::run(async {
        let bar = Bar::new("verifying", None);
        let mut run = Run {
            report,
            file: args.resume.as_deref(),
            at: None,
        };
        for repository in Repository::open_all(&config, &args.repository)? {
            repository.record().await?;
            for (system, record) in repository.systems(cluster).await? {
                let at = run.report.place_of(repository.name(), system.id());
                let progress = run.report.systems[at].progress.clone();
                if progress.complete {
                    continue;
                }
                let mut saved = Instant::now();
                let mut seen = progress.stored_bytes;
                let done = verify(&system, record.segment_size, scope, progress, |progress| {
                    bar.add(progress.stored_bytes - seen);
                    seen = progress.stored_bytes;
                    run.at = progress.next;
                    run.report.systems[at].progress.catch_up(progress);
                    if saved.elapsed() >= SAVE_EVERY {
                        saved = Instant::now();
                        run.save()?;
                    }
                    Ok(())
                })
                .await?;
                run.report.systems[at].progress = done;
            }
        }
        bar.clear();
        let report = run.finish()?;
        if args.json {
            print_json(&report)?;
        } else {
            report.show();
        }
        Ok(if report.passed {
            Exit::Done
        } else {
            Exit::Missed
        })
    }))
}

/// The report while it is made. Dropped before its end, it keeps what there is and says how to
/// go on: the work was given up.
struct Run<'a> {
    report: Report,
    file: Option<&'a Path>,
    at: Option<SegmentName>,
}

impl Run<'_> {
    fn save(&self) -> Result<()> {
        let Some(file) = self.file else {
            return Ok(());
        };
        let text = serde_json::to_vec_pretty(&self.report)
            .map_err(|error| Error::failed("cannot write JSON").because(error))?;
        durable::write_file(file, &text, 0o600).on("write", file)
    }

    fn finish(mut self) -> Result<Report> {
        self.at = None;
        let mut report = std::mem::take(&mut self.report);
        report.passed = report
            .systems
            .iter()
            .all(|s| s.progress.findings.is_empty());
        let Some(file) = self.file else {
            return Ok(report);
        };
        if let Some(again) = report.before_unread() {
            self.report = again;
            self.save()?;
            say(&format!(
                "to read again what could not be read, run the same command again: {} holds the progress before it",
                file.display()
            ));
            return Ok(report);
        }
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).on("remove", file)
            }
            _ => Ok(report),
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let Some(at) = self.at else {
            return;
        };
        match (self.save(), self.file) {
            (Ok(()), Some(file)) => say(&format!(
                "to go on, run the same command again: {} holds the progress",
                file.display()
            )),
            (Err(error), _) => say(&error.to_string()),
            (Ok(()), None) => say(&format!(
                "to go on, add --from {at}; with --resume FILE the findings are kept as well"
            )),
        }
    }
}

impl Report {
    fn read(file: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.on("read", file)?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Error::usage("this is no progress of `seawall wal verify`")
                .at(file.display())
                .because(error)
                .hint("give another file; it is made where it is not there")
        })
    }

    /// The report with which a later run reads again what could not be read. None where
    /// everything was read.
    fn before_unread(&self) -> Option<Self> {
        let mut any = false;
        let systems = self.systems.iter().map(|verified| {
            let again = verified.progress.before_unread();
            any |= again.is_some();
            Verified {
                repository: verified.repository.clone(),
                system_id: verified.system_id,
                progress: again.unwrap_or_else(|| verified.progress.clone()),
            }
        });
        let systems = systems.collect();
        any.then(|| Self {
            format: self.format,
            cluster: self.cluster.clone(),
            timeline: self.timeline,
            from: self.from,
            passed: false,
            systems,
        })
    }

    /// The place of a system in the report; made where it is new.
    fn place_of(&mut self, repository: &str, system_id: SystemId) -> usize {
        let known = self
            .systems
            .iter()
            .position(|s| s.repository == repository && s.system_id == system_id);
        known.unwrap_or_else(|| {
            self.systems.push(Verified {
                repository: repository.to_owned(),
                system_id,
                progress: Progress::default(),
            });
            self.systems.len() - 1
        })
    }

    fn show(&self) {
        for verified in &self.systems {
            let progress = &verified.progress;
            for Finding { key, kind, what } in &progress.findings {
                print(&format!("{kind:?}: {key}: {what}"));
            }
            print(&format!(
                "repository {}, system {}: {} objects ({}) verified, {} findings",
                verified.repository,
                verified.system_id,
                progress.objects,
                size(progress.stored_bytes),
                progress.findings.len()
            ));
        }
        if self.systems.is_empty() {
            print("nothing of this cluster is stored");
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8)
}
