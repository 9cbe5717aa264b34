//! Values that may be secret: a string, `{ env = "NAME" }` or `{ file = "PATH" }`.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A value that may be secret. It is looked up when it is needed, and never printed.
#[derive(Clone, Deserialize)]
#[serde(from = "Source")]
pub struct SecretValue(Source);

#[derive(Clone, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a string, { env = \"NAME\" } or { file = \"PATH\" }"
)]
enum Source {
    Text(String),
    Number(i64),
    Switch(bool),
    // Not structs of their own: serde would read those from a list as well, and print as the
    // name of a variable or a file what was meant as a value.
    Environment { env: String },
    File { file: PathBuf },
}

impl From<Source> for SecretValue {
    fn from(source: Source) -> Self {
        Self(source)
    }
}

impl SecretValue {
    /// The value. An error names the variable or the file, never a value.
    pub fn resolve(&self) -> Result<String> {
        match &self.0 {
            Source::Text(text) => Ok(text.clone()),
            Source::Number(number) => Ok(number.to_string()),
            Source::Switch(switch) => Ok(switch.to_string()),
            Source::Environment { env } => std::env::var(env).map_err(|_| {
                Error::usage(format!("the environment variable {env} is not set"))
                    .hint("the configuration takes a value from it")
            }),
            Source::File { file } => std::fs::read_to_string(file)
                .map(|text| text.trim_end_matches(['\n', '\r']).to_owned())
                .map_err(|error| {
                    Error::usage("cannot read a value of the configuration from its file")
                        .at(file.display())
                        .because(error)
                }),
        }
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Environment { env } => write!(f, "{{ env = {env:?} }}"),
            Source::File { file } => write!(f, "{{ file = {file:?} }}"),
            _ => f.write_str("[redacted]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        value: SecretValue,
    }

    fn read(text: &str) -> SecretValue {
        toml::from_str::<Holder>(text).unwrap().value
    }

    #[test]
    fn a_value_comes_from_a_string_a_variable_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), b"from file\n").unwrap();
        let from_file = read(&format!("value = {{ file = {:?} }}", file.path()));
        assert_eq!(from_file.resolve().unwrap(), "from file");
        assert_eq!(read("value = \"plain\"").resolve().unwrap(), "plain");
        assert_eq!(read("value = true").resolve().unwrap(), "true");
        assert!(
            !read("value = { env = \"PATH\" }")
                .resolve()
                .unwrap()
                .is_empty()
        );
        let error = read("value = { env = \"SEAWALL_NO_SUCH\" }")
            .resolve()
            .unwrap_err();
        assert!(error.to_string().contains("SEAWALL_NO_SUCH"));
    }

    #[test]
    fn a_misspelt_source_is_refused() {
        assert!(toml::from_str::<Holder>("value = { evn = \"X\" }").is_err());
        assert!(toml::from_str::<Holder>("value = { env = \"X\", file = \"y\" }").is_err());
    }
}
