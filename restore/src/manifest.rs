//! `backup_manifest` of the restored directory: the stored one, with what the restore itself
//! brought besides, so that `pg_verifybackup -n` accepts the result. Read and written as a
//! stream: nobody ever holds the whole list.

use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

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
    let directory = system.keys().backup(&marker.id);
    let object = marker.object(keys::backup::MANIFEST)?;
    let stream = system
        .store()
        .get_stream(&format!("{directory}/{}", object.key))
        .await?
        .ok_or_else(|| missing(&object.key, system))?;
    let reader = ObjectReader::new(stream);
    let path = root.join(layout::BACKUP_MANIFEST);
    let marker = marker.clone();
    blocking(move || rewrite_manifest(reader, &marker, &added, &path)).await
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
    for relative in added {
        let full = root.join(relative);
        let content = std::fs::read(&full).on("read", &full)?;
        let modified = jiff::Timestamp::now();
        writer
            .file(
                relative.as_os_str().as_encoded_bytes(),
                content.len() as u64,
                modified,
                crc32c::crc32c(&content),
            )
            .map_err(failed)?;
    }
    if let Some(failure) = failure {
        return Err(
            Error::failed(format!("the backup_manifest of {} is damaged", marker.id))
                .because(failure),
        );
    }
    let mut file = writer.finish(&summary.wal_ranges).map_err(failed)?;
    file.flush().map_err(failed)
}
