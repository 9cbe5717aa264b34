//! The heartbeat: a commit with a time on an idle server, and segments that are switched
//! before the objective is missed, and no oftener than they may.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::heartbeat::newest_recoverable;
use seawall::repository::Repository as Stored;
use seawall::storage::Store;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Running, Site, seawall, wait_until,
};

fn site(heartbeat: &str) -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15)).config("autovacuum", "off");
    Site::configured(builder, |file| file.extra(heartbeat)).start()
}

/// The age in seconds of the newest moment that the repository leads to.
fn live_rpo(site: &Site) -> f64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let url = format!("file://{}", site.near.root().display());
        let store = Store::open(&seawall::storage::StoreSettings::new(&url)).unwrap();
        let systems = Stored::over("near", store).systems("main").await.unwrap();
        let newest = newest_recoverable(&systems[0].0).await.unwrap();
        let newest = newest.expect("there is a backup");
        Timestamp::now().duration_since(newest).as_secs_f64()
    })
}

/// Segments that PostgreSQL has been told are archived.
fn archived(site: &Site) -> u64 {
    site.cluster.archiver().1
}

fn follow(site: &Site) -> Running {
    let call = site.seawall("heartbeat").arg("--follow");
    call.with(|run| run.timeout(Duration::from_secs(600)))
        .start()
}

#[test]
fn a_heartbeat_is_a_commit_that_an_idle_server_has_and_a_standby_leaves_alone() {
    let site = site("");
    site.cluster.create_seawall_role(false);
    let config = ConfigFile::new()
        .cluster_as("main", &site.cluster, "seawall")
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    let committed = "SELECT xid FROM pg_last_committed_xact()";
    let before = site.cluster.sql(committed);
    let beat = seawall(&config)
        .args(["heartbeat", "--json"])
        .run()
        .success()
        .json();
    assert_ne!(
        site.cluster.sql(committed),
        before,
        "the role with the least privilege can"
    );
    let (lsn, time) = (beat["beat"]["lsn"].as_str().unwrap(), &beat["beat"]["time"]);
    let reached = format!("SELECT pg_current_wal_flush_lsn() >= '{lsn}'");
    assert_eq!(site.cluster.sql(&reached), "t");
    assert!(time.as_str().unwrap().parse::<Timestamp>().is_ok());

    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    let config = ConfigFile::new()
        .cluster_at("main", standby.data(), &standby.connection("postgres"))
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    let none = seawall(&config)
        .args(["heartbeat", "--json"])
        .run()
        .success();
    assert!(none.json()["beat"].is_null());
}

#[test]
fn a_synchronous_standby_that_is_away_holds_up_no_heartbeat() {
    let mut site = site("");
    site.cluster.configure("synchronous_standby_names", "gone");
    site.cluster.reload();
    let beat = site.seawall("heartbeat");
    beat.with(|run| run.timeout(Duration::from_secs(20)))
        .run()
        .success();
}

#[test]
fn on_an_idle_server_the_recoverable_moment_moves_on_within_the_objective() {
    let site = site(
        "[heartbeat]\ninterval = \"1s\"\nswitch_floor = \"2s\"\n[objectives]\nrpo = \"10s\"\n",
    );
    site.backup();
    let before = archived(&site);
    let beating = follow(&site);
    let began = Instant::now();
    let mut worst: f64 = 0.0;
    std::thread::sleep(Duration::from_secs(10));
    while began.elapsed() < Duration::from_secs(40) {
        worst = worst.max(live_rpo(&site));
        std::thread::sleep(Duration::from_millis(500));
    }
    let switches = archived(&site) - before;
    beating.kill();
    // Three more for a machine that is busy with other tests.
    assert!(
        worst < 13.0,
        "the newest recoverable moment was {worst:.1} s old"
    );
    assert!((3..=8).contains(&switches), "{switches} segments in 40 s");
    // Without it, it stands still.
    std::thread::sleep(Duration::from_secs(4));
    assert!(live_rpo(&site) > 3.0);
}

#[test]
fn segments_are_switched_no_oftener_than_the_floor_allows() {
    let site = site(
        "[heartbeat]\ninterval = \"1s\"\nswitch_floor = \"12s\"\n[objectives]\nrpo = \"2s\"\n",
    );
    site.cluster.archive_all(Duration::from_secs(60));
    let before = archived(&site);
    let beating = follow(&site);
    std::thread::sleep(Duration::from_secs(30));
    let said = beating.kill().stderr;
    let switches = archived(&site) - before;
    assert!(
        (1..=3).contains(&switches),
        "{switches} segments in 30 s:\n{said}"
    );
}

#[test]
fn without_an_objective_nothing_is_switched_and_a_server_that_comes_back_is_found() {
    let mut site = site("[heartbeat]\ninterval = \"1s\"\n");
    let committed = "SELECT xid FROM pg_last_committed_xact()";
    let segment = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let open = site.cluster.sql(segment);
    let beating = follow(&site);
    let beats = |site: &Site| {
        let before = site.cluster.sql(committed);
        wait_until("it beats", Duration::from_secs(60), || {
            site.cluster.sql(committed) != before
        });
    };
    beats(&site);
    assert_eq!(site.cluster.sql(segment), open);
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);
    wait_until("it says so", Duration::from_secs(60), || {
        beating.stderr().contains("no heartbeat until this is over")
    });
    std::thread::sleep(Duration::from_secs(3));
    site.cluster.start();
    beats(&site);
    wait_until("it says so", Duration::from_secs(60), || {
        beating.stderr().contains("the heartbeat is back")
    });
    let said = beating.kill().stderr;
    assert_eq!(said.matches("no heartbeat until").count(), 1, "{said}");
}
