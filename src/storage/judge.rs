//! What a store's failure means: which kind it is, whether trying again may help, and what a
//! person can do about it.
//!
//! "Absent" is never an error: it is the value `None`, and only [`certainly_absent`] decides
//! it. A 403 is never absent (S3 answers it for a missing key to a role that may not list),
//! neither is a 404 for the bucket, nor one that no object store wrote (a proxy's).

use std::error::Error as StdError;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::error::{ErrorKind, Failure, RootMissing, StorageError, SyncFailed};

/// A failure, judged.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) kind: ErrorKind,
    pub(super) retryable: bool,
    pub(super) cause: String,
    pub(super) hint: Option<String>,
}

impl Verdict {
    pub(super) fn new(kind: ErrorKind, retryable: bool, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self {
            kind,
            retryable,
            cause,
            hint: None,
        }
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// Whether this error says for certain that the *object* does not exist, in a store that
/// exists and answers for itself.
pub(super) fn certainly_absent(error: &object_store::Error) -> bool {
    let object_store::Error::NotFound { source, .. } = error else {
        return false;
    };
    let text = chain(source.as_ref());
    match status_of(&text) {
        // Local files and memory: the wrapper around local files has looked at the root. But
        // Azure's batch of deletions says "404" of an object in a missing container too.
        None => code_of(&text).is_none(),
        Some(_) => matches!(code_of(&text), Some("NoSuchKey" | "BlobNotFound")),
    }
}

/// Whether this error says for certain that the multipart *upload* does not exist (any more).
pub(super) fn upload_is_gone(error: &object_store::Error) -> bool {
    let text = chain(error);
    match status_of(&text) {
        None => matches!(error, object_store::Error::NotFound { .. }),
        Some(_) => code_of(&text) == Some("NoSuchUpload"),
    }
}

/// Whether this is a 404 that does not say of what: `HEAD` answers carry no body.
pub(super) fn unclear_not_found(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) && !certainly_absent(error)
}

/// What a failed attempt means.
pub(super) fn judge(failure: Failure) -> Result<Verdict, StorageError> {
    let verdict = match failure {
        Failure::Store(error) => judge_store(&error),
        Failure::Timeout(limit) => Verdict::new(
            ErrorKind::Timeout,
            true,
            format!("no answer within {}", seconds(limit)),
        ),
        Failure::Corrupt(retryable, text) => Verdict::new(ErrorKind::Corrupt, retryable, text),
        Failure::Judged(verdict) => verdict,
        Failure::Final(error) => return Err(error),
    };
    // "Timeout" alone helps nobody.
    Ok(match (verdict.kind, &verdict.hint) {
        (ErrorKind::Timeout, None) => verdict.hint(SLOW_HINT),
        (ErrorKind::Unavailable, None) => verdict.hint(UNWELL_HINT),
        _ => verdict,
    })
}

const SLOW_HINT: &str =
    "is the store up? for a slow one, raise the repository's `timeout` and `attempts`";

const UNWELL_HINT: &str =
    "the store or the way to it is unwell: the same command may succeed later";

fn judge_store(error: &object_store::Error) -> Verdict {
    use object_store::Error as E;
    let text = text_of(error);
    if let Some(status) = status_of(&text) {
        return judge_status(status, code_of(&text), &text);
    }
    if text.contains("redirect without LOCATION") {
        return Verdict::new(
            ErrorKind::Misconfigured,
            false,
            "the store answered with a redirect",
        )
        .hint(REGION_HINT);
    }
    if let Some(code) = code_of(&text) {
        // A batch of deletions is answered with 200, and with a status for each: Azure.
        if let Ok(status) = code.parse() {
            return judge_status(status, None, &text);
        }
        // DeleteObjects answers 200 with an error for each key; so does a slow completion.
        let retryable = RETRYABLE_CODES.contains(&code);
        let kind = match code {
            "AccessDenied" => ErrorKind::Denied,
            _ if retryable => ErrorKind::Unavailable,
            _ => ErrorKind::Other,
        };
        let verdict = Verdict::new(kind, retryable, format!("the store answered {code}"));
        return match kind {
            ErrorKind::Denied => verdict.hint(DENIED_HINT),
            _ => verdict,
        };
    }
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(error) = current.downcast_ref::<RootMissing>() {
            return Verdict::new(ErrorKind::Unavailable, false, error.to_string())
                .hint("mount its file system; a new repository is made by `seawall init`");
        }
        if let Some(SyncFailed(_, io)) = current.downcast_ref::<SyncFailed>() {
            let judged = judge_io(io, &text).filter(|verdict| !verdict.retryable);
            let lost = || Verdict::new(ErrorKind::Other, false, text.clone());
            return judged.unwrap_or_else(lost);
        }
        let io = current.downcast_ref::<std::io::Error>();
        if let Some(verdict) = io.and_then(|error| judge_io(error, &text)) {
            return verdict;
        }
        if let Some(error) = current.downcast_ref::<HttpError>() {
            return judge_http(error, &text);
        }
        cause = current.source();
    }
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Verdict::new(ErrorKind::Denied, false, text).hint(DENIED_HINT)
        }
        E::NotSupported { .. } | E::NotImplemented { .. } | E::InvalidPath { .. } => {
            Verdict::new(ErrorKind::Misconfigured, false, text)
        }
        // Only a resumed or conditional read sends a precondition.
        E::Precondition { .. } | E::NotModified { .. } => Verdict::new(
            ErrorKind::Corrupt,
            false,
            "the object changed while it was read",
        ),
        // Local files and memory; an object store answers 416.
        _ if text.contains("Wanted range starting at") => Verdict::new(
            ErrorKind::Corrupt,
            false,
            "the object is shorter than expected",
        ),
        // An answer that cannot be parsed was cut short, most likely.
        _ => {
            let cut_short = text.contains("Got invalid ") || text.contains("response body");
            Verdict::new(ErrorKind::Other, cut_short, text)
        }
    }
}

const DENIED_HINT: &str = "allow these credentials to get, put and list under this prefix \
     (and to delete, for `seawall expire`)";

const RETRYABLE_CODES: &[&str] = &[
    "InternalError",
    "SlowDown",
    "ServiceUnavailable",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "ServerBusy",
    "OperationTimedOut",
    "TooManyRequests",
];

pub(super) fn judge_status(status: u16, code: Option<&str>, text: &str) -> Verdict {
    let answer = match (code, message_of(text)) {
        (Some(code), Some(message)) => format!("the store answered {status} {code}: {message}"),
        (Some(code), None) => format!("the store answered {status} {code}"),
        _ => format!("the store answered {status}"),
    };
    if code.is_some_and(|code| RETRYABLE_CODES.contains(&code)) {
        return Verdict::new(ErrorKind::Unavailable, true, answer);
    }
    match (status, code.unwrap_or_default()) {
        (403, "RequestTimeTooSkewed") => Verdict::new(ErrorKind::Denied, false, answer)
            .hint("this machine's clock is wrong: synchronise it"),
        (401 | 403, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthenticationFailed")
        | (400, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            Verdict::new(ErrorKind::Denied, false, answer)
                .hint("check this repository's key, secret and token in the configuration")
        }
        (401 | 403, _) => Verdict::new(ErrorKind::Denied, false, answer).hint(DENIED_HINT),
        (404, "NoSuchBucket" | "ContainerNotFound") => {
            Verdict::new(ErrorKind::Misconfigured, false, answer)
                .hint("create the bucket, or correct the repository's url")
        }
        (404, _) => Verdict::new(
            ErrorKind::Other,
            true,
            format!("{answer}, without saying of what"),
        )
        .hint("is this the store itself, or a proxy before it? check the endpoint"),
        (412, _) => Verdict::new(
            ErrorKind::Corrupt,
            false,
            "the object changed while it was read",
        ),
        (416, _) => Verdict::new(
            ErrorKind::Corrupt,
            false,
            "the object is shorter than expected",
        ),
        (301 | 302 | 307 | 308, _)
        | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            Verdict::new(ErrorKind::Misconfigured, false, answer).hint(REGION_HINT)
        }
        (507, _) | (_, "QuotaExceeded" | "StorageFull" | "XMinioStorageFull") => {
            Verdict::new(ErrorKind::Full, false, answer).hint(FULL_HINT)
        }
        (408 | 409 | 425 | 429, _) => Verdict::new(ErrorKind::Unavailable, true, answer),
        (501, _) => Verdict::new(ErrorKind::Misconfigured, false, answer)
            .hint("this store lacks the operation; if it is create-only writes: aws_conditional_put = \"disabled\""),
        (500.., _) => Verdict::new(ErrorKind::Unavailable, true, answer),
        // "200" with an error inside.
        (200..=299, _) => Verdict::new(ErrorKind::Unavailable, true, answer),
        _ => Verdict::new(ErrorKind::Other, false, answer),
    }
}

const REGION_HINT: &str = "the bucket is in another region: correct aws_region (or the endpoint)";

const FULL_HINT: &str = "free space there; the same command then goes on";

fn judge_io(error: &std::io::Error, text: &str) -> Option<Verdict> {
    use std::io::ErrorKind as Io;
    Some(match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => {
            Verdict::new(ErrorKind::Full, false, text).hint(FULL_HINT)
        }
        Io::PermissionDenied => Verdict::new(ErrorKind::Denied, false, text).hint(
            "give this user (PostgreSQL's, for archiving) access to the repository's directory",
        ),
        Io::ReadOnlyFilesystem => Verdict::new(ErrorKind::Denied, false, text)
            .hint("the repository's file system is mounted read-only"),
        Io::TimedOut => Verdict::new(ErrorKind::Timeout, true, text),
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => {
            Verdict::new(ErrorKind::Misconfigured, false, text)
        }
        // Two writers and a cleaner of empty directories can meet.
        Io::NotFound => Verdict::new(ErrorKind::Unavailable, true, text),
        // Wrapped errors say more further down the chain.
        Io::Other if error.get_ref().is_some() => return None,
        _ => Verdict::new(ErrorKind::Unavailable, true, text),
    })
}

fn judge_http(error: &HttpError, text: &str) -> Verdict {
    let cause = error.source().map_or_else(|| error.to_string(), chain);
    let cause = cause.replacen("error sending request: client error (Connect): ", "", 1);
    if text.contains("certificate") {
        return Verdict::new(ErrorKind::Misconfigured, false, cause)
            .hint("the store's TLS certificate is not trusted by this machine");
    }
    if text.contains("URL scheme is not allowed") {
        return Verdict::new(ErrorKind::Misconfigured, false, cause)
            .hint("set aws_allow_http = \"true\" to speak plain HTTP to this endpoint");
    }
    match error.kind() {
        HttpErrorKind::Timeout => Verdict::new(ErrorKind::Timeout, true, cause),
        HttpErrorKind::Connect => Verdict::new(ErrorKind::Unavailable, true, cause)
            .hint("is the store up, the endpoint right, and the way to it open?"),
        _ => Verdict::new(ErrorKind::Unavailable, true, cause),
    }
}

/// What an error of object_store says, without its "Generic S3 error: ".
pub(super) fn text_of(error: &object_store::Error) -> String {
    match error {
        object_store::Error::Generic { source, .. } => chain(source.as_ref()),
        _ => chain(error),
    }
}

/// An error with its causes on one line, each thing said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The HTTP status in object_store's text. Its own error type is private.
fn status_of(text: &str) -> Option<u16> {
    let after = text.split_once("status code: ")?.1;
    after.get(..3)?.parse().ok()
}

/// The store's own code: `<Code>NoSuchKey</Code>`, or that of one key of a bulk delete.
fn code_of(text: &str) -> Option<&str> {
    between(text, "<Code>", "</Code>").or_else(|| between(text, "(code: ", ")"))
}

fn message_of(text: &str) -> Option<&str> {
    let message = between(text, "<Message>", "</Message>")?;
    message
        .lines()
        .next()
        .map(str::trim)
        .filter(|m| !m.is_empty())
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let inner = text.split_once(open)?.1.split_once(close)?.0.trim();
    (!inner.is_empty()).then_some(inner)
}

pub(super) fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        short if short < 10.0 => format!("{short:.1} s"),
        long => format!("{long:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_failed_fsync_is_never_tried_again() {
        for (io, kind) in [
            (io::Error::from_raw_os_error(5), ErrorKind::Other),
            (io::Error::from(io::ErrorKind::StorageFull), ErrorKind::Full),
        ] {
            let failed = object_store::Error::Generic {
                store: "local files",
                source: Box::new(SyncFailed("/x".into(), io)),
            };
            let verdict = judge_store(&failed);
            assert_eq!(
                (verdict.kind, verdict.retryable),
                (kind, false),
                "{verdict:?}"
            );
        }
        let failed = object_store::Error::Generic {
            store: "local files",
            source: Box::new(io::Error::from_raw_os_error(5)),
        };
        assert!(
            judge_store(&failed).retryable,
            "other input and output errors are"
        );
    }
}
