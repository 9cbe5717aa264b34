use super::*;

fn schedule(line: &str, zone_name: &str) -> Schedule {
    Schedule::parse(line, &zone(zone_name).unwrap()).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Known firing times, each with its zone: the line, a moment, and what comes after it.
#[rustfmt::skip]
const TABLE: &[(&str, &str, &str, &[&str])] = &[
    // Every part of the dialect.
    ("0 1 * * 0", "UTC", "2026-11-20T12:00:00Z",
        &["2026-11-22T01:00:00Z", "2026-11-29T01:00:00Z"]),
    ("0 1 * * 7", "UTC", "2026-11-20T12:00:00Z",
        &["2026-11-22T01:00:00Z", "2026-11-29T01:00:00Z"]),
    ("0 1 * * SUN", "UTC", "2026-11-22T01:00:00Z", &["2026-11-29T01:00:00Z"]),
    ("0 1 * * 1-6", "UTC", "2026-11-20T12:00:00Z",
        &["2026-11-21T01:00:00Z", "2026-11-23T01:00:00Z"]),
    ("0 1 * * 5-7", "UTC", "2026-11-19T12:00:00Z",
        &["2026-11-20T01:00:00Z", "2026-11-21T01:00:00Z", "2026-11-22T01:00:00Z", "2026-11-27T01:00:00Z"]),
    ("0 1 * * fri-sun", "UTC", "2026-11-22T00:59:59Z",
        &["2026-11-22T01:00:00Z", "2026-11-27T01:00:00Z"]),
    ("0 1 * * */2", "UTC", "2026-11-22T00:00:00Z",
        &["2026-11-22T01:00:00Z", "2026-11-24T01:00:00Z", "2026-11-26T01:00:00Z", "2026-11-28T01:00:00Z", "2026-11-29T01:00:00Z"]),
    ("*/20 3-4 * * *", "UTC", "2026-11-20T03:30:00Z",
        &["2026-11-20T03:40:00Z", "2026-11-20T04:00:00Z", "2026-11-20T04:20:00Z", "2026-11-20T04:40:00Z", "2026-11-21T03:00:00Z"]),
    ("5-59/25 0 * * *", "UTC", "2026-11-20T00:00:00Z",
        &["2026-11-20T00:05:00Z", "2026-11-20T00:30:00Z", "2026-11-20T00:55:00Z", "2026-11-21T00:05:00Z"]),
    ("30 2,14 1 jan,JUL *", "UTC", "2026-11-20T00:00:00Z",
        &["2027-01-01T02:30:00Z", "2027-01-01T14:30:00Z", "2027-07-01T02:30:00Z"]),
    ("@daily", "UTC", "2026-12-31T00:00:00Z", &["2027-01-01T00:00:00Z"]),
    ("@weekly", "UTC", "2026-11-20T00:00:00Z", &["2026-11-22T00:00:00Z"]),
    ("@monthly", "UTC", "2026-11-20T00:00:00Z", &["2026-12-01T00:00:00Z"]),
    ("@Yearly", "UTC", "2026-11-20T00:00:00Z", &["2027-01-01T00:00:00Z"]),
    ("@hourly", "UTC", "2026-11-20T00:00:00Z", &["2026-11-20T01:00:00Z"]),
    // Both days restricted: either will do. One that begins with a star: both must.
    ("0 0 13 * 5", "UTC", "2026-11-01T00:00:00Z",
        &["2026-11-06T00:00:00Z", "2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z", "2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00Z"]),
    ("0 0 */2 * 1", "UTC", "2026-11-01T00:00:00Z",
        &["2026-11-09T00:00:00Z", "2026-11-23T00:00:00Z", "2026-12-07T00:00:00Z"]),
    // Ends of months and leap days.
    ("0 0 31 * *", "UTC", "2026-11-20T00:00:00Z",
        &["2026-12-31T00:00:00Z", "2027-01-31T00:00:00Z", "2027-03-31T00:00:00Z"]),
    ("0 0 29 2 *", "UTC", "2026-11-20T00:00:00Z",
        &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
    ("0 0 29 2 *", "UTC", "2096-11-20T00:00:00Z", &[]),
    ("59 23 28-31 2 *", "UTC", "2028-02-28T23:59:00Z", &["2028-02-29T23:59:00Z", "2029-02-28T23:59:00Z"]),
    // Berlin: 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00.
    ("0 1 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z",
        &["2026-03-29T00:00:00Z", "2026-03-29T23:00:00Z"]),
    ("30 2 * * *", "Europe/Berlin", "2026-03-28T02:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
    ("0,15,30,45 2 * * *", "Europe/Berlin", "2026-03-28T02:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"]),
    ("0 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:00:00Z", &["2026-10-26T01:30:00Z"]),
    ("0 3 * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", &["2026-10-25T02:00:00Z"]),
    // New York: 2026-03-08 02:00 becomes 03:00, 2026-11-01 02:00 becomes 01:00.
    ("15 2 * * *", "America/New_York", "2026-03-07T12:00:00Z",
        &["2026-03-08T07:00:00Z", "2026-03-09T06:15:00Z"]),
    ("15 1 * * *", "America/New_York", "2026-10-31T12:00:00Z",
        &["2026-11-01T05:15:00Z", "2026-11-02T06:15:00Z"]),
    // Lord Howe: half an hour. 2026-10-04 02:00 becomes 02:30, 2026-04-05 02:00 becomes 01:30.
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z",
        &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z",
        &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"]),
    // Samoa had no 2011-12-30: its runs come as the next day begins, and together.
    ("0 12 * * *", "Pacific/Apia", "2011-12-29T23:00:00Z",
        &["2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"]),
    // No half hours' difference, no change: Kolkata.
    ("0 6 * * 1", "Asia/Kolkata", "2026-11-20T00:00:00Z", &["2026-11-23T00:30:00Z"]),
];

#[test]
fn lines_fire_at_known_times_through_both_changes_of_the_clock() {
    for (line, zone, from, times) in TABLE {
        let schedule = schedule(line, zone);
        let mut last = at(from);
        for time in *times {
            let next = schedule.next_after(last).unwrap();
            assert_eq!(next, at(time), "{line} {zone} after {last}");
            last = next;
        }
    }
}

#[test]
fn the_last_firing_time_is_the_one_that_came_before() {
    for (line, zone, _, times) in TABLE {
        let schedule = schedule(line, zone);
        for time in *times {
            let time = at(time);
            assert_eq!(schedule.last_until(time), Some(time), "{line} {zone}");
            let later = schedule.next_after(time).unwrap() - SignedDuration::from_secs(1);
            assert_eq!(schedule.last_until(later), Some(time), "{line} {zone}");
        }
    }
}

#[test]
fn going_forward_and_back_agree_minute_by_minute_through_a_year_of_clock_changes() {
    for zone in ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York"] {
        for line in ["*/30 * * * *", "30 2 * * *", "10 1,2 * 3,4,10,11 *"] {
            let schedule = schedule(line, zone);
            let (mut now, end) = (at("2026-03-01T00:00:00Z"), at("2026-11-30T00:00:00Z"));
            let mut last = schedule.last_until(now).unwrap();
            let mut next = schedule.next_after(now).unwrap();
            while now < end {
                now += SignedDuration::from_mins(17);
                while next <= now {
                    assert_eq!(schedule.next_after(last), Some(next), "{line} {zone} {now}");
                    last = next;
                    next = schedule.next_after(next).unwrap();
                }
                assert_eq!(schedule.last_until(now), Some(last), "{line} {zone} {now}");
            }
        }
    }
}

/// What crontab(5) says of one minute, without the crate.
fn matches(line: &str, civil: civil::DateTime) -> bool {
    let weekday = civil.weekday().to_sunday_zero_offset();
    match line {
        "*/7 5-23/6 * * *" => civil.minute() % 7 == 0 && civil.hour() % 6 == 5,
        "0 12 1-7 * 1" => {
            civil.minute() == 0 && civil.hour() == 12 && (civil.day() <= 7 || weekday == 1)
        }
        "0 0 31 1,3,4 *" => {
            civil.time() == civil::Time::midnight()
                && civil.day() == 31
                && [1, 3].contains(&civil.month())
        }
        _ => panic!("no rule for {line}"),
    }
}

#[test]
fn every_minute_of_a_leap_year_is_judged_as_crontab_5_would() {
    for line in ["*/7 5-23/6 * * *", "0 12 1-7 * 1", "0 0 31 1,3,4 *"] {
        let schedule = schedule(line, "UTC");
        let mut next = schedule.next_after(at("2027-12-31T23:59:00Z")).unwrap();
        let mut now = at("2028-01-01T00:00:00Z");
        while now < at("2029-01-01T00:00:00Z") {
            let fires = next == now;
            let civil = now.to_zoned(TimeZone::UTC).datetime();
            assert_eq!(fires, matches(line, civil), "{line} at {now}");
            if fires {
                next = schedule.next_after(now).unwrap();
            }
            now += SignedDuration::from_mins(1);
        }
    }
}

#[test]
fn a_wrong_line_says_what_is_wrong_with_it() {
    for (line, word) in [
        ("", "0 fields"),
        ("0 1 * *", "4 fields"),
        ("0 0 1 * * 0", "6 fields"),
        ("60 1 * * *", "0 to 59"),
        ("0 24 * * *", "0 to 23"),
        ("0 0 0 * *", "1 to 31"),
        ("0 0 * 13 *", "1 to 12"),
        ("0 0 * * 8", "0 to 7"),
        ("0 0 * foo *", "foo"),
        ("0 0 ? * 1", "?"),
        ("0 0 L * *", "L"),
        ("0 0 * * 1#2", "1#2"),
        ("0 0 * * +1", "+1"),
        ("0 22-2 * * *", "backwards"),
        ("*/0 * * * *", "step"),
        ("5/15 * * * *", "range"),
        ("0 0 1,,2 * *", "\"\""),
        ("0 0 * 12-1 *", "backwards"),
        ("@reboot", "@daily"),
        ("0 0 31 2 *", "never"),
        ("0 0 30-31 2 *", "never"),
        ("0 0 31 4,6,9,11 *", "never"),
    ] {
        let error = Schedule::parse(line, &TimeZone::UTC).unwrap_err();
        assert!(error.contains(word), "{line}: {error}");
        assert!(error.contains(line), "{error}");
    }
    assert!(zone("Europe/Berlin").is_ok() && zone("Mars/Olympus").is_err());
}
