//! What a backup may take, of memory and of the network, and what it does about pages that are
//! damaged on the server.

use std::io::Write;
use std::path::Path;

use rand::Rng;
use seawall_tests::cli::Call;
use seawall_tests::postgres::Stop;
use seawall_tests::process::peak_memory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, ConfigFile, PostgresVersion, Repository, Site};

/// What the documentation promises for up to two jobs, in KiB.
const MEMORY: u64 = 256 << 10;

/// Files that PostgreSQL knows nothing of, in the directory of a database, as the backup takes
/// them: one that does not compress, and many small ones.
fn fill(directory: &Path, megabytes: usize, small: usize) {
    let mut noise = vec![0; 1 << 20];
    let mut large = std::fs::File::create(directory.join("noise")).unwrap();
    for _ in 0..megabytes {
        rand::rng().fill_bytes(&mut noise);
        large.write_all(&noise).unwrap();
    }
    for number in 0..small {
        std::fs::write(directory.join(format!("small-{number}")), [7; 100]).unwrap();
    }
}

#[test]
fn a_backup_takes_at_most_256_mib_of_memory_at_two_jobs_whatever_there_is_to_back_up() {
    let site = Site::of(15).start();
    let directory = site.cluster.data().join("base/1");
    let mut peaks = Vec::new();
    for (megabytes, small) in [(130, 0), (130, 20_000)] {
        fill(&directory, megabytes, small);
        let mut running = site.seawall("backup").args(["--jobs", "2"]).start();
        peaks.push(peak_memory(&mut running));
        running.wait().success();
    }
    assert!(peaks.iter().all(|peak| *peak > 10 << 10), "{peaks:?}");
    assert!(peaks.iter().all(|peak| *peak < MEMORY), "{peaks:?} KiB");
}

/// The most memory that a command ever had, in KiB, once it has succeeded.
fn peak_of(call: Call) -> u64 {
    let mut running = call.start();
    let peak = peak_memory(&mut running);
    running.wait().success();
    peak
}

#[test]
fn memory_does_not_grow_with_the_number_of_files() {
    let site = Site::of(15).start();
    let directory = site.cluster.data().join("base/1");
    let to = site.scratch.join("restored");
    let mut peaks = Vec::new();
    // An index holds up to 16,384 files, and several are under way: measured by hand, all of a
    // backup's memory is taken at 160,000 files, and 320,000 take no more.
    for small in [80_000, 160_000] {
        fill(&directory, 1, small);
        let backup = |kind| {
            let call = site.seawall("backup").args(["--jobs", "2", "--kind", kind]);
            peak_of(call)
        };
        let (full, incremental) = (backup("full"), backup("incremental"));
        site.cluster.archive_all(PATIENCE);
        let restore = |more: &[&str]| {
            let call = site.restoring(&to).arg("--immediate");
            peak_of(call.args(more))
        };
        let (fresh, delta) = (restore(&[]), restore(&["--delta"]));
        std::fs::remove_dir_all(&to).unwrap();
        let markers = site.near.keys_with("/backup.json");
        let newest = markers.iter().filter(|key| key.contains("-incr-")).max();
        let id = newest.unwrap().rsplit('/').nth(1).unwrap();
        let merge = peak_of(site.seawall("merge").arg(id));
        let verify = peak_of(site.seawall("verify").args(["--jobs", "2"]));
        peaks.push([full, incremental, fresh, delta, merge, verify]);
    }
    for (few, many) in peaks[0].iter().zip(&peaks[1]) {
        assert!(*many < MEMORY, "{peaks:?} KiB");
        // 80,000 files more: about half a kilobyte for each at most.
        assert!(*many < few + (40 << 10), "{peaks:?} KiB");
    }
}

#[test]
fn a_backup_keeps_to_its_bandwidth_by_option_and_by_configuration() {
    let mut site = Site::of(15).start();
    fill(&site.cluster.data().join("base/1"), 6, 0);
    let output = site
        .seawall("backup")
        .args(["--json", "--bandwidth", "4MB"])
        .run()
        .success();
    let least = |marker: &serde_json::Value, rate: f64| {
        let stored = marker["stored_bytes"].as_f64().unwrap();
        assert!(stored > 6e6, "{stored}");
        stored / rate - 0.6
    };
    let expected = least(&output.json(), 4e6);
    let took = output.elapsed.as_secs_f64();
    assert!(took >= expected, "{took} s instead of {expected} s");

    site.config = ConfigFile::new()
        .top("[backup]\nbandwidth = \"3MB\"")
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    let output = site.seawall("backup").arg("--json").run().success();
    let expected = least(&output.json(), 3e6);
    let took = output.elapsed.as_secs_f64();
    assert!(took >= expected, "{took} s instead of {expected} s");
    site.seawall("backup")
        .args(["--bandwidth", "fast"])
        .run()
        .exits_with(2);
}

/// Which backups the plan of retention lets go, by their names.
fn going(site: &Site) -> Vec<String> {
    let call = site.seawall("expire").args(["--dry-run", "--json"]);
    let plan = call.run().success().json();
    let text = plan.to_string();
    let systems = plan
        .pointer("/repositories/0/plan/systems")
        .and_then(|systems| systems.as_array())
        .unwrap_or_else(|| panic!("{text}"));
    systems[0]["backups"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|backup| backup["goes"] == true)
        .map(|backup| backup["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Damages a page of the table on the server: a bit of a used one, and bytes of a new one.
fn damage(cluster: &mut Cluster, table: &str) -> String {
    let file = cluster.sql(&format!("SELECT pg_relation_filepath('{table}')"));
    cluster.stop(Stop::Fast);
    let path = cluster.data().join(&file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 5000] ^= 1;
    // A page that was never initialised, and still is not zero.
    bytes[2 * 8192..3 * 8192].fill(0);
    bytes[2 * 8192 + 6000] = 1;
    std::fs::write(&path, bytes).unwrap();
    cluster.start();
    file
}

#[test]
fn a_backup_with_damaged_pages_is_kept_marked_and_never_the_reason_that_a_good_one_goes() {
    let mut site = Site::with(Cluster::builder(PostgresVersion::find(15)));
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()).retention("full", "1"))
        .write(&site.scratch);
    let mut site = site.start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 2000) AS n; CHECKPOINT");
    let good = site.backup();
    let file = damage(&mut site.cluster, "t");
    let output = site.seawall("backup").arg("--json").run().exits_with(3);
    let marker = output.json();
    output
        .says(&format!("{file} block 1"))
        .says(&format!("{file} block 2"));
    assert_eq!(marker["damaged_page_count"], 2);
    assert_eq!(going(&site), Vec::<String>::new());
    // With the table gone there is a good one again, and the rule lets the first go.
    site.cluster.sql("DROP TABLE t; CHECKPOINT");
    let again = site.backup();
    let going = going(&site);
    assert!(going.contains(&good["id"].as_str().unwrap().to_owned()));
    assert!(!going.contains(&again["id"].as_str().unwrap().to_owned()));
}
