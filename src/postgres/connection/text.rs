//! The two ways to write a connection string, taken apart into keywords and values.
//!
//! Errors name keywords and places, never values: a piece of an unquoted password would be
//! one. Facts: `conninfo_parse` and `conninfo_uri_parse` in libpq's `fe-connect.c`.

use std::iter::Peekable;
use std::str::Chars;

use super::usage;
use crate::error::{Error, Result};

/// The keywords and values of a connection string, in its order.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    if text.contains('\0') {
        return Err(usage("it holds a NUL", "remove it"));
    }
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return uri(rest);
        }
    }
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        skip_space(&mut rest);
        let mut keyword = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        if keyword.is_empty() && rest.peek().is_none() {
            return Ok(words);
        }
        skip_space(&mut rest);
        if rest.next() != Some('=') {
            return Err(usage(
                &format!("word {} is not followed by =", words.len() + 1),
                "write keyword=value, and quote values that hold spaces: password='a b'",
            ));
        }
        skip_space(&mut rest);
        words.push((keyword, value(&mut rest)?));
    }
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(char::is_ascii_whitespace).is_some() {}
}

/// A value up to the next space, or in single quotes; a backslash takes the next character as
/// it is in both.
fn value(rest: &mut Peekable<Chars<'_>>) -> Result<String> {
    let mut value = String::new();
    let quoted = rest.next_if_eq(&'\'').is_some();
    loop {
        match rest.peek() {
            None if quoted => {
                return Err(usage(
                    "a quote is not closed",
                    "write quotes in values as \\'",
                ));
            }
            None => return Ok(value),
            Some('\'') if quoted => {
                rest.next();
                return match rest.peek() {
                    Some(c) if !c.is_ascii_whitespace() => Err(usage(
                        "a quoted value is followed by something else than a space",
                        "write quotes in values as \\'",
                    )),
                    _ => Ok(value),
                };
            }
            Some(c) if !quoted && c.is_ascii_whitespace() => return Ok(value),
            Some('\\') => {
                rest.next();
                value.extend(rest.next());
            }
            Some(_) => value.extend(rest.next()),
        }
    }
}

/// What follows `postgresql://`.
fn uri(text: &str) -> Result<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut add = |keyword: &str, value: &str| {
        words.push((keyword.to_owned(), decode(value)?));
        Ok::<_, Error>(())
    };
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    // A password may hold a slash only as %2F, so the first one ends the hosts.
    let (authority, dbname) = text.split_once('/').unwrap_or((text, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    add("user", user)?;
    add("password", password)?;
    add("dbname", dbname)?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let wrong = || {
            usage(
                "a host is not written as NAME:PORT or [IPV6]:PORT",
                "see libpq's URIs",
            )
        };
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, after) = rest.split_once(']').ok_or_else(wrong)?;
                match after.strip_prefix(':') {
                    Some(port) => (name, port),
                    None if after.is_empty() => (name, ""),
                    None => return Err(wrong()),
                }
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        names.push(name);
        ports.push(port);
    }
    if !hosts.is_empty() {
        add("host", &names.join(","))?;
        add("port", &ports.join(","))?;
    }
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((keyword, value)) = parameter.split_once('=') else {
            return Err(usage(
                "a parameter of the URI has no =",
                "write ?keyword=value",
            ));
        };
        match (decode(keyword)?.as_str(), value) {
            // JDBC's spelling, which libpq knows too.
            ("ssl", "true") => add("sslmode", "require")?,
            (keyword, value) => add(keyword, value)?,
        }
    }
    Ok(words)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String> {
    let wrong = || {
        usage(
            "a % in the URI is not followed by two hex digits",
            "write % as %25",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
            return Err(wrong());
        };
        let mut decoded = [0];
        hex::decode_to_slice([high, low], &mut decoded).map_err(|_| wrong())?;
        if decoded == [0] {
            return Err(usage("it holds %00", "remove it"));
        }
        bytes.extend(decoded);
    }
    String::from_utf8(bytes)
        .map_err(|_| usage("it is not UTF-8 once decoded", "encode it as UTF-8"))
}
