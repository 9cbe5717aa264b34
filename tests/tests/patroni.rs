//! The example for Patroni, with the real Patroni and etcd: a cluster that was lost begins anew
//! from its repository, and gets a replica from there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use seawall_tests::postgres::{Stop, free_port};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Programs, Run, Running, Scratch, Site, judge, wait_until};

/// Members write their state every few seconds.
const SLOW: Duration = Duration::from_secs(180);

/// What the example names, and what each member has instead.
struct Member {
    name: &'static str,
    data: PathBuf,
    port: u16,
    api: u16,
}

impl Member {
    fn new(scratch: &Scratch, name: &'static str) -> Self {
        let home = scratch.directory(name);
        Self {
            name,
            data: home.join("data"),
            port: free_port(),
            api: free_port(),
        }
    }

    /// Writes the example with this member's places, and runs it.
    fn start(&self, site: &Site, etcd: u16) -> Running {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/patroni/patroni.yml");
        let example = std::fs::read_to_string(&path).unwrap();
        let programs = Programs::get().directory().display().to_string();
        let scratch = site.scratch.path().display().to_string();
        let mut text = example.clone();
        for (shown, here) in [
            ("name: node1", format!("name: {}", self.name)),
            ("127.0.0.1:8008", format!("127.0.0.1:{}", self.api)),
            ("127.0.0.1:5432", format!("127.0.0.1:{}", self.port)),
            ("127.0.0.1:2379", format!("127.0.0.1:{etcd}")),
            (
                "/etc/seawall/seawall.toml",
                site.config.path().display().to_string(),
            ),
            (
                "/usr/lib/postgresql/15/bin",
                site.cluster.version().bin.display().to_string(),
            ),
            (
                "/var/lib/postgresql/15/main",
                self.data.display().to_string(),
            ),
            (
                "/var/lib/postgresql/.pgpass-patroni",
                format!("{scratch}/{}/pgpass", self.name),
            ),
            ("loop_wait: 10", "loop_wait: 1".to_owned()),
            // Also those of the server: archive_command and restore_command.
            ("command: seawall", format!("command: {programs}/seawall")),
        ] {
            assert!(text.contains(shown), "the example does not say {shown}");
            text = text.replace(shown, &here);
        }
        // Sockets of its own: the usual directory belongs to the host's own servers.
        let sockets = format!(
            "parameters:\n    unix_socket_directories: {scratch}/{}\n",
            self.name
        );
        text = text.replace("  pg_hba:\n", &format!("  {sockets}  pg_hba:\n"));
        let file = site.scratch.file(format!("{}.yml", self.name), text);
        Run::new("patroni")
            .arg(file)
            .env("HOME", &scratch)
            .timeout(Duration::from_secs(600))
            .start()
    }

    /// Its server, once Patroni has made it.
    fn cluster(&self, site: &Site) -> Psql {
        Psql {
            program: site.cluster.version().client("psql"),
            port: self.port,
        }
    }
}

/// A server that Patroni runs.
struct Psql {
    program: PathBuf,
    port: u16,
}

impl Psql {
    /// What it answers, or nothing while it does not.
    fn try_sql(&self, sql: &str) -> Option<String> {
        let output = Run::new(&self.program)
            .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"])
            .args(["-p", &self.port.to_string(), "-XAtqc", sql])
            .run();
        (output.code == 0).then(|| output.stdout.trim().to_owned())
    }

    fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).expect("the server answers")
    }
}

/// Ends what Patroni left behind if the test fails before it was stopped.
struct Stopped(PathBuf, PathBuf);

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.1.join("postmaster.pid").exists() {
            let data = self.1.display().to_string();
            Run::new(&self.0)
                .args(["-D", &data, "-m", "immediate", "-w", "stop"])
                .run();
        }
    }
}

fn etcd(scratch: &Scratch) -> (Running, u16) {
    let (client, peer) = (free_port(), free_port());
    let client_url = format!("http://127.0.0.1:{client}");
    let peer_url = format!("http://127.0.0.1:{peer}");
    let running = Run::new("etcd")
        .arg("--data-dir")
        .arg(scratch.directory("etcd"))
        .args(["--listen-client-urls", &client_url])
        .args(["--advertise-client-urls", &client_url])
        .args(["--listen-peer-urls", &peer_url])
        .args(["--initial-advertise-peer-urls", &peer_url])
        .args(["--initial-cluster", &format!("default={peer_url}")])
        .args(["--unsafe-no-fsync"])
        .timeout(Duration::from_secs(600))
        .start();
    wait_until("etcd listens", PATIENCE, || {
        std::net::TcpStream::connect(("127.0.0.1", client)).is_ok()
    });
    (running, client)
}

#[test]
#[ignore = "long: needs patroni and etcd"]
fn patroni_begins_a_lost_cluster_from_its_repository_and_makes_a_replica_from_there() {
    let mut site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.cluster.sql("CREATE ROLE replicator LOGIN REPLICATION");
    site.backup();
    site.cluster
        .sql("INSERT INTO t SELECT generate_series(1, 1000)");
    site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Immediate);
    std::fs::remove_dir_all(site.cluster.data()).unwrap();

    let (etcd, port) = etcd(&site.scratch);
    let (one, two) = (
        Member::new(&site.scratch, "one"),
        Member::new(&site.scratch, "two"),
    );
    let pg_ctl = site.cluster.version().bin.join("pg_ctl");
    let _one = Stopped(pg_ctl.clone(), one.data.clone());
    let _two = Stopped(pg_ctl, two.data.clone());
    let mut first = one.start(&site, port);
    let leader = one.cluster(&site);
    wait_until("the cluster is there and takes writes", SLOW, || {
        assert!(first.is_running(), "{}", first.stderr());
        leader.try_sql("SELECT pg_is_in_recovery()").as_deref() == Some("f")
            && first.stderr().contains("the leader with the lock")
    });
    assert_eq!(leader.sql("SELECT count(*) FROM t"), "1000");
    let mut second = two.start(&site, port);
    let replica = two.cluster(&site);
    let made = "replica has been created using seawall";
    wait_until("the replica streams", SLOW, || {
        assert!(second.is_running(), "{}", second.stderr());
        second.stderr().contains(made)
            && leader
                .try_sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                .as_deref()
                == Some("1")
    });
    leader.sql("INSERT INTO t SELECT generate_series(1001, 1500)");
    wait_until("the replica has the rows", SLOW, || {
        replica.try_sql("SELECT count(*) FROM t").as_deref() == Some("1500")
    });
    assert_eq!(replica.sql("SELECT pg_is_in_recovery()"), "t");

    // The new timeline is in the repository: the next restore finds it.
    let segment = leader.sql("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the leader archives", SLOW, || {
        !site.near.keys_with(&segment).is_empty()
    });
    let to = site.scratch.join("checked-data");
    site.restoring(&to)
        .args(["--archive", "off"])
        .run()
        .success();
    let mut checked = site.adopt("checked", &to);
    // Patroni's own default, which the leader runs with.
    checked.configure("max_connections", "100");
    checked.start();
    checked.wait_until_recovered(PATIENCE);
    assert_eq!(checked.sql("SELECT count(*) FROM t"), "1500");

    judge::amcheck(&checked).must_pass();

    for mut running in [second, first, etcd] {
        running.signal(Signal::SIGTERM);
        running.wait();
    }
    assert!(!one.data.join("postmaster.pid").exists());
    assert!(!two.data.join("postmaster.pid").exists());
}
