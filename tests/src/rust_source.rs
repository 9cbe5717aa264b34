//! Rust's sources as words and signs, for the test that checks who uses whom.

/// A word or a sign.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    /// A keyword or a name.
    Word(String),
    /// `::`
    Path,
    /// Any other character.
    Sign(char),
}

/// Rust's words and signs, without comments, texts and characters.
pub fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        match rest {
            ['/', '/', ..] => at += rest.iter().take_while(|c| **c != '\n').count(),
            ['/', '*', ..] => at += block_comment(rest),
            ['"', ..] => at += text(rest),
            ['\'', '\\', ..] => {
                let end = rest.iter().skip(3).position(|c| *c == '\'');
                at += end.map_or(rest.len(), |end| end + 4);
            }
            ['\'', _, '\'', ..] => at += 3,
            [':', ':', ..] => {
                tokens.push(Token::Path);
                at += 2;
            }
            [first, ..] if first.is_alphabetic() || *first == '_' => {
                let is_word = |c: &&char| c.is_alphanumeric() || **c == '_';
                let word: String = rest.iter().take_while(is_word).collect();
                let after = &rest[word.chars().count()..];
                at += word.chars().count();
                let raw = ["r", "br", "cr"].contains(&word.as_str());
                if raw && matches!(after, ['"', ..] | ['#', '"' | '#', ..]) {
                    at += raw_text(after);
                } else {
                    tokens.push(Token::Word(word));
                }
            }
            [first, ..] => {
                if !first.is_whitespace() {
                    tokens.push(Token::Sign(*first));
                }
                at += 1;
            }
            [] => break,
        }
    }
    tokens
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            [_, ..] => at += 1,
            [] => return at,
        }
        if depth == 0 {
            return at;
        }
    }
}

fn text(rest: &[char]) -> usize {
    let mut at = 1;
    loop {
        match &rest[at.min(rest.len())..] {
            ['\\', ..] => at += 2,
            ['"', ..] => return at + 1,
            [_, ..] => at += 1,
            [] => return rest.len(),
        }
    }
}

fn raw_text(rest: &[char]) -> usize {
    let hashes = rest.iter().take_while(|c| **c == '#').count();
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let inside = &rest[(hashes + 1).min(rest.len())..];
    inside
        .windows(end.len())
        .position(|window| window == end)
        .map_or(rest.len(), |position| hashes + 1 + position + end.len())
}
