//! One pack with its index: that both are what was written, and that they belong together.

use std::io::BufReader;

use bytes::Bytes;

use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::System;
use crate::repository::bridge::ObjectReader;
use crate::repository::codec;
use crate::repository::index;
use crate::repository::marker::StoredObject;
use crate::repository::seek_table::{NoSeekTable, SeekTable, USUAL_TAIL};
use crate::storage::StorageError;
use crate::wal::object::Trouble;

use super::finding::{Finding, Kind};
use super::frames::{Frames, HashedObject};
use super::members::{Walked, Walker};
use super::{Backup, blocking};
use crate::backup::pages::Pages;

/// Reads and checks a pack. Memory: its index as it is stored, its seek table, one frame.
pub(super) async fn check(
    backup: &Backup<'_>,
    pack: &StoredObject,
    index: &StoredObject,
    pages: Pages,
    progress: &Progress,
) -> Walked {
    let mut walked = Walked::default();
    match read(backup, pack, index, pages, progress, &mut walked.findings).await {
        Ok(Some(read)) => {
            let earlier = std::mem::replace(&mut walked, read).findings;
            walked.findings.splice(0..0, earlier);
        }
        Ok(None) => {}
        Err(trouble) => {
            let key = backup.key(pack);
            walked.findings.push(Finding::of_trouble(key, &trouble));
        }
    }
    walked
}

async fn read(
    backup: &Backup<'_>,
    pack: &StoredObject,
    index: &StoredObject,
    pages: Pages,
    progress: &Progress,
    findings: &mut Vec<Finding>,
) -> Result<Option<Walked>, Trouble> {
    let Some(text) = small(backup, index, progress, findings).await else {
        // What is in the pack is not known: it can still be told whether it is whole.
        whole(backup, pack, progress, findings).await?;
        return Ok(None);
    };
    let key = backup.key(pack);
    let table = match table(backup.system, &key, pack.size).await? {
        Some(Ok(table)) => table,
        Some(Err(why)) => {
            findings.push(Finding::new(Kind::Damaged, &key, why));
            return Ok(None);
        }
        None => {
            findings.push(Finding::missing(&key, &backup.marker.id));
            return Ok(None);
        }
    };
    let Some(stream) = backup.stream(&key).await? else {
        findings.push(Finding::missing(&key, &backup.marker.id));
        return Ok(None);
    };
    let reader = ObjectReader::new(stream);
    let (pack, progress) = (pack.clone(), progress.clone());
    let walked = blocking(move || {
        let mut stored = HashedObject::new(reader);
        let text = codec::stream_decoder(&text[..])?;
        // Its SHA-256 was right: what does not parse was written so.
        let members = match index::read(BufReader::new(text), &pack.key) {
            Ok(members) => members,
            Err(error) => return Ok(Err(error.one_line())),
        };
        let mut walker = Walker::new(members, pages, &table, &key);
        let mut frames = Frames::new(&mut stored, &table)?;
        let mut unopened = Vec::new();
        let mut told = 0;
        while let Some((size, plain)) = frames.next()? {
            if let Err(why) = &plain {
                unopened.push(why.clone());
            }
            walker.frame(size, plain.as_deref().ok());
            progress.add(frames.count() - told);
            told = frames.count();
        }
        let mut walked = walker.finish();
        let (found, bytes) = stored.finish()?;
        progress.add(bytes - told);
        if found != pack.sha256 || !unopened.is_empty() || walked.lost_file_count > 0 {
            walked
                .findings
                .push(damage(&key, &pack, found, &unopened, &walked));
        }
        Ok(Ok(walked))
    })
    .await?;
    match walked {
        Ok(walked) => Ok(Some(walked)),
        Err(why) => {
            findings.push(Finding::new(Kind::Inconsistent, backup.key(index), why));
            Ok(None)
        }
    }
}

/// Says what is wrong with the bytes of a pack, and what that costs.
fn damage(
    key: &str,
    pack: &StoredObject,
    found: StoredDigest,
    unopened: &[String],
    walked: &Walked,
) -> Finding {
    let is_written = found == pack.sha256;
    let mut what = match is_written {
        true => "it is what was written, and not what its index says".to_owned(),
        false => format!("its SHA-256 is {found}, {} was written", pack.sha256),
    };
    if let Some(why) = unopened.first() {
        what += &format!(
            "; {} of its frames cannot be opened ({why})",
            unopened.len()
        );
    }
    what += &match walked.lost_file_count {
        0 => "; all files in it are whole".to_owned(),
        1 => format!("; {} cannot be restored", walked.lost_files[0]),
        count => format!(
            "; {count} files cannot be restored, such as {}",
            walked.lost_files[0]
        ),
    };
    let kind = match is_written {
        true => Kind::Inconsistent,
        false => Kind::Damaged,
    };
    Finding {
        files: walked.lost_files.clone(),
        ..Finding::new(kind, key, what)
    }
}

/// The seek table of the object; the inner error says that it has none.
async fn table(
    system: &System,
    key: &str,
    size: u64,
) -> Result<Option<Result<SeekTable, String>>, Trouble> {
    let mut tail = USUAL_TAIL.min(size);
    loop {
        let bytes = match system.store().get_range(key, size - tail..size).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) => return Err(of_storage(error)),
        };
        match SeekTable::parse(&bytes, size) {
            Ok(table) => return Ok(Some(Ok(table))),
            Err(NoSeekTable::NeedsMore(more)) if more > tail && more <= size => tail = more,
            Err(why) => return Ok(Some(Err(why.to_string()))),
        }
    }
}

/// A small object whole, if it is what was written.
pub(super) async fn small(
    backup: &Backup<'_>,
    object: &StoredObject,
    progress: &Progress,
    findings: &mut Vec<Finding>,
) -> Option<Bytes> {
    let key = backup.key(object);
    let found = match backup.system.store().get_limited(&key, object.size).await {
        Ok(Some(bytes)) => {
            progress.add(bytes.len() as u64);
            let found = StoredDigest::of(&bytes);
            if found == object.sha256 {
                return Some(bytes);
            }
            Finding::new(Kind::Damaged, key, other_digest(found, object))
        }
        Ok(None) => Finding::missing(key, &backup.marker.id),
        Err(error) => Finding::of_trouble(key, &of_storage(error)),
    };
    findings.push(found);
    None
}

/// Only whether an object is what was written.
async fn whole(
    backup: &Backup<'_>,
    object: &StoredObject,
    progress: &Progress,
    findings: &mut Vec<Finding>,
) -> Result<(), Trouble> {
    let key = backup.key(object);
    let Some(stream) = backup.stream(&key).await? else {
        findings.push(Finding::missing(key, &backup.marker.id));
        return Ok(());
    };
    let found = stream.digest().await.map_err(of_storage)?;
    progress.add(object.size);
    if found != object.sha256 {
        findings.push(Finding::new(
            Kind::Damaged,
            key,
            other_digest(found, object),
        ));
    }
    Ok(())
}

pub(super) fn other_digest(found: StoredDigest, object: &StoredObject) -> String {
    format!("its SHA-256 is {found}, {} was written", object.sha256)
}

/// A store that delivers other bytes than it promises has damaged them.
pub(super) fn of_storage(error: StorageError) -> Trouble {
    use crate::storage::ErrorKind;
    match error.kind() {
        ErrorKind::Corrupt => Trouble::Damaged(error.to_string()),
        _ => Trouble::Unread(error.into()),
    }
}

/// What an error of a reader of indexes says of the backup.
pub(super) fn of_error(key: String, error: &Error, otherwise: Kind) -> Finding {
    let kind = match error.is_retryable() {
        true => Kind::Unread,
        false => otherwise,
    };
    Finding::new(kind, key, error.one_line())
}
