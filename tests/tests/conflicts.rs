//! Two servers that archive under one name: what each is told, what `seawall wal resolve` shows
//! and settles, and that a restore then follows exactly the branch that was chosen.

use std::collections::BTreeSet;
use std::path::Path;

use seawall_tests::scratch::give_to_owner;
use seawall_tests::site::PATIENCE;
use seawall_tests::stored::digest;
use seawall_tests::{
    Cluster, Config, ConfigFile, Output, PostgresVersion, Repository, Scratch, Site, Stored,
    archive, fetch, restore, seawall,
};

/// Two standbys that were promoted at once, each to timeline 2, each with WAL of its own, and
/// one repository that holds what both archived.
struct Twins {
    a: Cluster,
    b: Cluster,
    /// What A archived and what B archived, before it was thrown together.
    of_a: Stored,
    of_b: Stored,
    /// All of it, by key and content.
    mixed: Stored,
    config: Config,
    // Last: it takes the files of all others away.
    scratch: Scratch,
}

/// So many times, rows of so many bytes, and a switch: more than a segment of 1 MiB each time.
fn write_segments(cluster: &Cluster, count: usize, what: &str, bytes: usize) {
    let filler =
        format!("INSERT INTO filler SELECT repeat('x', {bytes}) FROM generate_series(1, 6000)");
    for _ in 0..count {
        cluster.sql(&format!("INSERT INTO t VALUES ('{what}'); {filler}"));
        cluster.archive_all(PATIENCE);
    }
}

/// That a command said so on standard output, where it prints what was asked for.
#[track_caller]
fn prints(output: &Output, text: &str) {
    assert!(
        output.stdout.contains(text),
        "{text:?} is not in:\n{}",
        output.stdout
    );
}

fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(DISTINCT what, ',' ORDER BY what) FROM t")
}

fn config_at(scratch: &Scratch, name: &str, cluster: &Cluster, directory: &Path) -> Config {
    ConfigFile::new()
        .cluster_as("main", cluster, "postgres")
        .repository(Repository::local("near", directory))
        .write_to(&scratch.join(format!("{name}.toml")))
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    give_to_owner(to);
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
            give_to_owner(&target);
        }
    }
}

impl Twins {
    /// After the promotion, A writes so many times, and B so many, rows of so many bytes.
    fn promoted(times_of_a: usize, times_of_b: usize, bytes_of_b: usize) -> Self {
        let builder = Cluster::builder(PostgresVersion::find(15))
            .segment_size(1)
            .fsync();
        let Site {
            mut cluster,
            config: own,
            near,
            scratch,
        } = Site::with(builder).start();
        cluster.sql("CREATE TABLE t (what text); CREATE TABLE filler (what text)");
        seawall(&own).arg("backup").run().success();
        cluster.sql("INSERT INTO t VALUES ('common')");
        let [mut a, mut b] = ["host-a", "host-b"].map(|name| cluster.standby(&scratch, name));
        let other = scratch.join("other");
        let config_of_b = config_at(&scratch, "b", &b, &other);
        b.archive_with(&config_of_b);
        for host in [&mut a, &mut b] {
            host.start();
            host.wait_until_caught_up(&cluster, PATIENCE);
        }
        cluster.archive_all(PATIENCE);
        for host in [&a, &b] {
            host.wait_until_caught_up(&cluster, PATIENCE);
        }
        copy_tree(near.root(), &other);
        // B is cut off, A hears of one more row: their histories differ, too.
        b.sql("ALTER SYSTEM SET primary_conninfo = ''");
        b.reload();
        seawall_tests::wait_until("B is cut off", PATIENCE, || {
            b.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0"
        });
        cluster.sql("INSERT INTO t VALUES ('last')");
        a.wait_until_caught_up(&cluster, PATIENCE);
        cluster.kill();
        a.promote();
        b.promote();
        write_segments(&a, times_of_a, "a", 200);
        write_segments(&b, times_of_b, "b", bytes_of_b);
        for host in [&a, &b] {
            host.wait_until_archived("00000002.history", PATIENCE);
        }
        let mixed = scratch.join("mixed");
        copy_tree(near.root(), &mixed);
        copy_tree(&other, &mixed);
        Self {
            config: config_at(&scratch, "mixed", &a, &mixed),
            of_a: near,
            of_b: Stored::at(&other),
            mixed: Stored::at(&mixed),
            a,
            b,
            scratch,
        }
    }

    fn resolve(&self, config: &Config, args: &[&str]) -> Output {
        seawall(config).args(["wal", "resolve"]).args(args).run()
    }

    /// A second copy of the mixed repository, and its configuration.
    fn another(&self, name: &str) -> (Stored, Config) {
        let directory = self.scratch.join(name);
        copy_tree(self.mixed.root(), &directory);
        let config = config_at(&self.scratch, name, &self.a, &directory);
        (Stored::at(&directory), config)
    }

    /// The rows that a restore from there brings back.
    fn restored(&self, config: &Config, name: &str) -> String {
        let to = self.scratch.join(format!("{name}-data"));
        restore(config).arg("--to").arg(&to).run().success();
        let mut restored = Cluster::adopt(self.a.version().clone(), &self.scratch, name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        let found = rows(&restored);
        restored.stop(seawall_tests::postgres::Stop::Immediate);
        found
    }
}

/// Keys of timeline 2, with its history.
fn second(stored: &Stored) -> BTreeSet<String> {
    let keys = stored.keys_with("/wal/").into_iter();
    keys.filter(|key| key.contains("/wal/00000002")).collect()
}

fn digest_in(key: &str) -> &str {
    let (_, digest) = key.rsplit_once('-').unwrap();
    digest.strip_suffix(".zst").unwrap()
}

fn file_in(key: &str) -> &str {
    let name = key.rsplit('/').next().unwrap();
    name.rsplit_once('-').unwrap().0
}

#[test]
fn a_conflict_is_shown_everywhere_settled_along_either_branch_and_a_restore_follows_it() {
    let twins = Twins::promoted(3, 5, 211);
    let (of_a, of_b) = (second(&twins.of_a), second(&twins.of_b));
    let names = |keys: &BTreeSet<String>| -> BTreeSet<String> {
        keys.iter().map(|key| file_in(key).to_owned()).collect()
    };
    let in_conflict: BTreeSet<String> = &names(&of_a) & &names(&of_b);
    assert!(in_conflict.contains("00000002.history"), "{in_conflict:?}");
    assert!(in_conflict.len() > 3, "{in_conflict:?}");
    let segment = in_conflict.iter().nth(1).unwrap().clone();

    // Everybody is told.
    let checking = ["check", "--timeout", "1s"];
    let checked = seawall(&twins.config).args(checking).run().exits_with(3);
    for file in &in_conflict {
        assert!(checked.stdout.contains(file.as_str()), "{}", checked.stdout);
    }
    assert!(
        checked.stdout.contains("seawall wal resolve"),
        "{}",
        checked.stdout
    );
    let listed = seawall(&twins.config).arg("list").run().success();
    listed.says("00000002.history is archived with different contents");
    let fetching = |file: &str| {
        fetch(&twins.config)
            .args([file, "pg_wal/RECOVERYXLOG"])
            .with(|run| run.directory(twins.a.data()))
            .run()
    };
    for file in [&segment, "00000002.history"] {
        fetching(file).exits_with(200).says("seawall wal resolve");
    }
    let pushing = |host: &Cluster, config: &Config, file: &str| {
        archive(config)
            .arg(host.data().join("pg_wal").join(file))
            .run()
    };
    for host in [&twins.a, &twins.b] {
        let refused = pushing(host, &twins.config, &segment);
        assert!((1..=125).contains(&refused.code), "{}", refused.code);
        refused.says("other content");
    }

    // What is shown tells the branches apart.
    let shown = twins
        .resolve(&twins.config, &["--json"])
        .exits_with(3)
        .json();
    let conflicts = shown["systems"][0]["conflicts"].as_array().unwrap();
    let files: BTreeSet<String> = conflicts
        .iter()
        .map(|conflict| conflict["file"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(files, in_conflict);
    let branch_of = |content: &str| {
        let of = |keys: &BTreeSet<String>| keys.iter().any(|key| key.contains(content));
        (of(&of_a), of(&of_b))
    };
    for conflict in conflicts {
        let file = conflict["file"].as_str().unwrap();
        let contents = conflict["contents"].as_array().unwrap();
        assert_eq!(contents.len(), 2);
        for content in contents {
            let own = branch_of(content["digest"].as_str().unwrap());
            let related = |what: &str| -> Vec<String> {
                let empty = vec![];
                let texts = content[what].as_array().unwrap_or(&empty).iter();
                texts
                    .map(|text| text.as_str().unwrap().to_owned())
                    .collect()
            };
            if file == "00000002.history" {
                assert_eq!(content["switch"]["from"], 1, "{content}");
                let agrees = related("agrees_with");
                assert_eq!(agrees.len(), 1, "{content}");
                assert_eq!(branch_of(&agrees[0]), own);
                continue;
            }
            let before = related("follows");
            assert_eq!(before.len(), 1, "{content}");
            // Where the branches begin, both go on from timeline 1.
            if before[0].starts_with("00000002") {
                assert_eq!(branch_of(&before[0]), own, "{content}");
                assert_eq!(related("breaks_from").len(), 1, "{content}");
            }
            let after = related("followed_by");
            assert!(after.len() <= 1 && after.iter().all(|a| branch_of(a) == own));
            assert!(content["last_transaction"].is_string(), "{content}");
        }
    }
    prints(
        &twins.resolve(&twins.config, &[]).exits_with(3),
        "goes on from",
    );

    // Only said, and refused, changes nothing.
    let history_of = |keys: &BTreeSet<String>| {
        let mut histories = keys.iter().filter(|key| key.contains(".history-"));
        digest_in(histories.next().unwrap()).to_owned()
    };
    let last = in_conflict.last().unwrap();
    let of_last = |keys: &BTreeSet<String>| -> String {
        let key = keys.iter().find(|key| file_in(key) == last).unwrap();
        digest_in(key).to_owned()
    };
    let (last_of_a, last_of_b) = (of_last(&of_a), of_last(&of_b));
    let before = twins.mixed.files();
    let keep_a = ["--keep", &history_of(&of_a), "--branch"];
    let dry = [&keep_a[..], &["--dry-run"]].concat();
    prints(
        &twins.resolve(&twins.config, &dry).success(),
        "would set aside",
    );
    for wrong in [
        &["--keep", "0123456789"][..],
        &["--keep", "xyzxyz"],
        &["--set-aside", "0123"],
        // One of each branch.
        &["--branch", "--keep", &last_of_a, "--keep", &last_of_b],
        &["--keep", &last_of_a, "--keep", &last_of_b],
    ] {
        twins.resolve(&twins.config, wrong).exits_with(2);
    }
    assert_eq!(twins.mixed.files(), before);

    // Branch A, by its history. What B archived alone behind the conflict goes as well.
    // This is the repository that A archives into all the time.
    let archived_by_a = second(&twins.of_a);
    copy_tree(twins.mixed.root(), twins.of_a.root());
    let stored = twins.of_a.clone();
    let config = config_at(&twins.scratch, "keep-a", &twins.a, stored.root());
    prints(&twins.resolve(&config, &keep_a).success(), "set aside");
    assert_eq!(second(&stored), archived_by_a);
    for key in &of_b {
        let aside = key.replace("/wal/", "/set-aside/");
        assert!(stored.bytes(&aside) == twins.of_b.bytes(key), "{aside}");
        assert_eq!(digest(&stored.plain(&aside)), digest_in(key));
    }
    prints(&twins.resolve(&config, &[]).success(), "no conflicts");
    for file in &in_conflict {
        fetch(&config)
            .args([file.as_str(), "pg_wal/RECOVERYXLOG"])
            .with(|run| run.directory(twins.a.data()))
            .run()
            .success();
        let still = pushing(&twins.b, &config, file);
        assert!((1..=125).contains(&still.code));
        still.says("other content");
        pushing(&twins.a, &config, file).success();
    }
    write_segments(&twins.a, 1, "after", 200);
    seawall(&config).arg("check").run().success();
    assert_eq!(twins.restored(&config, "a"), "a,after,common,last");
    // By hand it is undone.
    let undo = of_b.iter().find(|key| file_in(key) == segment).unwrap();
    stored.put_back(undo, &stored.bytes(&undo.replace("/wal/", "/set-aside/")));
    prints(&twins.resolve(&config, &[]).exits_with(3), &segment);

    // Branch B, by the last of its segments that is in conflict.
    let (stored, config) = twins.another("keep-b");
    twins
        .resolve(&config, &["--keep", &last_of_b[..12], "--branch"])
        .success();
    assert_eq!(second(&stored), of_b);
    assert_eq!(twins.restored(&config, "b"), "b,common");

    // One file alone, and a content that has no rival.
    let (stored, config) = twins.another("one-by-one");
    let one = [
        "--file",
        &segment,
        "--keep",
        digest_in(of_a.iter().find(|k| file_in(k) == segment).unwrap()),
    ];
    let left = twins.resolve(&config, &one).exits_with(3);
    prints(&left, "CONFLICT LEFT");
    let left_of = |stored: &Stored, file: &str| {
        let keys = second(stored).into_iter();
        keys.filter(|key| file_in(key) == file).count()
    };
    assert_eq!(left_of(&stored, &segment), 1);
    let alone = of_b
        .iter()
        .rfind(|key| !in_conflict.contains(file_in(key)))
        .unwrap();
    let aside = ["--set-aside", digest_in(alone), "--file", file_in(alone)];
    twins.resolve(&config, &aside).exits_with(3);
    assert_eq!(left_of(&stored, file_in(alone)), 0);
    // Nothing is known of a right segment that cannot be read: it stays, and what follows.
    let (stored, config) = twins.another("unread");
    let unread = of_a.iter().find(|key| file_in(key) == last).unwrap();
    let faults = format!("get[{}]=403", digest_in(unread));
    let call = seawall(&config).args(["wal", "resolve"]).args(keep_a);
    let call = call.with(|run| run.env("SEAWALL_TEST_FAULTS", &faults));
    let said = call.run().exits_with(3);
    prints(&said, "UNDECIDED");
    prints(&said, &format!("CONFLICT LEFT: {last}"));
    let behind = |key: &&String| file_in(key) >= last.as_str() && !key.contains(".history-");
    for key in of_a.iter().chain(of_b.iter().filter(behind)) {
        assert!(stored.path(key).exists(), "{key}");
    }
    twins
        .resolve(&config, &["--branch", "--keep", &last_of_a])
        .success();
    assert_eq!(second(&stored), of_a);
    // A damaged content is never kept.
    let (stored, config) = twins.another("damaged");
    let damaged = of_a.iter().find(|key| file_in(key) == segment).unwrap();
    stored.flip(damaged, 1000);
    let files = stored.files();
    let refused = twins
        .resolve(&config, &["--keep", digest_in(damaged)])
        .exits_with(4);
    refused.says("not whole");
    assert_eq!(stored.files(), files);
}

#[test]
fn a_resolve_that_is_killed_at_any_moment_loses_nothing_and_is_completed_by_the_next() {
    let twins = Twins::promoted(2, 2, 211);
    let (of_a, of_b) = (second(&twins.of_a), second(&twins.of_b));
    let history = of_a.iter().find(|key| key.contains(".history-")).unwrap();
    let keep = ["wal", "resolve", "--branch", "--keep", digest_in(history)];
    for round in 1..=of_b.len() {
        let (stored, config) = twins.another(&format!("round-{round}"));
        // So many are copied, one less is gone from its place.
        let faults = format!("delete@{round}+=hang");
        let call = seawall(&config).args(keep);
        let call = call.with(|run| run.env("SEAWALL_TEST_FAULTS", &faults));
        let running = call.start();
        seawall_tests::wait_until("it is in the middle", PATIENCE, || {
            stored.keys_with("/set-aside/").len() == round
        });
        running.kill();
        let gone = of_b.iter().filter(|key| !stored.path(key).exists());
        assert_eq!(gone.count(), round - 1);
        for key in &of_b {
            let aside = key.replace("/wal/", "/set-aside/");
            let here = [key, &aside]
                .into_iter()
                .find(|key| stored.path(key).exists());
            let bytes = stored.bytes(here.expect("it lies at one of the two places"));
            assert!(bytes == twins.of_b.bytes(key), "{key}");
        }
        for key in &of_a {
            assert!(stored.bytes(key) == twins.of_a.bytes(key), "{key}");
        }
        // The very same call completes it.
        twins.resolve(&config, &keep[2..]).success();
        assert_eq!(second(&stored), of_a);
    }

    // A store that lets nobody delete, or takes no copy: said, and nothing is lost.
    let (stored, config) = twins.another("refusing");
    for (fault, objects) in [("put=403;begin=403", 0), ("delete=403", 1)] {
        let call = seawall(&config).args(keep);
        let refused = call.with(|run| run.env("SEAWALL_TEST_FAULTS", fault)).run();
        refused.exits_with(1).says("the same command completes it");
        assert_eq!(stored.keys_with("/set-aside/").len(), objects, "{fault}");
        assert!(of_a.union(&of_b).all(|key| stored.path(key).exists()));
    }
    twins.resolve(&config, &keep[2..]).success();
    assert_eq!(second(&stored), of_a);
}

#[test]
fn what_records_cannot_tell_apart_is_settled_by_what_lies_on_the_right_host() {
    // The same work: every switch of a segment lies at the same place on both.
    let twins = Twins::promoted(3, 4, 200);
    let (of_a, of_b) = (second(&twins.of_a), second(&twins.of_b));
    let history = of_a.iter().find(|key| key.contains(".history-")).unwrap();
    let (stored, config) = twins.another("records");
    let undecided = ["--branch", "--keep", digest_in(history)];
    let said = twins.resolve(&config, &undecided);
    if said.code != 0 {
        prints(&said.exits_with(3), "choose yourself");
    }
    let data = twins.a.data().to_str().unwrap();
    let from_a = ["--keep-from", data];
    twins.resolve(&config, &from_a);
    prints(&twins.resolve(&config, &[]).success(), "no conflicts");
    let left = second(&stored);
    assert!(of_a.is_subset(&left), "{left:?}");

    // B was ahead: what it stored alone keeps A from archiving its own.
    write_segments(&twins.a, 2, "a", 200);
    let of_a = second(&twins.of_a);
    let (stored, config) = twins.another("ahead");
    let stored_before = second(&stored);
    let had = |file: &str| stored_before.iter().any(|key| file_in(key) == file);
    let mut waiting = Vec::new();
    for key in of_a
        .iter()
        .filter(|key| stored.wal(file_in(key)).len() == 1)
    {
        if stored.one_wal(file_in(key)) != *key {
            let status = twins.a.data().join("pg_wal/archive_status");
            let done = status.join(format!("{}.done", file_in(key)));
            std::fs::rename(&done, done.with_extension("ready")).unwrap();
            waiting.push(file_in(key).to_owned());
        }
    }
    assert!(!waiting.is_empty(), "{of_a:?}\n{of_b:?}");
    prints(&twins.resolve(&config, &from_a).success(), &waiting[0]);
    for file in &waiting {
        let path = twins.a.data().join("pg_wal").join(file);
        archive(&config).arg(path).run().success();
    }
    let mut had_before = of_a.iter().filter(|key| had(file_in(key)));
    assert!(had_before.all(|key| stored.path(key).exists()));
    // The directory of another cluster is none to ask.
    let other =
        Cluster::builder(PostgresVersion::find(15)).create_in(&twins.scratch, "other-system");
    let other = other.data().to_str().unwrap();
    twins
        .resolve(&config, &["--keep-from", other])
        .exits_with(2)
        .says("of a system that no repository knows");
}
