//! What a restore refuses before it touches anything: directories that are somebody's, that
//! overlap, or in which a server runs.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::control::ControlFile;
use seawall::postgres::{WalFileName, layout};
use seawall::repository::System;

use super::{IN_PROGRESS, InProgress, Layout};

/// Two directories of the restore that are one or lie within each other, or that touch the
/// repository itself, by device and inode.
pub(super) fn refuse_overlaps(layout: &Layout, system: &System) -> Result<()> {
    let refuse = |a: &Path, b: &Path, what: &str| {
        Err(
            Error::refused(format!("{} and {} {what}", a.display(), b.display()))
                .hint("choose directories that have nothing to do with each other"),
        )
    };
    let directories: Vec<&Path> = layout.directories().collect();
    for (at, one) in directories.iter().enumerate() {
        for other in &directories[..at] {
            if is_same_or_within(one, other) || is_same_or_within(other, one) {
                return refuse(other, one, "overlap");
            }
        }
    }
    if let Some(repository) = system.store().url().strip_prefix("file://") {
        let repository = Path::new(repository);
        for directory in directories {
            if is_same_or_within(repository, directory) || is_same_or_within(directory, repository)
            {
                return refuse(
                    directory,
                    repository,
                    "overlap: the second is the repository",
                );
            }
        }
    }
    Ok(())
}

/// Whether `inner` is `outer` or lies below it, as the file system sees it. Directories that
/// do not exist yet are judged by their nearest parent that does.
pub(super) fn is_same_or_within(inner: &Path, outer: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    match identity(outer) {
        Some(outer) => resolved(inner)
            .ancestors()
            .any(|path| identity(path) == Some(outer)),
        None => resolved(inner).starts_with(resolved(outer)),
    }
}

/// The path with all links of its existing part followed.
pub(super) fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

pub(super) fn is_among(directory: &Path, known: &[PathBuf]) -> bool {
    known
        .iter()
        .any(|known| resolved(known) == resolved(directory))
}

/// A server that runs in the directory holds postmaster.pid with a live process.
pub(super) fn refuse_running(root: &Path) -> Result<()> {
    let path = root.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(Error::refused(
                "whether a PostgreSQL server runs in the target is not known",
            )
            .at(path.display())
            .because(error)
            .hint("look at that file; remove it if no server runs there"));
        }
        Ok(text) => text,
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    // In a container the server may be process 1; a single-user one writes its number negated.
    let alive = pid.is_none_or(|pid| {
        let process = nix::unistd::Pid::from_raw(pid.saturating_abs());
        pid == 0
            || !matches!(
                nix::sys::signal::kill(process, None),
                Err(nix::errno::Errno::ESRCH)
            )
    });
    if alive {
        return Err(
            Error::refused("a PostgreSQL server is running in the target")
                .at(root.display())
                .because(format!(
                    "postmaster.pid names process {}",
                    pid.unwrap_or_default()
                ))
                .hint("stop it first, or restore into another directory"),
        );
    }
    Ok(())
}

pub(super) fn unfinished(root: &Path, system: &System) -> Result<Option<InProgress>> {
    let path = root.join(IN_PROGRESS);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.on("read", &path)?,
    };
    // It begins by removing this file and ends by writing it: a cluster that has it is whole,
    // whether the mark was left by a kill just before the one or just after the other.
    if root.join(layout::CONTROL_FILE).exists() {
        return Ok(None);
    }
    let mark: InProgress = serde_json::from_slice(&text).map_err(|error| {
        Error::refused("the target holds a restore that cannot be recognised")
            .at(path.display())
            .because(error)
            .hint("empty the directory by hand if nobody needs it")
    })?;
    if mark.system_id != system.id().to_string() {
        return Err(Error::refused(format!(
            "the target holds an interrupted restore of another cluster, system {}",
            mark.system_id
        ))
        .at(root.display())
        .hint("empty the directory by hand if nobody needs it"));
    }
    Ok(Some(mark))
}

/// For `--force`: the directory must be a cluster (or empty). Returns what lies outside it and
/// belongs to it: its tablespaces and its WAL directory.
pub(super) fn previous_cluster(root: &Path) -> Result<Vec<PathBuf>> {
    if is_empty(root)? {
        return Ok(Vec::new());
    }
    if !root.join("PG_VERSION").is_file() || !root.join(layout::CONTROL_FILE).is_file() {
        return Err(
            Error::refused("--force replaces a PostgreSQL cluster, and this is none")
                .at(root.display())
                .hint("give an empty directory, or empty this one by hand"),
        );
    }
    let mut outside = Vec::new();
    let links = std::fs::read_dir(root.join("pg_tblspc"))
        .into_iter()
        .flatten()
        .flatten();
    for path in links.map(|entry| entry.path()).chain([root.join("pg_wal")]) {
        if let Ok(target) = std::fs::read_link(&path) {
            outside.push(path.parent().unwrap_or(root).join(target));
        }
    }
    Ok(outside)
}

/// For `--delta`: the directory must be of the system that is restored (or empty).
pub(super) fn refuse_another_system(root: &Path, system: &System) -> Result<()> {
    if is_empty(root)? {
        return Ok(());
    }
    let refused = |what: String| {
        Error::refused(what)
            .at(root.display())
            .hint("restore into another directory, or replace this cluster with --force")
    };
    if !root.join(layout::CONTROL_FILE).is_file() {
        return Err(refused(
            "--delta brings a PostgreSQL cluster to a backup's state, and this is none".to_owned(),
        ));
    }
    let control = ControlFile::read(root).map_err(|error| {
        refused(
            "--delta needs to know which cluster this is, and its pg_control does not say it"
                .to_owned(),
        )
        .because(error.one_line())
    })?;
    if control.system_id != system.id() {
        return Err(refused(format!(
            "the target holds another cluster, system {}; the backup is of system {}",
            control.system_id,
            system.id()
        )));
    }
    Ok(())
}

pub(super) fn is_real_directory(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.is_dir())
}

pub(super) fn is_empty(directory: &Path) -> Result<bool> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        entries => {
            let mut names = entries
                .on("read the directory", directory)?
                .flatten()
                .map(|entry| entry.file_name());
            Ok(names.all(|name| name != IN_PROGRESS && is_ours(&name)))
        }
    }
}

/// What lies in a data directory and belongs to the restore, or to the file system.
pub(crate) fn is_ours(name: &OsStr) -> bool {
    // A kill may come between the mark and its name.
    let temporary = durable::temporary_beside(Path::new(IN_PROGRESS));
    name == IN_PROGRESS || name == "lost+found" || name == temporary.as_os_str()
}

pub(super) fn refuse_occupied(directory: &Path, outside: bool) -> Result<()> {
    if is_empty(directory)? {
        return Ok(());
    }
    let hint = if outside {
        "it may belong to a live cluster: send the tablespace elsewhere with --tablespace OLD=NEW, or give another --waldir"
    } else {
        "give an empty directory, or replace a cluster that is not running with --force"
    };
    Err(Error::refused("the target is not empty")
        .at(directory.display())
        .hint(hint))
}

/// A previous cluster's WAL directory may be emptied if it holds what PostgreSQL puts there
/// and nothing else: its link may point anywhere.
pub(super) fn refuse_other_than_wal(directory: &Path) -> Result<()> {
    let known = |name: &str| {
        name.parse::<WalFileName>().is_ok()
            // The last holds what Seawall has archived and fetched ahead.
            || ["archive_status", "summaries", "lost+found", "seawall"].contains(&name)
            || ["xlogtemp.", "RECOVERY"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.on("read the directory", directory)?,
    };
    for entry in entries {
        let name = entry.on("read the directory", directory)?.file_name();
        if !name.to_str().is_some_and(known) {
            return Err(Error::refused(format!(
                "the WAL directory holds {}, which is no WAL",
                name.display()
            ))
            .at(directory.display())
            .hint("give another --waldir, or move away what does not belong there"));
        }
    }
    Ok(())
}
