use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::*;
use crate::config::SEGMENTS_AHEAD;
use crate::error::Error;
use crate::postgres::history::TimelineHistory;
use crate::postgres::{SegmentName, SystemId};
use crate::repository::Repository;
use crate::storage::Store;
use crate::storage::generated::{Level, generated};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(number: u32, segment: u64) -> SegmentName {
    SegmentName::new(timeline(number), segment, SIZE)
}

/// Timelines with their runs, and histories: timeline, then (parent, segment of the switch).
fn survey(wal: &[(u32, &[(u64, u64)])], histories: &[(u32, &[(u32, u64)])]) -> Survey {
    let run = |&(first, last): &(u64, u64)| SegmentRun {
        first,
        last,
        first_stored: Timestamp::UNIX_EPOCH,
        last_stored: Timestamp::UNIX_EPOCH,
        stored_bytes: 0,
    };
    let wal_of = |runs: &[(u64, u64)]| TimelineWal {
        runs: runs.iter().map(run).collect(),
        stored_ahead: SEGMENTS_AHEAD,
        ..TimelineWal::default()
    };
    let mut files = HistoryFiles::default();
    files
        .read
        .insert(TimelineId::FIRST, TimelineHistory::first());
    for (number, parents) in histories {
        let lines = parents.iter().map(|(parent, segment)| {
            format!("{parent}\t{}\tx\n", Lsn(segment * SIZE.bytes() + 40))
        });
        let text: String = lines.collect();
        let history = TimelineHistory::parse(timeline(*number), text.as_bytes()).unwrap();
        files.read.insert(timeline(*number), history);
    }
    Survey {
        segment_size: SIZE,
        histories: files,
        archived: wal
            .iter()
            .map(|(t, runs)| (timeline(*t), wal_of(runs)))
            .collect(),
        expired: SegmentSet::default(),
    }
}

fn backup(number: u32, start: u64) -> Needed {
    Needed {
        timeline: timeline(number),
        start: Lsn(start * SIZE.bytes() + 40),
        stop: Lsn(start * SIZE.bytes() + 400),
    }
}

fn said(survey: &Survey, backups: &[Needed]) -> Vec<String> {
    examine(survey, backups)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn what_is_whole_has_no_illness() {
    let whole = survey(
        &[(1, &[(1, 5)]), (2, &[(5, 8)]), (3, &[(9, 12)])],
        &[(2, &[(1, 5)]), (3, &[(1, 5), (2, 9)])],
    );
    assert_eq!(said(&whole, &[]), Vec::<String>::new());
    assert_eq!(said(&whole, &[backup(1, 2)]), Vec::<String>::new());
    // A child that has archived nothing but its history, and one that worked ahead at its end.
    let young = survey(&[(1, &[(1, 5), (7, 9)])], &[(2, &[(1, 5)])]);
    assert_eq!(said(&young, &[backup(1, 2)]), Vec::<String>::new());
}

#[test]
fn what_was_deleted_on_purpose_is_no_gap_unless_a_backup_that_is_here_needs_it() {
    let holes = [(1, 4), (9, 12), (60, 80)];
    let mut expired = survey(&[(1, &holes)], &[]);
    expired.expired.add(timeline(1), 5, 8);
    let seen = said(&expired, &[backup(1, 2)]);
    assert_eq!(
        seen,
        ["00000001000000000000000D to 00000001000000000000003B"]
    );
    expired.expired.add(timeline(1), 13, 58);
    let seen = said(&expired, &[backup(1, 2)]);
    assert_eq!(seen, ["00000001000000000000003B"]);
    expired.expired.add(timeline(1), 59, 59);
    assert_eq!(said(&expired, &[backup(1, 2)]), Vec::<String>::new());
    let whole = survey(&[(1, &[(1, 80)])], &[]);
    assert!(lacking(&expired, &[&whole], None).is_empty());
    let stop = Lsn(8 * SIZE.bytes());
    let needed = Needed {
        stop,
        ..backup(1, 7)
    };
    assert_eq!(said(&expired, &[needed]), ["000000010000000000000007"]);
}

#[test]
fn a_parent_that_does_not_reach_the_switch_point_and_a_child_without_its_beginning_are_found() {
    let broken = survey(
        &[
            (1, &[(1, 3), (5, 5)]),
            (2, &[(6, 6), (30, 38)]),
            (3, &[(40, 70)]),
        ],
        &[(2, &[(1, 5)]), (3, &[(1, 5), (2, 39)])],
    );
    assert_eq!(
        said(&broken, &[]),
        [
            "000000010000000000000004 (timeline 2 begins behind)",
            "000000020000000000000005 (where timeline 2 begins)",
            "000000020000000000000007 to 00000002000000000000001D",
            "000000030000000000000027 (where timeline 3 begins)",
        ]
    );
    let short = survey(&[(1, &[(1, 3)]), (2, &[(7, 9)])], &[(2, &[(1, 7)])]);
    assert_eq!(
        said(&short, &[]),
        ["000000010000000000000004 to 000000010000000000000006 (timeline 2 begins behind)"]
    );
}

#[test]
fn wal_from_before_the_first_backup_of_a_line_is_not_missed() {
    // Timeline 1 and the beginning of 2 have expired.
    let expired = survey(&[(2, &[(20, 30)])], &[(2, &[(1, 5)])]);
    assert_eq!(said(&expired, &[backup(2, 20)]), Vec::<String>::new());
    assert_eq!(
        said(&expired, &[backup(2, 18)]),
        ["000000020000000000000012 to 000000020000000000000013 (a backup needs it)"]
    );
    // All of the parent is gone, which the only backup needs.
    let lost = survey(&[(2, &[(5, 9)])], &[(2, &[(1, 5)])]);
    assert_eq!(
        said(&lost, &[backup(1, 3)]),
        ["000000010000000000000003 to 000000010000000000000004 (timeline 2 begins behind)"]
    );
}

#[test]
fn timelines_without_history_are_found_by_their_wal_their_children_and_the_holes_they_leave() {
    let ill = survey(
        &[(1, &[(1, 9)]), (2, &[(4, 9)]), (3, &[(9, 9)])],
        &[(3, &[(1, 4), (2, 9)]), (5, &[(1, 4)])],
    );
    assert_eq!(
        said(&ill, &[backup(1, 1)]),
        [
            "00000002.history is missing, and there is WAL of timeline 2",
            "00000004.history is missing, and timeline 5 is there",
        ]
    );
    let parent = survey(&[(1, &[(1, 9)])], &[(3, &[(1, 4), (2, 9)])]);
    assert!(
        said(&parent, &[])
            .contains(&"00000002.history is missing, and timeline 3 descends from it".to_owned())
    );
}

#[test]
fn conflicts_of_every_kind_and_histories_that_cannot_be_read_are_told_by_name() {
    let mut ill = survey(&[(1, &[(1, 9)])], &[]);
    let wal = ill.archived.get_mut(&TimelineId::FIRST).unwrap();
    wal.conflicts.push(name(1, 7));
    wal.conflicts_beside.push(WalFileName::Partial(name(1, 8)));
    ill.histories.conflicts.push(timeline(2));
    let why = Error::failed("00000003.history cannot be read");
    ill.histories.unreadable.push((timeline(3), why));
    assert_eq!(
        said(&ill, &[]),
        [
            "000000010000000000000007",
            "000000010000000000000008.partial",
            "00000002.history",
            "00000003.history cannot be read",
        ]
    );
}

#[test]
fn what_one_repository_lacks_is_told_in_ranges_from_its_own_beginning_on() {
    let near = survey(&[(1, &[(1, 50)]), (2, &[(50, 60)])], &[(2, &[(1, 50)])]);
    let far = survey(&[(1, &[(20, 30), (41, 50)])], &[]);
    let third = survey(&[(1, &[(25, 45)])], &[]);
    let found = lacking(&far, &[&near, &third], None);
    assert_eq!(
        found.segments,
        [(name(1, 31), name(1, 40)), (name(2, 50), name(2, 60))]
    );
    assert_eq!((found.count, found.histories), (21, vec![timeline(2)]));
    assert!(lacking(&near, &[&far, &third], None).is_empty());
    // What may be on its way is not asked for.
    let until = lacking(&far, &[&near], Some(name(2, 51)));
    assert_eq!(until.count, 12);
    // A repository that holds nothing lacks everything.
    assert_eq!(lacking(&survey(&[], &[]), &[&near], None).count, 61);
}

#[test]
fn repositories_that_hold_other_contents_under_one_name_are_told_by_log_and_timeline() {
    let mut near = survey(&[(1, &[(1, 600)])], &[(2, &[(1, 50)])]);
    let mut far = survey(&[(1, &[(1, 600)])], &[(2, &[(1, 51)])]);
    for (survey, third) in [(&mut near, 9), (&mut far, 10)] {
        let wal = survey.archived.get_mut(&TimelineId::FIRST).unwrap();
        wal.fingerprints = BTreeMap::from([(0, 7), (1, 8), (2, third)]);
    }
    let (logs, histories) = differing(&near, &far);
    assert_eq!(logs, [(TimelineId::FIRST, 2)]);
    assert_eq!(histories, [timeline(2)]);
    assert_eq!(differing(&near, &near), (vec![], vec![]));
}

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_segments_are_examined_in_seconds_and_in_bounded_memory() {
    const SEGMENTS: u64 = 1_000_000;
    let per_log = SIZE.segments_per_log();
    let key = |name: SegmentName, digest: u8| format!("{name}-{}.zst", hex::encode([digest; 16]));
    let wal = move |directory: &str| {
        let mut level = Level::default();
        match directory {
            "" => level.directories.push("00000001".to_owned()),
            "00000001" => {
                let logs = 0..SEGMENTS.div_ceil(per_log);
                level.directories = logs.map(|log| format!("00000001/{log:08X}")).collect();
            }
            _ => {
                let log = directory.rsplit('/').next().unwrap();
                let log = u64::from_str_radix(log, 16).unwrap();
                for number in log * per_log..((log + 1) * per_log).min(SEGMENTS) {
                    let name = name(1, number);
                    // One gap of two and one conflict, far apart.
                    if number != 700_000 && number != 700_001 {
                        level.objects.push(format!("{directory}/{}", key(name, 1)));
                    }
                    if number == 300_000 {
                        level.objects.push(format!("{directory}/{}", key(name, 2)));
                    }
                }
            }
        }
        level
    };
    let store = generated(&Store::memory().unwrap(), "main/7/wal", wal);
    let system = Repository::over("near", store).system("main", SystemId(7));
    let (before, start) = (peak(), Instant::now());
    let survey = system.survey(SIZE).await.unwrap();
    let illnesses = examine(&survey, &[]);
    let (took, grown) = (start.elapsed(), peak() - before);
    println!("{SEGMENTS} segments: {took:?}, {} KiB", grown >> 10);
    assert_eq!(
        illnesses,
        [
            Illness::Missing {
                first: name(1, 700_000),
                last: name(1, 700_001),
                evidence: Evidence::Later,
            },
            Illness::Conflict(WalFileName::Segment(name(1, 300_000))),
        ]
    );
    assert_eq!(
        survey.archived[&TimelineId::FIRST].last(),
        Some(SEGMENTS - 1)
    );
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(grown < 24 << 20, "{} KiB", grown >> 10);
}
