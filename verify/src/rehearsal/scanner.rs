//! Where statements end, and what they are made of: words, texts, comments and signs
//! (PostgreSQL 18, psqlscan.l and scan.l).

use std::ops::Range;

use super::script::Written;

/// A part of a statement. Ranges are those of the text that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A key word or a name without quotes, in capitals.
    Word(String),
    /// A string constant, with its quotes.
    Text {
        /// From the quote on, without an E before it.
        range: Range<usize>,
        /// Whether its quotes are dollars.
        dollars: bool,
    },
    /// A comment of either kind.
    Comment(Range<usize>),
    /// Anything else, by its first character.
    Sign(char),
}

/// The first words of a statement, at most four, in capitals; comments before them are passed
/// over.
pub(super) fn first_words(sql: &str) -> Vec<String> {
    let mut scanner = Scanner::of(sql);
    let _ = scanner.next();
    scanner.words
}

/// What a text is made of, which may be several statements, or the body of a routine.
///
/// # Errors
/// A quote or a comment has no end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut scanner = Scanner {
        whole: true,
        ..Scanner::of(text)
    };
    scanner.next()?;
    Ok(scanner.tokens)
}

/// Reads a text statement by statement.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Where the statement begins.
    begin: Option<usize>,
    parentheses: usize,
    /// Its first words outside parentheses, in capitals.
    words: Vec<String>,
    /// BEGIN and CASE without their END, in a function's body.
    bodies: usize,
    /// All parts of the statement.
    tokens: Vec<Token>,
    /// Semicolons and backslashes are parts like others.
    whole: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            begin: None,
            parentheses: 0,
            words: Vec::new(),
            bodies: 0,
            tokens: Vec::new(),
            whole: false,
        }
    }

    /// What the last statement is made of.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The next statement; its first words stay in `words`, its parts in `tokens`.
    pub(super) fn next(&mut self) -> Result<Option<Written>, String> {
        (self.begin, self.parentheses, self.bodies) = (None, 0, 0);
        self.words.clear();
        self.tokens.clear();
        while let Some(c) = self.rest().chars().next() {
            let here = self.at;
            if c.is_whitespace() {
                self.at += c.len_utf8();
                continue;
            }
            if self.rest().starts_with("--") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
                self.tokens.push(Token::Comment(here..self.at));
                continue;
            }
            if self.rest().starts_with("/*") {
                self.comment()?;
                self.tokens.push(Token::Comment(here..self.at));
                continue;
            }
            if c == ';' && !self.whole && self.parentheses == 0 && self.bodies == 0 {
                self.at += 1;
                if let Some(begin) = self.begin {
                    return Ok(Some(self.written(begin, here)));
                }
                continue;
            }
            self.begin.get_or_insert(here);
            match c {
                '\\' if !self.whole => {
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
                    self.text_since(here, false);
                    continue;
                }
                '"' => {
                    self.quoted('"', false)?;
                    self.tokens.push(Token::Sign('"'));
                    continue;
                }
                '$' if self.dollar_quoted()? => {
                    self.text_since(here, true);
                    continue;
                }
                c if c.is_alphabetic() || c == '_' || !c.is_ascii() => {
                    self.word()?;
                    continue;
                }
                c if c.is_ascii_digit() => {
                    // `1$$` is no quote: digits and a sign belong together.
                    let rest = self.rest();
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$');
                    self.at += end.unwrap_or(rest.len());
                    self.tokens.push(Token::Sign(c));
                    continue;
                }
                _ => {}
            }
            self.at += c.len_utf8();
            self.tokens.push(Token::Sign(c));
        }
        let end = self.text.len();
        Ok(self.begin.map(|begin| self.written(begin, end)))
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn text_since(&mut self, begin: usize, dollars: bool) {
        self.tokens.push(Token::Text {
            range: begin..self.at,
            dollars,
        });
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

    /// From the quote on. A doubled quote is one of the text.
    fn quoted(&mut self, quote: char, backslashes: bool) -> Result<(), String> {
        let begin = self.at;
        self.at += 1;
        let mut escaped = false;
        while let Some(c) = self.rest().chars().next() {
            self.at += c.len_utf8();
            if escaped {
                escaped = false;
            } else if backslashes && c == '\\' || c == quote && self.rest().starts_with(quote) {
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
            let begin = self.at;
            self.quoted('\'', true)?;
            self.text_since(begin, false);
            return Ok(());
        }
        self.tokens.push(Token::Word(word.clone()));
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
