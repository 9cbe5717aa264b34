//! `backup_manifest` of the restored directory: the stored one, with what the restore itself
//! brought besides, so that `pg_verifybackup -n` accepts the result. Read and written as a
//! stream: nobody ever holds the whole list.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::layout;
use seawall::postgres::manifest::{ManifestVersion, ManifestWriter, read_manifest};
use seawall::repository::System;
use seawall::repository::bridge::ObjectReader;
use seawall::repository::codec;
use seawall::repository::keys;
use seawall::repository::marker::Marker;

use crate::objects::{blocking, create, damaged, missing};

/// Writes it, with the files `added`, which are relative to `root`.
pub(crate) async fn write(
    system: &System,
    marker: &Marker,
    root: &Path,
    added: Vec<PathBuf>,
) -> Result<()> {
    let reader = stored(system, marker).await?;
    let path = root.join(layout::BACKUP_MANIFEST);
    let marker = marker.clone();
    blocking(move || rewrite_manifest(reader, &marker, &added, &path)).await
}

/// The manifest of files that are put together from several backups, written as they are made:
/// the stored ones describe what they are made of.
pub(crate) struct NewManifest {
    path: PathBuf,
    writer: Mutex<Option<ManifestWriter<BufWriter<File>>>>,
}

impl NewManifest {
    /// Begins it in `root`.
    pub(crate) fn begin(marker: &Marker, root: &Path) -> Result<Self> {
        let path = root.join(layout::BACKUP_MANIFEST);
        let file = BufWriter::new(create(&path, marker.file_mode())?);
        let version = ManifestVersion::of_major(marker.major());
        let writer = ManifestWriter::new(file, version, marker.system_id);
        let writer = Mutex::new(Some(writer.on("write", &path)?));
        Ok(Self { path, writer })
    }

    /// Adds a file; in any order.
    pub(crate) fn add(
        &self,
        path: &str,
        size: u64,
        modified: Timestamp,
        crc32c: u32,
    ) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *writer {
            Some(writer) => writer
                .file(path.as_bytes(), size, modified, crc32c)
                .on("write", &self.path),
            None => Err(Error::failed("the backup_manifest has ended")),
        }
    }

    /// Ends it, with the files `added`, which are relative to its directory.
    pub(crate) async fn finish(
        &self,
        system: &System,
        marker: &Marker,
        added: &[PathBuf],
    ) -> Result<()> {
        let reader = stored(system, marker).await?;
        let ranges = blocking(move || {
            let name = keys::backup::MANIFEST;
            let plain = codec::stream_decoder(reader).map_err(|error| damaged(name, &error))?;
            Ok(read_manifest(BufReader::new(plain), |_| Ok(()))?.wal_ranges)
        })
        .await?;
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut writer) = writer else {
            return Err(Error::failed("the backup_manifest has ended"));
        };
        let root = self.path.parent().unwrap_or(&self.path);
        add_files(&mut writer, root, added).on("write", &self.path)?;
        let mut file = writer.finish(&ranges).on("write", &self.path)?;
        file.flush().on("write", &self.path)
    }
}

async fn stored(system: &System, marker: &Marker) -> Result<ObjectReader> {
    let directory = system.keys().backup(&marker.id);
    let object = marker.object(keys::backup::MANIFEST)?;
    let stream = system
        .store()
        .get_stream(&format!("{directory}/{}", object.key))
        .await?
        .ok_or_else(|| missing(&object.key, system))?;
    Ok(ObjectReader::new(stream))
}

/// Adds what the restore itself brought.
fn add_files<W: Write>(
    writer: &mut ManifestWriter<W>,
    root: &Path,
    added: &[PathBuf],
) -> std::io::Result<()> {
    for relative in added {
        let content = std::fs::read(root.join(relative))?;
        writer.file(
            relative.as_os_str().as_encoded_bytes(),
            content.len() as u64,
            Timestamp::now(),
            crc32c::crc32c(&content),
        )?;
    }
    Ok(())
}

fn rewrite_manifest(
    reader: ObjectReader,
    marker: &Marker,
    added: &[PathBuf],
    path: &Path,
) -> Result<()> {
    let name = keys::backup::MANIFEST;
    let failed = |error: std::io::Error| {
        Error::failed(format!("cannot write {}", path.display())).because(error)
    };
    let root = path.parent().unwrap_or(path);
    let plain = codec::stream_decoder(reader).map_err(|error| damaged(name, &error))?;
    let file = BufWriter::new(create(path, marker.file_mode())?);
    let version = ManifestVersion::of_major(marker.major());
    let mut writer = ManifestWriter::new(file, version, marker.system_id).map_err(failed)?;
    let mut failure = None;
    let summary = read_manifest(BufReader::new(plain), |file| {
        let crc32c = file
            .checksum
            .as_ref()
            .and_then(|checksum| checksum.as_crc32c());
        let (Some(crc32c), Some(path)) = (crc32c, file.path.to_str()) else {
            failure = Some(format!("no CRC-32C for {}", file.path.display()));
            return Ok(());
        };
        let modified = file.modified.unwrap_or_default();
        if let Err(error) = writer.file(path.as_bytes(), file.size, modified, crc32c) {
            failure = Some(error.to_string());
        }
        Ok(())
    })?;
    add_files(&mut writer, root, added).map_err(failed)?;
    if let Some(failure) = failure {
        return Err(
            Error::failed(format!("the backup_manifest of {} is damaged", marker.id))
                .because(failure),
        );
    }
    let mut file = writer.finish(&summary.wal_ranges).map_err(failed)?;
    file.flush().map_err(failed)
}
