//! Configuration that lay outside the data directory of the source, as on Debian. Where it is
//! missing, the restored directory gets a copy of its own, and starts with it.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::recovery::setting;
use seawall::repository::System;
use seawall::repository::codec;
use seawall::repository::keys;
use seawall::repository::marker::Marker;

/// Configuration is text; what is larger is none.
const LARGEST: u64 = 64 << 20;

/// Puts copies of the stored configuration into `root` where the restored directory would
/// not start without. Returns what was added, relative to `root`.
///
/// A restore to the source's own place on a host that still has the files keeps using those.
pub(crate) async fn restore(
    system: &System,
    marker: &Marker,
    root: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<PathBuf>> {
    let mut added = Vec::new();
    if !marker.unread_configuration_files.is_empty() {
        let start = match root.join("postgresql.conf").exists() {
            true => "",
            false => "; without a postgresql.conf in it the directory does not start",
        };
        warnings.push(format!(
            "the backup was sent by the server, which does not send configuration outside its data directory ({}): put your own copies in place{start}",
            marker.unread_configuration_files.join(", ")
        ));
    }
    let main = marker
        .configuration_files
        .iter()
        .find(|path| path.ends_with("/postgresql.conf"))
        .or(marker.configuration_files.first());
    let Some(main) = main else {
        return Ok(added);
    };
    let data_directory = Path::new(&marker.data_directory);
    // With a configuration of its own the directory lacks at most what was a link inside it.
    let complete = root.join("postgresql.conf").exists();
    let is_wanted = |path: &Path| !complete || path.starts_with(data_directory);
    if complete {
        let unused: Vec<&str> = marker
            .configuration_files
            .iter()
            .map(String::as_str)
            .filter(|path| !is_wanted(Path::new(path)))
            .collect();
        if !unused.is_empty() {
            warnings.push(format!(
                "the source also used configuration outside its data directory ({}); it is stored in {} and not in use here",
                unused.join(", "),
                keys::backup::CONFIGURATION
            ));
        }
        if unused.len() == marker.configuration_files.len() {
            return Ok(added);
        }
    }
    let at_home = root == Path::new(&marker.data_directory)
        && marker
            .configuration_files
            .iter()
            .all(|path| Path::new(path).exists());
    if at_home {
        return Ok(added);
    }
    let object = marker.object(keys::backup::CONFIGURATION)?;
    let stored = system
        .object_of(&system.keys().backup(&marker.id), object)
        .await?;
    let damaged =
        |error: std::io::Error| Error::failed(format!("{} is damaged", object.key)).because(error);
    let plain = codec::stream_decoder(&stored[..]).map_err(damaged)?;
    let mut archive = tar::Archive::new(BufReader::new(plain));
    let directory = Path::new(main).parent().unwrap_or(Path::new("/"));
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let source = Path::new("/").join(entry.path().map_err(damaged)?);
        if !is_wanted(&source) {
            continue;
        }
        let inside = source.strip_prefix(data_directory).ok();
        let relative = inside.map_or_else(|| place(&source, directory), |path| Some(path.into()));
        let Some(relative) = relative else {
            warnings.push(format!(
                "{} is not restored: no place for it",
                source.display()
            ));
            continue;
        };
        let mut content = Vec::new();
        entry
            .take(LARGEST)
            .read_to_end(&mut content)
            .map_err(damaged)?;
        if source == Path::new(main) {
            content.extend_from_slice(own_settings(root)?.as_bytes());
        }
        let path = root.join(&relative);
        if path.exists() {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).on("make", parent)?;
        }
        durable::write_file(&path, &content, marker.file_mode()).on("write", &path)?;
        added.push(relative);
    }
    if added.is_empty() {
        return Ok(added);
    }
    warnings.push(format!(
        "the configuration that lay in {} was put into the data directory; compare it with this host before production",
        directory.display()
    ));
    Ok(added)
}

/// Where a file of the source's configuration goes in the data directory.
fn place(source: &Path, directory: &Path) -> Option<PathBuf> {
    let safe = source.components().all(|part| {
        matches!(
            part,
            std::path::Component::RootDir | std::path::Component::Normal(_)
        )
    });
    let relative = source
        .strip_prefix(directory)
        .or_else(|_| source.strip_prefix("/"))
        .ok()?;
    (safe && !relative.as_os_str().is_empty()).then(|| relative.to_owned())
}

/// The source's settings that name its own places, set to ours. In a configuration file the
/// last line wins.
fn own_settings(root: &Path) -> Result<String> {
    let mut text = "\n# Added by seawall restore: the places of this directory.\n".to_owned();
    let here = |name: &str| root.join(name).display().to_string();
    text += &setting("data_directory", &root.display().to_string())?;
    text += &setting("hba_file", &here("pg_hba.conf"))?;
    text += &setting("ident_file", &here("pg_ident.conf"))?;
    text += &setting("external_pid_file", "")?;
    Ok(text)
}
