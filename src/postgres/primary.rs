//! What a standby is told of its primary: `primary_conninfo` and `primary_slot_name`, as they
//! come from a command line.
//!
//! PostgreSQL itself reads the connection string. It is looked into only far enough to keep a
//! password out of it: everybody on the host sees a command line. Facts: `conninfo_parse` and
//! `conninfo_uri_parse_options` in `src/interfaces/libpq/fe-connect.c`.

use crate::error::{Error, Result};

/// How a standby streams from its primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Primary {
    /// `primary_conninfo`; none: it follows the archive alone, or what is set already.
    pub conninfo: Option<String>,
    /// `primary_slot_name`.
    pub slot: Option<String>,
}

/// Words whose values are secrets.
const SECRETS: [&str; 2] = ["password", "sslpassword"];

/// A connection string for `primary_conninfo`.
///
/// # Errors
/// It holds a password, or libpq would not understand it.
pub fn conninfo(text: &str) -> Result<String> {
    let is_uri = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let has_secret = match is_uri {
        Some(rest) => uri_has_secret(rest),
        None => words(text)?.iter().any(|(word, _)| is_secret(word)),
    };
    if has_secret {
        return Err(
            Error::usage("a password on a command line is seen by everybody on this host").hint(
                "leave it out: give passfile=PATH in the connection string, or put it into ~/.pgpass of PostgreSQL's user",
            ),
        );
    }
    if text.contains(['\n', '\r', '\0']) {
        return Err(wrong("it holds a line break"));
    }
    Ok(text.to_owned())
}

/// The name of a replication slot.
///
/// # Errors
/// PostgreSQL would refuse it.
pub fn slot_name(text: &str) -> Result<String> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match (1..64).contains(&text.len()) && text.bytes().all(is_allowed) {
        true => Ok(text.to_owned()),
        false => Err(Error::usage(format!("{text:?} is no name of a slot"))
            .hint("lower-case letters, digits and underscores, at most 63")),
    }
}

fn is_secret(word: &str) -> bool {
    SECRETS.contains(&word)
}

fn uri_has_secret(rest: &str) -> bool {
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = before.split('/').next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let in_query = query.split('&').any(|pair| {
        let word = pair.split('=').next().unwrap_or_default();
        // Percent signs have no business in a keyword but to hide it.
        is_secret(word) || word.contains('%')
    });
    user.contains(':') || in_query
}

/// `keyword = value` pairs, values perhaps in quotes.
fn words(text: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let behind = behind.trim_start().strip_prefix('=');
        let Some(behind) = behind.filter(|_| !word.is_empty()) else {
            return Err(wrong(&format!("there is no = behind {word:?}")));
        };
        let (value, after) = value(behind.trim_start())?;
        found.push((word.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(found)
}

/// A value, and what follows it.
fn value(text: &str) -> Result<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, &body[at + 1..])),
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    match quoted {
        Some(_) => Err(wrong("a quote is not closed")),
        None => Ok((value, "")),
    }
}

fn wrong(why: &str) -> Error {
    Error::usage("this is no connection string")
        .because(why.to_owned())
        .hint("write host=HOST port=PORT user=USER, as libpq takes it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_password_is_refused_however_it_is_written() {
        for secret in [
            "host=a password=x",
            "host=a password = 'x y'",
            "user='a b' password=x",
            "password=",
            "sslpassword=x",
            "postgresql://user:secret@host/db",
            "postgres://host?password=x",
            "postgres://host/db?user=a&pass%77ord=x",
        ] {
            assert!(conninfo(secret).is_err(), "{secret}");
        }
        for fine in [
            "host=a port=5432 user=replicator passfile=/x/.pgpass",
            "host='pass word=x' user=password",
            "postgresql://user@host:5432/db?sslmode=verify-full",
            "",
        ] {
            assert_eq!(conninfo(fine).unwrap(), fine);
        }
        for nonsense in ["host", "host=a b", "host='a", "a=b\nc=d"] {
            assert!(conninfo(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_slot_has_a_name_that_postgresql_takes() {
        assert_eq!(slot_name("standby_1").unwrap(), "standby_1");
        for wrong in ["", "Standby", "a-b", &"x".repeat(64)] {
            assert!(slot_name(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(text: String) {
            let _ = conninfo(&text);
            let _ = slot_name(&text);
        }
    }
}
