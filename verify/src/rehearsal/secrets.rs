//! Passwords in statements: a report is kept for years in the repository, and read by many.
//! Where a statement may hold one, all its texts and comments are left out of what is shown.

use super::refused::{has_body, inside};
use super::scanner::{Token, tokens};

/// In capitals. Statements with one of these are taken to hold a secret: PASSWORD of roles and
/// in connection strings, CONNECTION of subscriptions, OPTIONS of servers and user mappings,
/// and URLs.
const TELLING: [&str; 8] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "CONNECTION",
    "OPTIONS",
    "://",
];

/// What stands for a text.
const BLANK: &str = "'…'";

/// A statement as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// Its text.
    pub(super) sql: String,
    /// What was left out.
    secrets: Vec<String>,
}

impl Shown {
    pub(super) fn of(sql: &str) -> Self {
        let mut shown = Self {
            sql: String::new(),
            secrets: Vec::new(),
        };
        let capitals = sql.to_uppercase();
        if TELLING.iter().any(|word| capitals.contains(word)) {
            shown.add(sql, true);
            // What a text is made of may be quoted without the rest.
            let pieces: Vec<String> = shown.secrets.iter().flat_map(|text| pieces(text)).collect();
            shown.secrets.extend(pieces);
            shown.secrets.retain(|secret| !secret.trim().is_empty());
            shown
                .secrets
                .sort_by_key(|secret| std::cmp::Reverse(secret.len()));
            shown.secrets.dedup();
        } else {
            sql.clone_into(&mut shown.sql);
        }
        shown
    }

    /// What a server said of the statement, which may quote it.
    pub(super) fn without_secrets(&self, said: &str) -> String {
        let all = self.secrets.iter();
        all.fold(said.to_owned(), |said, secret| without(&said, secret))
    }

    /// Adds a text; the body of a routine is shown without the texts in it.
    fn add(&mut self, text: &str, outermost: bool) {
        let Ok(parts) = tokens(text) else {
            self.sql += "…";
            self.secrets.push(text.to_owned());
            return;
        };
        let plain: Vec<&Token> = parts
            .iter()
            .filter(|token| !matches!(token, Token::Comment(_)))
            .collect();
        let has_body = outermost && has_body(&plain);
        let mut done = 0;
        for part in &parts {
            match part {
                Token::Text { range, dollars } => {
                    self.sql += &text[done..range.start];
                    let quoted = &text[range.clone()];
                    let content = inside(quoted, *dollars);
                    if *dollars && has_body {
                        let quote = &quoted[..(quoted.len() - content.len()) / 2];
                        self.sql += quote;
                        self.add(content, false);
                        self.sql += quote;
                    } else {
                        self.sql += BLANK;
                        self.secrets.push(content.to_owned());
                    }
                    done = range.end;
                }
                Token::Comment(range) => {
                    self.sql += &text[done..range.start];
                    done = range.end;
                }
                Token::Word(_) | Token::Sign(_) => {}
            }
        }
        self.sql += &text[done..];
    }
}

/// The values of a connection string or URL, and the words of any other text.
fn pieces(text: &str) -> Vec<String> {
    let quotes = |c| c == '\'' || c == '"' || c == '\\';
    let words = text.split_whitespace().flat_map(|word| {
        let value = word.split_once('=').map_or(word, |(_, value)| value);
        let parts = value.split(['/', ':', '@', '?', '&']);
        std::iter::once(value).chain(parts)
    });
    words
        .map(|word| word.trim_matches(quotes).to_owned())
        .collect()
}

/// Leaves out `secret` where it is a word of its own.
fn without(said: &str, secret: &str) -> String {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut kept = String::new();
    let mut rest = said;
    while let Some(at) = rest.find(secret) {
        let (before, after) = (&rest[..at], &rest[at + secret.len()..]);
        kept += before;
        let apart = !kept.ends_with(of_word) && !after.starts_with(of_word);
        kept += if apart { "…" } else { secret };
        rest = after;
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (sql, wanted) in [
            (
                "CREATE ROLE app PASSWORD 'geheim'",
                "CREATE ROLE app PASSWORD '…'",
            ),
            (
                "ALTER ROLE app password E'ge\\'heim' VALID UNTIL $$geheim$$",
                "ALTER ROLE app password E'…' VALID UNTIL '…'",
            ),
            (
                "CREATE USER MAPPING FOR a SERVER s OPTIONS (user 'u', password 'geheim')",
                "CREATE USER MAPPING FOR a SERVER s OPTIONS (user '…', password '…')",
            ),
            (
                "SELECT dblink('postgres://u:geheim@h/d')",
                "SELECT dblink('…')",
            ),
            (
                "DO $do$ BEGIN CREATE ROLE app PASSWORD 'geheim'; -- geheim\n END $do$",
                "DO $do$ BEGIN CREATE ROLE app PASSWORD '…'; \n END $do$",
            ),
            (
                "ALTER TABLE t ADD x text DEFAULT 'none' -- why",
                "ALTER TABLE t ADD x text DEFAULT 'none' -- why",
            ),
        ] {
            assert_eq!(Shown::of(sql).sql, wanted);
        }
    }

    #[test]
    fn what_the_server_quotes_of_a_secret_is_left_out() {
        let shown = Shown::of("CREATE SERVER s OPTIONS (c 'host=h password=''geheim''', n 'on')");
        assert_eq!(
            shown.without_secrets("no connection: missing \"=\" after \"geheim\" on h"),
            "no connection: missing \"=\" after \"…\" … …"
        );
        let plain = Shown::of("SELECT 'geheim'");
        assert_eq!(plain.without_secrets("at \"geheim\""), "at \"geheim\"");
    }
}
