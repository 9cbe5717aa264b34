//! Whether restored data is right, by PostgreSQL's own word: its dump, its amcheck, its page
//! checksums, its manifest check. Nothing here asks Seawall.

use std::path::Path;
use std::time::Duration;

use crate::postgres::{Cluster, Stop};
use crate::process::{Output, Run};
use crate::version::PostgresVersion;

/// What a check of PostgreSQL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing is wrong.
    Passed,
    /// Something is, and this is what it says.
    Failed(String),
    /// This build of PostgreSQL cannot tell, and why.
    NotTested(String),
}

impl Judgement {
    /// Panics if something is wrong. Says on standard error what could not be tested.
    #[track_caller]
    pub fn must_pass(self) {
        match self {
            Self::Passed => {}
            Self::Failed(why) => panic!("PostgreSQL found the data damaged:\n{why}"),
            Self::NotTested(why) => eprintln!("not tested: {why}"),
        }
    }

    /// Panics unless something is wrong: for a test that did damage.
    #[track_caller]
    pub fn must_fail(self) {
        assert!(
            matches!(self, Self::Failed(_)),
            "damage went unseen: {self:?}"
        );
    }

    fn of(output: Output) -> Self {
        match output.code {
            0 => Self::Passed,
            _ => Self::Failed(format!("{}{}", output.stdout, output.stderr)),
        }
    }
}

/// Everything in a cluster as SQL, without what differs between two copies of one cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Dump(String);

/// Dumps all databases and roles. Works while recovery is paused, too.
#[track_caller]
pub fn dump(cluster: &Cluster) -> Dump {
    let output = cluster
        .client("pg_dumpall")
        // A crash empties them, and a restore is one.
        .arg("--no-unlogged-table-data")
        .timeout(Duration::from_secs(600))
        .run()
        .success();
    let mut text = String::with_capacity(output.stdout.len());
    for line in output.stdout.lines() {
        // A random key in each dump, since the minor releases of August 2025.
        if line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ") {
            continue;
        }
        // A restored tablespace lies elsewhere.
        let line = match line.split_once(" LOCATION '") {
            Some((tablespace, _)) if line.starts_with("CREATE TABLESPACE ") => tablespace,
            _ => line,
        };
        text.push_str(line);
        text.push('\n');
    }
    Dump(text)
}

impl Dump {
    /// The SQL.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Panics at the first line that differs.
    #[track_caller]
    pub fn must_equal(&self, other: &Self) {
        if let Some(difference) = self.difference(other) {
            panic!("two dumps differ: {difference}");
        }
    }

    /// The first line that differs.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        let mut theirs = other.0.lines();
        for (number, mine) in (1..).zip(self.0.lines()) {
            let their = theirs.next();
            if their != Some(mine) {
                return Some(format!("line {number}: {mine:?} and {their:?}"));
            }
        }
        Some(format!("one goes on with {:?}", theirs.next()))
    }
}

/// Dumps are large: an assertion prints their size only.
impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dump of {} bytes", self.0.len())
    }
}

/// `pg_amcheck` over all tables and indexes of all databases, every heap tuple looked up in
/// its indexes. The server must take writes, since the extension is installed where it is
/// missing.
#[track_caller]
pub fn amcheck(cluster: &Cluster) -> Judgement {
    let version = cluster.version();
    if !version.has_extension("amcheck") {
        return Judgement::NotTested(format!("this build of {version} has no amcheck"));
    }
    let output = cluster
        .client("pg_amcheck")
        .args(["--all", "--heapallindexed", "--install-missing"])
        .timeout(Duration::from_secs(600))
        .run();
    Judgement::of(output)
}

/// All that can be said of one cluster with page checksums: pg_amcheck, and pg_checksums. Stops
/// it.
#[track_caller]
pub fn is_sound(cluster: &mut Cluster) {
    amcheck(cluster).must_pass();
    cluster.stop(Stop::Fast);
    checksums(cluster).must_pass();
}

/// `pg_checksums --check` over a stopped cluster.
#[track_caller]
pub fn checksums(cluster: &mut Cluster) -> Judgement {
    assert!(!cluster.is_running(), "pg_checksums needs a stopped server");
    let version = cluster.version();
    // Its on-disk formats are its version's own: no other version's program will do.
    let Some(program) = version.own("pg_checksums") else {
        return Judgement::NotTested(format!("this build of {version} has no pg_checksums"));
    };
    let output = Run::new(program)
        .args(["--check", "-D"])
        .arg(cluster.data())
        .timeout(Duration::from_secs(600))
        .run();
    Judgement::of(output)
}

/// `pg_verifybackup -n`: a directory against the backup_manifest in it.
#[track_caller]
pub fn verifybackup(version: &PostgresVersion, directory: &Path) -> Judgement {
    verifybackup_without(version, directory, "none")
}

/// The same, with one more file that no manifest names.
#[track_caller]
pub fn verifybackup_without(
    version: &PostgresVersion,
    directory: &Path,
    ignored: &str,
) -> Judgement {
    let Some(program) = version.own("pg_verifybackup") else {
        return Judgement::NotTested(format!("this build of {version} has no pg_verifybackup"));
    };
    let output = Run::new(program)
        .args(["-n", "-i", ignored])
        .arg(directory)
        .timeout(Duration::from_secs(600))
        .run();
    Judgement::of(output)
}
