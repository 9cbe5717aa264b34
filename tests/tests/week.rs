//! A week of schedule in minutes, on a clock that the test drives.

use jiff::SignedDuration;

use seawall_tests::{Clock, Garage, Job, Scratch};

#[test]
fn a_driven_clock_moves_postgresql_the_store_and_our_programs_alike() {
    let scratch = Scratch::new();
    let clock = Clock::at_sunday_midnight(&scratch);
    let environment = clock.environment();
    let garage = Garage::start_with(&scratch, &environment);
    let words = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut job = Job::over(&scratch, [garage.repository("near", "near", "pg")], &words);
    job.begin();
    job.backup_and_go_on("near");
    clock.advance(SignedDuration::from_hours(24));
    let began = clock.now();
    job.backup_and_go_on("near");
    let list = job.seawall(&["list", "--json"]).success().json();
    let backups = list["repositories"][0]["systems"][0]["backups"].as_array();
    let stop = backups
        .and_then(|b| b.last())
        .map(|b| b["stop_time"].clone());
    let stop: jiff::Timestamp = serde_json::from_value(stop.unwrap_or_default()).unwrap();
    assert!(stop >= began && stop < clock.now(), "{stop} {began}");
    job.seawall(&["check"]).success();
    job.restore_and_compare(&scratch, "near");
}
