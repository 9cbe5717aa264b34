//! Libraries that the source preloads. A drill preloads none: what a library starts (jobs,
//! connections to elsewhere) is production's matter, and the owner names in `[drill.settings]`
//! what recovery cannot do without, as a library with WAL records of its own. But a recovery in
//! earnest needs them, so those that this host lacks are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use seawall::postgres::libraries::{is_there, names};

pub use seawall::postgres::libraries::{PRELOADED as SETTINGS, library_directory};

/// What sessions of a drill say at their beginning, for programs of PostgreSQL's: `ALTER ROLE`
/// and `ALTER DATABASE` of the source may name libraries, too, and are part of the data.
pub const NONE_IN_SESSIONS: &str = "-c session_preload_libraries= -c local_preload_libraries=";

/// The same with what the owner asks for.
pub fn session_options(owner: &BTreeMap<String, String>) -> String {
    let of_sessions = SETTINGS[1..].iter().map(|setting| {
        let value = owner.get(*setting).map_or("", String::as_str);
        let escaped: String = value
            .chars()
            .flat_map(|c| {
                let special = c.is_whitespace() || c == '\\';
                special.then_some('\\').into_iter().chain([c])
            })
            .collect();
        format!("-c {setting}={escaped}")
    });
    of_sessions.collect::<Vec<_>>().join(" ")
}

/// What was left out, and warnings about what is missing on this host. `source` is what the
/// source's configuration says, `postgres` the server's program.
pub fn left_out(
    source: &BTreeMap<String, String>,
    owner: &BTreeMap<String, String>,
    postgres: &Path,
) -> (Vec<String>, Vec<String>) {
    let directory = library_directory(postgres);
    let search = source.get("dynamic_library_path").map(String::as_str);
    let (mut adapted, mut warnings) = (Vec::new(), Vec::new());
    for setting in SETTINGS {
        let taken = names(owner.get(setting).map_or("", String::as_str));
        let mut libraries = names(source.get(setting).map_or("", String::as_str));
        libraries.retain(|library| !taken.contains(library));
        if libraries.is_empty() {
            continue;
        }
        let missing: Vec<&str> = match &directory {
            None => Vec::new(),
            Some(directory) => libraries
                .iter()
                .filter(|library| !is_there(library, directory, search))
                .map(String::as_str)
                .collect(),
        };
        let listed = libraries.join(", ");
        adapted.push(match (missing.is_empty(), &directory) {
            (_, None) => format!(
                "{setting}: {listed} of the source is not loaded; whether this host has it is not known"
            ),
            (true, _) => format!("{setting}: {listed} of the source is not loaded"),
            (false, _) => format!(
                "{setting}: {listed} of the source is not loaded; missing on this host: {}",
                missing.join(", ")
            ),
        });
        for library in missing {
            warnings.push(format!(
                "the source's {setting} names {library}, which is not installed on this host: PostgreSQL would not start here with the source's configuration; install the package with {library}.so before you need it"
            ));
        }
    }
    (adapted, warnings)
}

/// The names of the libraries that those settings preload, without directory and ending.
pub fn stems(settings: &BTreeMap<String, String>) -> BTreeSet<String> {
    let lists = SETTINGS.iter().filter_map(|setting| settings.get(*setting));
    lists
        .flat_map(|list| names(list))
        .map(|name| stem(Path::new(&name)))
        .collect()
}

/// `auto_explain` of `$libdir/auto_explain.so`.
pub fn stem(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".so").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_load_what_the_owner_names_and_nothing_else() {
        assert_eq!(session_options(&BTreeMap::new()), NONE_IN_SESSIONS);
        let owner = [(SETTINGS[1].to_owned(), "a, b".to_owned())].into();
        assert_eq!(
            session_options(&owner),
            "-c session_preload_libraries=a,\\ b -c local_preload_libraries="
        );
    }

    #[test]
    fn what_this_host_lacks_is_named_and_what_the_owner_loads_is_not() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::File::create(&path).unwrap();
            path
        };
        let postgres = make("bin/postgres");
        let source: BTreeMap<String, String> = [(
            SETTINGS[0].to_owned(),
            "pg_stat_statements, \"$libdir/no such\",mine , other".to_owned(),
        )]
        .into();
        let owner = [(SETTINGS[0].to_owned(), "mine".to_owned())].into();
        // Nobody knows where its libraries are.
        let (adapted, warnings) = left_out(&source, &owner, &postgres);
        assert!(adapted[0].contains("is not known") && warnings.is_empty());
        make("lib/plpgsql.so");
        make("lib/pg_stat_statements.so");
        let (adapted, warnings) = left_out(&source, &owner, &postgres);
        assert!(
            adapted[0].ends_with("missing on this host: $libdir/no such, other"),
            "{adapted:?}"
        );
        assert_eq!(warnings.len(), 2);
        make("elsewhere/other.so");
        let mut source = source;
        let path = format!("$libdir:{}/elsewhere", root.path().display());
        source.insert("dynamic_library_path".to_owned(), path);
        assert_eq!(left_out(&source, &owner, &postgres).1.len(), 1);
        assert!(left_out(&BTreeMap::new(), &owner, &postgres).0.is_empty());
    }
}
