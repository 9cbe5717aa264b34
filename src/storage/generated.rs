//! **For tests.** A store whose listings below one directory are computed: as many objects as
//! nobody would make, in no memory.

#![allow(clippy::unwrap_used)]

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::{Backend, Store};

/// One level below the directory, by keys relative to it.
#[derive(Debug, Default)]
pub(crate) struct Level {
    /// Directories.
    pub directories: Vec<String>,
    /// Objects, sorted.
    pub objects: Vec<String>,
}

/// `store`, whose listings below `directory` are what `level` says of each level.
pub(crate) fn generated(
    store: &Store,
    directory: &str,
    level: impl Fn(&str) -> Level + Send + Sync + 'static,
) -> Store {
    let below = Path::from(directory);
    store.with_backend(|inner| {
        Arc::new(Generated {
            inner,
            below,
            level: Box::new(level),
        })
    })
}

struct Generated {
    inner: Arc<dyn Backend>,
    below: Path,
    level: Box<dyn Fn(&str) -> Level + Send + Sync>,
}

impl Generated {
    fn level(&self, prefix: Option<&Path>) -> Option<(Vec<Path>, Vec<ObjectMeta>)> {
        let below = self.below.as_ref();
        let relative = prefix?.as_ref().strip_prefix(below)?;
        let level = (self.level)(relative.trim_start_matches('/'));
        let path = |key: String| Path::from(format!("{below}/{key}"));
        let directories = level.directories.into_iter().map(path).collect();
        let objects = level.objects.into_iter().map(|key| ObjectMeta {
            location: path(key),
            last_modified: Default::default(),
            size: 1,
            e_tag: None,
            version: None,
        });
        Some((directories, objects.collect()))
    }
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Generated")
    }
}

impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Generated")
    }
}

#[async_trait]
impl ObjectStore for Generated {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, body, how).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, how).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.level(prefix) {
            Some((_, objects)) => futures::stream::iter(objects.into_iter().map(Ok)).boxed(),
            None => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.level(prefix) {
            Some((common_prefixes, objects)) => Ok(ListResult {
                common_prefixes,
                objects,
                extensions: Default::default(),
            }),
            None => self.inner.list_with_delimiter(prefix).await,
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, how).await
    }
}

#[async_trait]
impl MultipartStore for Generated {
    async fn create_multipart(&self, at: &Path) -> Result<MultipartId> {
        self.inner.create_multipart(at).await
    }

    async fn put_part(
        &self,
        at: &Path,
        id: &MultipartId,
        index: usize,
        body: PutPayload,
    ) -> Result<PartId> {
        self.inner.put_part(at, id, index, body).await
    }

    async fn complete_multipart(
        &self,
        at: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.inner.complete_multipart(at, id, parts).await
    }

    async fn abort_multipart(&self, at: &Path, id: &MultipartId) -> Result<()> {
        self.inner.abort_multipart(at, id).await
    }
}
