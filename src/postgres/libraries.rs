//! The libraries that a server loads: which settings name them, and where they lie.

use std::path::{Path, PathBuf};

/// The settings that name libraries to load beforehand.
pub const PRELOADED: [&str; 3] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
];

/// In every server's directory of libraries.
const ALWAYS_THERE: &str = "plpgsql.so";

/// The names in a list as PostgreSQL reads it: separated by commas, perhaps in quotes.
pub fn names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (name, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest
                .find(',')
                .map_or((rest, ""), |comma| rest.split_at(comma)),
        };
        if !name.trim().is_empty() {
            names.push(name.trim().to_owned());
        }
        rest = behind.trim_start().trim_start_matches(',').trim_start();
    }
    names
}

/// Where the server looks for `$libdir`: `pg_config --pkglibdir`, which not every package has.
pub fn library_directory(postgres: &Path) -> Option<PathBuf> {
    let program = postgres.canonicalize().ok()?;
    let prefix = program.parent()?.parent()?;
    ["lib/postgresql", "lib", "lib64/postgresql", "lib64"]
        .map(|relative| prefix.join(relative))
        .into_iter()
        .find(|directory| directory.join(ALWAYS_THERE).is_file())
}

/// Whether `library`, as such a setting names it, is a file: `directory` is `$libdir`, `search` the
/// setting dynamic_library_path.
pub fn is_there(library: &str, directory: &Path, search: Option<&str>) -> bool {
    let libdir = directory.to_string_lossy();
    let is_file = |path: &str| {
        let path = path.replacen("$libdir", &libdir, 1);
        Path::new(&path).is_file() || Path::new(&format!("{path}.so")).is_file()
    };
    if library.contains('/') {
        return is_file(library);
    }
    let mut places = search.unwrap_or("$libdir").split(':');
    places.any(|place| is_file(&format!("{}/{library}", place.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_postgresql_reads_them() {
        let read = names(" pg_stat_statements, \"$libdir/no such\",mine , ");
        assert_eq!(read, ["pg_stat_statements", "$libdir/no such", "mine"]);
        assert!(names("").is_empty());
    }
}
