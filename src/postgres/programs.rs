//! PostgreSQL's own programs for the cluster's major version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// The directory of PostgreSQL's programs of one major version.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
    major: u32,
}

impl Programs {
    /// Finds them: the configured directory, Debian's and Red Hat's places, then `$PATH`.
    ///
    /// # Errors
    /// None of that major version; the error names the package that has them.
    pub fn find(major: u32, configured: Option<&Path>) -> Result<Self> {
        let usual = [
            PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
            PathBuf::from(format!("/usr/pgsql-{major}/bin")),
        ];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = match configured {
            Some(directory) => vec![directory.to_owned()],
            None => usual
                .into_iter()
                .chain(std::env::split_paths(&path))
                .collect(),
        };
        candidates
            .into_iter()
            .find(|directory| major_in(directory) == Some(major))
            .map(|directory| Self { directory, major })
            .ok_or_else(|| {
                let error = Error::failed(format!("PostgreSQL {major} is not installed here"));
                match configured {
                    Some(directory) => error
                        .at(directory.display())
                        .hint("bin_directory of the cluster must hold postgres of that version"),
                    None => error.hint(format!(
                        "install {}, or set bin_directory for the cluster",
                        package(major, "postgres")
                    )),
                }
            })
    }

    /// The program, if it is installed: server-only packages lack some.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.join(name);
        path.is_file().then_some(path)
    }

    /// That a program, or the extension amcheck, is missing, and what brings it.
    pub fn missing(&self, name: &str) -> String {
        format!(
            "{name} is not installed: install {}",
            package(self.major, name)
        )
    }
}

/// The packages with a program of that major version, as Debian and PostgreSQL's own RPMs
/// divide them.
fn package(major: u32, name: &str) -> String {
    let (debian, rpm) = match name {
        "pg_amcheck" => ("client-", "-contrib"),
        "pg_verifybackup" => ("client-", "-server"),
        "amcheck" => ("", "-contrib"),
        _ => ("", "-server"),
    };
    format!("the package postgresql-{debian}{major} (RPM: postgresql{major}{rpm})")
}

/// The major version of `postgres` in that directory.
fn major_in(directory: &Path) -> Option<u32> {
    let program = directory.join("postgres");
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program).arg("--version").output().ok()?;
    // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = Programs::find(99, None).unwrap_err().to_string();
        assert!(
            error.contains("install the package postgresql-99 (RPM: postgresql99-server)"),
            "{error}"
        );
        let empty = tempfile::tempdir().unwrap();
        let error = Programs::find(15, Some(empty.path())).unwrap_err();
        assert!(error.to_string().contains("bin_directory"), "{error}");
        let programs = Programs {
            directory: empty.path().to_owned(),
            major: 16,
        };
        assert_eq!(programs.get("pg_amcheck"), None);
        assert_eq!(
            programs.missing("pg_amcheck"),
            "pg_amcheck is not installed: install the package postgresql-client-16 (RPM: postgresql16-contrib)"
        );
    }
}
