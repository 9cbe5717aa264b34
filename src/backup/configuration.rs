//! Configuration that lies outside the data directory, as on Debian: postgresql.conf,
//! pg_hba.conf, pg_ident.conf and what they include. Without it a restored directory does not
//! start.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::repository::index::MemberKind;

use super::packer::Packer;
use super::scan;
use crate::repository::keys;
use crate::repository::marker::StoredObject;

/// An include chain that is deeper than this is a circle; PostgreSQL's own limit.
const DEEPEST_INCLUDE: usize = 10;

/// The files to store: `starts`, and all that they include, as far as they lie outside
/// `data_directory` and exist.
pub fn outside_files(starts: &[PathBuf], data_directory: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut pending: Vec<(PathBuf, usize)> = starts
        .iter()
        .filter(|start| start.is_absolute())
        .map(|start| (start.clone(), 0))
        .collect();
    while let Some((file, depth)) = pending.pop() {
        let Ok(content) = std::fs::read(&file) else {
            continue;
        };
        // A link inside the data directory is no part of the packs; what it leads to is stored.
        let inside = file.starts_with(data_directory) && !file.is_symlink();
        if (!inside && !files.insert(file.clone())) || depth >= DEEPEST_INCLUDE {
            continue;
        }
        let directory = file.parent().unwrap_or(Path::new("/"));
        for line in String::from_utf8_lossy(&content).lines() {
            for included in includes(line, directory) {
                pending.push((included, depth + 1));
            }
        }
    }
    files
}

/// What a line of configuration includes. PostgreSQL takes `include 'x'`, `include = 'x'`,
/// `include_if_exists` and `include_dir`, and from 16 the same in pg_hba.conf and
/// pg_ident.conf, where the quotes may be missing.
fn includes(line: &str, directory: &Path) -> Vec<PathBuf> {
    let line = line.trim_start();
    let Some(split) = line.find(|c: char| c.is_whitespace() || c == '=' || c == '\'') else {
        return Vec::new();
    };
    let (keyword, rest) = line.split_at(split);
    let value = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '=');
    let value = match value.chars().next() {
        Some(quote @ ('\'' | '"')) => value[1..].split(quote).next().unwrap_or_default(),
        _ => value.split_whitespace().next().unwrap_or_default(),
    };
    if value.is_empty() {
        return Vec::new();
    }
    let path = directory.join(value);
    match keyword.to_ascii_lowercase().as_str() {
        "include" | "include_if_exists" => vec![path],
        "include_dir" => std::fs::read_dir(path).map_or(Vec::new(), |entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    let name = path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .unwrap_or_default();
                    name.ends_with(".conf") && !name.starts_with('.')
                })
                .collect()
        }),
        _ => Vec::new(),
    }
}

/// Writes the files as `config.tar.zst`, under their absolute paths without the first slash.
/// Returns the object and the paths that it holds; no object where there is no file.
pub fn store(
    packer: &Packer,
    files: &BTreeSet<PathBuf>,
) -> Result<(Option<StoredObject>, Vec<String>)> {
    let mut stored = Vec::new();
    for file in files {
        // Small files, read whole: what vanished or cannot be read is left out, and said.
        match (std::fs::read(file), std::fs::metadata(file)) {
            (Ok(content), Ok(metadata)) => {
                let relative = file.strip_prefix("/").unwrap_or(file);
                let mut member = scan::member(relative, &metadata)?;
                member.kind = MemberKind::File;
                member.size = content.len() as u64;
                stored.push((member, content));
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!("{} is not in the backup: {error}", file.display());
            }
        }
    }
    if stored.is_empty() {
        return Ok((None, Vec::new()));
    }
    let paths = stored
        .iter()
        .map(|(member, _)| format!("/{}", member.path))
        .collect();
    let (_, object) = packer.object(keys::backup::CONFIGURATION, 1 << 20, |pack| {
        for (member, content) in stored {
            pack.begin_file(member)?;
            pack.write(&content)?;
            pack.end_file(Vec::new())?;
        }
        Ok(())
    })?;
    Ok((Some(object), paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_files_are_found_and_those_inside_the_data_directory_are_not_stored_twice() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        let data = root.path().join("data");
        std::fs::create_dir_all(etc.join("conf.d")).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        let put = |path: &Path, text: &str| {
            std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes())
                .unwrap();
        };
        put(
            &etc.join("postgresql.conf"),
            "include_dir = 'conf.d'\ninclude 'x.conf' # why\n#include 'no.conf'\ninclude_if_exists 'gone.conf'\ninclude='circle.conf'\n",
        );
        put(&etc.join("conf.d/a.conf"), "work_mem = 4MB\n");
        put(&etc.join("conf.d/a.conf.bak"), "");
        put(&etc.join("x.conf"), "");
        put(&etc.join("no.conf"), "");
        put(&etc.join("circle.conf"), "include 'circle.conf'\n");
        put(
            &data.join("inside.conf"),
            &format!("include '{}'\n", etc.join("far.conf").display()),
        );
        put(&etc.join("far.conf"), "");
        put(
            &etc.join("pg_hba.conf"),
            "include more_hba.conf\nlocal all all peer\n",
        );
        put(&etc.join("more_hba.conf"), "");
        let starts = [
            etc.join("postgresql.conf"),
            etc.join("pg_hba.conf"),
            data.join("inside.conf"),
        ];
        let found: Vec<_> = outside_files(&starts, &data)
            .into_iter()
            .map(|path| {
                path.strip_prefix(&etc)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            found,
            [
                "circle.conf",
                "conf.d/a.conf",
                "far.conf",
                "more_hba.conf",
                "pg_hba.conf",
                "postgresql.conf",
                "x.conf"
            ]
        );
    }
}
