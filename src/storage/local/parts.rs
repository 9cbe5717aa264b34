//! Large local files, part by part: each part is written at its offset in a staging file beside
//! the target, so that it can be written again; completion flushes and renames.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartId, PutMultipartOptions, PutPayload, PutResult, Result};

use super::{
    LocalFiles, STORE, blocking, generic, missing_or_generic, remove_empty_directories, sync,
};
use crate::durable;

/// Tells [`LocalFiles`] the size of a multipart upload's parts, through the options of
/// `create_multipart_opts`, so that it knows each part's offset.
#[derive(Debug, Clone, Copy)]
pub(in crate::storage) struct PartSize(pub(in crate::storage) u64);

impl LocalFiles {
    /// The staging file of an upload, its target, and the size of its parts.
    fn staging(&self, location: &Path, id: &str) -> Result<(PathBuf, PathBuf, u64)> {
        let target = self.files.path_to_filesystem(location)?;
        let parsed = id.split_once(':').and_then(|(number, part_size)| {
            Some((number.parse::<u32>().ok()?, part_size.parse::<u64>().ok()?))
        });
        let Some((number, part_size)) = parsed else {
            return Err(Error::Generic {
                store: STORE,
                source: format!("{id:?} is no upload of this store").into(),
            });
        };
        let mut staging = target.clone().into_os_string();
        staging.push(format!("#{number}"));
        Ok((staging.into(), target, part_size))
    }
}

#[async_trait]
impl MultipartStore for LocalFiles {
    async fn create_multipart(&self, location: &Path) -> Result<MultipartId> {
        let _ = location;
        Err(Error::NotSupported {
            source: "the size of the parts must be given".into(),
        })
    }

    async fn create_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<MultipartId> {
        let Some(&PartSize(part_size)) = opts.extensions.get::<PartSize>() else {
            return self.create_multipart(location).await;
        };
        self.require_root().await?;
        let id = format!("{}:{part_size}", rand::random::<u32>());
        let (staging, ..) = self.staging(location, &id)?;
        blocking(move || {
            let create = || {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&staging)
            };
            let made = create().or_else(|error| match (error.kind(), staging.parent()) {
                (io::ErrorKind::NotFound, Some(parent)) => {
                    std::fs::create_dir_all(parent)?;
                    create()
                }
                _ => Err(error),
            });
            made.map(drop).map_err(|error| generic(error, &staging))
        })
        .await?;
        Ok(id)
    }

    async fn put_part(
        &self,
        location: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let (staging, _, part_size) = self.staging(location, id)?;
        blocking(move || {
            let write = || {
                let file = OpenOptions::new().write(true).open(&staging)?;
                let mut offset = part_idx as u64 * part_size;
                for piece in &data {
                    file.write_all_at(piece, offset)?;
                    offset += piece.len() as u64;
                }
                Ok(())
            };
            write().map_err(|error| generic(error, &staging))?;
            Ok(PartId {
                content_id: data.content_length().to_string(),
            })
        })
        .await
    }

    async fn complete_multipart(
        &self,
        location: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let (staging, target, _) = self.staging(location, id)?;
        self.require_root().await?;
        let root = Arc::clone(&self.root);
        blocking(move || {
            let expected: u64 = parts
                .iter()
                .filter_map(|p| p.content_id.parse::<u64>().ok())
                .sum();
            let file = File::open(&staging).map_err(|error| missing_or_generic(error, &staging))?;
            let size = file
                .metadata()
                .map_err(|error| generic(error, &staging))?
                .len();
            if size != expected {
                let text = format!("{size} bytes were staged, {expected} were written");
                return Err(Error::Generic {
                    store: STORE,
                    source: text.into(),
                });
            }
            sync(&file, &staging)?;
            durable::rename_without_sync(&staging, &target)
                .map_err(|error| generic(error, &target))?;
            // Not durable::publish: a failed fsync must be told from a failed rename.
            let directory = target.parent().unwrap_or(&root.path);
            let opened = File::open(directory).map_err(|error| generic(error, directory))?;
            sync(&opened, directory)
        })
        .await?;
        self.make_directories_durable(location).await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn abort_multipart(&self, location: &Path, id: &MultipartId) -> Result<()> {
        let (staging, ..) = self.staging(location, id)?;
        let root = Arc::clone(&self.root);
        blocking(move || {
            std::fs::remove_file(&staging).map_err(|error| missing_or_generic(error, &staging))?;
            remove_empty_directories(&root.path, &staging);
            Ok(())
        })
        .await
    }
}
