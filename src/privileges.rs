//! Running as the right user. PostgreSQL refuses to run as root, and what root writes nobody
//! else may read: a program that is started as root becomes PostgreSQL's user as soon as it
//! has done what only root can do.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use nix::unistd::{self, Gid, Uid, User};

use crate::error::{Error, Result};

/// The name of PostgreSQL's user where nothing else tells.
const USUAL_NAME: &str = "postgres";

/// A user to run as.
#[derive(Debug, Clone)]
pub struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    unistd::geteuid().is_root()
}

impl Account {
    /// The owner of `path`, unless that is root or nobody knows.
    pub fn owner_of(path: &Path) -> Option<Self> {
        let uid = Uid::from_raw(std::fs::metadata(path).ok()?.uid());
        let user = User::from_uid(uid).ok()??;
        (!uid.is_root()).then_some(Self {
            name: user.name,
            uid,
            gid: user.gid,
        })
    }

    /// The user that PostgreSQL runs as: the owner of the first of `paths` that has one,
    /// otherwise the user called postgres.
    pub fn of_postgresql<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        if let Some(owner) = paths.into_iter().find_map(Self::owner_of) {
            return Ok(owner);
        }
        match User::from_name(USUAL_NAME) {
            Ok(Some(user)) => Ok(Self {
                name: user.name,
                uid: user.uid,
                gid: user.gid,
            }),
            _ => Err(
                Error::failed("no user to run PostgreSQL as: it refuses to run as root")
                    .hint("run this as PostgreSQL's user, or make a user called postgres"),
            ),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives `path` itself to this user.
    pub fn own(&self, path: &Path) -> Result<()> {
        unistd::chown(path, Some(self.uid), Some(self.gid)).map_err(|error| {
            Error::failed(format!("cannot give {} to {}", path.display(), self.name)).because(error)
        })
    }

    /// The same for what is open and lies at `path`, whatever has taken its place there.
    pub fn own_opened(&self, file: &File, path: &Path) -> Result<()> {
        fchown(file, Some(self.uid.as_raw()), Some(self.gid.as_raw())).map_err(|error| {
            Error::failed(format!("cannot give {} to {}", path.display(), self.name)).because(error)
        })
    }

    /// Makes this process run as the user from here on, for good. Call it before threads are
    /// started. Does nothing unless the process runs as root.
    pub fn become_it(&self) -> Result<()> {
        if !is_root() {
            return Ok(());
        }
        let change = || {
            let name = CString::new(self.name.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
            unistd::initgroups(&name, self.gid)?;
            unistd::setgid(self.gid)?;
            unistd::setuid(self.uid)
        };
        change().map_err(|error| {
            Error::failed(format!("cannot become the user {}", self.name)).because(error)
        })?;
        tracing::info!("running as {} from here on", self.name);
        Ok(())
    }
}
