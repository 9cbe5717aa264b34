//! The one place that knows where the five programs are.
//!
//! Cargo builds no programs for another package's tests: `make test` builds them first, and a
//! test that does not find them says so. They lie beside each other, since `seawall` runs its
//! siblings, and where PostgreSQL's user can run them: in the target directory itself if that
//! is reachable, otherwise in a directory of copies.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::config::Config;
use crate::guard;
use crate::scratch::{is_root, set_mode};

/// The programs of the workspace.
pub const NAMES: [&str; 5] = [
    "seawall",
    "seawall-archive",
    "seawall-restore",
    "seawall-fetch",
    "seawall-drill",
];

/// A directory with all five programs, which PostgreSQL's user can run.
#[derive(Debug)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Finds them; copies them at the first call where that is needed. Panics with a hint if
    /// one is not built.
    #[track_caller]
    pub fn get() -> &'static Self {
        static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
        match PROGRAMS.get_or_init(find) {
            Ok(programs) => programs,
            Err(why) => panic!("{why}"),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of one program.
    #[track_caller]
    pub fn path(&self, name: &str) -> PathBuf {
        assert!(NAMES.contains(&name), "{name} is none of the programs");
        self.directory.join(name)
    }

    /// What postgresql.conf's `archive_command` is set to.
    pub fn archive_command(&self, config: &Config) -> String {
        format!(
            "\"{}\" --config \"{}\" --cluster {} \"%p\"",
            self.path("seawall-archive").display(),
            config.path().display(),
            config.cluster(),
        )
    }

    /// What `restore_command` is set to where no restore has written it.
    pub fn restore_command(&self, config: &Config) -> String {
        format!(
            "\"{}\" --config \"{}\" --cluster {} \"%f\" \"%p\"",
            self.path("seawall-fetch").display(),
            config.path().display(),
            config.cluster(),
        )
    }
}

fn find() -> Result<Programs, String> {
    let built = target_directory()?;
    let missing: Vec<_> = NAMES
        .into_iter()
        .filter(|name| !built.join(name).is_file())
        .collect();
    if !missing.is_empty() {
        let release = if built.ends_with("release") {
            "--release "
        } else {
            ""
        };
        return Err(format!(
            "{} not built in {}\nhint: run cargo build {release}--workspace --bins",
            missing.join(", "),
            built.display()
        ));
    }
    if !is_root() || everyone_can_run(&built) {
        return Ok(Programs { directory: built });
    }
    copies(&built)
        .map(|directory| Programs { directory })
        .map_err(|error| format!("cannot copy the programs of {}: {error}", built.display()))
}

/// Tests run from `target/PROFILE/deps`, programs of this package from `target/PROFILE`.
fn target_directory() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|error| format!("who am I: {error}"))?;
    let directory = me.parent().unwrap_or(Path::new("/"));
    Ok(match directory.ends_with("deps") {
        true => directory.parent().unwrap_or(directory).to_path_buf(),
        false => directory.to_path_buf(),
    })
}

fn everyone_can_run(directory: &Path) -> bool {
    let allows = |path: &Path, bits: u32| {
        path.metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & bits == bits)
    };
    directory.ancestors().all(|parent| allows(parent, 0o001))
        && NAMES
            .iter()
            .all(|name| allows(&directory.join(name), 0o005))
}

/// A directory of hard links, or of copies where the file system or a mode forbids links. It
/// goes with this process.
fn copies(built: &Path) -> std::io::Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("sw-programs-{}", std::process::id()));
    let directory = match everyone_can_reach(&directory) {
        true => directory,
        false => PathBuf::from("/tmp").join(directory.file_name().unwrap_or_default()),
    };
    std::fs::create_dir(&directory)?;
    guard::made(&directory);
    set_mode(&directory, 0o755);
    for name in NAMES {
        let (from, to) = (built.join(name), directory.join(name));
        let runnable = from.metadata()?.permissions().mode() & 0o005 == 0o005;
        if !runnable || std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to)?;
            set_mode(&to, 0o755);
        }
    }
    Ok(directory)
}

fn everyone_can_reach(path: &Path) -> bool {
    path.ancestors().skip(1).all(|parent| {
        parent
            .metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    })
}
