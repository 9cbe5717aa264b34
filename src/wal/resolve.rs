//! Settling conflicts, for `seawall wal resolve`: what speaks for each content of a file that
//! has several, which of them belong together, and moving the losers aside.
//!
//! Nothing is ever lost: a loser is copied to `set-aside/`, the copy is read back, and only
//! then the object under `wal/` is deleted. A crash between any two steps leaves the conflict
//! as it was, perhaps with a copy, or the settled state; the same call completes it. For that
//! the rivals of what was chosen are moved last: as long as there is work left, the chosen
//! content is in conflict and names the branch.

mod branch;
mod evidence;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use futures::StreamExt;
use serde::Serialize;

pub use evidence::{Candidate, Conflict, conflicts};

use crate::digest::{PlainDigest, PlainHasher, StoredDigest};
use crate::error::{Error, IoContext, Result};
use crate::postgres::archive_status;
use crate::postgres::control::ControlFile;
use crate::postgres::{SegmentName, SegmentSize, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::storage::Store;
use crate::wal::object::{self, Trouble};

/// A person's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The file, where the digest alone does not tell.
    pub file: Option<WalFileName>,
    /// The digest's first hex digits.
    pub digest: String,
    /// What to do with the object: keep it and set the others of its file aside, or set it
    /// aside itself.
    pub keep: bool,
    /// Whether the neighbouring files are settled, too, as far as their records tell which of
    /// them belong to the same branch.
    pub branch: bool,
}

/// What is to be done, or was done.
#[derive(Debug, Default, Serialize)]
pub struct Settlement {
    /// What stays: file and digest.
    pub keep: BTreeMap<String, PlainDigest>,
    /// What is moved, from key to key.
    pub set_aside: Vec<Move>,
    /// What could not be told, and why.
    pub undecided: Vec<String>,
    /// What loses, by the choice that decided it, what was chosen itself first and what is far
    /// from it last.
    #[serde(skip)]
    losers: Vec<Vec<WalObject>>,
}

/// An object that is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Its key under `wal/`.
    pub from: String,
    /// Its key under `set-aside/`.
    pub to: String,
}

impl Settlement {
    /// Keeps the object; other contents of its file are set aside. A file that has no other is
    /// not worth a word.
    async fn keep_only(&mut self, system: &System, object: WalObject) -> Result<()> {
        for (other, _) in system.objects_of(object.name).await? {
            if other.digest != object.digest {
                self.keep.insert(object.name.to_string(), object.digest);
                self.set_aside(other);
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, object: WalObject) {
        if self.losers.iter().flatten().any(|loser| *loser == object) {
            return;
        }
        match self.losers.last_mut() {
            Some(of_choice) => of_choice.push(object),
            None => self.losers.push(vec![object]),
        }
    }

    /// Nothing may lose that was chosen, or that another choice keeps.
    fn agrees_with(&self, kept: &[WalObject], place: &str) -> Result<()> {
        for loser in self.losers.iter().flatten() {
            let chosen = |kept: &WalObject| (kept.name, kept.digest) == (loser.name, loser.digest);
            if kept.iter().any(chosen)
                || self.keep.get(&loser.name.to_string()) == Some(&loser.digest)
            {
                return Err(Error::usage("these choices contradict each other")
                    .at(place)
                    .because(format!("{loser} would be kept by one and set aside by another"))
                    .hint("choose one content of each file, and of one branch only; nothing was moved"));
            }
        }
        Ok(())
    }
}

/// What the choices mean for a system. Changes nothing.
///
/// # Errors
/// A digest that several of the objects have; choices that contradict each other; an object that
/// is to be kept and is damaged (refused). A digest that no object has is no error: `None`.
pub async fn plan(
    system: &System,
    size: SegmentSize,
    conflicts: &[Conflict],
    choices: &[Choice],
) -> Result<Option<Settlement>> {
    let mut settlement = Settlement::default();
    let mut archive = branch::Archive::new(system, size);
    let mut found = false;
    let mut kept = Vec::new();
    for choice in choices {
        let Some(chosen) = chosen(system, conflicts, choice).await? else {
            continue;
        };
        found = true;
        settlement.losers.push(Vec::new());
        if !choice.keep {
            settlement.set_aside(chosen);
            continue;
        }
        if let Err(trouble) = archive.content(chosen).await {
            return Err(Error::refused(format!(
                "the content of {} that is to be kept is not whole",
                chosen.name
            ))
            .at(format!(
                "{} of {}",
                system.keys().wal_object(chosen),
                system.place()
            ))
            .because(trouble.to_string())
            .hint(
                "keep the other one, or archive the file again from a server that still has it",
            ));
        }
        kept.push(chosen);
        settlement.keep_only(system, chosen).await?;
        if choice.branch {
            branch::follow(&mut archive, conflicts, chosen, &mut settlement).await?;
        }
    }
    settlement.agrees_with(&kept, &system.place())?;
    let losers = settlement.losers.iter().flatten();
    settlement.set_aside = losers.map(|object| Move::of(system, *object)).collect();
    Ok(found.then_some(settlement))
}

/// What the data directory of the right server says: of each file in conflict it keeps the
/// content that lies there, and of the files that wait there to be archived it sets aside what
/// another server has stored under their names. None where the directory is of another system.
///
/// # Errors
/// The directory cannot be read, or a listing failed.
pub async fn choices_from(
    system: &System,
    conflicts: &[Conflict],
    data_directory: &Path,
) -> Result<Option<Vec<Choice>>> {
    if ControlFile::read(data_directory)?.system_id != system.id() {
        return Ok(None);
    }
    let choice = |file, digest: PlainDigest, keep| Choice {
        file: Some(file),
        digest: digest.to_string(),
        keep,
        branch: false,
    };
    let mut choices = Vec::new();
    for conflict in conflicts {
        let here = digest_of(data_directory, conflict.file).await?;
        // A file of another content may be one that was recycled.
        if let Some(here) = here.filter(|d| conflict.contents.iter().any(|c| c.digest == *d)) {
            choices.push(choice(conflict.file, here, true));
        }
    }
    for file in archive_status::waiting(data_directory)? {
        if conflicts.iter().any(|conflict| conflict.file == file) {
            continue;
        }
        let Some(here) = digest_of(data_directory, file).await? else {
            continue;
        };
        for (object, _) in system.objects_of(file).await? {
            if object.digest != here {
                choices.push(choice(file, object.digest, false));
            }
        }
    }
    Ok(Some(choices))
}

/// The digest of a file in pg_wal. None where it is not there.
async fn digest_of(data_directory: &Path, file: WalFileName) -> Result<Option<PlainDigest>> {
    let path = data_directory.join("pg_wal").join(file.to_string());
    let read = tokio::task::spawn_blocking(move || {
        let mut source = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            source => source.on("open", &path)?,
        };
        let mut hasher = PlainHasher::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match source.read(&mut buffer).on("read", &path)? {
                0 => return Ok(Some(hasher.finish())),
                count => hasher.update(&buffer[..count]),
            }
        }
    });
    read.await
        .map_err(|error| Error::failed("reading died").because(error))?
}

/// The one object that a choice means. None where this system has none such.
async fn chosen(
    system: &System,
    conflicts: &[Conflict],
    choice: &Choice,
) -> Result<Option<WalObject>> {
    let objects: Vec<WalObject> = match choice.file {
        Some(file) => system
            .objects_of(file)
            .await?
            .into_iter()
            .map(|(object, _)| object)
            .collect(),
        None => conflicts
            .iter()
            .flat_map(|conflict| conflict.contents.iter().map(|c| c.object))
            .collect(),
    };
    let mut matching: Vec<WalObject> = objects
        .into_iter()
        .filter(|object| object.digest.to_string().starts_with(&choice.digest))
        .collect();
    matching.dedup_by_key(|object| (object.name, object.digest));
    match matching.as_slice() {
        [] => Ok(None),
        [object] => Ok(Some(*object)),
        several => {
            let names: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(
                Error::usage(format!("several contents begin with {:?}", choice.digest))
                    .at(system.place())
                    .because(names.join(", "))
                    .hint("give more digits, or the file with --file"),
            )
        }
    }
}

/// Moves the losers aside, one after the other: of each choice what is far from the chosen
/// content first and its own rivals last, so that the same call completes what is left.
///
/// After `Ok` all of them lie under `set-aside/`, durable and verified, and none under `wal/`.
/// On `Err`, the first that there was, each of them lies at one of the two places or at both;
/// what other choices decided was moved all the same.
pub async fn carry_out(system: &System, size: SegmentSize, settlement: &Settlement) -> Result<()> {
    if leaves_a_hole(system, size, settlement).await? {
        // Otherwise the missing segment would count as never acknowledged, and recovery would
        // open before it.
        system.note_acknowledged_without_it().await?;
    }
    let mut first_error = None;
    for of_choice in &settlement.losers {
        for object in of_choice.iter().rev() {
            let moved = move_aside(system, *object).await;
            if let Err(error) = moved {
                tracing::warn!(
                    "{object} is not set aside yet; nothing is lost, and the same command completes it"
                );
                first_error = first_error.or(Some(error));
                break;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Whether a segment loses its last content while later ones of its timeline stay.
async fn leaves_a_hole(
    system: &System,
    size: SegmentSize,
    settlement: &Settlement,
) -> Result<bool> {
    let loses = |object: &WalObject| settlement.losers.iter().flatten().any(|l| l == object);
    let stays = async |name: SegmentName| {
        let objects = system.objects_of(WalFileName::Segment(name)).await?;
        Ok::<_, Error>(objects.iter().any(|(object, _)| !loses(object)))
    };
    for loser in settlement.losers.iter().flatten() {
        let WalFileName::Segment(mut name) = loser.name else {
            continue;
        };
        if stays(name).await? {
            continue;
        }
        loop {
            let next = SegmentName::new(name.timeline, name.number(size)? + 1, size);
            match system.segment_from(next).await? {
                Some(later) if stays(later).await? => return Ok(true),
                Some(later) => name = later,
                None => break,
            }
        }
    }
    Ok(false)
}

impl Move {
    fn of(system: &System, object: WalObject) -> Self {
        Self {
            from: system.keys().wal_object(object),
            to: system.keys().set_aside(object),
        }
    }
}

async fn move_aside(system: &System, object: WalObject) -> Result<()> {
    let store = system.store();
    let step = Move::of(system, object);
    let there = stored(store, &step.to).await?;
    let source = stored(store, &step.from).await?;
    match (source, there) {
        // An earlier call did it.
        (None, Some(_)) => return Ok(()),
        (None, None) => {
            return Err(
                Error::failed(format!("{} was listed and is gone", step.from)).at(store.url()),
            );
        }
        (Some(source), Some(there)) if source == there => {}
        // Another compression of the same content is as good.
        (Some(_), Some(_)) => match object::is_content(system, &step.to, object).await {
            Ok(()) => {}
            Err(Trouble::Unread(error)) => return Err(error),
            Err(Trouble::Damaged(why)) => {
                return Err(Error::refused(format!("{} is there already and is damaged", step.to))
                    .at(store.url())
                    .because(why)
                    .hint("look at it and at the object below wal/ with `zstd -dc OBJECT | b3sum`; where that one is whole, remove the damaged copy by hand and repeat the command"));
            }
        },
        (Some(source), None) => {
            copy(store, &step.from, &step.to).await?;
            if stored(store, &step.to).await? != Some(source) {
                return Err(Error::failed(format!(
                    "the copy of {} is not what was written",
                    step.from
                ))
                .at(format!("{} of {}", step.to, store.url())));
            }
        }
    }
    // What an earlier call copied may not have been durable when it died.
    store.confirm_durable(&step.to).await?;
    Ok(store.delete(&step.from).await?)
}

/// SHA-256 of an object's bytes. None where it is absent.
async fn stored(store: &Store, key: &str) -> Result<Option<StoredDigest>> {
    match store.get_stream(key).await? {
        Some(stream) => Ok(Some(stream.digest().await?)),
        None => Ok(None),
    }
}

async fn copy(store: &Store, from: &str, to: &str) -> Result<()> {
    const PART: usize = 8 << 20;
    let mut stream = store
        .get_stream(from)
        .await?
        .ok_or_else(|| Error::failed(format!("{from} was listed and is gone")).at(store.url()))?;
    let mut upload = store.upload(to, PART, 2).await?;
    while let Some(piece) = stream.next().await {
        let written = match piece {
            Ok(piece) => upload.write(piece).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            upload.abort().await;
            return Err(error.into());
        }
    }
    upload.finish().await?;
    Ok(())
}
