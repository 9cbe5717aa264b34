//! Stores that do not let us in, and configurations that lead nowhere: each is said in words
//! that help, with the code of each program's table. And what `seawall check` makes of it.

use seawall::storage::testing::AzuriteServer;
use seawall_tests::job::problems_of;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Config, ConfigFile, Garage, Output, PostgresVersion, Repository, Scratch, Site,
    archive, drill, fetch, restore, seawall,
};

const FIRST: &str = "000000010000000000000001";

/// A cluster that never starts: its control file and first segment are all that is needed.
fn cluster(scratch: &Scratch) -> Cluster {
    Cluster::builder(PostgresVersion::find(15)).create_in(scratch, "main")
}

fn config(cluster: &Cluster, scratch: &Scratch, repository: Repository) -> Config {
    ConfigFile::new()
        .cluster(cluster)
        // One attempt more is enough here.
        .repository(repository.key("attempts", "2"))
        .write(scratch)
}

/// What each program that opens a repository says, with the code that its table has for it.
struct Answers {
    code: i32,
    outputs: Vec<Output>,
}

fn ask_everyone(cluster: &Cluster, scratch: &Scratch, config: &Config, code: i32) -> Answers {
    let to = scratch.join("restored");
    let outputs = vec![
        seawall(config).arg("list").run().exits_with(code),
        seawall(config).arg("init").run().exits_with(code),
        restore(config).arg("--to").arg(&to).run().exits_with(code),
        drill(config).run().exits_with(code),
        archive(config)
            .arg(format!("pg_wal/{FIRST}"))
            .with(|run| run.directory(cluster.data()))
            .run()
            .exits_with(code),
        fetch(config)
            .args([FIRST, "pg_wal/RECOVERYXLOG"])
            .with(|run| run.directory(cluster.data()))
            .run()
            .exits_with(200),
    ];
    assert!(!to.exists(), "nothing was touched");
    assert!(!cluster.data().join("pg_wal/RECOVERYXLOG").exists());
    Answers { code, outputs }
}

impl Answers {
    #[track_caller]
    fn all_say(self, words: &[&str]) -> Self {
        for output in &self.outputs {
            for word in words {
                output.clone().says(word);
            }
        }
        self
    }

    #[track_caller]
    fn none_says(self, secret: &str) -> Self {
        for output in &self.outputs {
            let said = format!("{}{}", output.stdout, output.stderr);
            assert!(!said.contains(secret), "code {}: {said}", self.code);
        }
        self
    }
}

#[test]
fn an_option_that_no_store_has_is_refused_with_the_nearest_that_it_has() {
    let scratch = Scratch::new();
    let cluster = cluster(&scratch);
    let root = scratch.directory("near");
    let s3 = || Repository::new("near", "s3://bucket/pg").option("aws_region", "garage");
    for (repository, words) in [
        (
            s3().option("aws_enpoint", "https://secret-host"),
            "did you mean aws_endpoint?",
        ),
        (
            Repository::new("near", "az://c/pg").option("azure_storage_acount_name", "secret-host"),
            "did you mean azure_storage_account_name?",
        ),
        (
            Repository::new("near", "gs://b/pg").option("google_service_acount", "secret-host"),
            "did you mean google_service_account?",
        ),
        (
            Repository::local("near", &root).option("fsync", "secret-host"),
            "no option fsync",
        ),
        (
            s3().option("aws_bucket", "secret-host"),
            "the bucket stands in the url",
        ),
        (
            s3().option_toml("aws_secret_access_key", "{ env = \"NOT_SET_ANYWHERE\" }"),
            "NOT_SET_ANYWHERE",
        ),
        (
            s3().option_toml("aws_secret_access_key", "{ file = \"/no/such/file\" }"),
            "/no/such/file",
        ),
        (Repository::new("near", "s4://bucket/pg"), "s4"),
        (
            Repository::new("near", "s3://me:secret-host@bucket/pg"),
            "into the options",
        ),
    ] {
        let config = config(&cluster, &scratch, repository);
        ask_everyone(&cluster, &scratch, &config, 2)
            .all_say(&[words])
            .none_says("secret-host");
    }
}

#[test]
fn wrong_credentials_missing_buckets_and_dead_servers_are_told_apart() {
    let scratch = Scratch::new();
    let cluster = cluster(&scratch);
    let mut garage = Garage::start(&scratch);
    let good = garage.repository("near", "near", "pg");
    let wrong_secret = "0123456789abcdef".repeat(4);
    let ask = |repository: Repository, words: &[&str]| {
        let config = config(&cluster, &scratch, repository);
        ask_everyone(&cluster, &scratch, &config, 1)
            .all_say(words)
            .none_says(&wrong_secret)
            .none_says(garage.key().1)
    };
    ask(
        good.clone().through("aws_secret_access_key", &wrong_secret),
        &["hint:", "credentials"],
    );
    let (other_key, other_secret) = garage.key_for("far");
    ask(
        good.clone()
            .through("aws_access_key_id", &other_key)
            .through("aws_secret_access_key", &other_secret),
        &["hint:", "credentials"],
    );
    ask(
        garage.repository("near", "no-such-bucket", "pg"),
        &["bucket", "hint:"],
    );
    garage.stop();
    let config = config(&cluster, &scratch, good);
    ask_everyone(&cluster, &scratch, &config, 1).all_say(&[
        "Connection refused",
        "2 attempts",
        "is the store up",
    ]);
}

#[test]
fn azures_refusals_are_told_apart_as_well() {
    let scratch = Scratch::new();
    let cluster = cluster(&scratch);
    let azurite = AzuriteServer::start();
    let repository = |container: &str, key: &str| {
        Repository::new("near", &format!("az://{container}/pg"))
            .option("azure_storage_account_name", AzuriteServer::ACCOUNT)
            .option("azure_storage_account_key", key)
            .option("azure_storage_endpoint", &azurite.endpoint)
            .option("azure_allow_http", "true")
    };
    let wrong_key = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXk=";
    let file = config(
        &cluster,
        &scratch,
        repository(&azurite.container, wrong_key),
    );
    ask_everyone(&cluster, &scratch, &file, 1)
        .all_say(&["hint:", "credentials"])
        .none_says(wrong_key);
    let file = config(
        &cluster,
        &scratch,
        repository("nowhere", AzuriteServer::KEY),
    );
    ask_everyone(&cluster, &scratch, &file, 1)
        .all_say(&["container", "hint:"])
        .none_says(AzuriteServer::KEY);
}

/// Runs the check, which must find problems, and returns them as one text.
#[track_caller]
fn problems(site: &Site) -> String {
    let words = ["--json", "--timeout", "2s"];
    let output = site.seawall("check").args(words).run().exits_with(3);
    let check = output.json();
    assert_eq!(check["passed"], false);
    let problems = problems_of(&check);
    assert!(!problems.is_empty());
    for (finding, advice) in &problems {
        assert!(!advice.is_empty(), "no advice about: {finding}");
    }
    // The same for people.
    let output = site.seawall("check").args(&words[1..]).run().exits_with(3);
    assert!(output.stdout.contains("PROBLEM") && output.stdout.contains("->"));
    problems
        .into_iter()
        .map(|(finding, advice)| format!("{finding}\n{advice}\n"))
        .collect()
}

#[test]
fn check_names_each_problem_with_what_to_do_about_it() {
    // Field failures 16, 24 and 29: WAL that does not arrive is noticed, not just missing.
    let site = Site::with(Cluster::builder(PostgresVersion::find(15)).fsync()).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let marker = site.backup();
    site.cluster.archive_all(PATIENCE);
    site.seawall("check").run().success();

    // A hole in the archive; then the backup's own WAL is gone.
    let missing = site.cluster.archive_all(PATIENCE);
    site.cluster.archive_all(PATIENCE);
    let key = site.near.one_wal(&missing);
    let taken = site.near.remove(&key);
    site.archive_far_behind(&missing);
    let found = problems(&site);
    assert!(
        found.contains("WAL is missing") && found.contains(&missing),
        "{found}"
    );
    assert!(found.contains("full backup"), "{found}");
    site.near.put_back(&key, &taken);
    let own = marker["wal"][0].as_str().unwrap();
    let key = site.near.one_wal(own);
    let taken = site.near.remove(&key);
    let found = problems(&site);
    assert!(found.contains("the WAL of the newest backup"), "{found}");
    site.near.put_back(&key, &taken);

    // Two contents of one segment.
    let other = key.replace(&key[key.len() - 36..], &format!("{}.zst", "0".repeat(32)));
    site.near.put_back(&other, &taken);
    assert!(problems(&site).contains("different contents"));
    site.near.remove(&other);

    // Archiving that fails, and settings that say so; then the repository that is gone.
    site.cluster
        .sql("ALTER SYSTEM SET archive_command = 'false'");
    site.cluster.reload();
    let found = problems(&site);
    assert!(found.contains("is not ours"), "{found}");
    assert!(found.contains("did not arrive"), "{found}");
    site.cluster.sql("ALTER SYSTEM RESET archive_command");
    site.cluster.reload();
    site.near.unmount(false);
    let found = problems(&site);
    assert!(found.contains("mount its file system"), "{found}");
    site.near.mount();
    site.cluster.archive_all(PATIENCE);
    site.seawall("check").run().success();

    // No server: what can be said without it is said.
    let mut site = site;
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);
    let output = site.seawall("check").run().exits_with(3);
    assert!(
        output.stdout.contains("PROBLEM  server:"),
        "{}",
        output.stdout
    );
    assert!(
        output.stdout.contains("no gaps and no conflicts"),
        "{}",
        output.stdout
    );
}
