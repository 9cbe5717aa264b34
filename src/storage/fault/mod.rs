//! **For tests.** A store that fails as told: [`Store::with_faults`] puts it around any other,
//! and in builds with the feature `fault-injection` the environment variable
//! `SEAWALL_TEST_FAULTS` puts it around every store that a program opens, each with counters
//! of its own.
//!
//! A plan is a list of rules, separated by `;` or line ends:
//!
//! ```text
//! seed=42                    for what is left to chance; 0 unless given
//! store=near                 only around stores whose URL contains this text
//! put@3=500                  the third write is answered with 500
//! any@7=hang                 the seventh call of any kind gets no answer
//! get%5=break                one read in twenty breaks off in the middle (by the seed)
//! put[backup.json]@1-2=lost  twice, the write of such a key is done and its answer lost
//! list=403                   every listing is refused
//! part@4+=refused            from the fourth part on nobody is there
//! ```
//!
//! Operations: `get`, `head`, `put`, `delete`, `list`, and for large objects `begin`, `part`,
//! `complete`, `abort`; `any` is all of them. Each rule counts the calls that it could apply
//! to, from 1; the first rule that applies wins.
//!
//! | fault | what happens |
//! |---|---|
//! | `refused` | nobody listens: connection refused |
//! | `403`, `500`, `503` | this answer, and nothing is done |
//! | `404` | an answer that does not say what is missing, as a proxy gives it |
//! | `absent` | a lie: "no such key" |
//! | `nobucket` | "no such bucket" |
//! | `full` | no space left |
//! | `hang` | no answer, ever |
//! | `lost` | it is done, and then the connection times out |
//! | `late` | it is done, and then there is no answer, ever |
//! | `truncate` | the body ends in the middle, as if that were all |
//! | `break` | the connection breaks in the middle of the body |
//! | `garble` | one bit of the body is wrong |
//! | `longer` | more bytes than promised |
//! | `empty` | a lie: the listing holds nothing |
//! | `far` | nothing is wrong, but the answer takes 50 ms longer |

mod plan;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartId, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

use plan::{Fault, Operation};
pub use plan::{FaultPlan, FaultPlanError};

use super::read::pieces;
use super::{Backend, StorageError, Store};

impl Store {
    /// **For tests.** The same store, failing as planned, with counters of its own.
    #[must_use]
    pub fn with_faults(self, plan: FaultPlan) -> Self {
        if !plan.concerns(self.url()) {
            return self;
        }
        self.with_backend(|inner| Arc::new(FaultStore { inner, plan }))
    }
}

/// Puts the plan of the environment around a store that was opened, in builds for tests.
#[cfg(feature = "fault-injection")]
pub(super) fn from_environment(store: Store) -> Result<Store, StorageError> {
    use super::error::{ErrorKind, OPEN};
    match std::env::var("SEAWALL_TEST_FAULTS") {
        Err(_) => Ok(store),
        Ok(text) => match text.parse::<FaultPlan>() {
            Ok(plan) => Ok(store.with_faults(plan)),
            Err(error) => {
                let kind = ErrorKind::Misconfigured;
                Err(StorageError::new(
                    OPEN,
                    "",
                    store.url(),
                    kind,
                    error.to_string(),
                ))
            }
        },
    }
}

#[cfg(not(feature = "fault-injection"))]
#[allow(clippy::unnecessary_wraps)] // The other one can fail.
pub(super) fn from_environment(store: Store) -> Result<Store, StorageError> {
    Ok(store)
}

/// How much longer the answer of a store far away takes.
const FAR: std::time::Duration = std::time::Duration::from_millis(50);

#[derive(Debug)]
struct FaultStore {
    inner: Arc<dyn Backend>,
    plan: FaultPlan,
}

impl FaultStore {
    /// Does `work` unless the plan says otherwise. A fault of the body is handed back, for
    /// the caller to apply.
    async fn call<T>(
        &self,
        operation: Operation,
        key: &Path,
        work: impl Future<Output = Result<T>>,
    ) -> Result<(T, Option<Fault>)> {
        match self.plan.choose(operation, key) {
            None => Ok((work.await?, None)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Far) => {
                tokio::time::sleep(FAR).await;
                Ok((work.await?, None))
            }
            Some(Fault::Lost) => {
                work.await?;
                Err(http(HttpErrorKind::Timeout, std::io::ErrorKind::TimedOut))
            }
            Some(Fault::Late) => {
                work.await?;
                std::future::pending().await
            }
            Some(fault) => match fault.answer(key) {
                Some(error) => Err(error),
                None => Ok((work.await?, Some(fault))),
            },
        }
    }
}

impl Fault {
    /// The error in place of an answer; none for what befalls a body.
    fn answer(self, key: &Path) -> Option<Error> {
        let status = |status: &str, code: &str| -> Box<dyn std::error::Error + Send + Sync> {
            let code = match code {
                "" => "<html>".to_owned(),
                code => format!("<Code>{code}</Code>"),
            };
            format!("Server returned non-2xx status code: {status}: {code} (injected)").into()
        };
        let generic = |source| Error::Generic {
            store: "fault",
            source,
        };
        let path = key.to_string();
        Some(match self {
            Self::Refused => http(
                HttpErrorKind::Connect,
                std::io::ErrorKind::ConnectionRefused,
            ),
            Self::Forbidden => Error::PermissionDenied {
                path,
                source: status("403 Forbidden", "AccessDenied"),
            },
            Self::Unclear => Error::NotFound {
                path,
                source: status("404 Not Found", ""),
            },
            Self::Absent => Error::NotFound {
                path,
                source: status("404 Not Found", "NoSuchKey"),
            },
            Self::NoBucket => Error::NotFound {
                path,
                source: status("404 Not Found", "NoSuchBucket"),
            },
            Self::Broken => generic(status("500 Internal Server Error", "InternalError")),
            Self::Busy => generic(status("503 Service Unavailable", "SlowDown")),
            Self::Full => generic(Box::new(std::io::Error::from(
                std::io::ErrorKind::StorageFull,
            ))),
            _ => return None,
        })
    }

    /// What this fault makes of a body.
    fn befall(self, result: GetResult) -> GetResult {
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let (attributes, extensions) = (result.attributes.clone(), result.extensions.clone());
        let half = (range.end - range.start) / 2;
        let body = pieces(result);
        let body = match self {
            Self::Truncate => first_bytes(body, half).boxed(),
            Self::Break => first_bytes(body, half)
                .chain(futures::stream::iter([Err(http(
                    HttpErrorKind::Interrupted,
                    std::io::ErrorKind::ConnectionReset,
                ))]))
                .boxed(),
            Self::Garble => body
                .enumerate()
                .map(|(number, piece)| match (number, piece) {
                    (0, Ok(piece)) => Ok(garble(&piece)),
                    (_, other) => other,
                })
                .boxed(),
            Self::Longer => body
                .chain(futures::stream::iter([Ok(Bytes::from_static(b"more"))]))
                .boxed(),
            _ => body,
        };
        GetResult {
            payload: GetResultPayload::Stream(body),
            meta,
            range,
            attributes,
            extensions,
        }
    }
}

fn http(kind: HttpErrorKind, io: std::io::ErrorKind) -> Error {
    let error = HttpError::new(kind, std::io::Error::new(io, format!("{io} (injected)")));
    Error::Generic {
        store: "fault",
        source: Box::new(error),
    }
}

fn garble(piece: &Bytes) -> Bytes {
    let mut piece = piece.to_vec();
    let middle = piece.len() / 2;
    if let Some(byte) = piece.get_mut(middle) {
        *byte ^= 1;
    }
    piece.into()
}

fn first_bytes(
    body: BoxStream<'static, Result<Bytes>>,
    bytes: u64,
) -> impl futures::Stream<Item = Result<Bytes>> + Send {
    body.scan(bytes, |left, piece| {
        let piece = piece.map(|piece| piece.slice(..piece.len().min(*left as usize)));
        let done = *left == 0;
        *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        futures::future::ready((!done).then_some(piece))
    })
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let work = self.inner.put_opts(location, payload, opts);
        Ok(self.call(Operation::Put, location, work).await?.0)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = match options.head {
            true => Operation::Head,
            false => Operation::Get,
        };
        let work = self.inner.get_opts(location, options);
        Ok(match self.call(operation, location, work).await? {
            (result, Some(fault)) => fault.befall(result),
            (result, None) => result,
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = Self {
            inner: Arc::clone(&self.inner),
            plan: self.plan.clone(),
        };
        let this = Arc::new(this);
        locations
            .then(move |location| {
                let this = Arc::clone(&this);
                async move {
                    let location = location?;
                    let one = futures::stream::iter([Ok(location.clone())]).boxed();
                    let mut deleted = this.inner.delete_stream(one);
                    let work = async { deleted.next().await.transpose() };
                    this.call(Operation::Delete, &location, work).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_with_faults(prefix, self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_with_faults(prefix, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let key = prefix.cloned().unwrap_or_default();
        let work = self.inner.list_with_delimiter(prefix);
        Ok(match self.call(Operation::List, &key, work).await? {
            (_, Some(Fault::Empty)) => ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Extensions::default(),
            },
            (listing, _) => listing,
        })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let work = self.inner.copy_opts(from, to, options);
        self.call(Operation::Copy, to, work).await?;
        Ok(())
    }
}

impl FaultStore {
    /// A listing breaks off after its first object where a body would in the middle.
    fn list_with_faults(
        &self,
        prefix: Option<&Path>,
        listing: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let key = prefix.cloned().unwrap_or_default();
        match self.plan.choose(Operation::List, &key) {
            None => listing,
            Some(Fault::Hang | Fault::Late) => futures::stream::pending().boxed(),
            Some(Fault::Empty) => futures::stream::empty().boxed(),
            Some(Fault::Far) => {
                let wait = async { tokio::time::sleep(FAR).await };
                wait.map(|()| listing).flatten_stream().boxed()
            }
            Some(fault) => match fault.answer(&key) {
                Some(error) => futures::stream::iter([Err(error)]).boxed(),
                None => {
                    let error = http(
                        HttpErrorKind::Interrupted,
                        std::io::ErrorKind::ConnectionReset,
                    );
                    listing
                        .take(1)
                        .chain(futures::stream::iter([Err(error)]))
                        .boxed()
                }
            },
        }
    }
}

#[async_trait]
impl MultipartStore for FaultStore {
    async fn create_multipart(&self, location: &Path) -> Result<MultipartId> {
        let work = self.inner.create_multipart(location);
        Ok(self.call(Operation::Begin, location, work).await?.0)
    }

    async fn create_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<MultipartId> {
        let work = self.inner.create_multipart_opts(location, opts);
        Ok(self.call(Operation::Begin, location, work).await?.0)
    }

    async fn put_part(
        &self,
        location: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let work = self.inner.put_part(location, id, part_idx, data);
        Ok(self.call(Operation::Part, location, work).await?.0)
    }

    async fn complete_multipart(
        &self,
        location: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let work = self.inner.complete_multipart(location, id, parts);
        Ok(self.call(Operation::Complete, location, work).await?.0)
    }

    async fn abort_multipart(&self, location: &Path, id: &MultipartId) -> Result<()> {
        let work = self.inner.abort_multipart(location, id);
        self.call(Operation::Abort, location, work).await?;
        Ok(())
    }
}
