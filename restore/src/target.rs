//! The target of a restore: what may be written where, refusals before anything is touched,
//! and the mark that tells a restore that was killed from somebody's data.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::{WalFileName, layout};
use seawall::repository::System;
use seawall::repository::marker::Marker;
use serde::{Deserialize, Serialize};

use crate::Settings;

/// Lies in the data directory while a restore is under way.
const IN_PROGRESS: &str = "seawall-restore.json";

/// Where tablespaces go.
#[derive(Debug, Clone)]
pub enum Tablespaces {
    /// Where they were, but for those that are mapped.
    Mapped(Vec<(PathBuf, PathBuf)>),
    /// Each in a directory of its own, named by its oid, below this one. For drills, which
    /// must never touch a live tablespace.
    AllUnder(PathBuf),
}

/// The directories of a restore, decided before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    waldir: Option<PathBuf>,
    /// oid and directory.
    tablespaces: Vec<(u32, PathBuf)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct InProgress {
    format: u32,
    system_id: String,
    /// Directories outside the data directory that this restore was filling.
    outside: Vec<PathBuf>,
}

impl Layout {
    /// Decides where everything of `backup` goes.
    pub fn of(backup: &Marker, settings: &Settings) -> Result<Self> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| {
                Error::usage(format!("{} is no path", path.display())).because(error)
            })
        };
        let mut unused: Vec<&PathBuf> = match &settings.tablespaces {
            Tablespaces::Mapped(pairs) => pairs.iter().map(|(old, _)| old).collect(),
            Tablespaces::AllUnder(_) => Vec::new(),
        };
        let mut tablespaces = Vec::new();
        for tablespace in &backup.tablespaces {
            let location = Path::new(&tablespace.location);
            if location.is_relative() {
                continue; // in place: inside the data directory
            }
            let to = match &settings.tablespaces {
                Tablespaces::AllUnder(directory) => {
                    absolute(&directory.join(tablespace.oid.to_string()))?
                }
                Tablespaces::Mapped(pairs) => {
                    unused.retain(|old| *old != location);
                    let mapped = pairs.iter().find(|(old, _)| old == location);
                    mapped.map_or_else(|| Ok(location.to_owned()), |(_, new)| absolute(new))?
                }
            };
            tablespaces.push((tablespace.oid, to));
        }
        if let Some(old) = unused.first() {
            let known: Vec<_> = backup
                .tablespaces
                .iter()
                .map(|t| t.location.as_str())
                .collect();
            return Err(Error::usage(format!(
                "backup {} has no tablespace at {}",
                backup.id,
                old.display()
            ))
            .hint(format!(
                "its tablespaces: {}",
                if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                }
            )));
        }
        let root = absolute(&settings.to)?;
        let waldir = settings.waldir.as_deref().map(absolute).transpose()?;
        Ok(Self {
            root,
            waldir,
            tablespaces,
        })
    }

    /// Every directory that is written, the data directory first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.roles().map(|(_, path)| path)
    }

    /// The same, each with what it is for.
    fn roles(&self) -> impl Iterator<Item = (Role, &Path)> {
        std::iter::once((Role::Data, self.root.as_path()))
            .chain(self.waldir.as_deref().map(|path| (Role::Wal, path)))
            .chain(
                self.tablespaces
                    .iter()
                    .map(|(_, path)| (Role::Tablespace, path.as_path())),
            )
    }

    fn outside(&self) -> Vec<PathBuf> {
        self.directories().skip(1).map(Path::to_owned).collect()
    }
}

/// What a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Data,
    Wal,
    Tablespace,
}

/// A target that is empty and ours.
pub struct Target {
    layout: Layout,
}

impl Target {
    /// Checks that nothing of anybody's is overwritten, and makes the directories and links.
    ///
    /// # Errors
    /// Exit code 4, with nothing touched: a directory that is not empty, a server that runs
    /// there, a directory that holds the repository, two directories that are one.
    pub fn prepare(
        layout: Layout,
        system: &System,
        backup: &Marker,
        settings: &Settings,
    ) -> Result<Self> {
        refuse_overlaps(&layout, system)?;
        refuse_running(&layout.root)?;
        let ours = unfinished(&layout.root, system)?;
        let previous = match (&ours, settings.force) {
            (Some(unfinished), _) => {
                tracing::info!("completing a restore that was interrupted");
                unfinished.outside.clone()
            }
            (None, true) => previous_cluster(&layout.root)?,
            (None, false) => Vec::new(),
        };
        let may_clear = ours.is_some() || settings.force;
        let at_home = is_same_or_within(&layout.root, Path::new(&backup.data_directory));
        for (role, directory) in layout.roles() {
            match role {
                Role::Data if may_clear => {}
                Role::Wal if is_among(directory, &previous) => refuse_other_than_wal(directory)?,
                // A link proves that it is the target's own only where the cluster is at home:
                // in a copy of a data directory the links still lead to the original's.
                Role::Tablespace
                    if is_among(directory, &previous) && (ours.is_some() || at_home) => {}
                _ => refuse_occupied(directory, role != Role::Data)?,
            }
        }
        // Nothing was touched so far. The mark comes first, so that a kill from here on leaves
        // something that the same command recognises.
        make_directory(&layout.root)?;
        let mark = InProgress {
            format: 1,
            system_id: system.id().to_string(),
            outside: layout.outside(),
        };
        let text = serde_json::to_vec(&mark)
            .map_err(|error| Error::failed("cannot write JSON").because(error))?;
        let mark = layout.root.join(IN_PROGRESS);
        durable::write_file(&mark, &text, 0o600).on("write", &mark)?;
        let version = layout::tablespace_version_directory(backup.major(), backup.catalog_version);
        for (role, directory) in layout.roles() {
            make_directory(directory)?;
            match role {
                // Another version's directory, or whatever else lies there, is not ours.
                Role::Tablespace => remove(&directory.join(&version))?,
                Role::Data | Role::Wal => clear(directory)?,
            }
            let mode = std::fs::Permissions::from_mode(backup.data_directory_mode);
            std::fs::set_permissions(directory, mode).on("set the mode of", directory)?;
        }
        let target = Self { layout };
        target.make_links()?;
        Ok(target)
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    fn make_links(&self) -> Result<()> {
        if let Some(waldir) = &self.layout.waldir {
            let link = self.root().join("pg_wal");
            symlink(waldir, &link).on("make the link", &link)?;
        }
        if !self.layout.tablespaces.is_empty() {
            make_directory(&self.root().join("pg_tblspc"))?;
        }
        for (oid, location) in &self.layout.tablespaces {
            let link = self.root().join(format!("pg_tblspc/{oid}"));
            symlink(location, &link).on("make the link", &link)?;
        }
        Ok(())
    }

    /// Makes everything that was written durable: one barrier for each file system.
    pub fn sync(&self) -> Result<()> {
        let mut devices = Vec::new();
        for directory in self.layout.directories() {
            let file = File::open(directory).on("open", directory)?;
            let device = file.metadata().on("look at", directory)?.dev();
            if !devices.contains(&device) {
                devices.push(device);
                nix::unistd::syncfs(&file)
                    .map_err(std::io::Error::from)
                    .on("sync", directory)?;
            }
        }
        Ok(())
    }

    /// Removes the mark: from here on it is a cluster.
    pub fn finish(self) -> Result<()> {
        let mark = self.root().join(IN_PROGRESS);
        std::fs::remove_file(&mark).on("remove", &mark)?;
        durable::sync_directory(self.root()).on("sync", self.root())
    }
}

/// Two directories of the restore that are one or lie within each other, or that touch the
/// repository itself, by device and inode.
fn refuse_overlaps(layout: &Layout, system: &System) -> Result<()> {
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
fn is_same_or_within(inner: &Path, outer: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    match identity(outer) {
        Some(outer) => resolved(inner)
            .ancestors()
            .any(|path| identity(path) == Some(outer)),
        None => resolved(inner).starts_with(resolved(outer)),
    }
}

/// The path with all links of its existing part followed.
fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

fn is_among(directory: &Path, known: &[PathBuf]) -> bool {
    known
        .iter()
        .any(|known| resolved(known) == resolved(directory))
}

/// A server that runs in the directory holds postmaster.pid with a live process.
fn refuse_running(root: &Path) -> Result<()> {
    let path = root.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
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

fn unfinished(root: &Path, system: &System) -> Result<Option<InProgress>> {
    let path = root.join(IN_PROGRESS);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.on("read", &path)?,
    };
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
fn previous_cluster(root: &Path) -> Result<Vec<PathBuf>> {
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

fn is_empty(directory: &Path) -> Result<bool> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        entries => {
            // A kill may come between the mark and its name.
            let mark = durable::temporary_beside(Path::new(IN_PROGRESS));
            Ok(entries
                .on("read the directory", directory)?
                .flatten()
                .map(|entry| entry.file_name())
                .all(|name| name == "lost+found" || name == mark.as_os_str()))
        }
    }
}

fn refuse_occupied(directory: &Path, outside: bool) -> Result<()> {
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

fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .on("make", path)
}

/// Empties a directory that was found to be ours, but for the mark.
fn clear(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).on("read the directory", directory)? {
        let entry = entry.on("read the directory", directory)?;
        if entry.file_name() != IN_PROGRESS && entry.file_name() != "lost+found" {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes what is there, if anything is. A link is removed, never what it points at.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.on("remove", path),
    }
}

/// A previous cluster's WAL directory may be emptied if it holds what PostgreSQL puts there
/// and nothing else: its link may point anywhere.
fn refuse_other_than_wal(directory: &Path) -> Result<()> {
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

#[cfg(test)]
mod tests;
