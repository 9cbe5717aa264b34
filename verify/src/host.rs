//! The host that a drill runs on: its processors, memory, system, and free space.

use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};
use seawall::error::{IoContext, Result};

/// Processors of this host, whichever of them this process may use.
pub fn processors() -> usize {
    sysconf(SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(1)
}

/// Memory of this host in bytes, if the kernel says.
pub fn memory() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// A line such as `MemTotal:  16316412 kB` of a file in `/proc`, in bytes.
pub(crate) fn kibibytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// `Linux 6.1.0 x86_64, Debian GNU/Linux 12 (bookworm)`.
pub fn system() -> String {
    let mut words = match nix::sys::utsname::uname() {
        Ok(name) => format!(
            "{} {} {}",
            name.sysname().display(),
            name.release().display(),
            name.machine().display()
        ),
        Err(_) => std::env::consts::OS.to_owned(),
    };
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    if let Some(pretty) = pretty {
        words += ", ";
        words += pretty.trim_matches('"');
    }
    words
}

/// Bytes that this user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let status = nix::sys::statvfs::statvfs(path)
        .map_err(std::io::Error::from)
        .on("look at", path)?;
    Ok(status.blocks_available() as u64 * status.fragment_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described_by_the_kernel() {
        assert!(processors() >= 1);
        assert!(memory().unwrap() > 64 << 20);
        assert!(system().starts_with("Linux "));
        assert_eq!(kibibytes("A: 1 kB\nPss:   3 kB\n", "Pss:"), Some(3072));
        assert_eq!(kibibytes("Pss:   three kB\n", "Pss:"), None);
    }
}
