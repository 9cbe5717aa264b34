//! A repository: reachable, true to its word on create-only writes, without gaps and
//! conflicts, and how old its newest backup and drill are.

use jiff::Timestamp;

use super::Findings;
use crate::error::Result;
use crate::postgres::SegmentName;
use crate::postgres::control::ControlFile;
use crate::repository::catalogue::Catalogue;
use crate::repository::{Repository, System};
use crate::storage::CreateOnly;

/// A backup or a drill that is older is worth a word.
const OLD_BACKUP_DAYS: i64 = 8;
const OLD_DRILL_DAYS: i64 = 31;

/// Examines one repository.
pub(super) async fn examine(
    repository: &Repository,
    cluster: &str,
    control: Option<&ControlFile>,
    findings: &mut Findings,
) {
    let subject = format!("repository {}", repository.name());
    let looked = async {
        repository.record_for_writing().await?;
        findings.ok(&subject, format!("{} is there", repository.store().url()));
        match repository
            .store()
            .probe_create_only(&format!("{cluster}/leases"))
            .await?
        {
            CreateOnly::Enforced => findings.ok(&subject, "create-only writes are enforced"),
            // Nothing relies on it alone: every key carries a digest or random digits.
            CreateOnly::Ignored => findings.ok(
                &subject,
                "the store ignores create-only writes; Seawall looks before it writes instead",
            ),
        }
        let Some(control) = control else {
            return Ok(());
        };
        let system = repository.system(cluster, control.system_id);
        contents(&system, &subject, findings).await?;
        drills(repository, &system, &subject, findings).await
    };
    let looked: Result<()> = looked.await;
    if let Err(error) = looked {
        findings.failed(&subject, &error);
    }
}

async fn contents(system: &System, subject: &str, findings: &mut Findings) -> Result<()> {
    let catalogue = Catalogue::load(system).await?;
    let archived = catalogue.everything_archived().await?;
    let size = catalogue.record.segment_size;
    let mut gaps = Vec::new();
    let mut conflicts = Vec::new();
    for object in &catalogue.unreadable {
        findings.problem(
            subject,
            object.why.clone(),
            object.hint.clone().unwrap_or_default(),
        );
    }
    for (timeline, wal) in &archived {
        let name = |number| SegmentName::new(*timeline, number, size);
        gaps.extend(
            wal.gaps()
                .map(|(first, last)| format!("{} to {}", name(first), name(last))),
        );
        conflicts.extend(wal.conflicts.iter().map(ToString::to_string));
        if *timeline != crate::postgres::TimelineId::FIRST
            && !catalogue.histories.contains_key(timeline)
        {
            findings.problem(
                subject,
                format!("there is WAL of timeline {timeline}, and not its history"),
                format!(
                    "archive {}.history from a server that still has it in pg_wal",
                    timeline.hex()
                ),
            );
        }
    }
    if !gaps.is_empty() {
        findings.problem(
            subject,
            format!("WAL is missing: {}", gaps.join(", ")),
            "take a full backup now: what lies behind the gap can be reached only from there. If a server still has the files in pg_wal, archive them with seawall-archive",
        );
    }
    if !conflicts.is_empty() {
        findings.problem(
            subject,
            format!("archived with different contents: {}", conflicts.join(", ")),
            "two servers archive under one name: stop one of them, then take a full backup from the right one",
        );
    }
    if gaps.is_empty() && conflicts.is_empty() {
        findings.ok(subject, "archived WAL has no gaps and no conflicts");
    }
    let Some(newest) = catalogue
        .backups
        .iter()
        .max_by_key(|backup| backup.stop_time)
    else {
        findings.problem(
            subject,
            "there is no finished backup",
            "take one: seawall backup",
        );
        return Ok(());
    };
    let days = Timestamp::now().duration_since(newest.stop_time).as_hours() / 24;
    if days > OLD_BACKUP_DAYS {
        findings.warning(
            subject,
            format!("the newest backup, {}, is {days} days old", newest.id),
            "take one more often: recovery replays all WAL since",
        );
    } else {
        findings.ok(
            subject,
            format!("the newest backup is {}, {days} days old", newest.id),
        );
    }
    if catalogue.reach(newest, &archived).is_none() {
        findings.problem(
            subject,
            format!("the WAL of the newest backup, {}, is missing", newest.id),
            "take another: this one cannot be restored",
        );
    }
    if newest.damaged_page_count > 0 {
        findings.problem(
            subject,
            format!(
                "the newest backup holds {} pages with wrong checksums, first {}",
                newest.damaged_page_count,
                newest.damaged_pages.first().map_or("", String::as_str)
            ),
            "the server's disk or memory damages data: compare with an older backup before it expires",
        );
    }
    Ok(())
}

async fn drills(
    repository: &Repository,
    system: &System,
    subject: &str,
    findings: &mut Findings,
) -> Result<()> {
    let drills = repository.drills(system.cluster()).await?;
    match drills.last() {
        None => findings.warning(
            subject,
            "no backup was ever restored in a drill",
            "run one: seawall drill",
        ),
        Some(last) if !last.passed => findings.problem(
            subject,
            format!("the last drill, {}, failed", last.id),
            "run it again and read its report: seawall drill",
        ),
        Some(last) => {
            let days = Timestamp::now().duration_since(last.started).as_hours() / 24;
            if days > OLD_DRILL_DAYS {
                findings.warning(
                    subject,
                    format!("the last drill was {days} days ago"),
                    "run one: seawall drill",
                );
            } else {
                findings.ok(subject, format!("the last drill passed {days} days ago"));
            }
        }
    }
    Ok(())
}
