//! The target of a restore: what may be written where, refusals before anything is touched,
//! and the mark that tells a restore that was killed from somebody's data.

mod refusals;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::layout;
use seawall::repository::System;
use seawall::repository::marker::Marker;
use serde::{Deserialize, Serialize};

use crate::Settings;
use crate::delta;
use crate::objects::{make_directory, remove};

pub(crate) use refusals::is_ours;
use refusals::{
    is_among, is_real_directory, is_same_or_within, previous_cluster, refuse_another_system,
    refuse_occupied, refuse_other_than_wal, refuse_overlaps, refuse_running, unfinished,
};

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
        let previous = match &ours {
            Some(unfinished) => {
                tracing::info!("completing a restore that was interrupted");
                unfinished.outside.clone()
            }
            None if settings.delta => {
                refuse_another_system(&layout.root, system)?;
                previous_cluster(&layout.root)?
            }
            None if settings.force => previous_cluster(&layout.root)?,
            None => Vec::new(),
        };
        let may_clear = ours.is_some() || settings.force || settings.delta;
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
        // Without it nothing starts there, however this ends.
        let control = layout.root.join(layout::CONTROL_FILE);
        remove(&control)?;
        if let Some(global) = control.parent().filter(|global| global.is_dir()) {
            durable::sync_directory(global).on("sync", global)?;
        }
        let version = layout::tablespace_version_directory(backup.major(), backup.catalog_version);
        for (role, directory) in layout.roles() {
            make_directory(directory)?;
            let of_version = directory.join(&version);
            match role {
                Role::Data if settings.delta => delta::remove_links(directory)?,
                // Another version's directory, or whatever else lies there, is not ours.
                Role::Tablespace if settings.delta && is_real_directory(&of_version) => {
                    delta::remove_links(&of_version)?;
                }
                Role::Tablespace => remove(&of_version)?,
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
            remove(&link)?;
            symlink(waldir, &link).on("make the link", &link)?;
        }
        if !self.layout.tablespaces.is_empty() {
            make_directory(&self.root().join("pg_tblspc"))?;
        }
        for (oid, location) in &self.layout.tablespaces {
            let link = self.root().join(format!("pg_tblspc/{oid}"));
            remove(&link)?;
            symlink(location, &link).on("make the link", &link)?;
        }
        Ok(())
    }

    /// Where the files of tablespaces outside lie, by the paths that a backup of `marker` has.
    pub(crate) fn tablespace_paths(&self, marker: &Marker) -> Vec<String> {
        let version = layout::tablespace_version_directory(marker.major(), marker.catalog_version);
        let tablespaces = self.layout.tablespaces.iter();
        tablespaces
            .map(|(oid, _)| format!("pg_tblspc/{oid}/{version}"))
            .collect()
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

#[cfg(test)]
mod tests;
