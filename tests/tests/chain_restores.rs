//! What chains of incremental backups promise when they are read: every link is restored to
//! exactly what PostgreSQL's own `pg_combinebackup` makes of it, also over a directory that is
//! there; and `seawall merge` makes a full backup that takes the chain's place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use seawall::backup::{merge, verify};
use seawall::config::Compression;
use seawall::repository::keys::BackupId;
use seawall_tests::faulty::{cases_at, impatient, new_memory, runtime, with_plan};
use seawall_tests::job::files_below;
use seawall_tests::judge;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Combined, PostgresVersion, Seed, Site, wait_until};
use serde_json::Value;

fn incremental(site: &Site) -> Value {
    let call = site.seawall("backup").args(["--kind", "incremental"]);
    let taken = call.arg("--json").run().success().json();
    assert_eq!(taken["kind"], "incremental", "{taken}");
    taken
}

fn id(backup: &Value) -> &str {
    backup["id"].as_str().unwrap()
}

/// A chain of a full backup and two on top of it: rows change, files shrink, grow and go.
fn chain(major: u32) -> (Site, Vec<Value>, Vec<judge::Dump>) {
    let builder = Cluster::builder(PostgresVersion::find(major));
    let site = Site::with(builder.config("autovacuum", "off")).start();
    site.cluster.sql(
        "CREATE TABLE stays AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n;
         CREATE TABLE changes (n int PRIMARY KEY, t text);
         INSERT INTO changes SELECT n, repeat('x', 200) FROM generate_series(1, 9000) n;
         CREATE TABLE shrinks AS SELECT n, repeat('y', 500) AS t FROM generate_series(1, 5000) n;
         CREATE TABLE goes AS TABLE stays",
    );
    let mut chain = vec![site.backup()];
    let mut dumps = vec![judge::dump(&site.cluster)];
    for link in 1..=2 {
        site.cluster.sql(&format!(
            "UPDATE changes SET t = t || 'z' WHERE n % 599 = {link};
             INSERT INTO changes SELECT n, 'new' FROM generate_series({link}0000, {link}0100) n;
             DELETE FROM shrinks WHERE n > 5000 - {link} * 1000;
             DROP TABLE goes;
             CREATE TABLE goes AS SELECT {link} AS n"
        ));
        site.cluster.sql("VACUUM shrinks");
        chain.push(incremental(&site));
        dumps.push(judge::dump(&site.cluster));
    }
    site.cluster.archive_all(PATIENCE);
    (site, chain, dumps)
}

fn restored(site: &Site, name: &str, backup: &Value, args: &[&str]) -> PathBuf {
    let to = site.scratch.join(format!("{name}-data"));
    let call = site
        .restoring(&to)
        .args(["--backup", id(backup), "--immediate"]);
    let call = call
        .args(["--action", "promote", "--archive", "off"])
        .args(args);
    call.run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    to
}

/// Every file that the backup brought, but for what a restore writes itself.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let own = ["backup_manifest", "postgresql.auto.conf", "recovery.signal"];
    files_below(root)
        .into_iter()
        .map(|path| {
            (
                path.strip_prefix(root).unwrap().to_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .filter(|(path, _)| !own.iter().any(|own| path == Path::new(own)))
        .collect()
}

#[track_caller]
fn same(one: &BTreeMap<PathBuf, Vec<u8>>, other: &BTreeMap<PathBuf, Vec<u8>>) {
    let names = |tree: &BTreeMap<PathBuf, Vec<u8>>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other));
    for (path, bytes) in one {
        assert!(*bytes == other[path], "{} differs", path.display());
    }
}

/// Starts what was restored, and compares it with what was there when the backup ended.
#[track_caller]
fn starts_with(site: &Site, name: &str, to: &Path, dump: &judge::Dump) {
    let mut cluster = site.adopt(name, to);
    cluster.start();
    cluster.wait_until_recovered(PATIENCE);
    judge::dump(&cluster).must_equal(dump);
    judge::is_sound(&mut cluster);
}

#[test]
fn every_link_is_restored_to_what_pg_combinebackup_makes_of_it_on_18() {
    let (site, chain, dumps) = chain(18);
    for link in (0..chain.len()).rev() {
        let name = format!("link{link}");
        let to = restored(&site, &name, &chain[link], &[]);
        if link > 0 {
            let links: Vec<&Value> = chain[..=link].iter().collect();
            let combined = Combined::unpack(&site, &format!("by-hand{link}"), &links);
            let own = site.scratch.join(format!("combined{link}"));
            combined
                .by_postgresql(&own)
                .expect("18 has pg_combinebackup");
            same(&tree(&to), &tree(&own));
        }
        starts_with(&site, &name, &to, &dumps[link]);
    }
}

#[test]
fn a_directory_goes_from_link_to_link_by_what_differs_on_15() {
    let (site, chain, dumps) = chain(15);
    let to = restored(&site, "here", &chain[0], &[]);
    for link in [2, 1, 0, 2] {
        let fresh = restored(&site, &format!("fresh{link}"), &chain[link], &[]);
        restored(&site, "here", &chain[link], &["--delta"]);
        same(&tree(&to), &tree(&fresh));
        std::fs::remove_dir_all(&fresh).unwrap();
    }
    starts_with(&site, "here", &to, &dumps[2]);
    // It lived on, lost a file that is put together from several backups, and goes back.
    let path = site.cluster.sql("SELECT pg_relation_filepath('changes')");
    std::fs::remove_file(to.join(path)).unwrap();
    restored(&site, "here", &chain[1], &["--delta"]);
    starts_with(&site, "here", &to, &dumps[1]);
}

#[test]
fn a_file_of_several_parts_is_the_same_by_every_way() {
    let builder = Cluster::builder(PostgresVersion::find(15)).config("autovacuum", "off");
    let site = Site::with(builder).start();
    // 72 MB in one file: a restore cuts it into parts.
    site.cluster.sql(
        "CREATE TABLE large (n int, filler text);
         ALTER TABLE large ALTER filler SET STORAGE PLAIN;
         INSERT INTO large SELECT n, repeat(chr(33 + n % 90), 3900) FROM generate_series(1, 18000) n",
    );
    let mut chain = vec![site.backup()];
    site.cluster
        .sql("UPDATE large SET filler = 'short' WHERE n % 97 = 0");
    chain.push(incremental(&site));
    site.cluster.sql(
        "INSERT INTO large SELECT n, repeat('x', 3900) FROM generate_series(1, 300) n;
         UPDATE large SET filler = 'again' WHERE n % 1013 = 0",
    );
    chain.push(incremental(&site));
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);

    let links: Vec<&Value> = chain.iter().collect();
    let by_hand = site.scratch.join("by-hand");
    Combined::unpack(&site, "unpacked", &links).by_the_rules(&by_hand);
    let expected = tree(&by_hand);
    let largest = expected.values().map(Vec::len).max();
    assert!(largest > Some(70 << 20), "{largest:?}");
    let to = restored(&site, "fresh", &chain[2], &[]);
    same(&tree(&to), &expected);
    std::fs::remove_dir_all(to).unwrap();
    restored(&site, "here", &chain[0], &[]);
    let to = restored(&site, "here", &chain[2], &["--delta"]);
    same(&tree(&to), &expected);
    std::fs::remove_dir_all(to).unwrap();
    let merge = site.seawall("merge").arg(id(&chain[2])).arg("--json");
    let merged = merge.run().success().json();
    let to = restored(&site, "merged", &merged, &[]);
    same(&tree(&to), &expected);
    starts_with(&site, "merged", &to, &dump);
}

/// Takes a backup away, the marker first, as `seawall expire` does.
fn remove(site: &Site, backup: &Value) {
    let prefix = format!("/backups/{}/", id(backup));
    let mut keys = site.near.keys_with(&prefix);
    keys.sort_by_key(|key| !key.ends_with("backup.json"));
    for key in keys {
        site.near.remove(&key);
    }
}

#[test]
fn a_merged_backup_is_what_a_restore_would_be_and_takes_the_place_of_its_chain() {
    let (site, mut chain, mut dumps) = chain(15);
    let before = tree(&restored(&site, "before", &chain[1], &[]));
    let merge = || site.seawall("merge").arg(id(&chain[1])).arg("--json");
    let merged = merge().run().success().json();
    assert_eq!(merged["kind"], "full");
    for same in [
        "start_lsn",
        "stop_lsn",
        "stop_time",
        "timeline",
        "files",
        "tablespaces",
    ] {
        assert_eq!(merged[same], chain[1][same], "{same}");
    }
    assert_eq!(
        merged["merged_from"],
        serde_json::json!([id(&chain[1]), id(&chain[0])])
    );
    same(&tree(&restored(&site, "merged", &merged, &[])), &before);
    // Unpacked by hand it is a full backup of PostgreSQL's as well.
    let by_hand = Combined::unpack(&site, "by-hand", &[&merged]);
    judge::verifybackup(site.cluster.version(), &by_hand.directories()[0]).must_pass();
    // Without the chain that it was made of, the child is on top of it.
    remove(&site, &chain[0]);
    site.restoring(&site.scratch.join("orphan"))
        .args(["--backup", id(&chain[1])])
        .run()
        .exits_with(1)
        .says("cannot be restored")
        .says(id(&chain[0]));
    remove(&site, &chain[1]);
    let to = restored(&site, "child", &chain[2], &[]);
    starts_with(&site, "child", &to, &dumps[2]);
    let to = restored(&site, "merged-again", &merged, &[]);
    starts_with(&site, "merged-again", &to, &dumps[1]);
    // And the next incremental backup goes on from there.
    site.cluster
        .sql("UPDATE changes SET t = 'last' WHERE n = 7");
    chain.push(incremental(&site));
    dumps.push(judge::dump(&site.cluster));
    site.cluster.archive_all(PATIENCE);
    let to = restored(&site, "last", &chain[3], &[]);
    starts_with(&site, "last", &to, &dumps[3]);
    // What is full already, what is merged already, and what is not there.
    let again = site.seawall("merge").arg(id(&merged)).run();
    again.exits_with(4).says("full one already");
    let (begin, _) = id(&chain[3]).rsplit_once('-').unwrap();
    let none = format!("{begin}-00000000");
    site.seawall("merge").arg(&none).run().exits_with(5);
}

#[test]
fn a_merge_that_is_killed_or_whose_nth_call_fails_leaves_the_chain_as_it_was() {
    let mut seed = Seed::new();
    let (site, chain, dumps) = chain(15);
    let markers = || site.near.keys_with("/backup.json").len();
    let before = tree(&restored(&site, "before", &chain[2], &[]));
    let mut killed = 0;
    for step in 0..8 {
        let stored = || site.near.keys_with("/data/").len();
        let before = stored();
        let mut running = site.seawall("merge").arg(id(&chain[2])).start();
        wait_until("it stores", PATIENCE, || {
            stored() > before || !running.is_running()
        });
        std::thread::sleep(std::time::Duration::from_millis(10 * step));
        killed += usize::from(running.is_running() && markers() == 3);
        running.signal(Signal::SIGKILL);
        running.wait();
        if markers() > 3 {
            break;
        }
    }
    assert!(killed > 0, "none was killed in time");
    // One that came to its end is not made again.
    let ours = |key: &String| chain.iter().any(|backup| key.contains(id(backup)));
    for key in site.near.keys_with("/backup.json") {
        if !ours(&key) {
            site.near.remove(&key);
        }
    }
    let options = merge::Settings {
        compression: Compression::default(),
        jobs: 2,
    };
    let url = new_memory();
    let newest: BackupId = id(&chain[2]).parse().unwrap();
    runtime().block_on(async {
        let (memory, _) = with_plan(&url, impatient(), &"seed=1".parse().unwrap());
        // What a killed writer leaves has such a name.
        let files = site.near.files().into_iter();
        for key in files.filter(|key| !key.contains('#')) {
            memory
                .store()
                .put(&key, site.near.bytes(&key).into())
                .await
                .unwrap();
        }
        let system = memory.systems("main").await.unwrap().remove(0).0;
        let (mut failed, mut number) = (0, 1);
        loop {
            let mut cases = cases_at(number);
            let case = cases.swap_remove(seed.below(cases.len() as u64) as usize);
            eprintln!("{case}");
            for id in system.backup_ids().await.unwrap() {
                let key = system.keys().marker(&id);
                if !ours(&key) {
                    memory.store().delete(&key).await.unwrap();
                }
            }
            let plan = case.plan();
            let (_, faulty) = with_plan(&url, impatient(), &plan);
            let of_faulty = faulty.system("main", system.id());
            let done = merge::merge(&of_faulty, &newest, &options).await;
            failed += usize::from(done.is_err());
            // Whatever has a marker is whole, and the chain is.
            for id in system.backup_ids().await.unwrap() {
                let Some(marker) = system.marker(&id).await.unwrap() else {
                    continue;
                };
                assert_eq!(
                    system.missing_object(&marker).await.unwrap(),
                    None,
                    "{case}: {id}"
                );
                if marker.is_merged_from(&newest) {
                    let scope = verify::Scope {
                        backup: Some(id.clone()),
                        jobs: 2,
                        quick: false,
                    };
                    let report = verify::verify(&system, &scope).await.unwrap();
                    assert!(report.passed(), "{case}: {id}: {report:?}");
                }
            }
            for backup in &chain {
                let id: BackupId = id(backup).parse().unwrap();
                assert!(system.marker(&id).await.unwrap().is_some(), "{case}: {id}");
            }
            if plan.injected() == 0 {
                done.unwrap();
                break;
            }
            number += 1 + number / 8;
        }
        assert!(failed > 3, "{failed} failed of {number} calls");
    });
    // The chain is what it was, and the same command completes the merge.
    same(&tree(&restored(&site, "after", &chain[2], &[])), &before);
    let merged = site.seawall("merge").arg(id(&chain[2])).arg("--json");
    let merged = merged.run().success().json();
    let to = restored(&site, "merged", &merged, &[]);
    same(&tree(&to), &before);
    starts_with(&site, "merged", &to, &dumps[2]);
}
