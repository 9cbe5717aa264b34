//! Faults at random while a backlog is archived: processes killed, disks full, stores that fail
//! in every way. After each call, whatever PostgreSQL was told is archived is there, whole and
//! right.

use std::time::Duration;

use seawall_tests::faulty::FAULTS;
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Archiver, Cluster, ConfigFile, PostgresVersion, Repository, Scratch, Seed, Site, Stored, Tmpfs,
    seawall, wait_until,
};

/// The process that works ahead and holds the lock, if one does.
fn worker(site: &Site) -> Option<i32> {
    let lock = site.wal("seawall/archive/worker.lock");
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(lock).ok()?);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words
            .iter()
            .any(|word| word.ends_with(&format!(":{inode}")));
        (ours && !line.contains("->")).then(|| words.get(4)?.parse().ok())?
    })
}

/// Where the repository lies: on a small disk, where one can be mounted.
fn site_on(scratch: &Scratch) -> (Option<Tmpfs>, std::path::PathBuf) {
    match Tmpfs::mount(scratch, "disk", 24) {
        Some(disk) => {
            let root = disk.path().join("near");
            seawall_tests::scratch::make_directory(&root);
            (Some(disk), root)
        }
        None => (None, scratch.directory("near-plain")),
    }
}

fn survives(segments: u64) {
    let mut seed = Seed::new();
    let mut site = Site::with(Cluster::builder(PostgresVersion::find(15)).segment_size(1));
    let (disk, root) = site_on(&site.scratch);
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(
            Repository::local("near", &root)
                .key("attempts", "2")
                .key("timeout", "\"1s\""),
        )
        .write(&site.scratch);
    seawall(&site.config).arg("init").run().success();
    site.near = Stored::at(&root);
    let archiver = Archiver::of(&site);
    archiver.make(1..=segments);
    let (mut failed, mut killed) = (0, 0);
    for number in 1..=segments {
        // Until PostgreSQL is told that it is archived.
        for attempt in 0.. {
            assert!(attempt < 50, "segment {number} is never archived");
            let calm = attempt > 5;
            let mut call = site.pushing(&name(number));
            let mut ballast = None;
            match seed.below(if calm { 1 } else { 4 }) {
                1 => {
                    let fault = FAULTS[seed.below(FAULTS.len() as u64) as usize];
                    let rule = match seed.below(3) {
                        0 => format!("any@{}={fault}", 1 + seed.below(8)),
                        1 => format!("any%{}={fault}", 5 + seed.below(40)),
                        _ => format!("any@{}+={fault}", 1 + seed.below(8)),
                    };
                    let plan = format!("seed={};{rule}", seed.below(1000));
                    call = call.with(|run| run.env("SEAWALL_TEST_FAULTS", plan));
                }
                2 => ballast = disk.as_ref().map(|disk| disk.fill(seed.below(64 << 10))),
                _ => {}
            }
            let running = call.start();
            let moment = seed.part_of(Duration::from_millis(120));
            let fate = match seed.below(if calm { 1 } else { 4 }) {
                // Chance may leave nearly all of them in peace.
                _ if attempt == 0 && number.is_multiple_of(3) => 1,
                fate => fate,
            };
            let output = match fate {
                1 => {
                    std::thread::sleep(moment);
                    killed += 1;
                    running.kill()
                }
                2 => {
                    std::thread::sleep(moment);
                    if let Some(pid) = worker(&site) {
                        let pid = nix::unistd::Pid::from_raw(pid);
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                        killed += 1;
                    }
                    running.wait()
                }
                _ => running.wait(),
            };
            if let Some(ballast) = ballast {
                std::fs::remove_file(ballast).unwrap();
            }
            if output.code == 0 {
                archiver.assert_stored(number);
                archiver.take(number, &output);
                break;
            }
            failed += 1;
        }
        // Each object is whole, also one that nobody was told of.
        for later in number + 1..=segments {
            for key in site.near.wal(&name(later)) {
                assert!(site.near.plain(&key) == archiver.content(later), "{key}");
            }
        }
    }
    wait_until("nobody works ahead any more", PATIENCE, || {
        worker(&site).is_none()
    });
    (1..=segments).for_each(|number| archiver.assert_stored(number));
    let near = site.near.keys_with("/wal/");
    assert_eq!(near.len() as u64, segments, "{near:?}");
    assert!(
        failed + killed > segments / 4,
        "{failed} failed, {killed} killed"
    );
}

#[test]
fn what_is_acknowledged_is_there_whatever_fails_and_whoever_is_killed() {
    survives(16);
}

#[test]
#[ignore = "long: ten rounds of twenty segments"]
fn what_is_acknowledged_is_there_whatever_fails_for_a_long_time() {
    for _ in 0..10 {
        survives(20);
    }
}
