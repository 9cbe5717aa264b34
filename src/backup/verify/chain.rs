//! What an incremental backup stands on: a chain that reaches a full backup, and for each file
//! of which it holds only some blocks, that file in the backup below.

use crate::error::Result;
use crate::repository::System;
use crate::repository::chain::{self, members::Members};
use crate::repository::keys::BackupKind;
use crate::repository::marker::Marker;
use crate::repository::waiter::Waiter;

use super::blocking;
use super::finding::{Finding, Kind, NAMED};
use super::pack::of_error;

/// Whether the chain of `marker` reaches a full backup. `markers` are all of its system.
pub(super) fn check(system: &System, markers: &[Marker], marker: &Marker) -> Option<Finding> {
    let broken = chain::of(markers, marker).err()?;
    let key = system.keys().marker(&marker.id);
    Some(Finding::new(Kind::Chain, key, broken.to_string()))
}

/// Whether the files are in the order that the marker says, and, of an incremental backup,
/// whether its parent has each file that it holds some blocks of. Reads indexes alone, one of
/// each backup at a time.
///
/// The parent's own files are its own verification's.
pub(super) async fn check_files(
    system: &System,
    marker: &Marker,
    parent: Option<Marker>,
) -> Vec<Finding> {
    let key = system.keys().marker(&marker.id);
    if !marker.in_order {
        return match marker.kind {
            BackupKind::Full => Vec::new(),
            BackupKind::Incremental => {
                let what = "its files are in no order: its chain cannot be read";
                vec![Finding::new(Kind::Inconsistent, key, what)]
            }
        };
    }
    let kind = match parent {
        Some(_) => Kind::Chain,
        None => Kind::Inconsistent,
    };
    let (_stop, waiter) = Waiter::new();
    let opened = open(system, marker, parent.as_ref(), &waiter);
    let joined = match opened {
        Ok((files, below)) => blocking(move || Ok(join(files, below))).await,
        Err(error) => return vec![of_error(key, &error, kind)],
    };
    match joined {
        Ok(Ok(baseless)) if baseless.is_empty() => Vec::new(),
        Ok(Ok(mut baseless)) => {
            let what = format!(
                "of {} files it holds only what changed, and the backup that it was taken on top of does not have them, such as {}",
                baseless.len(),
                baseless[0]
            );
            baseless.truncate(NAMED);
            vec![Finding {
                files: baseless,
                ..Finding::new(Kind::Chain, key, what)
            }]
        }
        Ok(Err(error)) => vec![of_error(key, &error, kind)],
        Err(trouble) => vec![Finding::of_trouble(key, &trouble)],
    }
}

fn open(
    system: &System,
    marker: &Marker,
    parent: Option<&Marker>,
    waiter: &Waiter,
) -> Result<(Members, Option<Members>)> {
    let files = Members::new(system, marker, waiter)?;
    let below = parent
        .map(|parent| Members::new(system, parent, waiter))
        .transpose()?;
    Ok((files, below))
}

/// The files that have no base below.
fn join(files: Members, mut below: Option<Members>) -> Result<Vec<String>> {
    let mut baseless = Vec::new();
    for located in files {
        let (_, member) = located?;
        let Some(below) = &mut below else { continue };
        if member.increment.is_some() && below.find(&member.target_path())?.is_none() {
            baseless.push(member.path);
        }
    }
    Ok(baseless)
}
