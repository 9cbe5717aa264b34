//! A file of SQL, cut into its statements as psql cuts it (PostgreSQL 18, psqlscan.l): at
//! semicolons outside quotes, comments, parentheses and the bodies of SQL functions.

use std::path::Path;

use seawall::digest::StoredHasher;
use seawall::error::{Error, IoContext, Result};

use super::refused::refused;
use super::scanner::{Scanner, first_words};

/// A larger file is no migration.
const LARGEST: u64 = 64 << 20;

/// A file of SQL statements.
#[derive(Debug, Clone)]
pub struct Script {
    /// Its path, as it was given.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Its statements, in order, without the semicolons.
    pub statements: Vec<Written>,
}

/// A statement in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The line on which it begins, counted from 1.
    pub line: usize,
    /// Its text.
    pub sql: String,
}

impl Script {
    /// Reads a file.
    ///
    /// # Errors
    /// Exit code 2 where it cannot be read, holds no statement, something that psql would do
    /// and no server, or a statement that reaches beyond the restored copy.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: &str| Error::usage(what.to_owned()).at(path.display());
        let metadata = std::fs::metadata(path)
            .map_err(|error| wrong("the migration cannot be read").because(error))?;
        if metadata.len() > LARGEST {
            return Err(wrong("the migration is larger than 64 MiB"));
        }
        let bytes = std::fs::read(path).on("read", path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| wrong("the migration is not UTF-8").because(error))?;
        let statements = statements(text).map_err(|why| {
            wrong(&why).hint(
                "a rehearsal runs SQL statements, and those that stay on the restored copy; write out what psql would do, and leave out the rest",
            )
        })?;
        if statements.is_empty() {
            return Err(wrong("the migration holds no statement"));
        }
        let mut hasher = StoredHasher::default();
        hasher.update(&bytes);
        Ok(Self {
            path: path.display().to_string(),
            sha256: hasher.finish().to_string(),
            statements,
        })
    }
}

/// The statements of a text.
///
/// # Errors
/// What is no SQL, or must not be rehearsed, with its line.
pub fn statements(text: &str) -> Result<Vec<Written>, String> {
    let mut scanner = Scanner::of(text);
    let mut found = Vec::new();
    while let Some(statement) = scanner.next()? {
        if first_words(&statement.sql)
            .first()
            .is_some_and(|first| first == "COPY")
            && statement.sql.to_uppercase().contains("FROM STDIN")
        {
            return Err(format!(
                "line {}: COPY FROM STDIN takes its rows from psql",
                statement.line
            ));
        }
        if let Some(why) = refused(text, scanner.tokens()) {
            return Err(format!("line {}: {why}", statement.line));
        }
        found.push(statement);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        let found = statements(text).unwrap();
        found.into_iter().map(|written| written.sql).collect()
    }

    #[test]
    fn semicolons_end_statements_only_outside_of_everything() {
        for (text, wanted) in [
            ("", vec![]),
            (" ;; -- nothing;\n ", vec![]),
            ("SELECT 1; SELECT 2", vec!["SELECT 1", "SELECT 2"]),
            ("SELECT ';';\nx", vec!["SELECT ';'", "x"]),
            ("SELECT 'it''s;'; x", vec!["SELECT 'it''s;'", "x"]),
            (r"SELECT '\'; x", vec![r"SELECT '\'", "x"]),
            (r"SELECT E'\';'; x", vec![r"SELECT E'\';'", "x"]),
            ("SELECT \"a;b\"; x", vec!["SELECT \"a;b\"", "x"]),
            ("DO $$ a; $x$ b; $$; x", vec!["DO $$ a; $x$ b; $$", "x"]),
            ("DO $é$ a;$$; $é$; x", vec!["DO $é$ a;$$; $é$", "x"]),
            ("SELECT a$$; x", vec!["SELECT a$$", "x"]),
            (
                "PREPARE p AS SELECT $1; x",
                vec!["PREPARE p AS SELECT $1", "x"],
            ),
            (
                "a /* ; /* ; */ ; */ b; x",
                vec!["a /* ; /* ; */ ; */ b", "x"],
            ),
            ("a -- ;\n b; x", vec!["a -- ;\n b", "x"]),
            (
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); x",
                vec![
                    "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
                    "x",
                ],
            ),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; x",
                vec![
                    "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
                    "x",
                ],
            ),
            ("BEGIN; x; END", vec!["BEGIN", "x", "END"]),
        ] {
            assert_eq!(cut(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_statement_knows_its_line_and_its_first_words() {
        let found = statements("-- a migration\n\n/* one */ ALTER TABLE t\n ADD x int;\nVACUUM;");
        let found = found.unwrap();
        assert_eq!((found[0].line, found[1].line), (3, 5));
        assert_eq!(
            first_words("/* x */ create index Concurrently i"),
            ["CREATE", "INDEX", "CONCURRENTLY", "I"]
        );
    }

    #[test]
    fn what_only_psql_understands_is_named_with_its_line() {
        for (text, wanted) in [
            (
                "SELECT 1;\n\\i other.sql",
                r"line 2: \i is a command of psql",
            ),
            ("COPY t FROM stdin;\n1\n", "line 1: COPY FROM STDIN"),
            ("SELECT 'x", "line 1: a quote has no end"),
            ("SELECT 1;\nDO $a$ x", "line 2: $a$ has no end"),
            ("/* /* */", "line 1: a comment has no end"),
        ] {
            let error = statements(text).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
