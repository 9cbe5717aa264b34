//! Chains of incremental backups over a random workload: what is restored at every link is what
//! was there, by PostgreSQL's own word.

use std::path::Path;

use seawall_tests::judge;
use seawall_tests::scratch::make_directory;
use seawall_tests::site::PATIENCE;
use seawall_tests::workload::Workload;
use seawall_tests::{Cluster, PostgresVersion, Site, wait_until};

/// What was there at the end of one link.
struct Link {
    id: String,
    point: String,
    dump: judge::Dump,
}

#[test]
fn every_link_of_a_chain_restores_what_was_there_on_15() {
    links(15, 3, &[]);
}

#[test]
fn every_link_of_a_chain_restores_what_was_there_on_18_by_page_lsns() {
    links(18, 3, &[]);
}

#[test]
fn every_link_of_a_chain_restores_what_was_there_on_18_by_wal_summaries() {
    links(18, 3, &[("summarize_wal", "on")]);
}

#[test]
fn every_link_of_a_chain_restores_what_was_there_on_17() {
    links(17, 3, &[("summarize_wal", "on")]);
}

#[test]
#[ignore = "long: ten links on four versions"]
fn every_link_of_a_long_chain_restores_what_was_there() {
    for major in [14, 15, 17, 18] {
        links(major, 10, &[]);
    }
    for major in [17, 18] {
        links(major, 10, &[("summarize_wal", "on")]);
    }
}

/// A full backup and so many incremental ones, with the workload between them and during them.
fn links(major: u32, count: usize, settings: &[(&str, &str)]) {
    let mut builder = Cluster::builder(PostgresVersion::find(major))
        .tablespace("other")
        .config("max_prepared_transactions", "5")
        .config("autovacuum_naptime", "1s");
    for (name, value) in settings {
        builder = builder.config(name, value);
    }
    let site = Site::with(builder).start();
    let mut workload = Workload::create(&site.cluster);
    workload.steps(&site.cluster, 10);
    let rule = match settings.contains(&("summarize_wal", "on")) {
        true => "wal-summaries",
        false => "page-lsn",
    };
    let mut links = vec![link(&site, &mut workload, "full", rule, 0)];
    for number in 1..=count {
        workload.steps(&site.cluster, 12);
        links.push(link(&site, &mut workload, "incremental", rule, number));
    }
    for (number, link) in links.iter().enumerate() {
        restores(&site, number, link);
    }
}

/// Takes a backup while the workload goes on, and notes what is there when both have ended.
fn link(site: &Site, workload: &mut Workload, kind: &str, rule: &str, number: usize) -> Link {
    let call = site.seawall("backup").args(["--kind", kind, "--json"]);
    let backup = call.start();
    workload.steps(&site.cluster, 4);
    let mut output = backup.wait();
    if output.code == 1 {
        // Recovery would lose it: that is for the next backup, while nothing moves.
        output.says("was moved to another tablespace");
        let call = site.seawall("backup").args(["--kind", kind, "--json"]);
        output = call.run();
    }
    let marker = output.success().json();
    assert_eq!(marker["kind"], kind, "{marker:#}");
    if kind == "incremental" {
        assert_eq!(marker["change_rule"], rule, "{marker:#}");
        let bytes = |name: &str| marker[name].as_u64().expect("a number");
        assert!(bytes("plain_bytes") < bytes("whole_bytes"), "{marker:#}");
    }
    workload.settle(&site.cluster);
    let point = format!("link{number}");
    let dump = judge::dump(&site.cluster);
    site.seawall("restore-point").arg(&point).run().success();
    site.cluster.archive_all(PATIENCE);
    Link {
        id: marker["id"].as_str().expect("a name").to_owned(),
        point,
        dump,
    }
}

fn restores(site: &Site, number: usize, link: &Link) {
    let name = format!("r{number}");
    let to = site.scratch.join(format!("{name}-data"));
    let space = site.scratch.join(format!("{name}-space"));
    make_directory(&space);
    let (_, old) = &site.cluster.tablespaces()[0];
    site.restoring(&to)
        .args([
            "--backup",
            &link.id,
            "--name",
            &link.point,
            "--action",
            "promote",
        ])
        .arg("--tablespace")
        .arg(format!("{}={}", old.display(), space.display()))
        .run()
        .success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt(&name, &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&link.dump);
    judge::is_sound(&mut restored);
    remove(&to);
    remove(&space);
}

/// Ten links of a chain would fill the disk. What fetched ahead for recovery may still be writing
/// into it for a moment.
fn remove(directory: &Path) {
    wait_until("it can be removed", PATIENCE, || {
        std::fs::remove_dir_all(directory).is_ok()
    });
}
