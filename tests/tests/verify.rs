//! `seawall verify`: what lies in a repository is read and checked without PostgreSQL. Field
//! failure 23: nothing that is wrong passes.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use seawall::storage::{Options, Store, StoreSettings};
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Garage, Output, PostgresVersion, Scratch, Seed, Site, seawall, stored,
};

/// The findings of all backups in a report.
fn findings(output: &Output) -> Vec<serde_json::Value> {
    let report = output.json();
    let backups = report["repositories"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|repository| repository["backups"].as_array().unwrap().clone());
    backups
        .flat_map(|backup| backup["findings"].as_array().unwrap().clone())
        .collect()
}

#[test]
fn one_wrong_byte_in_any_class_of_object_is_found_and_named() {
    let mut seed = Seed::new();
    let (site, marker) = Site::of_every_class();

    let output = site.seawall("verify").arg("--json").run().success();
    let report = output.json();
    assert_eq!(report["passed"], true);
    let backup = &report["repositories"][0]["backups"][0];
    assert_eq!(backup["id"], marker["id"]);
    assert_eq!(
        report["repositories"][0]["backups"][1]["kind"],
        "incremental"
    );
    assert_eq!(backup["files"], marker["files"]);
    assert_eq!(backup["plain_bytes"], marker["plain_bytes"]);
    assert!(backup["pages"].as_u64().unwrap() > 500, "{backup}");

    let own = [&marker["wal"][0], &marker["wal"][1]].map(|name| name.as_str().unwrap());
    let mut classes: BTreeMap<String, String> = BTreeMap::new();
    for key in site.near.files() {
        let class = stored::class(&key);
        if class == "lease" || class == "label" {
            continue;
        }
        if class != "segment" || own.iter().any(|own| key.contains(own)) {
            classes.insert(class, key);
        }
    }
    let known = [
        ".index.zst",
        ".tar.zst",
        "backup.json",
        "backup_manifest.zst",
        "config.tar.zst",
        "history",
        "incremental .index.zst",
        "incremental .tar.zst",
        "incremental backup.json",
        "incremental backup_manifest.zst",
        "incremental config.tar.zst",
        "seawall.json",
        "segment",
        "system.json",
    ];
    let found: Vec<&str> = classes.keys().map(String::as_str).collect();
    assert_eq!(
        found, known,
        "a class of objects that this test does not know"
    );
    for (class, key) in &classes {
        let whole = site.near.bytes(key);
        for round in 0..4 {
            // The first and the last byte, and two between.
            let at = match round {
                0 => 0,
                1 => whole.len() - 1,
                _ => seed.below(whole.len() as u64) as usize,
            };
            eprintln!("{key}: byte {at}");
            site.near.flip(key, at);
            let output = site.seawall("verify").run();
            let name = key.rsplit('/').next().unwrap().split('-').next().unwrap();
            match class.as_str() {
                // Nothing is known of what lies there.
                "seawall.json" | "system.json" => output.exits_with(1).says("hint:"),
                _ => {
                    assert!(output.stdout.contains("hint: "), "{}", output.stdout);
                    assert!(output.stdout.contains(name), "{}", output.stdout);
                    output.exits_with(3)
                }
            };
            site.near.put_back(key, &whole);
        }
    }
    site.seawall("verify").run().success();
}

#[test]
fn what_is_lost_and_what_is_short_is_found_by_a_quick_look_too() {
    let site = Site::of(15).start();
    let first = site.backup();
    let second = site.backup();
    site.cluster.archive_all(PATIENCE);
    for quick in [&["--json"][..], &["--json", "--quick"]] {
        let verify = || site.seawall("verify").args(quick).run();
        verify().success();
        let id = second["id"].as_str().unwrap();
        for part in [
            "data/000001.tar.zst",
            "data/000001.index.zst",
            "manifest.zst",
        ] {
            let keys = site.near.keys_with(part);
            let key = keys.iter().find(|key| key.contains(id)).unwrap();
            let taken = site.near.remove(key);
            let found = findings(&verify().exits_with(3));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0]["kind"], "missing");
            assert_eq!(found[0]["key"], key.as_str());
            site.near.put_back(key, &taken[..taken.len() - 1]);
            let found = findings(&verify().exits_with(3));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0]["kind"], "damaged");
            site.near.put_back(key, &taken);
            // The other backup has nothing to do with it.
            let other = first["id"].as_str().unwrap();
            site.near.remove(key);
            site.seawall("verify")
                .args(quick)
                .arg(other)
                .run()
                .success();
            site.near.put_back(key, &taken);
        }
        let wal = site.near.one_wal(second["wal"][0].as_str().unwrap());
        let taken = site.near.remove(&wal);
        let found = findings(&verify().exits_with(3));
        assert_eq!(found[0]["kind"], "wal", "{found:?}");
        site.near.put_back(&wal, &taken);
    }
    let unknown = "20260101T000000Z-full-00000000";
    let output = site.seawall("verify").arg(unknown).run().exits_with(1);
    output.says("there is no backup").says("seawall list");
    site.seawall("verify").arg("nonsense").run().exits_with(2);
    // Nothing is written, and nobody waits for a server.
    let files = site.near.files();
    drop(site.cluster);
    seawall(&site.config).arg("verify").run().success();
    assert_eq!(site.near.files(), files);
}

#[test]
fn a_page_that_the_source_had_damaged_is_told_and_is_no_finding() {
    let mut site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n");
    site.cluster.sql("CHECKPOINT");
    let path = site.cluster.sql("SELECT pg_relation_filepath('t')");
    site.cluster.stop(Stop::Fast);
    let path = site.cluster.data().join(path.trim());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"rotten", 2 * 8192 + 5000).unwrap();
    site.cluster.start();
    site.seawall("backup").run().exits_with(3);
    site.cluster.archive_all(PATIENCE);
    let output = site.seawall("verify").arg("--json").run().success();
    let backup = &output.json()["repositories"][0]["backups"][0];
    assert_eq!(backup["known_damaged_pages"], 1);
    let text = site.seawall("verify").run().success().stdout;
    assert!(
        text.contains("1 pages were damaged on the source"),
        "{text}"
    );
}

#[test]
fn a_chain_is_verified_from_its_full_backup_on_and_again_when_it_is_merged() {
    let site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n");
    let incremental = || {
        let call = site.seawall("backup").args(["--kind", "incremental"]);
        call.arg("--json").run().success().json()
    };
    let full = site.backup();
    site.cluster.sql("UPDATE t SET n = n WHERE n < 500");
    incremental();
    site.cluster
        .sql("UPDATE t SET n = n WHERE n > 49000; CREATE TABLE u AS TABLE t");
    let last = incremental();
    site.cluster.archive_all(PATIENCE);
    let verify = || {
        let call = site.seawall("verify").arg("--json");
        call.arg(last["id"].as_str().unwrap()).run()
    };
    let report = verify().success().json();
    let backups = report["repositories"][0]["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 3, "{report}");
    assert_eq!(backups[0]["id"], full["id"]);
    assert!(backups[1]["pages"].as_u64() < backups[0]["pages"].as_u64());
    assert!(backups[1]["pages"].as_u64() > Some(0), "{}", backups[1]);

    // What all of it stands on is damaged, and then gone.
    let id = full["id"].as_str().unwrap();
    let keys = site.near.keys_with("data/000001.tar.zst");
    let pack = keys.iter().find(|key| key.contains(id)).unwrap();
    let whole = site.near.flip(pack, 1000);
    let found = findings(&verify().exits_with(3));
    assert_eq!(found[0]["key"], pack.as_str(), "{found:?}");
    site.near.put_back(pack, &whole);
    let marker = format!("{id}/backup.json");
    let marker = site.near.keys_with(&marker).remove(0);
    let taken = site.near.remove(&marker);
    let found = findings(&site.seawall("verify").arg("--json").run().exits_with(3));
    assert!(found.iter().all(|f| f["kind"] == "chain"), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
    site.near.put_back(&marker, &taken);

    let merged = site
        .seawall("merge")
        .arg(last["id"].as_str().unwrap())
        .run();
    merged.success();
    site.seawall("verify").run().success();
}

#[test]
fn a_repository_in_a_bucket_is_verified_and_a_store_that_is_gone_is_no_finding() {
    let scratch = Scratch::new();
    let mut garage = Garage::start(&scratch);
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(garage.repository("near", "near", "pg"))
        .write(&scratch);
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    cluster.start();
    let backup = seawall(&config).args(["backup", "--json"]).run().success();
    cluster.archive_all(PATIENCE);
    seawall(&config).arg("verify").run().success();

    // Somebody writes over the middle of the first pack.
    let (key_id, secret) = garage.key();
    let mut settings = StoreSettings::new("s3://near/pg");
    settings.options = Options(
        [
            ("aws_endpoint", format!("http://{}", garage.address())),
            ("aws_region", "garage".to_owned()),
            ("aws_access_key_id", key_id.to_owned()),
            ("aws_secret_access_key", secret.to_owned()),
            ("aws_allow_http", "true".to_owned()),
            ("aws_virtual_hosted_style_request", "false".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    );
    let id = backup.json()["id"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = runtime.block_on(async {
        let store = Store::open(&settings).unwrap();
        let objects = store.list("main", None).await.unwrap();
        let pack = format!("{id}/data/000001.tar.zst");
        let key = objects
            .into_iter()
            .find(|o| o.key.ends_with(&pack))
            .unwrap()
            .key;
        let mut bytes = store.get(&key).await.unwrap().unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        store.put(&key, bytes.into()).await.unwrap();
        key
    });
    let output = seawall(&config).args(["verify", "--json"]).run();
    let found = findings(&output.exits_with(3));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["kind"], "damaged");
    assert_eq!(found[0]["key"], key.as_str());
    // One frame of many files: these are named, and only these.
    let files = found[0]["files"].as_array().unwrap();
    assert!(!files.is_empty() && files.len() < 500, "{}", files.len());
    garage.stop();
    let output = seawall(&config).args(["verify", "--json"]).run();
    output.exits_with(1).says("hint:");
}
