use super::*;
use crate::daemon::operation::Job;
use crate::daemon::operation::Operation;
use crate::schedule::Schedule;

const MINUTE: Duration = Duration::from_secs(60);

fn at(text: &str) -> Timestamp {
    format!("2026-11-{text}Z").parse().unwrap()
}

fn task(operation: Operation, line: &str) -> Task {
    Task {
        job: Job {
            cluster: "main".into(),
            operation,
        },
        schedule: Schedule::parse(line, &jiff::tz::TimeZone::UTC).unwrap(),
        delay: SignedDuration::ZERO,
    }
}

fn record(task: &Task, now: Timestamp) -> Record {
    let mut record = Record::default();
    record.prepare(task, now);
    record
}

fn run(due: Timestamp, ended: Timestamp, exit: i32) -> Run {
    Run {
        due,
        started: due,
        ended,
        result: match exit {
            0 => RunResult::Done,
            3 => RunResult::Finding,
            _ => RunResult::Failed,
        },
        exit: Some(exit),
        said: String::new(),
    }
}

#[test]
fn what_was_missed_is_made_up_once_and_by_its_newest_time() {
    let task = task(Operation::Expire, "0 3 * * *");
    let mut record = record(&task, at("01T12:00:00"));
    assert_eq!(record.due(&task, at("02T02:59:59")), None);
    assert_eq!(
        record.due(&task, at("02T03:00:00")),
        Some(at("02T03:00:00"))
    );
    // Nobody was there for a week.
    let now = at("09T10:00:00");
    assert_eq!(record.due(&task, now), Some(at("09T03:00:00")));
    record.ended(run(at("09T03:00:00"), now, 0), MINUTE);
    assert_eq!(record.due(&task, now), None);
    assert_eq!(
        record.due(&task, at("10T03:00:01")),
        Some(at("10T03:00:00"))
    );
}

#[test]
fn a_base_backup_that_nobody_remembers_is_looked_for_and_other_jobs_begin_with_their_next_time() {
    let now = at("01T12:00:00");
    let full = task(Operation::Full, "0 1 * * *");
    assert_eq!(record(&full, now).due(&full, now), Some(at("01T01:00:00")));
    for operation in [Operation::Expire, Operation::Copy, Operation::Drill] {
        let task = task(operation, "0 1 * * *");
        assert_eq!(record(&task, now).due(&task, now), None);
    }
}

#[test]
fn a_failure_is_tried_again_ever_later_until_its_next_time() {
    let task = task(Operation::Drill, "0 3 * * *");
    let mut record = record(&task, at("01T12:00:00"));
    let due = at("02T03:00:00");
    let mut now = due;
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(record.due(&task, now), Some(due));
        record.ended(run(due, now, 1), MINUTE);
        let wait = SignedDuration::from_mins(minutes);
        assert_eq!(
            record.due(&task, now + wait - SignedDuration::from_secs(1)),
            None
        );
        now += wait;
    }
    assert_eq!(record.failing.as_ref().unwrap().count, 8);
    // A new time is a new beginning, and the row of failures goes on.
    let next = at("03T03:00:00");
    assert_eq!(record.due(&task, next), Some(next));
    record.ended(run(next, next, 1), MINUTE);
    let failing = record.failing.clone().unwrap();
    assert_eq!((failing.count, failing.since), (9, due));
    assert_eq!(failing.retry_at, Some(next + SignedDuration::from_mins(1)));
    record.ended(run(next, next, 0), MINUTE);
    assert_eq!(record.failing, None);
}

#[test]
fn a_finding_is_not_repeated_and_a_wrong_configuration_waits_for_another() {
    let task = task(Operation::Drill, "0 3 * * *");
    let mut record = record(&task, at("01T12:00:00"));
    let due = at("02T03:00:00");
    record.ended(run(due, due, 3), MINUTE);
    assert_eq!(record.due(&task, at("03T02:59:00")), None);
    assert_eq!(record.last.as_ref().unwrap().result, RunResult::Finding);

    record.ended(run(due, due, 2), MINUTE);
    assert_eq!(record.due(&task, at("03T02:59:00")), None);
    record.reloaded(at("02T05:00:00"));
    assert_eq!(record.due(&task, at("02T05:00:00")), Some(due));
}

#[test]
fn jitter_puts_every_run_off_and_the_listing_says_so() {
    let mut task = task(Operation::Expire, "0 3 * * *");
    task.delay = SignedDuration::from_mins(10);
    let mut record = record(&task, at("01T12:00:00"));
    assert_eq!(record.due(&task, at("02T03:09:59")), None);
    assert_eq!(
        record.due(&task, at("02T03:10:00")),
        Some(at("02T03:00:00"))
    );
    record.ended(run(at("02T03:00:00"), at("02T03:11:00"), 0), MINUTE);
    assert_eq!(
        record.next(&task, at("02T03:12:00"), 2),
        [at("03T03:10:00"), at("04T03:10:00")]
    );
    // Between the line's time and ours nothing is lost from the listing.
    assert_eq!(
        record.next(&task, at("03T03:05:00"), 1),
        [at("03T03:10:00")]
    );
}

#[test]
fn another_line_loses_no_base_backup_and_of_other_jobs_only_what_was_missed() {
    let now = at("01T15:30:00");
    for operation in [Operation::Full, Operation::Expire] {
        let daily = task(operation, "0 1 * * *");
        let hourly = task(operation, "0 * * * *");
        let mut record = record(&daily, at("01T00:30:00"));
        record.waiting = Some(Waiting {
            since: at("01T01:00:00"),
            why: "away".into(),
        });
        // What is due by the new line, the repository judges for base backups alone.
        let expected = (operation == Operation::Full).then(|| at("01T15:00:00"));
        let mut waited = record.clone();
        waited.prepare(&hourly, now);
        assert_eq!(waited.due(&hourly, now), expected);
        assert_eq!(waited.waiting, None);

        record.ended(run(at("01T01:00:00"), at("01T15:29:30"), 1), MINUTE);
        record.prepare(&hourly, now);
        assert_eq!(record.due(&hourly, now), expected);
        let retry = at("01T15:30:30");
        assert_eq!(record.failing.as_ref().unwrap().retry_at, Some(retry));
        assert!(record.due(&hourly, retry).is_some());
    }
}

#[test]
fn a_failure_of_another_time_makes_no_wait_longer() {
    let task = task(Operation::Drill, "0 3 * * *");
    let mut record = record(&task, at("01T12:00:00"));
    for day in ["02", "03", "04"] {
        let due = at(&format!("{day}T03:00:00"));
        record.ended(run(due, due, 1), MINUTE);
        let again = due + SignedDuration::from_mins(1);
        record.ended(run(due, again, 1), MINUTE);
        let failing = record.failing.as_ref().unwrap();
        assert_eq!(
            failing.retry_at,
            Some(again + SignedDuration::from_mins(2)),
            "{day}"
        );
    }
    assert_eq!(record.failing.unwrap().count, 6);
}

#[test]
fn what_waits_longest_comes_first_so_that_a_copy_without_end_keeps_no_expire_away() {
    let copy = task(Operation::Copy, "*/10 * * * *");
    let expire = task(Operation::Expire, "5 3 * * *");
    let tasks = [copy, expire];
    let mut records = BTreeMap::new();
    assert!(due_now(&tasks, &mut records, at("02T03:00:00")).is_empty());
    // A copy that began at 03:00 has just ended.
    let now = at("02T03:12:00");
    let due = due_now(&tasks, &mut records, now);
    let mut running = std::collections::BTreeSet::new();
    for (_, task) in &due {
        assert!(task.job.may_begin(&running), "{}", task.job);
        running.insert(task.job.clone());
    }
    assert_eq!(running.len(), 2);
    assert_eq!(due[0].0, at("02T03:05:00"));
}

#[test]
fn a_clock_that_was_ahead_does_no_harm() {
    let hourly = task(Operation::Full, "0 * * * *");
    let mut record = record(&hourly, at("01T12:00:00"));
    // A correction by some minutes repeats nothing; a clock that was days ahead costs nothing.
    record.ended(run(at("01T16:00:00"), at("01T16:01:00"), 0), MINUTE);
    let mut corrected = record.clone();
    corrected.prepare(&hourly, at("01T15:40:00"));
    assert_eq!(corrected.due(&hourly, at("01T16:00:30")), None);
    record.ended(run(at("20T16:00:00"), at("20T16:00:00"), 1), MINUTE);
    record.prepare(&hourly, at("01T16:30:00"));
    assert_eq!(
        record.due(&hourly, at("01T17:00:00")),
        Some(at("01T17:00:00"))
    );
    let retry = record.failing.unwrap().retry_at.unwrap();
    assert!(retry <= at("01T17:30:00"), "{retry}");
}
