//! Errors of TOML with the line, and the nearest known key as a hint.

use std::path::Path;

use crate::error::Error;

/// Turns a TOML error into one with the nearest known key as a hint. The offending line itself
/// is not shown: it may hold a secret.
pub(super) fn explain(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let message = error.message();
    let before = error
        .span()
        .and_then(|span| text.get(..span.start))
        .unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let failure = Error::usage("the configuration is not valid")
        .at(format!("{}, line {line}", path.display()))
        .because(message.to_owned());
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            let nearest = known.iter().max_by(|a, b| {
                strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
            });
            match nearest {
                Some(nearest) => failure.hint(format!("did you mean `{nearest}`?")),
                None => failure,
            }
        }
        _ => failure,
    }
}
