//! A daemon that serves its metrics and its page on a port of its own.

use crate::daemon::Daemon;
use crate::postgres::{Cluster, free_port};
use crate::process::{Output, Run, wait_until};
use crate::site::{PATIENCE, Site};
use crate::{ConfigFile, PostgresVersion, Repository, Stored, seawall};

/// A daemon with its own configuration, and where it listens.
#[derive(Debug)]
pub struct Served {
    /// The cluster, and the repository `near`.
    pub site: Site,
    /// The port.
    pub port: u16,
    /// A copy of `near`.
    pub far: Stored,
}

const SCHEDULE: &str = "
[schedule]
full = \"@weekly\"
expire = \"@daily\"
[objectives]
rpo = \"5m\"
rto = \"1h\"
[heartbeat]
interval = \"1s\"
switch_floor = \"2s\"
";

impl Served {
    /// A cluster with a repository and a copy of it; `more` are lines of `[http]`.
    #[track_caller]
    pub fn new(more: &str) -> Self {
        let site = Site::with(Cluster::builder(PostgresVersion::find(15)));
        let (port, far) = (free_port(), site.scratch.directory("far"));
        let served = Self {
            port,
            far: Stored::at(&far),
            site,
        };
        served.configure(more);
        served
    }

    /// The same with the server running and both repositories made.
    #[track_caller]
    pub fn running() -> Self {
        let mut served = Self::new("");
        served.site = served.site.start();
        seawall(&served.site.config).arg("init").run().success();
        served
    }

    /// Writes its configuration anew; `more` are lines of `[http]`.
    #[track_caller]
    pub fn configure(&self, more: &str) {
        let state = self.site.scratch.directory("state");
        let tables = format!(
            "{SCHEDULE}\n[daemon]\nstate_directory = \"{}\"\nlook_every = \"1s\"\n[http]\nlisten = \"127.0.0.1:{}\"\n{more}",
            state.display(),
            self.port
        );
        ConfigFile::new()
            .cluster(&self.site.cluster)
            .repository(Repository::local("near", self.site.near.root()))
            .repository(Repository::local("far", self.far.root()).key("copy_from", "\"near\""))
            .extra(&tables)
            .write(&self.site.scratch);
    }

    /// Starts it.
    pub fn start(&self) -> Daemon {
        Daemon::run(Daemon::calling(&self.site.config))
    }

    /// What is answered there, with these arguments of curl.
    #[track_caller]
    pub fn get(&self, scheme: &str, path: &str, more: &[&str]) -> Output {
        let url = format!("{scheme}://localhost:{}{path}", self.port);
        let curl = Run::new("curl").args(["--silent", "--show-error", "--include"]);
        curl.args(more).arg(url).run()
    }

    /// All metrics.
    #[track_caller]
    pub fn metrics(&self) -> String {
        self.get("http", "/metrics", &[]).success().stdout
    }

    /// The value of a metric with these labels; none either while nobody listens yet.
    pub fn metric(&self, name: &str) -> Option<f64> {
        value(&self.get("http", "/metrics", &[]).stdout, name)
    }

    /// Waits until a metric has such a value.
    #[track_caller]
    pub fn wait_for(&self, what: &str, metric: &str, fine: impl Fn(f64) -> bool) {
        wait_until(what, PATIENCE, || self.metric(metric).is_some_and(&fine));
    }
}

/// The value of a metric in a page of them.
pub fn value(text: &str, name: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
