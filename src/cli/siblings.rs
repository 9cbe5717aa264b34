//! `seawall restore`, `drill`, `archive` and `fetch` run the program that lies beside
//! `seawall`, found from its own path and never from `$PATH`, as git and cargo do.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};

/// The verbs that are programs of their own, and how they are called.
pub const SIBLINGS: [(&str, &str); 4] = [
    ("restore", "seawall-restore"),
    ("drill", "seawall-drill"),
    ("archive", "seawall-archive"),
    ("fetch", "seawall-fetch"),
];

/// The program beside this one.
pub fn path_of(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()
        .map_err(|error| Error::failed("cannot find where this program lies").because(error))?;
    let path = own.with_file_name(program);
    if !path.is_file() {
        return Err(
            Error::failed(format!("{program} is not installed beside seawall"))
                .at(path.display())
                .hint("install all five programs into one directory: `make install`"),
        );
    }
    Ok(path)
}

/// Becomes the sibling program, with the same arguments. Returns only if that fails.
pub fn exec(program: &str, arguments: impl Iterator<Item = OsString>) -> Error {
    match path_of(program) {
        Err(error) => error,
        Ok(path) => {
            let error = Command::new(&path).args(arguments).exec();
            Error::failed("cannot run a sibling program")
                .at(path.display())
                .because(error)
        }
    }
}
