//! What `seawall-archive` promises PostgreSQL: 0 means durable in every push target, what is
//! stored is never changed, and what does not belong there is never stored.

use std::path::Path;

use seawall_tests::postgres::Stop;
use seawall_tests::scratch::{give_to_owner, is_root};
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::stored::digest;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Run, Scratch, Segment, Site, Stored, archive,
    seawall, wait_until,
};

/// The segment that initdb leaves behind, and that no server has to run for.
const FIRST: &str = "000000010000000000000001";

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    give_to_owner(path);
}

#[test]
fn zero_means_that_every_push_target_holds_the_very_bytes_under_the_documented_key() {
    let (site, second) = Site::of(15).with_second("");
    site.push(FIRST).success();
    let content = std::fs::read(site.wal(FIRST)).unwrap();
    let system = std::fs::read_dir(site.near.path("main")).unwrap();
    let system = system.flatten().next().unwrap().file_name();
    for repository in [&site.near, &second] {
        let key = repository.one_wal(FIRST);
        let documented = format!(
            "main/{}/wal/00000001/00000000/{FIRST}-{}.zst",
            system.to_string_lossy(),
            digest(&content)
        );
        assert_eq!(key, documented);
        assert!(repository.plain(&key) == content, "zstd -d gives the file");
        let listed = Run::new("/usr/bin/zstd")
            .arg("-lv")
            .arg(repository.path(&key))
            .as_self();
        let listed = listed.run().success().stdout;
        assert!(
            listed.contains("XXH64") && listed.contains("16.0 MiB"),
            "{listed}"
        );
    }
}

#[test]
fn the_same_file_again_is_a_success_and_writes_nothing() {
    use std::os::unix::fs::MetadataExt;
    let (site, second) = Site::of(15).with_second("");
    site.push(FIRST).success();
    let seen = |repository: &Stored| {
        let file = repository.path(&repository.one_wal(FIRST));
        let metadata = std::fs::metadata(file).unwrap();
        (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
    };
    let before = (seen(&site.near), seen(&second), site.near.files());
    site.push(FIRST).success();
    assert_eq!(before, (seen(&site.near), seen(&second), site.near.files()));
}

#[test]
fn other_content_under_one_name_is_refused_with_both_digests_and_the_stored_one_stays() {
    let site = Site::of(15);
    site.push(FIRST).success();
    let key = site.near.one_wal(FIRST);
    let stored = site.near.bytes(&key);
    let one = Segment::read(site.wal(FIRST));
    let other = one.clone().content(7);
    write(&site.wal(FIRST), &other.0);
    let refused = site.push(FIRST);
    assert!((1..=125).contains(&refused.code));
    refused
        .says(&digest(&one.0))
        .says(&digest(&other.0))
        .says("already archived with other content")
        .says("hint:");
    assert_eq!(site.near.one_wal(FIRST), key);
    assert!(site.near.bytes(&key) == stored);
    // The right one is still welcome.
    write(&site.wal(FIRST), &one.0);
    site.push(FIRST).success();
}

#[test]
fn what_is_no_segment_of_this_cluster_is_refused_and_never_stored() {
    let site = Site::of(15);
    let before = site.near.files();
    let whole = Segment::read(site.wal(FIRST));
    let size = whole.0.len();
    let wrong = [
        (
            "another system",
            FIRST,
            whole.clone().system(7_300_000_000_000_000_001),
        ),
        ("truncated", FIRST, whole.clone().length(size - 1)),
        ("truncated to its header", FIRST, whole.clone().length(40)),
        ("empty", FIRST, whole.clone().length(0)),
        ("grown", FIRST, whole.clone().length(size + 8192)),
        (
            "segments of another size",
            FIRST,
            whole.clone().segment_size(32 << 20),
        ),
        ("another magic", FIRST, whole.clone().magic(0xD0FF)),
        ("garbage", FIRST, Segment(vec![0xA5; size])),
        ("nothing but zeros", FIRST, Segment(vec![0; size])),
        ("renamed to a later segment", &name(2), whole.clone()),
        ("renamed to another log", &name(0x101), whole.clone()),
        (
            "a partial one of another place",
            "000000010000000000000009.partial",
            whole.clone(),
        ),
        (
            "no name of PostgreSQL's",
            "00000001000000000000000G",
            whole.clone(),
        ),
        (
            "a name that is too long",
            "0000000100000000000000011",
            whole.clone(),
        ),
        ("an empty history", "00000002.history", Segment(Vec::new())),
        (
            "a huge history",
            "00000002.history",
            Segment(vec![b'#'; 2 << 20]),
        ),
    ];
    let original = whole.0.clone();
    for (what, file, segment) in &wrong {
        write(&site.wal(file), &segment.0);
        let refused = site.push(file);
        assert!(
            (1..=125).contains(&refused.code),
            "{what}: {}",
            refused.code
        );
        assert!(
            refused.stderr.contains("error:"),
            "{what}: {}",
            refused.stderr
        );
        assert_eq!(site.near.files(), before, "{what}");
        if *file != FIRST {
            std::fs::remove_file(site.wal(file)).unwrap();
        }
    }
    write(&site.wal(FIRST), &original);
    site.push(FIRST).success();
}

#[test]
fn a_segment_of_another_cluster_in_the_same_repository_under_the_same_name_is_refused() {
    let site = Site::of(15);
    let other = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "other");
    site.push(FIRST).success();
    let before = site.near.files();
    let foreign = other.data().join("pg_wal").join(FIRST);
    write(&site.wal(FIRST), &std::fs::read(foreign).unwrap());
    let refused = site.push(FIRST);
    assert!((1..=125).contains(&refused.code));
    refused.says("belongs to the cluster");
    assert_eq!(site.near.files(), before);
}

#[test]
fn one_push_target_down_is_a_failure_and_the_same_call_repairs_it() {
    let (site, second) = Site::of(15).with_second("");
    for leave_empty_directory in [false, true] {
        let file = if leave_empty_directory {
            name(3)
        } else {
            name(2)
        };
        let number = if leave_empty_directory { 3 } else { 2 };
        write(
            &site.wal(&file),
            &Segment::read(site.wal(FIRST)).numbered(number).0,
        );
        second.unmount(leave_empty_directory);
        let failed = site.push(&file);
        assert!((1..=125).contains(&failed.code), "{}", failed.code);
        failed.says("second");
        // The healthy one is not held up by the other.
        site.near.one_wal(&file);
        assert!(second.files().is_empty(), "no new repository in its place");
        second.mount();
        site.push(&file).success();
        assert!(second.plain(&second.one_wal(&file)) == site.near.plain(&site.near.one_wal(&file)));
    }
}

#[test]
fn an_unmounted_repository_is_an_error_and_never_becomes_a_new_one() {
    let site = Site::of(15);
    for leave_empty_directory in [true, false] {
        site.near.unmount(leave_empty_directory);
        for call in [site.pushing(FIRST), site.seawall("list")] {
            let failed = call.run();
            assert!((1..=125).contains(&failed.code), "{}", failed.code);
        }
        assert!(site.near.files().is_empty());
        site.near.mount();
    }
    site.push(FIRST).success();
}

#[test]
fn whatever_is_wrong_with_a_call_its_code_lies_between_1_and_125() {
    let site = Site::of(15);
    let good = std::fs::read_to_string(site.config.path()).unwrap();
    let program = seawall_tests::Programs::get().path("seawall-archive");
    let run = |args: &[&str]| {
        let run = Run::new(&program).args(args).directory(site.cluster.data());
        let code = run.run().code;
        assert!((1..=125).contains(&code), "{args:?}: {code}");
    };
    let config = site.config.path().display().to_string();
    let wal = format!("pg_wal/{FIRST}");
    run(&[]);
    run(&["--no-such-option", &wal]);
    run(&[&wal]);
    run(&["--config", "/nowhere/seawall.toml", &wal]);
    run(&["--config", &config]);
    run(&["--config", &config, "--cluster", "unknown", &wal]);
    run(&["--config", &config, "pg_wal/000000010000000000000077"]);
    run(&["--config", &config, "pg_wal"]);
    run(&["--config", &config, "/"]);
    run(&["--config", &config, &wal, &wal]);
    for broken in [
        "".to_owned(),
        "cluster = ".to_owned(),
        format!("{good}\n[compresion]\nlevel = 3\n"),
        good.replace("url =", "uri ="),
        good.replace("file://", "gopher://"),
        good.replace("url = \"file:///", "url = \"file://"),
    ] {
        std::fs::write(site.config.path(), broken).unwrap();
        run(&["--config", &config, &wal]);
    }
    std::fs::write(site.config.path(), &good).unwrap();
    assert!(site.near.wal(FIRST).is_empty());
    run(&[
        "--config",
        &config,
        "--cluster",
        "main",
        "--log-level",
        "loud",
        &wal,
    ]);
    site.push(FIRST).success();
}

#[test]
fn a_log_that_nobody_reads_turns_no_failure_into_a_signal_and_no_success_into_a_failure() {
    let site = Site::of(15);
    let call = |file: &str| {
        let script = "exec 2> >(exit); sleep 0.2; \"$0\" --config \"$1\" \"$2\"";
        let run = Run::new("/bin/bash").args(["-c", script]);
        run.arg(seawall_tests::Programs::get().path("seawall-archive"))
            .arg(site.config.path())
            .arg(file)
            .directory(site.cluster.data())
            .run()
            .code
    };
    let code = call("pg_wal/missing");
    assert!((1..=125).contains(&code), "{code}");
    assert_eq!(call(&format!("pg_wal/{FIRST}")), 0);
}

#[test]
fn history_backup_and_partial_files_of_a_promotion_arrive_under_their_documented_keys() {
    for major in [15, 18] {
        history_backup_and_partial_files(major);
    }
}

fn history_backup_and_partial_files(major: u32) {
    let mut site = Site::of(major).start();
    site.cluster.sql(if major >= 15 {
        "SELECT pg_backup_start('x', true); SELECT pg_backup_stop(false)"
    } else {
        "SELECT pg_start_backup('x', true, false); SELECT pg_stop_backup(false, false)"
    });
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    let left_off = site.cluster.switch_wal();
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    site.cluster.wait_until_archived(&left_off, PATIENCE);
    site.cluster.kill();
    standby.promote();
    let segment = standby.archive_all(PATIENCE);
    assert!(segment.starts_with("00000002"), "{segment}");
    wait_until("all that is ready is archived", PATIENCE, || {
        let status = standby.data().join("pg_wal/archive_status");
        let mut left = std::fs::read_dir(status).unwrap().flatten();
        !left.any(|entry| entry.file_name().to_string_lossy().ends_with(".ready"))
    });
    let system = standby.system_id();
    let in_pg_wal = |file: &str| std::fs::read(standby.data().join("pg_wal").join(file)).unwrap();

    let history = site.near.one_wal("00000002.history");
    let content = in_pg_wal("00000002.history");
    let digest_of = |content: &[u8]| digest(content);
    assert_eq!(
        history,
        format!(
            "main/{system}/wal/00000002.history-{}.zst",
            digest_of(&content)
        )
    );
    assert!(site.near.plain(&history) == content);

    let partial = site.near.keys_with(".partial-");
    let [partial] = partial.as_slice() else {
        panic!("partial segments: {partial:?}");
    };
    let plain = site.near.plain(partial);
    assert_eq!(plain.len(), 16 << 20);
    assert!(partial.starts_with(&format!("main/{system}/wal/00000001/00000000/00000001")));
    assert!(partial.ends_with(&format!(".partial-{}.zst", digest_of(&plain))));

    let backup = site.near.keys_with(".backup-");
    assert!(!backup.is_empty());
    for key in &backup {
        let plain = site.near.plain(key);
        assert!(String::from_utf8_lossy(&plain).contains("START WAL LOCATION"));
        assert!(key.starts_with(&format!("main/{system}/wal/00000001/00000000/")));
        assert!(key.ends_with(&format!("-{}.zst", digest_of(&plain))));
    }
    // Every segment of both timelines is there, whole, and says which it is.
    for key in site.near.keys_with("/wal/0000000") {
        if key.contains(".history-") || key.contains(".backup-") {
            continue;
        }
        let plain = site.near.plain(&key);
        assert_eq!(plain.len(), 16 << 20, "{key}");
        assert!(
            key.ends_with(&format!("{}.zst", digest_of(&plain))),
            "{key}"
        );
    }
    standby.stop(Stop::Fast);
}

#[test]
fn postgresql_keeps_its_wal_and_counts_failures_until_the_repository_is_back() {
    let site = Site::of(15).start();
    let first = site.cluster.archive_all(PATIENCE);
    site.near.unmount(true);
    let lost = [site.cluster.switch_wal(), site.cluster.switch_wal()];
    wait_until("failures are counted", PATIENCE, || {
        site.cluster.archiver().0 > 0
    });
    for segment in &lost {
        assert!(site.wal(segment).exists(), "{segment} is kept");
    }
    let last = site
        .cluster
        .sql("SELECT last_archived_wal FROM pg_stat_archiver");
    assert_eq!(last, first);
    site.near.mount();
    for segment in &lost {
        site.cluster.wait_until_archived(segment, PATIENCE);
        site.near.one_wal(segment);
    }
}

#[test]
fn no_secret_is_ever_printed() {
    const SECRET: &str = "tOpSeCrEt4711";
    let scratch = Scratch::new();
    let cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let file = scratch.file("secret", format!("{SECRET}file\n"));
    let store = |name: &str| {
        Repository::new(name, &format!("s3://bucket/{name}"))
            .key("attempts", "1")
            .key("timeout", "\"2s\"")
            .option("aws_endpoint", "http://127.0.0.1:1")
            .option("aws_region", "x")
            .option("aws_allow_http", "true")
            .option("aws_access_key_id", "id")
    };
    let config = ConfigFile::new()
        .cluster_at(
            "main",
            cluster.data(),
            &format!("{} password={SECRET}sql", cluster.connection("nobody")),
        )
        .repository(store("plain").option("aws_secret_access_key", SECRET))
        .repository(store("env").option_toml("aws_secret_access_key", "{ env = \"THE_SECRET\" }"))
        .repository(store("file").option_toml(
            "aws_secret_access_key",
            &format!("{{ file = \"{}\" }}", file.display()),
        ))
        .write(&scratch);
    let to = scratch.join("restored");
    let calls = [
        archive(&config).arg(cluster.data().join("pg_wal").join(FIRST)),
        seawall_tests::fetch(&config)
            .arg(FIRST)
            .arg(cluster.data().join("pg_wal/RECOVERYXLOG")),
        seawall(&config).arg("init"),
        seawall(&config).arg("list"),
        seawall(&config).arg("backup"),
        seawall_tests::restore(&config).arg("--to").arg(&to),
    ];
    for call in calls {
        let output = call
            .args(["--log-level", "trace"])
            .with(|run| run.env("THE_SECRET", format!("{SECRET}env")))
            .run();
        assert_ne!(output.code, 0, "{output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(!said.contains(SECRET), "{said}");
    }
    // A mistake on the very line of a secret does not show the line.
    let good = std::fs::read_to_string(config.path()).unwrap();
    for broken in [
        good.replace("aws_secret_access_key = ", "aws_secret_acess_key = "),
        good.replace(&format!("\"{SECRET}\""), &format!("\"{SECRET}")),
        good.replace(&format!("\"{SECRET}\""), &format!("[\"{SECRET}\"]")),
    ] {
        std::fs::write(config.path(), broken).unwrap();
        let output = archive(&config)
            .arg(cluster.data().join("pg_wal").join(FIRST))
            .run();
        assert!((1..=125).contains(&output.code));
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[test]
fn nobody_else_may_read_what_is_archived() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::of(15);
    site.push(FIRST).success();
    for key in site.near.files() {
        let metadata = std::fs::metadata(site.near.path(&key)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o007, 0, "{key}");
        if is_root() {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(metadata.uid(), seawall_tests::scratch::owner().uid, "{key}");
        }
    }
}
