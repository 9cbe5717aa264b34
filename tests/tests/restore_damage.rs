//! One byte flipped in every class of object: each is caught by the restore or by recovery,
//! and never restored as if it were right.

use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site};

/// A stopped site on Debian's layout, with two timelines in its archive.
fn site() -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15)).config_outside();
    let site = Site::with(builder).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let args = ["--archive", "on", "--action", "promote"];
    let mut second = site.restore_and_start("second", &args);
    second.sql("INSERT INTO t VALUES (0)");
    second.archive_all(PATIENCE);
    second.wait_until_archived("00000002.history", PATIENCE);
    second.stop(Stop::Fast);
    let mut site = site;
    site.cluster.stop(Stop::Fast);
    site
}

#[test]
fn one_flipped_byte_in_any_object_of_a_backup_is_caught() {
    let site = site();
    let to = site.scratch.join("restored");
    for class in [
        "000001.tar.zst",
        "000002.tar.zst",
        "000001.index.zst",
        "000002.index.zst",
        "config.tar.zst",
        "backup_manifest.zst",
    ] {
        let keys = site.near.keys_with(class);
        assert_eq!(keys.len(), 1, "{class}: {keys:?}");
        let key = &keys[0];
        let size = site.near.bytes(key).len();
        for at in [0, size / 2, size * 8 / 10, size - 1] {
            let whole = site.near.flip(key, at);
            let output = site.restoring(&to).run();
            assert_eq!(output.code, 1, "{class} byte {at}: {}", output.stderr);
            assert!(
                !to.join("global/pg_control").exists(),
                "{class} byte {at}: it would start"
            );
            assert!(
                output.stderr.contains("damaged")
                    || output.stderr.contains("bytes in the store")
                    || output.stderr.contains(class)
                    || output.stderr.contains("manifest"),
                "{class} byte {at}: {}",
                output.stderr
            );
            site.near.replace(key, &whole);
        }
        // Gone, cut, and grown.
        let whole = site.near.remove(key);
        let output = site.restoring(&to).run().exits_with(1);
        assert!(
            output.stderr.contains("not in the store"),
            "{}",
            output.stderr
        );
        for other in [
            whole[..whole.len() - 1].to_vec(),
            Vec::new(),
            [&whole[..], b"x"].concat(),
        ] {
            site.near.put_back(key, &other);
            let output = site.restoring(&to).run();
            assert_eq!(
                output.code,
                1,
                "{class} with {} bytes: {}",
                other.len(),
                output.stderr
            );
        }
        site.near.replace(key, &whole);
    }
    // And whole again, the same command completes what failed.
    site.restoring(&to).run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
}

#[test]
fn one_flipped_byte_in_the_marker_is_caught_wherever_it_is() {
    let site = site();
    let keys = site.near.keys_with("backup.json");
    let key = &keys[0];
    let size = site.near.bytes(key).len();
    let to = site.scratch.join("restored");
    for step in 0..40 {
        let at = size * step / 40;
        let mut bytes = site.near.bytes(key);
        bytes[at] ^= 1 << (step % 7);
        let whole = site.near.replace(key, &bytes);
        let output = site.restoring(&to).run().exits_with(1);
        assert!(
            output.stderr.contains("damaged"),
            "byte {at}: {}",
            output.stderr
        );
        assert!(!to.exists());
        site.near.replace(key, &whole);
    }
    site.restoring(&to).run().success();
}

#[test]
fn one_flipped_byte_in_the_archive_is_caught() {
    let site = site();
    let to = site.scratch.join("restored");
    // A history decides where recovery goes: the plan reads it.
    let history = site.near.one_wal("00000002.history");
    let size = site.near.bytes(&history).len();
    for at in [0, 5, size / 2, size - 1] {
        let whole = site.near.flip(&history, at);
        site.restoring(&to)
            .run()
            .exits_with(1)
            .says("00000002.history");
        assert!(!to.exists());
        site.near.replace(&history, &whole);
    }
    // A segment is caught when recovery asks for it.
    let segments = site.near.keys_with("/wal/00000001/");
    let segment = segments
        .iter()
        .find(|key| !key.contains(".backup-"))
        .unwrap();
    let segments = site.near.keys_with("/wal/00000002/");
    for key in [
        segments
            .iter()
            .find(|key| !key.contains(".partial-"))
            .unwrap(),
        segment,
    ] {
        let size = site.near.bytes(key).len();
        let plain = site.near.plain(key);
        let mut caught = 0;
        for at in [0, size / 2, size - 1] {
            let whole = site.near.flip(key, at);
            let name = &key.rsplit('/').next().unwrap()[..24];
            let output = site.fetch(name);
            // A bit that zstd does not use changes nothing: the digest of what it opens to is
            // right, and so is the segment.
            if output.code == 0 {
                assert!(std::fs::read(site.fetched()).unwrap() == plain, "byte {at}");
                std::fs::remove_file(site.fetched()).unwrap();
            } else {
                output.exits_with(200).says("damaged");
                caught += 1;
            }
            site.near.replace(key, &whole);
        }
        assert!(caught >= 2, "{caught} of 3 were noticed");
    }
    // The records that prove which repository and system this is.
    let system = site.near.keys_with("system.json")[0].clone();
    for key in ["seawall.json", &system] {
        let text = String::from_utf8(site.near.bytes(key)).unwrap();
        for at in (0..text.len()).step_by(29) {
            let whole = site.near.flip(key, at);
            site.restoring(&to).run().exits_with(1).says("damaged");
            assert!(!to.exists());
            assert_eq!(site.fetch("000000090000000000000001").code, 200);
            site.near.replace(key, &whole);
        }
    }
    site.restoring(&to).run().success();
}
