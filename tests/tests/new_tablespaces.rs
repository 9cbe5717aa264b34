//! A tablespace that is younger than the base backup: replay would create it where the source
//! did, and on the source's own host that is the live one.

use std::time::Duration;

use seawall_tests::cli::{drill, restore, seawall};
use seawall_tests::config::{Config, ConfigFile, Repository};
use seawall_tests::postgres::Cluster;
use seawall_tests::scratch::Scratch;
use seawall_tests::version::PostgresVersion;

const LIMIT: Duration = Duration::from_secs(60);

struct Site {
    scratch: Scratch,
    cluster: Cluster,
    config: Config,
    live: std::path::PathBuf,
}

impl Site {
    /// A backup, and then a tablespace with a table in it, all of it archived.
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
        let near = Repository::local("near", &scratch.join("repository"));
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(near)
            .write(&scratch);
        cluster.archive_with(&config);
        cluster.start();
        seawall(&config).arg("init").run().success();
        seawall(&config).arg("backup").run().success();
        let live = scratch.directory("young");
        cluster.sql(&format!(
            "CREATE TABLESPACE young LOCATION '{}'",
            live.display()
        ));
        cluster.sql("CREATE TABLE t TABLESPACE young AS SELECT generate_series(1, 1000) AS x");
        cluster.archive_all(LIMIT);
        // From here on the live table differs from what replay would write.
        cluster.sql("UPDATE t SET x = x + 1; CHECKPOINT");
        Self {
            scratch,
            cluster,
            config,
            live,
        }
    }

    fn sum(&self) -> String {
        self.cluster.sql("SELECT sum(x) FROM t")
    }
}

#[test]
fn a_drill_never_writes_into_a_tablespace_that_is_younger_than_its_backup() {
    let site = Site::new();
    let before = site.sum();
    let output = drill(&site.config).arg("--json").run().exits_with(3);
    let reasons = output.json()["reasons"].to_string();
    assert!(reasons.contains("recovery failed"), "{reasons}");
    assert_eq!(site.sum(), before);
    // A new backup knows the tablespace, and the drill puts it elsewhere.
    seawall(&site.config).arg("backup").run().success();
    site.cluster.sql("INSERT INTO t VALUES (7)");
    site.cluster.archive_all(LIMIT);
    let before = site.sum();
    drill(&site.config).run().success();
    assert_eq!(site.sum(), before);
}

#[test]
fn a_restore_on_the_source_host_stops_before_it_and_elsewhere_creates_it() {
    let mut site = Site::new();
    let before = site.sum();
    let to = site.scratch.join("restored");
    restore(&site.config).arg("--to").arg(&to).run().success();
    let version = site.cluster.version().clone();
    let mut restored = Cluster::adopt(version.clone(), &site.scratch, "restored", &to);
    if restored.try_start(LIMIT).is_ok() {
        restored.wait_for_end(LIMIT);
    }
    assert!(
        restored.log().contains("creates a tablespace"),
        "{}",
        restored.log()
    );
    assert_eq!(site.sum(), before);

    // The host is lost, and its tablespace with it: now replay may make it again.
    site.cluster.kill();
    std::fs::remove_dir_all(&site.live).unwrap();
    let again = site.scratch.join("again");
    site.scratch.directory("young");
    restore(&site.config)
        .arg("--to")
        .arg(&again)
        .run()
        .success();
    let mut restored = Cluster::adopt(version, &site.scratch, "again", &again);
    restored.start();
    restored.wait_until_recovered(LIMIT);
    assert_eq!(restored.sql("SELECT count(*) FROM t").trim(), "1000");
}
