//! What the documents show is run here, as it is written there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::config::{Config, ConfigFile, Repository};
use seawall_tests::moment::Moment;
use seawall_tests::postgres::Cluster;
use seawall_tests::process::{Output, Run, wait_until};
use seawall_tests::programs::Programs;
use seawall_tests::scratch::Scratch;
use seawall_tests::version::PostgresVersion;

/// The paths and the moment that the documents name.
const PG_CTL: &str = "/usr/lib/postgresql/15/bin/pg_ctl";
const DATA: &str = "/var/lib/postgresql/15/main";
const LOG: &str = "/tmp/restored.log";
const MOMENT: &str = "2026-11-20 11:09:00+00";

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The fenced block between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
fn block(text: &str, name: &str) -> String {
    let between = text
        .split_once(&format!("<!-- {name}:begin -->"))
        .and_then(|(_, rest)| rest.split_once(&format!("<!-- {name}:end -->")))
        .unwrap_or_else(|| panic!("the document has no block {name}"))
        .0;
    let lines = between.trim().lines();
    let fenced: Vec<&str> = lines.filter(|line| !line.starts_with("```")).collect();
    fenced.join("\n")
}

/// A shell as a person on the database host has it.
struct Person {
    environment: Vec<(&'static str, String)>,
    replaced: Vec<(&'static str, String)>,
}

impl Person {
    fn types(&self, line: &str) -> Output {
        let mut line = line.to_owned();
        for (shown, here) in &self.replaced {
            line = line.replace(shown, here);
        }
        let mut shell = Run::new("bash").args(["-euo", "pipefail", "-c", &line]);
        for (name, value) in &self.environment {
            shell = shell.env(name, value);
        }
        shell.run()
    }
}

/// Ends what `pg_ctl start` started, also when the test fails.
struct Stopped(PathBuf, PathBuf);

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.1.join("postmaster.pid").exists() {
            let data = self.1.to_string_lossy().into_owned();
            Run::new(&self.0)
                .args(["-D", &data, "-m", "immediate", "-w", "stop"])
                .run();
        }
    }
}

/// The cluster runs and has a configuration, and somebody sits before it.
fn host_of(cluster: &mut Cluster, scratch: &Scratch) -> (Config, Person) {
    let near = Repository::local("near", &scratch.join("repository"));
    let config = ConfigFile::new()
        .cluster(cluster)
        .repository(near)
        .write(scratch);
    // On a real host these stand in postgresql.conf; the harness gives them to postgres itself.
    let sockets = cluster.socket_directory().display().to_string();
    let port = cluster.port().to_string();
    for (setting, value) in [
        ("unix_socket_directories", &*sockets),
        ("port", &port),
        ("listen_addresses", ""),
    ] {
        cluster.configure(setting, value);
    }
    cluster.start();
    let bin = &cluster.version().bin;
    let path = format!(
        "{}:{}:{}",
        Programs::get().directory().display(),
        bin.display(),
        std::env::var("PATH").unwrap()
    );
    let person = Person {
        environment: vec![
            ("PATH", path),
            ("SEAWALL_CONFIG", config.path().display().to_string()),
            ("PGHOST", sockets),
            ("PGPORT", port),
            ("PGDATABASE", "postgres".to_owned()),
        ],
        replaced: vec![
            (PG_CTL, bin.join("pg_ctl").display().to_string()),
            (DATA, cluster.data().display().to_string()),
            (LOG, scratch.join("restored.log").display().to_string()),
        ],
    };
    (config, person)
}

#[test]
fn the_session_of_the_readme_runs_as_it_is_written() {
    let readme = document("README.md");
    let scratch = Scratch::new();
    let version = PostgresVersion::find(15);
    let mut cluster = Cluster::builder(version.clone())
        .fsync()
        .create_in(&scratch, "main");
    let (config, mut person) = host_of(&mut cluster, &scratch);
    let (data, pg_ctl) = (cluster.data().to_owned(), version.bin.join("pg_ctl"));

    for line in block(&readme, "before").lines() {
        person.types(line).success();
        if line.starts_with("seawall init") {
            cluster.archive_with(&config);
            cluster.restart();
            cluster.sql("CREATE TABLE kept (x int); INSERT INTO kept VALUES (1)");
        }
    }
    cluster.sql("INSERT INTO kept VALUES (2)");
    let moment = Moment::now();
    std::thread::sleep(Duration::from_millis(50));
    cluster.sql("INSERT INTO kept VALUES (3)");
    cluster.archive_all(Duration::from_secs(30));
    cluster.destroy();

    let _stopped = Stopped(pg_ctl, data);
    person.replaced.push((MOMENT, moment.to_string()));
    for line in block(&readme, "session").lines() {
        person.types(line).success();
    }
    let rows = person.types("psql -Atc 'SELECT array_agg(x ORDER BY x) FROM kept'");
    assert_eq!(rows.stdout.trim(), "{1,2}");
}

#[test]
fn the_documented_deployment_is_undone_as_it_is_written() {
    let reference = document("docs/reference.md");
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(15))
        .fsync()
        .create_in(&scratch, "main");
    let (config, mut person) = host_of(&mut cluster, &scratch);
    person.types("seawall init").success();
    cluster.archive_with(&config);
    cluster.restart();
    cluster.sql("CREATE TABLE kept AS SELECT 1 AS x");
    person.types("seawall backup").success();
    cluster.sql("INSERT INTO kept VALUES (2)");
    let migration = scratch.file("migration.sql", "ALTER TABLE kept DROP COLUMN x;");
    person.environment.push(("RELEASE", "1.42".to_owned()));
    let here = migration.display().to_string();
    person.replaced.push(("migration.sql", here));
    for line in block(&reference, "deployment").lines() {
        person.types(line).success();
    }
    let broken = person.types("psql -Atc 'SELECT array_agg(x) FROM kept'");
    assert_ne!(broken.code, 0, "the migration was run");

    let pg_ctl = cluster.version().bin.join("pg_ctl");
    let _stopped = Stopped(pg_ctl, cluster.data().to_owned());
    for line in block(&reference, "deployment-undone").lines() {
        person.types(line).success();
    }
    let rows = person.types("psql -Atc 'SELECT array_agg(x ORDER BY x) FROM kept'");
    assert_eq!(rows.success().stdout.trim(), "{1,2}");
    // It answers before it is promoted.
    wait_until("it takes writes", Duration::from_secs(60), || {
        let writes = person.types("psql -c 'INSERT INTO kept VALUES (3)'");
        writes.code == 0
    });
}

#[test]
fn the_configuration_of_the_readme_is_taken() {
    let text = block(&document("README.md"), "configuration");
    let config = seawall::config::Config::parse(&text, "/etc/seawall/seawall.toml".into()).unwrap();
    assert_eq!(config.repository[0].url, "s3://acme-backups/pg");
    assert_eq!(config.cluster(None).unwrap().0, "main");
}

#[test]
fn the_documented_role_is_enough_for_the_doctor_and_for_a_backup() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let near = Repository::local("near", &scratch.join("repository"));
    let config = ConfigFile::new()
        .cluster_as("main", &cluster, "seawall")
        .repository(near)
        .write(&scratch);
    cluster.start();
    cluster.sql(&block(&document("docs/reference.md"), "role"));
    seawall_tests::cli::seawall(&config)
        .arg("init")
        .run()
        .success();
    cluster.archive_with(&config);
    cluster.restart();
    seawall_tests::cli::seawall(&config)
        .arg("backup")
        .run()
        .success();
    let check = seawall_tests::cli::seawall(&config).arg("check").run();
    assert!(
        check.stdout.contains("the role may do what backups need"),
        "{}",
        check.stdout
    );
}

#[test]
fn the_documented_exit_codes_are_those_of_the_code() {
    use seawall::error::Exit;
    let table = block(&document("docs/reference.md"), "exit-codes");
    let codes: Vec<u8> = table
        .lines()
        .filter_map(|line| line.split('|').nth(1)?.trim().parse().ok())
        .collect();
    let exits = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Missed,
        Exit::Refused,
        Exit::Unreachable,
    ];
    assert_eq!(codes, exits.map(|exit| exit as u8));
}
