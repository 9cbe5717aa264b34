//! The one error that people see: what went wrong, where, and what to do next.
//!
//! Parsers and stores have error types of their own, which say what a caller can act on; at
//! the level of a workflow they all become this [`Error`]. It also carries the exit code, so
//! that the meaning of a failure is decided where it is understood and nowhere else.

use std::fmt;

/// A result of a workflow.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The exit codes of `seawall` and its verbs. `seawall-archive` and `seawall-fetch` speak to
/// PostgreSQL and keep to tables of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and durable.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Bad arguments or configuration; nothing was touched.
    Usage = 2,
    /// A drill or check ran to its report, and an objective was missed or a check failed.
    Missed = 3,
    /// Refused, to protect data; the error says how to go on.
    Refused = 4,
    /// No backup or WAL reaches that target; the error says what can be reached.
    Unreachable = 5,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What went wrong, where, and what to do next.
///
/// `Display` prints the whole of it over several lines, as a person reads it:
///
/// ```text
/// WAL segment 00000002000000000000001A is already archived with other content
///   in s3://bucket/main
///   because: …
///   hint: two clusters share this prefix; compare their system identifiers
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    exit: Exit,
    what: String,
    place: Option<String>,
    hint: Option<String>,
    retryable: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with an exit code of its own.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            exit,
            what: what.into(),
            place: None,
            hint: None,
            retryable: false,
            source: None,
        }))
    }

    /// The operation failed (exit code 1).
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// Arguments or configuration are wrong; nothing was touched (exit code 2).
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// Refused to protect data (exit code 4). Always add a [`hint`](Self::hint).
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Exit::Refused, what)
    }

    /// No backup or WAL reaches that target (exit code 5). Say what can be reached.
    pub fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, what)
    }

    /// Where it happened: a file, a key, a repository, a server.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(place.to_string());
        self
    }

    /// What the person can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same once more, for one who must tell it again. Of the cause only the text is kept.
    #[must_use]
    pub fn again(&self) -> Self {
        let inner = &self.0;
        Self(Box::new(Inner {
            exit: inner.exit,
            what: inner.what.clone(),
            place: inner.place.clone(),
            hint: inner.hint.clone(),
            retryable: inner.retryable,
            source: inner.source.as_ref().map(|cause| cause.to_string().into()),
        }))
    }

    /// Marks that the same call may succeed later without any change.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The exit code that this error asks for.
    pub fn exit(&self) -> Exit {
        self.0.exit
    }

    /// The first line: what went wrong, without place and hint.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The advice, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// All of it on one line, for logs: PostgreSQL's own and syslog.
    pub fn one_line(&self) -> String {
        self.to_string()
            .lines()
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(place) = &self.0.place {
            write!(f, "\n  in {place}")?;
        }
        let mut cause = self
            .0
            .source
            .as_deref()
            .map(|e| e as &dyn std::error::Error);
        let mut last = String::new();
        while let Some(error) = cause {
            // Libraries repeat their cause in their own text: say each thing once.
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, "\n  because: {}", text.trim_end())?;
                last = text;
            }
            cause = error.source();
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Adds what was being done, and to which file, to an error of the operating system.
pub trait IoContext<T> {
    /// `verb` completes "cannot …": `"open"`, `"fsync"`.
    fn on(self, verb: &str, path: impl AsRef<std::path::Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn on(self, verb: &str, path: impl AsRef<std::path::Path>) -> Result<T> {
        self.map_err(|error| {
            let path = path.as_ref();
            let full = error.kind() == std::io::ErrorKind::StorageFull;
            let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
            let failure = Error::failed(format!("cannot {verb} {}", path.display()));
            let failure = match (full, denied) {
                (true, _) => failure.hint("free space on that file system, then run it again"),
                (_, true) => failure.hint("run as the user that owns it (PostgreSQL's user)"),
                _ => failure,
            };
            failure.because(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_next() {
        let error = Error::refused("the target is not empty")
            .at("/var/lib/x")
            .because(std::io::Error::other("17 files"))
            .hint("give an empty directory");
        assert_eq!(
            error.to_string(),
            "the target is not empty\n  in /var/lib/x\n  because: 17 files\n  hint: give an empty directory"
        );
        assert_eq!(error.exit(), Exit::Refused);
        assert_eq!(
            error.one_line(),
            "the target is not empty; in /var/lib/x; because: 17 files; hint: give an empty directory"
        );
    }
}
