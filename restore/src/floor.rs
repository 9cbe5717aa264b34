//! Settings that must be no smaller than the source's were, or PostgreSQL refuses to open for
//! reading during recovery, which pausing at a target is.
//!
//! pg_control says what was in force; the files may say less: where a change waits for a
//! restart, and where the settings come on the command line, as Patroni gives them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seawall::postgres::control::ControlFile;
use seawall::repository::marker::Marker;

/// PostgreSQL's own limit.
const DEEPEST_INCLUDE: usize = 10;

/// A setting whose value in the files is too small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TooLow {
    pub(crate) name: &'static str,
    /// What the files say, or PostgreSQL's default.
    pub(crate) found: i32,
    /// What was in force.
    pub(crate) needed: i32,
}

/// What the configuration that `root` will start with says too little of.
///
/// A value that cannot be read as a number counts as enough. `with_auto` says whether the source's postgresql.auto.conf stays in force.
pub(crate) fn too_low(
    root: &Path,
    marker: &Marker,
    control: &ControlFile,
    with_auto: bool,
) -> Vec<TooLow> {
    let assignments = assignments(root, marker, with_auto);
    let floor = [
        ("max_connections", 100, control.max_connections),
        ("max_worker_processes", 8, control.max_worker_processes),
        ("max_wal_senders", 10, control.max_wal_senders),
        ("max_prepared_transactions", 0, control.max_prepared_xacts),
        ("max_locks_per_transaction", 64, control.max_locks_per_xact),
    ];
    floor
        .into_iter()
        .filter_map(|(name, default, needed)| {
            let last = assignments.iter().rev().find(|(known, _)| known == name);
            let found = last.map_or(Some(default), |(_, value)| value.parse().ok())?;
            let too_low = TooLow {
                name,
                found,
                needed,
            };
            (found < needed).then_some(too_low)
        })
        .collect()
}

/// What the source's files set: the last line of each name. Call it before
/// postgresql.auto.conf is written anew.
pub(crate) fn assigned(root: &Path, marker: &Marker) -> BTreeMap<String, String> {
    assignments(root, marker, true).into_iter().collect()
}

fn assignments(root: &Path, marker: &Marker, with_auto: bool) -> Vec<(String, String)> {
    let own = root.join("postgresql.conf");
    let outside = marker
        .configuration_files
        .iter()
        .find(|path| path.ends_with("/postgresql.conf"));
    let main = match outside {
        Some(outside) if !own.exists() => PathBuf::from(outside),
        _ => own,
    };
    let mut assignments = Vec::new();
    read(&main, 0, &mut assignments);
    if with_auto {
        read(&root.join("postgresql.auto.conf"), 0, &mut assignments);
    }
    assignments
}

/// All that a file and its includes set, in PostgreSQL's order.
fn read(file: &Path, depth: usize, into: &mut Vec<(String, String)>) {
    let Ok(content) = std::fs::read(file) else {
        return;
    };
    let directory = file.parent().unwrap_or(Path::new("/"));
    for line in String::from_utf8_lossy(&content).lines() {
        let Some((name, value)) = assignment(line) else {
            continue;
        };
        let path = directory.join(&value);
        match name.as_str() {
            "include" | "include_if_exists" | "include_dir" if depth >= DEEPEST_INCLUDE => {}
            "include" | "include_if_exists" => read(&path, depth + 1, into),
            "include_dir" => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                let mut files: Vec<PathBuf> = entries
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|e| e == "conf"))
                    .collect();
                files.sort();
                files.iter().for_each(|file| read(file, depth + 1, into));
            }
            _ => into.push((name, value)),
        }
    }
}

/// `name = value`, with or without the sign and quotes.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let quoted = rest.strip_prefix('\'');
    let value = match quoted {
        Some(quoted) => quoted.split('\'').next()?,
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next()?,
    };
    // An empty value in quotes takes an earlier one back.
    let is_one = !name.is_empty() && (quoted.is_some() || !value.is_empty());
    is_one.then(|| (name.to_ascii_lowercase(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_assignment_counts_wherever_it_is_included() {
        let scratch = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            seawall::durable::write_file(&path, text.as_bytes(), 0o600).unwrap();
        };
        std::fs::create_dir(scratch.path().join("conf.d")).unwrap();
        write(
            "main.conf",
            "# max_connections = 1\nMax_Connections 50 # why\nmax_wal_senders='7'\ninclude_dir 'conf.d'\nmax_worker_processes=3#\n",
        );
        write(
            "conf.d/b.conf",
            "max_connections = 70\ninclude '../main.conf'\n",
        );
        write("conf.d/a.conf", "max_connections = 60\n");
        write("conf.d/c.bak", "max_connections = 1\n");
        let mut found = Vec::new();
        read(
            &scratch.path().join("main.conf"),
            DEEPEST_INCLUDE - 1,
            &mut found,
        );
        let last = |name: &str| found.iter().rfind(|(n, _)| n == name).unwrap().1.clone();
        assert_eq!(last("max_connections"), "70");
        assert_eq!(last("max_wal_senders"), "7");
        assert_eq!(last("max_worker_processes"), "3");
    }
}
