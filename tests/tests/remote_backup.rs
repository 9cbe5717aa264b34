//! Backups without access to the data directory: the server sends its files over the
//! replication protocol. PostgreSQL's own tools judge what comes out, and what goes wrong on
//! the way leaves no backup.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall_tests::postgres::Stop;
use seawall_tests::process::{Output, Running};
use seawall_tests::scratch::make_directory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Config, ConfigFile, PostgresVersion, Repository, Site, judge, pgbench, seawall,
    wait_until,
};

/// The same cluster for a host that has nothing of its files, by the role with the least
/// privileges.
fn distant(site: &Site, connection: &str, more: &str) -> Config {
    ConfigFile::new()
        .distant("main", connection)
        .repository(Repository::local("near", site.near.root()))
        .extra(more)
        .write_to(&site.scratch.join("distant.toml"))
}

fn walsender(site: &Site) -> Option<i32> {
    let sql = "SELECT pid FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'";
    site.cluster.sql(sql).parse().ok()
}

/// Names of all files, directories with a slash at their end, as a backup has them.
fn listed(root: &Path) -> BTreeSet<String> {
    let script = "find -L . -mindepth 1 \\( -type d -printf '%P/\\n' -o -printf '%P\\n' \\)";
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn the_whole_job(major: u32) {
    let builder = Cluster::builder(PostgresVersion::find(major)).tablespace("other");
    let mut site = Site::with(builder);
    site.cluster.start();
    site.cluster.create_seawall_role(true);
    let config = distant(&site, &site.cluster.connection("seawall"), "");
    seawall(&config).arg("init").run().success();
    site.cluster.sql(
        "CREATE TABLE t TABLESPACE other AS SELECT n, repeat(n::text, 100) AS text
             FROM generate_series(1, 5000) n;
         CREATE INDEX ON t (n);
         CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS n;
         SELECT lo_from_bytea(0, repeat(n::text, 1000)::bytea) FROM generate_series(1, 50) n;
         CREATE DATABASE another;",
    );
    pgbench::init(&site.cluster, 3);

    // Nothing moves: what pg_basebackup brings is what this brings.
    site.cluster.sql("CHECKPOINT");
    let quiet = backup(&config);
    let theirs = site.scratch.join("theirs");
    let (old, aside) = (
        site.cluster.tablespaces()[0].1.clone(),
        site.scratch.directory("aside"),
    );
    site.cluster
        .client("pg_basebackup")
        .args(["-X", "none", "-c", "fast", "--no-sync", "-D"])
        .arg(&theirs)
        .arg("-T")
        .arg(format!("{}={}", old.display(), aside.display()))
        .run()
        .success();
    let new = site.scratch.directory("new");
    let map = format!("{}={}", old.display(), new.display());
    let ours = site.scratch.join("ours");
    let id = quiet["id"].as_str().unwrap();
    let args = ["--tablespace", &map, "--backup", id];
    site.restoring(&ours).args(args).run().success();
    let only_of = |mine: &Path, other: &Path| {
        let differ = &listed(mine) - &listed(other);
        // What a restore writes, and what recovery makes anew.
        let expected = |path: &str| {
            path.starts_with("pg_wal/")
                || ["recovery.signal", "tablespace_map", "postgresql.auto.conf"].contains(&path)
                || path.contains("seawall")
        };
        differ
            .into_iter()
            .filter(|path| !expected(path))
            .collect::<Vec<_>>()
    };
    assert_eq!(only_of(&theirs, &ours), Vec::<String>::new());
    assert_eq!(only_of(&ours, &theirs), Vec::<String>::new());
    std::fs::remove_dir_all(&ours).unwrap();
    std::fs::remove_dir_all(&new).unwrap();
    make_directory(&new);

    // And under load.
    let load = pgbench::start(&site.cluster, 3, Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(300));
    let marker = backup(&config);
    drop(load);
    site.cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'",
    );
    assert_eq!(marker["in_order"], false);
    assert_eq!(marker["from_standby"], false);
    assert_eq!(
        marker["data_directory"],
        site.cluster.data().display().to_string()
    );
    assert_eq!(
        marker["tablespaces"][0]["location"],
        old.display().to_string()
    );
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    site.cluster.destroy();

    site.restoring(&ours)
        .args(["--tablespace", &map])
        .run()
        .success();
    judge::verifybackup(site.cluster.version(), &ours).must_pass();
    std::fs::remove_dir_all(&ours).unwrap();
    std::fs::remove_dir_all(&new).unwrap();
    let args = ["--tablespace", &map, "--action", "promote"];
    let mut restored = site.restore_and_start("again", &args);
    dump.must_equal(&judge::dump(&restored));
    assert_eq!(restored.sql("SELECT count(*) FROM u"), "0");
    judge::is_sound(&mut restored);
}

#[track_caller]
fn backup(config: &Config) -> serde_json::Value {
    seawall(config)
        .args(["backup", "--json"])
        .run()
        .success()
        .json()
}

#[test]
fn a_distant_server_of_version_15_is_backed_up_and_restored() {
    the_whole_job(15);
}

#[test]
fn a_distant_server_of_version_18_is_backed_up_and_restored() {
    the_whole_job(18);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn a_distant_server_of_every_other_version_is_backed_up_and_restored() {
    for major in [14, 16, 17] {
        the_whole_job(major);
    }
}

#[test]
fn a_damaged_page_fails_a_distant_backup_and_leaves_none() {
    let mut site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n; CHECKPOINT");
    let file = site.cluster.sql("SELECT pg_relation_filepath('t')");
    site.cluster.flip_bits("t", &[3 * 8192 + 5000]);
    let config = distant(&site, &site.cluster.connection("postgres"), "");
    let failed = seawall(&config)
        .args(["backup", "--json"])
        .run()
        .exits_with(1);
    failed
        .says("ERROR XX001: checksum verification failure")
        .says(&format!("{file}\", block 3"))
        .says("backup_from = \"files\"");
    assert!(site.near.keys_with("backup.json").is_empty());
    // From the files it is kept and marked.
    site.seawall("backup").run().exits_with(3);
}

/// Begins a backup and waits until data flows.
fn begin(site: &Site, config: &Config) -> (Running, i32) {
    let running = seawall(config).arg("backup").start();
    let mut pid = None;
    wait_until("data flows", PATIENCE, || {
        pid = walsender(site);
        pid.is_some()
    });
    (running, pid.unwrap())
}

/// Says that the server is, or the session. Whether the last words arrive is a matter of luck.
#[track_caller]
fn gone(output: &Output) {
    let known = ["57P0", "closed the connection", "broke", "Connection reset"];
    let known = known.iter().any(|why| output.stderr.contains(why));
    assert!(known, "{}", output.stderr);
}

#[test]
fn a_connection_that_is_cut_a_server_that_stops_and_one_that_hangs_leave_no_backup() {
    let mut site = Site::of(15).start();
    pgbench::init(&site.cluster, 20);
    let connection = site.cluster.connection("postgres");
    let config = distant(&site, &connection, "[backup]\nserver_timeout = \"1s\"");

    let (running, pid) = begin(&site, &config);
    site.cluster
        .sql(&format!("SELECT pg_terminate_backend({pid})"));
    gone(&running.wait().exits_with(1));

    let (running, pid) = begin(&site, &config);
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let output = running.wait();
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    output.exits_with(1).says("the server was silent for 1 s");

    let (running, _) = begin(&site, &config);
    site.cluster.stop(Stop::Immediate);
    gone(&running.wait().exits_with(1));
    assert!(site.near.keys_with("backup.json").is_empty());

    site.cluster.start();
    let (mut running, _) = begin(&site, &config);
    running.signal(Signal::SIGINT);
    running.wait().exits_with(1);
    wait_until("the walsender is gone", PATIENCE, || {
        walsender(&site).is_none()
    });
    assert!(site.near.keys_with("backup.json").is_empty());
    backup(&config);
}

#[test]
fn a_distant_backup_over_tls_with_a_password_tells_what_it_could_not_read() {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .tcp()
        .config_outside();
    let mut site = Site::with(builder);
    let certificate = site.scratch.directory("tls");
    let openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
         -keyout key -out crt -subj /CN=server -days 2 -addext subjectAltName=DNS:localhost";
    let made = Command::new("bash")
        .args(["-c", openssl])
        .current_dir(&certificate)
        .output();
    assert!(
        made.as_ref().is_ok_and(|made| made.status.success()),
        "{made:?}"
    );
    seawall_tests::scratch::give_tree_to_owner(&certificate);
    let file = |name: &str| certificate.join(name).display().to_string();
    site.cluster.configure("ssl", "on");
    site.cluster.configure("ssl_cert_file", &file("crt"));
    site.cluster.configure("ssl_key_file", &file("key"));
    site.cluster.append(
        "pg_hba.conf",
        "hostssl replication,postgres other 127.0.0.1/32 scram-sha-256",
    );
    let hba = site.cluster.config_directory().join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).unwrap();
    let text = text
        .replace("host    all", "#")
        .replace("host    replication", "#");
    std::fs::write(&hba, text).unwrap();
    let site = site.start();
    site.cluster.create_seawall_role(true);
    site.cluster.sql("CREATE ROLE other LOGIN REPLICATION IN ROLE seawall PASSWORD 'very-secret'; CREATE TABLE t AS SELECT 42 AS answer");
    let connection = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=other dbname=postgres sslmode=verify-full sslrootcert={} password=very-secret",
        site.cluster.port(),
        file("crt")
    );
    let config = distant(&site, &connection, "");
    let output = seawall(&config).args(["backup", "--json"]).run().success();
    assert!(!output.stderr.contains("very-secret"), "{}", output.stderr);
    let marker = output.json();
    output.says("not in this backup").says("pg_hba.conf");
    let unread = marker["unread_configuration_files"].as_array().unwrap();
    assert_eq!(unread.len(), 3, "{unread:?}");
    let wrong = distant(&site, &connection.replace("very-secret", "not-known"), "");
    let failed = seawall(&wrong).arg("backup").run().exits_with(1);
    assert!(!failed.stderr.contains("not-known"), "{}", failed.stderr);
    site.restoring(&site.scratch.join("restored"))
        .run()
        .success()
        .says("postgresql.conf");
}

#[test]
fn what_needs_the_files_says_so_on_a_host_that_has_none() {
    let site = Site::of(15).start();
    site.cluster.create_seawall_role(false);
    let config = distant(&site, &site.cluster.connection("seawall"), "");
    let failed = seawall(&config).arg("backup").run().exits_with(1);
    failed.says("ALTER ROLE … REPLICATION");
    assert!(site.near.keys_with("/backups/").is_empty());
    site.cluster.sql("ALTER ROLE seawall REPLICATION");
    let incremental = ["backup", "--kind", "incremental", "--json"];
    let taken = seawall(&config).args(incremental).run().success().json();
    assert_eq!(taken["kind"], "full");
    assert_eq!(taken["full_because"], "the server sends all files whole");
    let id = taken["id"].as_str().unwrap();
    let on_top = seawall(&config).args(incremental).args(["--parent", id]);
    on_top.run().exits_with(2).says("on top of no other backup");
    let checked = seawall(&config).args(["check", "--json"]).run();
    let text = checked.stdout;
    assert!(text.contains("base backups come from"), "{text}");
    let broken = ConfigFile::new()
        .distant("main", "host=/tmp")
        .cluster_key("backup_from", "\"files\"")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("broken.toml"));
    seawall(&broken)
        .arg("backup")
        .run()
        .exits_with(2)
        .says("needs its data_directory");
}
