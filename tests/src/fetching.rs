//! Calls of `seawall-fetch` on a cluster that never started, with segments that no server wrote.

use std::path::Path;

use crate::scratch::give_to_owner;
use crate::segment::name;
use crate::{Cluster, PostgresVersion, Segment, Site};

/// The segment that initdb leaves.
pub const FIRST: &str = "000000010000000000000001";
/// For the configuration: each call asks the repositories itself.
pub const NOTHING_AHEAD: &str = "[fetch]\nahead = 0";

/// Writes a file as PostgreSQL would: owned by its user.
#[track_caller]
pub fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    give_to_owner(path);
}

/// A site where nothing is fetched ahead.
#[track_caller]
pub fn site() -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15));
    Site::configured(builder, |file| file.extra(NOTHING_AHEAD))
}

/// Archives segments of these numbers that no server wrote.
#[track_caller]
pub fn archive_numbers(site: &Site, numbers: &[u64]) {
    let whole = Segment::read(site.wal(FIRST));
    for &number in numbers {
        if number != 1 {
            write(&site.wal(&name(number)), &whole.clone().numbered(number).0);
        }
        site.push(&name(number)).success();
    }
}

/// Fetches, expects this code, and that the destination holds a whole file or nothing, with
/// nothing left beside it. Returns what was said.
#[track_caller]
pub fn expect(site: &Site, file: &str, code: i32) -> String {
    let _ = std::fs::remove_file(site.fetched());
    let output = site.fetch(file).exits_with(code);
    assert_eq!(site.fetched().exists(), code == 0, "{file}");
    nothing_is_left_beside(site);
    output.stderr
}

/// That `seawall-fetch` has left nothing of its own in pg_wal.
#[track_caller]
pub fn nothing_is_left_beside(site: &Site) {
    for entry in std::fs::read_dir(site.wal("")).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        assert!(
            !name.contains("tmp") && !name.contains("seawall"),
            "left behind: {name}"
        );
    }
}
