//! A repository: reachable, true to its word on create-only writes, its WAL whole, and how old
//! its newest backup and drill are; and what one repository holds and another lacks.

use jiff::Timestamp;

use super::Findings;
use crate::error::Result;
use crate::postgres::SegmentName;
use crate::postgres::control::ControlFile;
use crate::repository::catalogue::Catalogue;
use crate::repository::chain;
use crate::repository::health::{self, Illness, Needed, Survey};
use crate::repository::{Repository, System, keys};
use crate::storage::CreateOnly;

/// A backup or a drill that is older is worth a word.
const OLD_BACKUP_DAYS: i64 = 8;
const OLD_DRILL_DAYS: i64 = 31;

/// More ranges of segments than this are only counted.
const RANGES_SHOWN: usize = 10;

/// Examines one repository, and returns what lies in it if that could be listed.
pub(super) async fn examine(
    repository: &Repository,
    cluster: &str,
    control: Option<&ControlFile>,
    is_copy: bool,
    findings: &mut Findings,
) -> Option<Survey> {
    let subject = subject(repository);
    let mut survey = None;
    let looked = async {
        repository.record_for_writing().await?;
        findings.ok(&subject, format!("{} is there", repository.store().url()));
        match repository
            .store()
            .probe_create_only(&keys::leases(cluster))
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
        let record = system.known_record().await?;
        let found = survey.insert(system.survey(record.segment_size).await?);
        contents(&system, found, &subject, is_copy, findings).await?;
        drills(repository, &system, &subject, findings).await
    };
    let looked: Result<()> = looked.await;
    if let Err(error) = looked {
        findings.failed(&subject, &error);
    }
    survey
}

fn subject(repository: &Repository) -> String {
    format!("repository {}", repository.name())
}

/// The WAL, and the backups if they can be listed.
async fn contents(
    system: &System,
    survey: &Survey,
    subject: &str,
    is_copy: bool,
    findings: &mut Findings,
) -> Result<()> {
    let catalogue = Catalogue::load(system).await;
    let backups: Vec<Needed> = match &catalogue {
        Ok(catalogue) => catalogue.backups.iter().map(Needed::of).collect(),
        Err(_) => Vec::new(),
    };
    let illnesses = health::examine(survey, &backups);
    archived_wal(&illnesses, subject, findings);
    let unreadable = catalogue.iter().flat_map(|catalogue| &catalogue.unreadable);
    // What is wrong with the histories was told above.
    for object in unreadable.filter(|object| object.timeline.is_none()) {
        findings.problem(
            subject,
            object.why.clone(),
            object.hint.clone().unwrap_or_default(),
        );
    }
    backups_of(&catalogue?, survey, subject, is_copy, findings);
    Ok(())
}

fn archived_wal(illnesses: &[Illness], subject: &str, findings: &mut Findings) {
    let mut missing = Vec::new();
    let mut conflicts = Vec::new();
    for illness in illnesses {
        match illness {
            Illness::Missing { .. } => missing.push(illness.to_string()),
            Illness::Conflict(_) => conflicts.push(illness.to_string()),
            Illness::NoHistory(timeline, _) => findings.problem(
                subject,
                illness.to_string(),
                format!(
                    "archive {}.history from a server that still has it in pg_wal",
                    timeline.hex()
                ),
            ),
            Illness::BadHistory(..) => findings.problem(
                subject,
                illness.to_string(),
                "move the object away and archive the file again from a server that still has it in pg_wal",
            ),
        }
    }
    if !missing.is_empty() {
        findings.problem(
            subject,
            format!("WAL is missing: {}", some_of(&missing)),
            "take a full backup now: what lies behind the gap can be reached only from there. If a server still has the files in pg_wal, archive them with seawall-archive",
        );
    }
    if !conflicts.is_empty() {
        findings.problem(
            subject,
            format!("archived with different contents: {}", some_of(&conflicts)),
            "two servers archive under one name: stop the wrong one, see what each wrote with `seawall wal resolve`, and settle it there",
        );
    }
    if illnesses.is_empty() {
        findings.ok(subject, "archived WAL has no gaps and no conflicts");
    }
}

/// The first of them, and how many there are more.
fn some_of(items: &[String]) -> String {
    let shown = items[..items.len().min(RANGES_SHOWN)].join(", ");
    match items.len().saturating_sub(RANGES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Compares the repositories with each other: what one holds and another lacks is WAL that one
/// disaster could take. Segments behind `until` may be on their way and are not compared; how
/// far a copy is behind its source is told elsewhere.
pub(super) fn compare(
    surveys: &[(System, Survey)],
    is_copy: impl Fn(&str) -> bool,
    until: Option<SegmentName>,
    findings: &mut Findings,
) {
    for (at, (system, survey)) in surveys.iter().enumerate() {
        let repository = system.repository();
        if is_copy(repository.name()) {
            continue;
        }
        let others: Vec<&Survey> = surveys
            .iter()
            .enumerate()
            .filter_map(|(other, (_, survey))| (other != at).then_some(survey))
            .collect();
        let lacking = health::lacking(survey, &others, until);
        if lacking.is_empty() {
            continue;
        }
        let ranges = lacking
            .segments
            .iter()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first} to {last}"),
            });
        let histories = lacking
            .histories
            .iter()
            .map(|t| format!("{}.history", t.hex()));
        let items: Vec<String> = histories.chain(ranges).collect();
        findings.warning(
            &subject(repository),
            format!(
                "lacks {} WAL segments that another repository holds: {}",
                lacking.count,
                some_of(&items)
            ),
            format!(
                "until they are there, recovery from {} alone ends before them: archive them again while a server has them in pg_wal, or copy their objects, under the same keys, from the repository that holds them",
                repository.name()
            ),
        );
    }
}

/// Compares contents: two hosts that each reached another repository leave no conflict in
/// either.
pub(super) async fn compare_contents(
    surveys: &[(System, Survey)],
    findings: &mut Findings,
) -> Result<()> {
    for (at, (system, survey)) in surveys.iter().enumerate() {
        for (other, theirs) in &surveys[at + 1..] {
            let (logs, histories) = health::differing(survey, theirs);
            let mut names: Vec<String> = histories
                .into_iter()
                .map(|timeline| format!("{}.history", timeline.hex()))
                .collect();
            for (timeline, log) in logs {
                let ours = system.log_digests(timeline, log).await?;
                let theirs = other.log_digests(timeline, log).await?;
                let differ = ours.iter().filter(|(name, digests)| {
                    theirs.get(name).is_some_and(|theirs| theirs != *digests)
                });
                names.extend(differ.map(|(name, _)| name.to_string()));
            }
            if !names.is_empty() {
                let [one, two] = [system, other].map(|s| s.repository().name().to_owned());
                findings.problem(
                    &subject(system.repository()),
                    format!(
                        "{one} and {two} hold different contents of {}",
                        some_of(&names)
                    ),
                    "two servers archived, each where the other did not: stop the wrong one, set its contents aside with `seawall wal resolve --repository NAME --file FILE --set-aside DIGEST`, and archive the right ones there again",
                );
            }
        }
    }
    Ok(())
}

fn backups_of(
    catalogue: &Catalogue,
    survey: &Survey,
    subject: &str,
    is_copy: bool,
    findings: &mut Findings,
) {
    let Some(newest) = catalogue
        .backups
        .iter()
        .max_by_key(|backup| backup.stop_time)
    else {
        findings.problem(
            subject,
            "there is no finished backup",
            match is_copy {
                true => "bring it here: seawall copy",
                false => "take one: seawall backup",
            },
        );
        return;
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
    if catalogue.reach(newest, &survey.archived).is_none() {
        findings.problem(
            subject,
            format!(
                "the WAL of the newest backup, {}, is missing or in conflict",
                newest.id
            ),
            "take another: this one cannot be restored",
        );
    }
    for backup in &catalogue.backups {
        if let Err(broken) = chain::of(&catalogue.backups, backup) {
            findings.problem(
                subject,
                format!("backup {} cannot be restored: {broken}", backup.id),
                "take a full one: seawall backup; find out what deletes there",
            );
        }
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
