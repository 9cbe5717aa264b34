//! The error of a store: what was being done, to which key, where and why it failed, whether
//! the same call may succeed later, and what a person can do about it.
//!
//! What an answer of a store *means* is decided in `judge`.

use std::fmt;
use std::time::Duration;

use super::judge::Verdict;

/// The kinds of failure that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store knows us and refuses, or does not know us.
    Denied,
    /// Nobody answers, or the answer is "not now".
    Unavailable,
    /// The time for an attempt, or for all of them, ran out.
    Timeout,
    /// Fewer, more or other bytes than promised.
    Corrupt,
    /// No space, or a quota is used up.
    Full,
    /// URL, options, bucket or region are wrong: no retry will help.
    Misconfigured,
    /// Anything else.
    Other,
}

/// A failed operation on a store: what was being done, to which key, where, and why.
#[derive(thiserror::Error)]
#[error("cannot {} in {}: {}", .0.what(), .0.url, .0.cause)]
pub struct StorageError(Box<Inner>);

struct Inner {
    action: &'static str,
    key: String,
    url: String,
    kind: ErrorKind,
    retryable: bool,
    cause: String,
    hint: Option<String>,
}

impl Inner {
    fn what(&self) -> String {
        match self.key.as_str() {
            "" => self.action.to_owned(),
            key => format!("{} {key}", self.action),
        }
    }
}

impl StorageError {
    pub(super) fn new(
        action: &'static str,
        key: &str,
        url: &str,
        kind: ErrorKind,
        cause: impl Into<String>,
    ) -> Self {
        Self(Box::new(Inner {
            action,
            key: key.to_owned(),
            url: url.to_owned(),
            kind,
            retryable: false,
            cause: cause.into(),
            hint: None,
        }))
    }

    pub(super) fn from_verdict(
        action: &'static str,
        key: &str,
        url: &str,
        verdict: Verdict,
        tried: &str,
    ) -> Self {
        Self(Box::new(Inner {
            action,
            key: key.to_owned(),
            url: url.to_owned(),
            kind: verdict.kind,
            retryable: verdict.retryable,
            cause: format!("{}{tried}", verdict.cause),
            hint: verdict.hint,
        }))
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Which kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without any change. Our own retries are
    /// already used up.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The key that the operation was about; empty when it was about the whole store.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// The store's URL, which never holds credentials.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// What a person can do about it.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Debug for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?}", self.0.kind)?;
        match self.advice() {
            Some(hint) => write!(f, "; hint: {hint})"),
            None => f.write_str(")"),
        }
    }
}

impl From<StorageError> for crate::error::Error {
    fn from(error: StorageError) -> Self {
        let what = format!("cannot {}", error.0.what());
        let failure = match (error.0.kind, error.0.action) {
            (ErrorKind::Misconfigured, OPEN) => Self::usage(what),
            _ => Self::failed(what),
        };
        let Inner {
            url,
            cause,
            hint,
            retryable,
            ..
        } = *error.0;
        let failure = failure.at(url).because(cause).retryable(retryable);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// The action whose misconfiguration counts as a wrong configuration (exit code 2), since
/// nothing was touched yet.
pub(super) const OPEN: &str = "open the store";

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The store, or the way to it, said so.
    Store(object_store::Error),
    /// It took longer than this.
    Timeout(Duration),
    /// Wrong bytes came back; `true` when another attempt may bring the right ones.
    Corrupt(bool, String),
    /// Another client's failure, judged by it.
    Judged(Verdict),
    /// A call of ours within the attempt failed for good.
    Final(StorageError),
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

/// The root directory of a local store is not there: a disk that is not mounted, most likely.
#[derive(Debug, thiserror::Error)]
#[error("the directory {0} does not exist, is no directory, or is not the one that was opened")]
pub(super) struct RootMissing(pub(super) String);

/// An fsync failed. It is never tried again on the same file: the kernel reports lost pages
/// once, and the next fsync would succeed without them.
#[derive(Debug, thiserror::Error)]
#[error("cannot fsync {0}: {1}")]
pub(super) struct SyncFailed(pub(super) String, #[source] pub(super) std::io::Error);
