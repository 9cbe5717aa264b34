//! The documented session restores a cluster with nothing but zstd, tar and PostgreSQL: it is
//! read out of the document and run as it stands there.

use std::path::{Path, PathBuf};

use seawall_tests::judge;
use seawall_tests::scratch::make_directory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Output, PostgresVersion, Run, Site};

/// The fenced block between the marks of that name, wherever the document keeps it.
fn session(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let [start, end] = ["start", "end"].map(|which| format!("<!-- {name}:{which} -->"));
    let found = std::fs::read_dir(&docs)
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let text = std::fs::read_to_string(entry.path()).ok()?;
            let (_, rest) = text.split_once(&start)?;
            Some(rest.split_once(&end).expect("the block ends").0.to_owned())
        });
    let block = found.expect("a document holds the session");
    let block = block
        .trim()
        .strip_prefix("```sh\n")
        .expect("a fenced block");
    block.strip_suffix("```").expect("its end").to_owned()
}

/// Ends what `pg_ctl start` started, also when the test fails.
struct Stopped(PathBuf, PathBuf);

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.1.join("postmaster.pid").exists() {
            let stop = Run::new(&self.0).args(["-m", "immediate", "-w", "stop", "-D"]);
            stop.arg(&self.1).run();
        }
    }
}

/// Runs the session with PostgreSQL's programs and the system's; ours are nowhere.
fn types_the_session(site: &Site, data: &Path, tablespaces: &Path) -> Output {
    types(site, &session("by-hand"), data, tablespaces)
}

fn types(site: &Site, session: &str, data: &Path, tablespaces: &Path) -> Output {
    let bin = &site.cluster.version().bin;
    Run::new("/bin/bash")
        .args(["-euo", "pipefail", "-c", session])
        .env("parts", tablespaces)
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("repository", site.near.root())
        .env("cluster", "main")
        .env("data", data)
        .env("tablespaces", tablespaces)
        .run()
}

fn restore_by_hand(builder: seawall_tests::postgres::Builder) {
    let mut site = Site::with(builder.tablespace("other"));
    let sockets = site.scratch.directory("restored-s");
    let place = sockets.display().to_string();
    site.cluster.configure("unix_socket_directories", &place);
    site.cluster.configure("listen_addresses", "");
    let mut site = site.start();
    site.cluster.sql(
        "CREATE TABLE here AS SELECT g AS n, md5(g::text) FROM generate_series(1, 20000) g;
         CREATE INDEX ON here (n);
         CREATE TABLE there TABLESPACE other AS SELECT generate_series(1, 20000) AS n",
    );
    site.backup();
    // A newer one that is incremental: it is of no use alone.
    let call = site.seawall("backup").args(["--kind", "incremental"]);
    call.run().success();
    site.cluster
        .sql("INSERT INTO there VALUES (0); CREATE DATABASE later");
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let version = site.cluster.version().clone();
    let etc = site.cluster.config_directory().to_owned();
    site.cluster.destroy();
    if !etc.starts_with(site.cluster.data()) {
        std::fs::remove_dir_all(etc).unwrap();
    }

    let (data, tablespaces) = (site.scratch.join("by-hand"), site.scratch.join("spaces"));
    make_directory(&tablespaces);
    let stopped = Stopped(version.bin.join("pg_ctl"), data.clone());
    let said = types_the_session(&site, &data, &tablespaces).success();
    assert!(
        said.stdout.contains("backup successfully verified"),
        "{}",
        said.stdout
    );
    assert!(!data.join("tablespace_map").exists());

    // The harness takes over, to ask what is in it.
    let asking = |program: &str| {
        Run::new(version.client(program))
            .env("PGHOST", &sockets)
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
    };
    seawall_tests::wait_until("recovery has ended", PATIENCE, || {
        let asked = asking("psql")
            .args(["-XAtc", "SELECT pg_is_in_recovery()"])
            .run();
        asked.stdout.trim() == "f"
    });
    drop(stopped);
    let mut restored = site.adopt("again", &data);
    restored.start();
    dump.must_equal(&judge::dump(&restored));
    let place = restored
        .sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'other'");
    assert!(
        place.starts_with(&tablespaces.display().to_string()),
        "{place}"
    );
    judge::is_sound(&mut restored);
}

#[test]
fn the_documented_session_restores_by_hand() {
    restore_by_hand(Cluster::builder(PostgresVersion::find(15)));
}

#[test]
fn the_documented_session_restores_debians_layout_by_hand() {
    restore_by_hand(Cluster::builder(PostgresVersion::find(15)).config_outside());
}

#[test]
fn the_documented_session_stops_at_whatever_is_damaged() {
    let site = Site::of(15).start();
    site.backup();
    let data = site.scratch.join("by-hand");
    for class in [
        "backup.json",
        "000001.tar.zst",
        "000002.index.zst",
        "backup_manifest.zst",
    ] {
        let key = &site.near.keys_with(class)[0];
        let whole = site.near.flip(key, site.near.bytes(key).len() / 2);
        let said = types_the_session(&site, &data, site.scratch.path());
        assert_ne!(said.code, 0, "{class}");
        assert!(!data.exists(), "{class}: nothing was unpacked");
        site.near.replace(key, &whole);
    }
}

#[test]
fn the_documented_session_puts_a_chain_together_by_hand() {
    let site = Site::of(18).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT g AS n, md5(g::text) FROM generate_series(1, 20000) g");
    site.backup();
    for link in 1..=2 {
        site.cluster.sql(&format!(
            "UPDATE t SET md5 = 'link {link}' WHERE n = {link}"
        ));
        let call = site.seawall("backup").args(["--kind", "incremental"]);
        call.run().success();
    }
    site.cluster.sql("INSERT INTO t VALUES (0)");
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let mut site = site;
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);

    let (data, parts) = (site.scratch.join("by-hand"), site.scratch.join("parts"));
    make_directory(&parts);
    let whole = session("by-hand");
    let at = "# How PostgreSQL fetches WAL";
    let (_, rest) = whole.split_once(at).expect("where it goes on");
    // The harness starts it.
    let (rest, _) = rest.split_once("# Start.").expect("its end");
    let session = format!("{}\n{at}{rest}", session("by-hand-chain"));
    types(&site, &session, &data, &parts).success();
    let mut restored = site.adopt("again", &data);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    dump.must_equal(&judge::dump(&restored));
    judge::is_sound(&mut restored);
}
