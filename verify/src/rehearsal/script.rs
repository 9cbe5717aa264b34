//! A file of SQL, cut into its statements as psql cuts it (PostgreSQL 18, psqlscan.l): at
//! semicolons outside quotes, comments, parentheses and the bodies of SQL functions.

use std::path::Path;

use seawall::digest::StoredHasher;
use seawall::error::{Error, IoContext, Result};

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
    /// Exit code 2 where it cannot be read, holds no statement, or something that psql would
    /// do and no server.
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
            wrong(&why).hint("a rehearsal runs SQL statements; write out what psql would do")
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
/// What is no SQL, with its line.
pub fn statements(text: &str) -> Result<Vec<Written>, String> {
    let mut scanner = Scanner {
        text,
        at: 0,
        begin: None,
        parentheses: 0,
        words: Vec::new(),
        bodies: 0,
    };
    let mut found = Vec::new();
    while let Some(statement) = scanner.next()? {
        if first_words(&statement.sql, 1) == ["COPY"]
            && statement.sql.to_uppercase().contains("FROM STDIN")
        {
            return Err(format!(
                "line {}: COPY FROM STDIN takes its rows from psql",
                statement.line
            ));
        }
        found.push(statement);
    }
    Ok(found)
}

/// The first words of a statement, in capitals; comments before them are passed over.
pub(super) fn first_words(sql: &str, count: usize) -> Vec<String> {
    let mut scanner = Scanner {
        text: sql,
        at: 0,
        begin: None,
        parentheses: 0,
        words: Vec::new(),
        bodies: 0,
    };
    let _ = scanner.next();
    scanner.words.truncate(count);
    scanner.words
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Where the statement begins.
    begin: Option<usize>,
    parentheses: usize,
    /// Its first words outside parentheses, in capitals.
    words: Vec<String>,
    /// BEGIN and CASE without their END, in a function's body.
    bodies: usize,
}

impl Scanner<'_> {
    /// The next statement; its first words stay in `words`.
    fn next(&mut self) -> Result<Option<Written>, String> {
        (self.begin, self.parentheses, self.bodies) = (None, 0, 0);
        self.words.clear();
        while let Some(c) = self.rest().chars().next() {
            let here = self.at;
            if c.is_whitespace() {
                self.at += c.len_utf8();
                continue;
            }
            if self.rest().starts_with("--") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
                continue;
            }
            if self.rest().starts_with("/*") {
                self.comment()?;
                continue;
            }
            if c == ';' && self.parentheses == 0 && self.bodies == 0 {
                self.at += 1;
                if let Some(begin) = self.begin {
                    return Ok(Some(self.written(begin, here)));
                }
                continue;
            }
            self.begin.get_or_insert(here);
            match c {
                '\\' => {
                    let command: String = self
                        .rest()
                        .chars()
                        .take_while(|c| !c.is_whitespace())
                        .collect();
                    return Err(format!(
                        "line {}: {command} is a command of psql",
                        self.line(here)
                    ));
                }
                '(' => self.parentheses += 1,
                ')' => self.parentheses = self.parentheses.saturating_sub(1),
                '\'' => {
                    self.quoted('\'', false)?;
                    continue;
                }
                '"' => {
                    self.quoted('"', false)?;
                    continue;
                }
                '$' if self.dollar_quoted()? => continue,
                c if c.is_alphabetic() || c == '_' || !c.is_ascii() => {
                    self.word()?;
                    continue;
                }
                c if c.is_ascii_digit() => {
                    // `1$$` is no quote: digits and a sign belong together.
                    let rest = self.rest();
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$');
                    self.at += end.unwrap_or(rest.len());
                    continue;
                }
                _ => {}
            }
            self.at += c.len_utf8();
        }
        let end = self.text.len();
        Ok(self.begin.map(|begin| self.written(begin, end)))
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn written(&self, begin: usize, end: usize) -> Written {
        Written {
            line: self.line(begin),
            sql: self.text[begin..end].trim_end().to_owned(),
        }
    }

    /// Comments nest.
    fn comment(&mut self) -> Result<(), String> {
        let begin = self.at;
        let mut depth = 0;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                let Some(c) = rest.chars().next() else {
                    return Err(format!("line {}: a comment has no end", self.line(begin)));
                };
                self.at += c.len_utf8();
            }
        }
    }

    /// From the quote on. A doubled quote is one of the text, and comes out right as two texts.
    fn quoted(&mut self, quote: char, backslashes: bool) -> Result<(), String> {
        let begin = self.at;
        self.at += 1;
        let mut escaped = false;
        while let Some(c) = self.rest().chars().next() {
            self.at += c.len_utf8();
            if escaped {
                escaped = false;
            } else if backslashes && c == '\\' {
                escaped = true;
            } else if c == quote {
                return Ok(());
            }
        }
        Err(format!("line {}: a quote has no end", self.line(begin)))
    }

    /// `$$…$$` or `$tag$…$tag$`; nothing is passed over where a parameter stands.
    fn dollar_quoted(&mut self) -> Result<bool, String> {
        let rest = self.rest();
        let Some(end) = rest[1..].find('$') else {
            return Ok(false);
        };
        let tag = &rest[..end + 2];
        let name = &tag[1..tag.len() - 1];
        let plain = |c: char| c.is_alphanumeric() || c == '_' || !c.is_ascii();
        if !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(false);
        }
        match rest[tag.len()..].find(tag) {
            Some(length) => {
                self.at += 2 * tag.len() + length;
                Ok(true)
            }
            None => Err(format!("line {}: {tag} has no end", self.line(self.at))),
        }
    }

    /// A word, or a text with a word before it, such as E'…'.
    fn word(&mut self) -> Result<(), String> {
        let rest = self.rest();
        let of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        let length = rest.find(|c| !of_word(c)).unwrap_or(rest.len());
        let word = rest[..length].to_uppercase();
        self.at += length;
        if word == "E" && self.rest().starts_with('\'') {
            return self.quoted('\'', true);
        }
        if self.parentheses > 0 {
            return Ok(());
        }
        match word.as_str() {
            "BEGIN" if self.makes_routine() => self.bodies += 1,
            "CASE" if self.bodies > 0 => self.bodies += 1,
            "END" => self.bodies = self.bodies.saturating_sub(1),
            _ => {}
        }
        if self.words.len() < 4 {
            self.words.push(word);
        }
        Ok(())
    }

    /// Whether the statement began with CREATE [OR REPLACE] FUNCTION or PROCEDURE.
    fn makes_routine(&self) -> bool {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let words = match words.as_slice() {
            ["CREATE", "OR", "REPLACE", rest @ ..] | ["CREATE", rest @ ..] => rest,
            _ => return false,
        };
        matches!(words.first(), Some(&("FUNCTION" | "PROCEDURE")))
    }
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
            first_words("/* x */ create index Concurrently i", 3),
            ["CREATE", "INDEX", "CONCURRENTLY"]
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
