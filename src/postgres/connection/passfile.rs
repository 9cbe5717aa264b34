//! The password file, `~/.pgpass`: `host:port:database:user:password` lines, of which the
//! first that fits counts. Facts: `passwordFromFile` in libpq's `fe-connect.c`.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What is known about a password. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// This is it.
    Known(Vec<u8>),
    /// None was given; many servers want none.
    Unknown,
    /// There is a password file, and it is ignored for that reason.
    Ignored(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(_) => f.write_str("Known(…)"),
            Self::Unknown => f.write_str("Unknown"),
            Self::Ignored(why) => write!(f, "Ignored({why:?})"),
        }
    }
}

/// Looks for the password of `[host, port, database, user]`.
///
/// Like libpq it ignores a file that others can read, and one that it cannot read itself; what
/// was ignored is told only to whoever then lacks a password.
pub(super) fn look_up(file: &Path, wanted: [&str; 4]) -> Password {
    let ignored =
        |why: &str| Password::Ignored(format!("the password file {} {why}", file.display()));
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Password::Unknown,
        Err(error) => return ignored(&format!("cannot be read: {error}")),
    };
    if !metadata.is_file() {
        return ignored("is no plain file");
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return ignored("can be read by others: chmod 0600 it");
    }
    let content = match std::fs::read(file) {
        Ok(content) => content,
        Err(error) => return ignored(&format!("cannot be read: {error}")),
    };
    let mut lines = content.split(|byte| *byte == b'\n');
    match lines.find_map(|line| password_of(line, wanted)) {
        Some(password) => Password::Known(password),
        None => Password::Unknown,
    }
}

/// The password of a line, if its first four fields fit.
fn password_of(line: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = field(rest)?;
        if field != b"*" && unescape(field) != wanted.as_bytes() {
            return None;
        }
        rest = after;
    }
    let password = unescape(rest);
    (!password.is_empty()).then_some(password)
}

/// Splits at the first `:` that has no backslash before it.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (at, byte) in line.iter().enumerate() {
        match byte {
            b':' if !escaped => return Some((&line[..at], &line[at + 1..])),
            b'\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    None
}

/// Removes the backslashes that take the next byte as it is; one at the end stays.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.iter().peekable();
    while let Some(byte) = rest.next() {
        let next = match byte {
            b'\\' => rest.next().unwrap_or(byte),
            _ => byte,
        };
        bytes.push(*next);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn file(content: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        crate::durable::write_file(&path, content.as_bytes(), mode).unwrap();
        (directory, path)
    }

    fn known(password: &str) -> Password {
        Password::Known(password.as_bytes().to_vec())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let (_directory, path) = file(
            "# db:5432:prod:ann:no\n\
             db:5432:prod:ann:first\n\
             *:*:prod:bob:a:b\\:c\\\\d\r\n\
             a\\:b:1:x\\\\y:ann:odd\n\
             *:*:*:*:last\\",
            0o600,
        );
        let find = |wanted| look_up(&path, wanted);
        assert_eq!(find(["db", "5432", "prod", "ann"]), known("first"));
        assert_eq!(find(["x", "1", "prod", "bob"]), known("a:b:c\\d"));
        assert_eq!(find(["a:b", "1", "x\\y", "ann"]), known("odd"));
        assert_eq!(find(["db", "5432", "prod", "eve"]), known("last\\"));
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored_and_says_why() {
        let (_directory, path) = file("*:*:*:*:secret\n", 0o640);
        let Password::Ignored(why) = look_up(&path, ["a"; 4]) else {
            panic!()
        };
        assert!(why.contains("chmod 0600") && !why.contains("secret"));
        let (directory, path) = file("*:*:*:other:secret\nshort:line", 0o600);
        assert_eq!(look_up(&path, ["a"; 4]), Password::Unknown);
        assert!(matches!(
            look_up(directory.path(), ["a"; 4]),
            Password::Ignored(_)
        ));
        assert_eq!(
            look_up(&path.join("none"), ["a"; 4]),
            Password::Ignored(format!(
                "the password file {} cannot be read: Not a directory (os error 20)",
                path.join("none").display()
            ))
        );
        assert_eq!(
            look_up(&directory.path().join("none"), ["a"; 4]),
            Password::Unknown
        );
    }

    proptest! {
        #[test]
        fn no_line_panics_and_escaped_fields_come_back(
            line in proptest::collection::vec(any::<u8>(), 0..60), field in "[^\n\r]{1,12}"
        ) {
            let _ = password_of(&line, ["a"; 4]);
            let escaped = field.replace('\\', "\\\\").replace(':', "\\:");
            let line = format!("{escaped}:{escaped}:*:*:{escaped}");
            if !field.starts_with('#') {
                let found = password_of(line.as_bytes(), [&field, &field, "x", "y"]);
                prop_assert_eq!(found, Some(field.into_bytes()));
            }
        }
    }
}
