//! The files of a chain, in order: the indexes of its backups joined as sorted lists, from which
//! alone it is known where every byte of every file is stored. Memory is what a [`Walk`] holds,
//! for each backup of the chain.

use super::files::ChainFile;
use super::members::{Members, check_order};
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::repository::System;
use crate::repository::index::{Member, MemberKind};
use crate::repository::marker::Marker;
use crate::repository::waiter::Waiter;

/// What a restore makes, in the order of the newest backup: directories, files, and last of all
/// those of its last pack.
pub enum Entry {
    /// A directory.
    Directory(Member),
    /// A file.
    File(ChainFile),
}

/// Reads a chain. Blocks: use it on a thread that may.
pub struct Join {
    newest: Walk,
    /// Each with its name.
    older: Vec<(Members, String)>,
    block_size: u32,
}

impl Join {
    /// Begins with the first files. `chain` is newest first, as [`super::of`] gives it, each
    /// marker with its list of objects.
    ///
    /// # Errors
    /// A backup of several is in no order.
    pub fn new(system: &System, chain: &[&Marker], waiter: &Waiter) -> Result<Self> {
        let [newest, older @ ..] = chain else {
            return Err(Error::failed("a chain of no backups"));
        };
        if !older.is_empty() {
            check_order(system, newest)?;
        }
        if let Some(other) = older.iter().find(|m| m.block_size != newest.block_size) {
            return Err(Error::failed(format!(
                "backup {} has pages of {} bytes, {} of {}",
                newest.id, newest.block_size, other.id, other.block_size
            ))
            .at(system.place()));
        }
        let link = |marker: &Marker| {
            let members = Members::new(system, marker, waiter)?;
            Ok((members, format!("backup {}", marker.id)))
        };
        Ok(Self {
            newest: Walk::new(system, newest, waiter)?,
            older: older.iter().copied().map(link).collect::<Result<_>>()?,
            block_size: newest.block_size,
        })
    }

    fn try_next(&mut self) -> Result<Option<Entry>> {
        let Some((pack, member)) = self.newest.next().transpose()? else {
            return Ok(None);
        };
        if member.kind == MemberKind::Directory {
            return Ok(Some(Entry::Directory(member)));
        }
        let mut file = ChainFile::new(pack, member, self.block_size)?;
        let mut from = "the newest backup".to_owned();
        for (number, (link, name)) in self.older.iter_mut().enumerate() {
            if file.is_complete() {
                break;
            }
            let found = link.find(&file.path)?;
            let (pack, member) = found.ok_or_else(|| {
                Error::failed(format!(
                    "{from} holds only some blocks of {}, and {name} has no such file",
                    file.path
                ))
                .hint("the chain is damaged; choose another backup with --backup")
            })?;
            file.add(number + 1, pack, member)?;
            from.clone_from(name);
        }
        if !file.is_complete() {
            return Err(Error::failed(format!(
                "{from} holds only some blocks of {}, and there is no backup below it",
                file.path
            ))
            .hint("the chain is damaged; choose another backup with --backup"));
        }
        Ok(Some(Entry::File(file)))
    }
}

impl Iterator for Join {
    type Item = Result<Entry>;

    /// # Errors
    /// An index is missing or damaged, or the backups do not make a whole file: then nothing
    /// that follows may be used.
    fn next(&mut self) -> Option<Self::Item> {
        self.try_next().transpose()
    }
}
