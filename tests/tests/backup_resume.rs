//! A backup that was interrupted and is started again: it reads everything again, and spares
//! compressing and uploading only for packs whose files are still the very same bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use seawall_tests::cli::Call;
use seawall_tests::judge;
use seawall_tests::site::PATIENCE;
use seawall_tests::{ConfigFile, Repository, Site, wait_until};

/// A backup of many packs, to be completed.
fn backing_up(site: &Site) -> Call {
    site.seawall("backup")
        .with(|run| run.env("SEAWALL_TEST_PACK_BYTES", "1000000"))
}

/// A site with a table whose file is so large that it has a pack of its own, among many others,
/// and with a backup that was killed when all its data was stored.
fn interrupted() -> Site {
    let mut site = Site::of(15);
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()).retention("full", "1"))
        .write(&site.scratch);
    site.cluster.configure("autovacuum", "off");
    let mut site = site.start();
    site.cluster.sql(
        "CREATE TABLE before AS SELECT g, md5(g::text) FROM generate_series(1, 2000) g;
         CREATE TABLE large (g int, filler text);
         ALTER TABLE large ALTER filler SET STORAGE PLAIN;
         INSERT INTO large SELECT g, repeat(chr(33 + g % 90), 8000) FROM generate_series(1, 400) g",
    );
    site.cluster.sql("VACUUM (FREEZE, ANALYZE)");
    site.cluster.archive_all(PATIENCE);
    site.cluster.stop_archiving();
    site.cluster.sql("CHECKPOINT");
    drop(backing_up(&site).start_without_wal().kill());
    site.cluster.archive_again(&site.config);
    site
}

/// Where the table lies.
fn file_of(site: &Site, table: &str) -> PathBuf {
    let path = site
        .cluster
        .sql(&format!("SELECT pg_relation_filepath('{table}')"));
    site.cluster.data().join(path)
}

/// The packs of each backup: what file of the file system each is, by its key.
fn packs(site: &Site) -> BTreeMap<String, u64> {
    let keys = site.near.keys_with(".tar.zst");
    let inode = |key: &String| std::fs::metadata(site.near.path(key)).unwrap().ino();
    keys.iter().map(|key| (key.clone(), inode(key))).collect()
}

/// The packs of the second backup that are those of the first.
fn shared(first: &BTreeMap<String, u64>, all: &BTreeMap<String, u64>) -> Vec<String> {
    let new = all.iter().filter(|(key, _)| !first.contains_key(*key));
    new.filter(|(_, inode)| first.values().any(|old| old == *inode))
        .map(|(key, _)| key.clone())
        .collect()
}

/// Whether the pack holds that file.
fn holds(site: &Site, key: &str, file: &Path) -> bool {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", "zstd -dcq \"$0\" | tar -t"])
        .arg(site.near.path(key))
        .output()
        .unwrap();
    assert!(output.status.success(), "{key}: {output:?}");
    let path = file.strip_prefix(site.cluster.data()).unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().any(|line| Path::new(line) == path)
}

/// `seawall expire` with a wait that is over at once.
fn expire(site: &Site) -> serde_json::Value {
    let call = site.seawall("expire").arg("--json");
    let call = call.with(|run| run.env("SEAWALL_TEST_DELETE_AFTER", "0s"));
    call.run().success().json()["repositories"][0].clone()
}

/// Restores, and all judges agree.
fn restores_to_the_same(site: &Site) {
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let mut restored = site.restore_and_start("restored", &["--action", "promote"]);
    restored.wait_until_recovered(PATIENCE);
    dump.must_equal(&judge::dump(&restored));
    judge::is_sound(&mut restored);
}

/// Changes the table in place, so that its file has the size and the times that it had.
fn change_behind_the_clocks_back(site: &Site, table: &str) {
    let file = file_of(site, table);
    let (before, content) = (
        std::fs::metadata(&file).unwrap(),
        std::fs::read(&file).unwrap(),
    );
    site.cluster.sql(&format!(
        "UPDATE {table} SET md5 = reverse(md5) WHERE g = 7; CHECKPOINT"
    ));
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    let mtime: SystemTime = before.modified().unwrap();
    opened.set_modified(mtime).unwrap();
    let after = opened.metadata().unwrap();
    assert_eq!(
        (after.len(), after.mtime(), after.mtime_nsec()),
        (before.len(), before.mtime(), before.mtime_nsec())
    );
    assert_ne!(std::fs::read(&file).unwrap(), content, "nothing changed");
}

#[test]
fn only_what_is_the_same_bytes_is_taken_over_also_where_size_and_time_hide_a_change() {
    let site = interrupted();
    let first = packs(&site);
    change_behind_the_clocks_back(&site, "before");
    site.cluster.sql("CREATE TABLE young AS SELECT 1");
    // What the dead backup left is named in a tombstone before, and may go at once.
    for key in site.near.keys_with("/leases/") {
        site.near.remove(&key);
    }
    assert_eq!(
        expire(&site)["plan"]["systems"][0]["unfinished"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let running = backing_up(&site).start();
    wait_until("it has found what was interrupted", PATIENCE, || {
        running.stderr().contains("was interrupted")
    });
    let meanwhile = expire(&site);
    assert_eq!(meanwhile["deleted_backups"].as_array().unwrap().len(), 0);
    let output = running.wait().success();
    let shared = shared(&first, &packs(&site));
    output.says(&format!("{} packs with", shared.len()));
    // Most of it did not change, the large table among it.
    assert!(shared.len() > first.len() / 2, "{shared:?} of {first:?}");
    let among = |table| {
        let file = file_of(&site, table);
        shared.iter().any(|key| holds(&site, key, &file))
    };
    assert!(among("large"), "{shared:?}");
    assert!(!among("before") && !among("young"), "{shared:?}");

    // The old one goes, and takes nothing of the new one with it. Its tombstone went unused.
    expire(&site);
    let deleted = expire(&site);
    assert_eq!(deleted["deleted_backups"].as_array().unwrap().len(), 1);
    assert!(first.keys().all(|key| !site.near.path(key).exists()));
    restores_to_the_same(&site);
}

#[test]
fn a_large_table_that_changed_in_one_byte_behind_the_clocks_back_is_packed_anew() {
    let site = interrupted();
    let first = packs(&site);
    let file = file_of(&site, "large");
    let before = std::fs::metadata(&file).unwrap();
    site.cluster
        .sql("UPDATE large SET g = g WHERE g = 400; DELETE FROM large WHERE g = 5; CHECKPOINT");
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    opened.set_modified(before.modified().unwrap()).unwrap();
    backing_up(&site).run().success();
    let shared = shared(&first, &packs(&site));
    assert!(!shared.is_empty());
    assert!(shared.iter().all(|key| !holds(&site, key, &file)));
    restores_to_the_same(&site);
}

#[test]
fn what_an_interrupted_backup_left_in_part_is_packed_anew_and_no_resume_takes_nothing() {
    let site = interrupted();
    let first = packs(&site);
    let anew = backing_up(&site).arg("--no-resume").run().success();
    assert!(!anew.stderr.contains("interrupted"), "{}", anew.stderr);
    assert_eq!(shared(&first, &packs(&site)), Vec::<String>::new());
    // As if that one had been interrupted, too; of its large pack a part is missing, and of the
    // first one's the index is garbage.
    for key in site.near.keys_with("backup.json") {
        site.near.remove(&key);
    }
    let large = file_of(&site, "large");
    let of_large: Vec<String> = packs(&site)
        .into_keys()
        .filter(|key| key.contains("/data/") && holds(&site, key, &large))
        .collect();
    let [older, newer] = &of_large[..] else {
        panic!("{of_large:?}")
    };
    let path = site.near.path(newer);
    let size = std::fs::metadata(&path).unwrap().len();
    let opened = std::fs::File::options().write(true).open(path).unwrap();
    opened.set_len(size - 1).unwrap();
    let index = site.near.path(&older.replace(".tar.zst", ".index.zst"));
    std::fs::write(index, b"garbage").unwrap();

    let before = packs(&site);
    backing_up(&site).run().success();
    let shared = shared(&before, &packs(&site));
    assert!(
        shared.iter().all(|key| !holds(&site, key, &large)),
        "{shared:?}"
    );
    restores_to_the_same(&site);
}
