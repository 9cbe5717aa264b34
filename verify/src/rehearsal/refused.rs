//! Statements that are not rehearsed, since what they do is not undone with the copy: they
//! reach another server, a program or a file of this host. The walls around the instance hold
//! without this; it says so before anything is restored, instead of a failure afterwards.

use super::scanner::{Token, tokens};

/// Why a statement is refused; `text` is what its tokens were read from.
pub(super) fn refused(text: &str, statement: &[Token]) -> Option<String> {
    let parts: Vec<&Token> = statement
        .iter()
        .filter(|token| !matches!(token, Token::Comment(_)))
        .collect();
    itself(&parts).or_else(|| {
        if !has_body(&parts) {
            return None;
        }
        parts.iter().find_map(|part| match part {
            Token::Text { range, dollars } => within(text.get(range.clone())?, *dollars),
            _ => None,
        })
    })
}

/// Whether texts of the statement are SQL that it, or what it makes, runs.
pub(super) fn has_body(parts: &[&Token]) -> bool {
    let mut words = parts.iter().map_while(|part| word(part));
    match words.next() {
        Some("DO") => true,
        Some("CREATE") => words
            .take(3)
            .any(|word| matches!(word, "FUNCTION" | "PROCEDURE")),
        _ => false,
    }
}

/// A text without its quotes.
pub(super) fn inside(quoted: &str, dollars: bool) -> &str {
    let length = match dollars {
        true => quoted[1..].find('$').map_or(1, |at| at + 2),
        false => 1,
    };
    quoted
        .get(length..quoted.len().saturating_sub(length))
        .unwrap_or_default()
}

/// Bodies of routines, and in them texts that are to be executed.
fn within(quoted: &str, dollars: bool) -> Option<String> {
    let body = inside(quoted, dollars);
    let body = match dollars {
        true => body.to_owned(),
        false => body.replace("''", "'"),
    };
    // A body in another language need not be SQL at all.
    let read = tokens(&body).ok()?;
    let parts: Vec<&Token> = read
        .iter()
        .filter(|token| !matches!(token, Token::Comment(_)))
        .collect();
    itself(&parts).or_else(|| {
        read.iter().find_map(|token| match token {
            Token::Text { range, dollars } => within(body.get(range.clone())?, *dollars),
            _ => None,
        })
    })
}

fn itself(parts: &[&Token]) -> Option<String> {
    let mut copies = false;
    for (at, part) in parts.iter().enumerate() {
        let next = parts.get(at + 1);
        let (Some(first), second) = (word(part), next.and_then(|next| word(next))) else {
            continue;
        };
        if begins(at.checked_sub(1).and_then(|before| parts.get(before))) {
            copies = first == "COPY";
            let why = match (first, second) {
                ("CREATE" | "ALTER" | "DROP", Some("SUBSCRIPTION")) => {
                    "would reach the publisher, and change its replication slots"
                }
                ("CREATE", Some("TABLESPACE")) => {
                    "would write outside of the drill's own directory"
                }
                ("ALTER", Some("SYSTEM")) => {
                    "would change the server's settings, which keep the drill apart from production"
                }
                _ => continue,
            };
            return Some(format!("{first} {} {why}", second.unwrap_or_default()));
        }
        match (copies, first, second, next) {
            (true, "TO" | "FROM", Some("PROGRAM"), _) if is_text(parts, at + 2) => {
                return Some(format!(
                    "COPY {first} PROGRAM would run a program on this host"
                ));
            }
            (true, "TO", _, _) if is_text(parts, at + 1) => {
                return Some(
                    "COPY TO a file would write outside of the drill's own directory".to_owned(),
                );
            }
            _ => {}
        }
    }
    None
}

/// Whether a statement begins behind that token, in a script or in PL/pgSQL.
fn begins(before: Option<&&Token>) -> bool {
    match before {
        None | Some(Token::Sign(';')) => true,
        Some(Token::Word(word)) => {
            matches!(word.as_str(), "BEGIN" | "THEN" | "ELSE" | "LOOP" | "ATOMIC")
        }
        _ => false,
    }
}

/// `'…'`, `$$…$$` or `U&'…'`.
fn is_text(parts: &[&Token], at: usize) -> bool {
    match parts.get(at) {
        Some(Token::Text { .. }) => true,
        Some(Token::Word(u)) if u == "U" => matches!(parts.get(at + 1), Some(Token::Sign('&'))),
        _ => false,
    }
}

fn word(token: &Token) -> Option<&str> {
    match token {
        Token::Word(word) => Some(word),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::statements;

    #[test]
    fn what_reaches_beyond_the_copy_is_refused_with_its_line() {
        for (sql, wanted) in [
            ("drop /* now */ subscription s", "DROP SUBSCRIPTION"),
            (
                "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p",
                "CREATE SUBSCRIPTION",
            ),
            ("ALTER SUBSCRIPTION s ENABLE", "ALTER SUBSCRIPTION"),
            ("CREATE TABLESPACE x LOCATION '/srv/x'", "CREATE TABLESPACE"),
            ("ALTER SYSTEM SET archive_mode = on", "ALTER SYSTEM"),
            ("COPY t TO PROGRAM 'sh'", "COPY TO PROGRAM"),
            ("COPY t (a) FROM\nPROGRAM $$sh$$", "COPY FROM PROGRAM"),
            ("COPY (SELECT 1) TO PROGRAM U&'sh'", "COPY TO PROGRAM"),
            ("COPY t TO E'/tmp/t'", "COPY TO a file"),
            (
                "DO $$ BEGIN IF true THEN COPY t TO PROGRAM 'sh'; END IF; END $$",
                "COPY TO PROGRAM",
            ),
            (
                "DO $$ BEGIN EXECUTE 'COPY t TO PROGRAM ''sh'''; END $$",
                "COPY TO PROGRAM",
            ),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE plpgsql AS 'BEGIN DROP SUBSCRIPTION s; END'",
                "DROP SUBSCRIPTION",
            ),
        ] {
            let error = statements(&format!("SELECT 1;\n{sql};")).unwrap_err();
            assert!(
                error.starts_with(&format!("line 2: {wanted} would ")),
                "{sql}: {error}"
            );
        }
    }

    #[test]
    fn what_only_looks_like_it_is_rehearsed() {
        for sql in [
            "ALTER TABLE t DROP subscription, ALTER system TYPE text, DROP tablespace",
            "SET search_path TO 'a'",
            "COPY t FROM '/srv/rows'",
            "COPY program TO STDOUT",
            "SELECT 'DROP SUBSCRIPTION s' FROM program",
            "DO $$ BEGIN RAISE NOTICE 'rows come from program x'; END $$",
            "CREATE FUNCTION f() RETURNS text LANGUAGE plperl AS $$ return 'it; $$",
            "ALTER TABLESPACE fast RENAME TO faster",
            "DROP \"subscription\"",
        ] {
            assert_eq!(statements(sql).map(|all| all.len()), Ok(1), "{sql}");
        }
    }
}
