//! Locales of the source that this host lacks, and collations that sort differently here.
//!
//! A database whose locale is missing cannot be opened by anybody: it is not restored. A
//! collation of another version is a warning: its indexes may be in the wrong order, which
//! pg_amcheck tells.

use std::time::Instant;

use seawall::error::{Error, Result};
use seawall::postgres::sql::Client;

use crate::checks::{Check, Outcome};
use crate::evidence::round;
use crate::instance::Instance;

/// What PostgreSQL answers where a database's locale is missing.
const INCOMPATIBLE: &str = "locale is incompatible with operating system";

/// How many databases or collations a text names.
const NAMED: usize = 10;

/// Opens every database that takes connections, and compares the versions of its collations
/// with this host's. Returns the check, and warnings.
///
/// # Errors
/// The list of databases cannot be read.
pub async fn every_database_opens(
    instance: &Instance,
    client: &Client,
) -> Result<(Check, Vec<String>)> {
    const NAME: &str = "every database can be opened";
    let started = Instant::now();
    let version = match client.major() {
        0..=14 => "NULL, NULL",
        _ => "datcollversion, pg_database_collation_actual_version(oid)",
    };
    // An interrupted DROP DATABASE leaves one with a limit of -2, which nobody may enter.
    let sql = format!(
        "SELECT datname, {version} FROM pg_database \
         WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"
    );
    let (mut opened, mut failed, mut warnings) = (0, Vec::new(), Vec::new());
    for row in client.query_rows(&sql).await? {
        let mut columns = row.into_iter();
        let mut next = || columns.next().flatten();
        let Some(database) = next() else { continue };
        let (recorded, actual) = (next(), next());
        let session = match instance.connect(&database).await {
            Ok(session) => session,
            Err(error) => {
                failed.push(words(&database, &error));
                continue;
            }
        };
        opened += 1;
        let mut differing = Vec::new();
        if let Some(recorded) = recorded
            && actual.as_deref() != Some(&recorded)
        {
            differing.push(differs(
                "its default collation",
                &recorded,
                actual.as_deref(),
            ));
        }
        differing.extend(differing_collations(&session).await?);
        if !differing.is_empty() {
            warnings.push(format!(
                "collations of the database {database} have other versions on this host ({}): indexes over text may be in the wrong order here; before production run REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION and ALTER COLLATION … REFRESH VERSION",
                some_of(&differing)
            ));
        }
    }
    let (outcome, detail) = match failed.is_empty() {
        true => (Outcome::Passed, format!("{opened} databases were opened")),
        false => (Outcome::Failed, some_of(&failed)),
    };
    let check = Check {
        seconds: round(started.elapsed().as_secs_f64()),
        ..Check::new(NAME, outcome, detail)
    };
    Ok((check, warnings))
}

/// The same error, with what to do where it says that a locale is missing.
pub fn explain(error: Error) -> Error {
    let text = error.one_line();
    if !text.contains(INCOMPATIBLE) {
        return error;
    }
    let locale = locale_in(&text);
    Error::failed(format!(
        "the restored cluster cannot be opened: its locale {locale} is not on this host"
    ))
    .because(error)
    .hint(install(&locale))
}

fn words(database: &str, error: &Error) -> String {
    let text = error.one_line();
    if !text.contains(INCOMPATIBLE) {
        return format!("{database} cannot be opened: {text}");
    }
    let locale = locale_in(&text);
    format!(
        "{database} cannot be opened: its locale {locale} is not on this host; {}",
        install(&locale)
    )
}

/// `DETAIL: The database was initialized with LC_COLLATE "de_DE.UTF-8", which is not …`
fn locale_in(text: &str) -> String {
    let behind = ["LC_COLLATE \"", "LC_CTYPE \""]
        .iter()
        .find_map(|name| text.split_once(name));
    let name = behind.and_then(|(_, rest)| rest.split('"').next());
    name.unwrap_or("that it names").to_owned()
}

/// How a locale comes to a host.
fn install(locale: &str) -> String {
    let language = locale.split(['_', '.', '@']).next().unwrap_or_default();
    format!(
        "install it: on Debian the package locales and `locale-gen {locale}` (or locales-all), on Red Hat glibc-langpack-{language}; then restart the server"
    )
}

async fn differing_collations(session: &Client) -> Result<Vec<String>> {
    let sql = "SELECT collnamespace::regnamespace || '.' || quote_ident(collname), collversion, \
               pg_collation_actual_version(oid) FROM pg_collation \
               WHERE collversion IS NOT NULL \
               AND collversion IS DISTINCT FROM pg_collation_actual_version(oid) \
               ORDER BY 1";
    let rows = session.query_rows(sql).await?.into_iter();
    let differing = rows.filter_map(|row| {
        let mut columns = row.into_iter();
        let (name, recorded) = (columns.next()??, columns.next()??);
        Some(differs(&name, &recorded, columns.next()?.as_deref()))
    });
    Ok(differing.collect())
}

fn differs(what: &str, recorded: &str, actual: Option<&str>) -> String {
    let actual = actual.unwrap_or("none");
    format!("{what}: {recorded} on the source, {actual} here")
}

fn some_of(all: &[String]) -> String {
    let mut text = all[..all.len().min(NAMED)].join("; ");
    if all.len() > NAMED {
        text += &format!("; and {} more", all.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_locale_is_named_with_what_brings_it() {
        let refused = Error::failed("cannot connect").because(
            "FATAL: database locale is incompatible with operating system\nDETAIL: The database was initialized with LC_CTYPE \"de_DE.UTF-8\",  which is not recognized by setlocale().",
        );
        let said = words("shop", &refused);
        for part in [
            "shop cannot be opened: its locale de_DE.UTF-8",
            "locale-gen de_DE.UTF-8",
            "glibc-langpack-de;",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let said = explain(refused).to_string();
        assert!(said.contains("its locale de_DE.UTF-8 is not on this host"));
        let other = explain(Error::failed("no such role")).to_string();
        assert_eq!(other, "no such role");
    }
}
