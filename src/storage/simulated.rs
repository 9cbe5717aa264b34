//! **For tests.** A store in memory on a clock that the test drives, behind gates: each who
//! uses it passes a gate before every call, and the test decides how many calls it lets
//! through. So a test can stop any of them at any step, for as long as it likes, or for good.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use jiff::Timestamp;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::{Backend, Store};

/// A clock that goes only when it is told to.
#[derive(Debug, Clone)]
pub struct SimulatedClock(Arc<Mutex<Timestamp>>);

impl SimulatedClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(start)))
    }

    /// Its time.
    pub fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now += by;
    }
}

/// How many calls somebody may still make.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<GateState>>);

#[derive(Debug, Default)]
struct GateState {
    allowed: u64,
    passed: u64,
    waiting: Vec<Waker>,
}

impl Gate {
    /// A gate that lets everything through.
    pub fn open() -> Self {
        let gate = Self::default();
        gate.allow(u64::MAX);
        gate
    }

    /// Lets so many more calls through.
    pub fn allow(&self, calls: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.allowed = state.allowed.saturating_add(calls);
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// How many more calls it lets through.
    pub fn allowed(&self) -> u64 {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.allowed
    }

    /// How many calls have passed.
    pub fn passed(&self) -> u64 {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.passed
    }

    async fn pass(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.allowed == 0 {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            state.allowed -= 1;
            state.passed += 1;
            Poll::Ready(())
        })
        .await;
    }
}

/// What lies in a simulated store; each [`store`](Self::store) of it is a way in.
pub struct SimulatedObjects {
    under: Store,
    clock: SimulatedClock,
    stored: Arc<Mutex<HashMap<Path, Timestamp>>>,
}

impl SimulatedObjects {
    /// An empty one.
    ///
    /// # Errors
    /// None, in memory.
    pub fn new(clock: &SimulatedClock) -> std::result::Result<Self, super::StorageError> {
        Ok(Self {
            under: Store::memory()?,
            clock: clock.clone(),
            stored: Arc::default(),
        })
    }

    /// The store, for one who passes `gate` before each call.
    pub fn store(&self, gate: &Gate) -> Store {
        self.under.with_backend(|inner| {
            Arc::new(Simulated {
                inner,
                clock: self.clock.clone(),
                stored: Arc::clone(&self.stored),
                gate: gate.clone(),
            })
        })
    }
}

#[derive(Debug, Clone)]
struct Simulated {
    inner: Arc<dyn Backend>,
    clock: SimulatedClock,
    stored: Arc<Mutex<HashMap<Path, Timestamp>>>,
    gate: Gate,
}

impl Simulated {
    fn note(&self, location: &Path) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.insert(location.clone(), self.clock.now());
    }

    fn stamp(&self, meta: &mut ObjectMeta) {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = stored.get(&meta.location) {
            meta.last_modified = SystemTime::from(*at).into();
        }
    }

    fn listing(
        &self,
        listing: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (gate, this) = (self.gate.clone(), self.clone());
        futures::stream::once(async move {
            gate.pass().await;
            listing
        })
        .flatten()
        .map(move |found| {
            found.map(|mut meta| {
                this.stamp(&mut meta);
                meta
            })
        })
        .boxed()
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on a simulated clock", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Simulated {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.gate.pass().await;
        let done = self.inner.put_opts(location, payload, opts).await?;
        self.note(location);
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.gate.pass().await;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gate.pass().await;
        let mut found = self.inner.get_opts(location, options).await?;
        self.stamp(&mut found.meta);
        Ok(found)
    }

    /// One after the other: who deletes many may be stopped between any two.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    this.gate.pass().await;
                    let one = futures::stream::iter([Ok(location.clone())]).boxed();
                    this.inner.delete_stream(one).next().await.transpose()?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.cloned());
        // What is listed is what is there when the gate is passed.
        let late = futures::stream::once(async move { inner.list(prefix.as_ref()) });
        self.listing(late.flatten().boxed())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.cloned());
        let offset = offset.clone();
        let late =
            futures::stream::once(async move { inner.list_with_offset(prefix.as_ref(), &offset) });
        self.listing(late.flatten().boxed())
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.gate.pass().await;
        let mut listing = self.inner.list_with_delimiter(prefix).await?;
        for meta in &mut listing.objects {
            self.stamp(meta);
        }
        Ok(listing)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.gate.pass().await;
        self.inner.copy_opts(from, to, options).await?;
        self.note(to);
        Ok(())
    }
}

/// Nothing that is simulated is so large that it goes in parts.
#[async_trait]
impl MultipartStore for Simulated {
    async fn create_multipart(&self, location: &Path) -> Result<MultipartId> {
        self.inner.create_multipart(location).await
    }

    async fn create_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<MultipartId> {
        self.inner.create_multipart_opts(location, opts).await
    }

    async fn put_part(
        &self,
        location: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        self.inner.put_part(location, id, part_idx, data).await
    }

    async fn complete_multipart(
        &self,
        location: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let done = self.inner.complete_multipart(location, id, parts).await?;
        self.note(location);
        Ok(done)
    }

    async fn abort_multipart(&self, location: &Path, id: &MultipartId) -> Result<()> {
        self.inner.abort_multipart(location, id).await
    }
}
