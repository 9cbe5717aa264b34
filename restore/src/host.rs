//! What the restored cluster wants of this host and does not find: PostgreSQL itself, libraries
//! that its configuration loads, and the collations by which its indexes are sorted.
//!
//! It only looks and warns: the files may be meant for another host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use seawall::postgres::libraries::{self, PRELOADED};
use seawall::postgres::programs::Programs;
use seawall::repository::marker::{CollationVersion, Marker};
use serde::Serialize;

/// What is missing or different on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Why no PostgreSQL of the cluster's major version was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<String>,
    /// Libraries that the configuration names and this host lacks.
    pub missing_libraries: Vec<MissingLibrary>,
    /// Databases that were sorted by another version of glibc.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collations: Option<OtherCollations>,
}

/// A library that is not installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingLibrary {
    /// The setting that names it.
    pub setting: &'static str,
    /// Its name.
    pub library: String,
}

/// Databases whose text was sorted by another version of glibc than this host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherCollations {
    /// Their names, each with the version on the source.
    pub databases: Vec<String>,
    /// The version here.
    pub here: String,
}

impl Differences {
    /// Looks. `source` is what the restored configuration sets.
    pub fn find(
        marker: &Marker,
        source: &BTreeMap<String, String>,
        bin_directory: Option<&Path>,
    ) -> Self {
        let (postgresql, missing_libraries) = match Programs::find(marker.major(), bin_directory) {
            Err(error) => (Some(error.one_line()), Vec::new()),
            Ok(programs) => {
                let postgres = programs.get("postgres");
                let directory = postgres.and_then(|path| libraries::library_directory(&path));
                let missing = directory.map(|directory| missing_libraries(source, &directory));
                (None, missing.unwrap_or_default())
            }
        };
        Self {
            postgresql,
            missing_libraries,
            collations: glibc().and_then(|here| other_collations(&marker.collations, &here)),
        }
    }

    /// The same in words, each with what to do.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(self.postgresql.clone());
        for MissingLibrary { setting, library } in &self.missing_libraries {
            let effect = match *setting == PRELOADED[0] {
                true => "PostgreSQL does not start without it",
                false => "no session begins without it",
            };
            warnings.push(format!(
                "{setting} names {library}, which is not installed on this host: {effect}; install the package with {library}.so, or take it out of {setting}"
            ));
        }
        if let Some(OtherCollations { databases, here }) = &self.collations {
            warnings.push(format!(
                "text was sorted by another glibc on the source ({}), this host has {here}: indexes over text may be in the wrong order here; once it is open for writing run REINDEX DATABASE and ALTER DATABASE … REFRESH COLLATION VERSION in each",
                databases.join(", ")
            ));
        }
        warnings
    }
}

fn missing_libraries(source: &BTreeMap<String, String>, directory: &Path) -> Vec<MissingLibrary> {
    let search = source.get("dynamic_library_path").map(String::as_str);
    let mut missing = Vec::new();
    for setting in PRELOADED {
        let list = source.get(setting).map_or("", String::as_str);
        let libraries = libraries::names(list).into_iter();
        missing.extend(
            libraries
                .filter(|library| !libraries::is_there(library, directory, search))
                .map(|library| MissingLibrary { setting, library }),
        );
    }
    missing
}

/// The version of this host's C library, as PostgreSQL reports it for its collations.
fn glibc() -> Option<String> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().strip_prefix("glibc ").map(str::to_owned)
}

/// Of the databases those that glibc sorted: its versions begin with 2, ICU's with far more.
/// PostgreSQL itself compares ICU's when it starts.
fn other_collations(known: &[CollationVersion], here: &str) -> Option<OtherCollations> {
    let databases: Vec<String> = known
        .iter()
        .filter(|one| one.version.starts_with("2.") && one.version != here)
        .map(|one| {
            // The name is that of the database and, behind a blank, of its locale.
            let name = one
                .name
                .rsplit_once(' ')
                .map_or(&*one.name, |(name, _)| name);
            format!("{name}: {}", one.version)
        })
        .collect();
    (!databases.is_empty()).then(|| OtherCollations {
        databases,
        here: here.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_that_another_glibc_sorted_are_named_and_those_of_icu_are_not() {
        let known: Vec<CollationVersion> = [
            ("shop de_DE.UTF-8", "2.31"),
            ("my db en_US.UTF-8", "2.36"),
            ("postgres C", ""),
            ("books en-x-icu", "153.112"),
        ]
        .map(|(name, version)| CollationVersion {
            name: name.into(),
            version: version.into(),
        })
        .into();
        let other = other_collations(&known, "2.36").unwrap();
        assert_eq!(other.databases, ["shop: 2.31"]);
        let other = other_collations(&known, "2.41").unwrap();
        assert_eq!(other.databases, ["shop: 2.31", "my db: 2.36"]);
        assert!(other_collations(&known[2..], "2.41").is_none());
        let here = glibc().unwrap();
        assert!(here.starts_with("2."), "{here}");
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_it_stops() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::File::create(directory.path().join("there.so")).unwrap();
        let source: BTreeMap<String, String> =
            [(PRELOADED[0], "there, gone"), (PRELOADED[1], "there,lost")]
                .map(|(name, list)| (name.to_owned(), list.to_owned()))
                .into();
        let found = Differences {
            missing_libraries: missing_libraries(&source, directory.path()),
            ..Differences::default()
        };
        let warnings = found.warnings();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("names gone") && warnings[0].contains("does not start"));
        assert!(warnings[1].contains("names lost") && warnings[1].contains("no session"));
    }
}
