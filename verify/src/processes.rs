//! Processes as `/proc` shows them: those that descend from one, those that work in a
//! directory, what they take of the memory, and what they listen on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall::error::{Error, IoContext, Result};

use crate::host;

/// The state of a TCP socket that listens, as `/proc/net/tcp` writes it.
const LISTENING: &str = "0A";

/// What a drill runs in its directory, besides programs of our own.
const PROGRAMS: [&str; 4] = ["postgres", "pg_amcheck", "pg_checksums", "pg_verifybackup"];

/// A process and all that descend from it, parents first.
pub fn tree(root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all() {
        // "PID (name that may hold anything) STATE PPID …"
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        tree.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    tree
}

/// Processes whose working directory lies in `directory`, as far as this user may see.
pub fn working_in(directory: &Path) -> Vec<i32> {
    all()
        .into_iter()
        .filter(|pid| *pid > 1)
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .collect()
}

/// Bytes of memory of a process. What it shares with others counts in part, so that the sum
/// over all of them is right; nothing for a process that has ended.
pub fn memory_of(pid: i32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .ok()
        .and_then(|text| host::kibibytes(&text, "Pss:"))
        .unwrap_or(0)
}

/// The shared libraries that it has in its memory, and its program; none where nobody may look.
pub fn libraries_of(pid: i32) -> Vec<PathBuf> {
    let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut files: Vec<PathBuf> = String::from_utf8_lossy(&maps)
        .lines()
        // "address permissions offset device inode    /the/file"; other memory has no inode.
        .filter(|line| line.split_whitespace().nth(4) != Some("0"))
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .collect();
    files.sort();
    files.dedup();
    files
}

/// What it was called with, or what it calls itself, as PostgreSQL's processes do.
pub fn command_of(pid: i32) -> String {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// The TCP sockets on which one of `pids` listens, as the kernel writes their addresses; and
/// how many sockets of any kind were looked at.
///
/// # Errors
/// A process that is there and cannot be looked at: then nobody knows.
pub fn listening(pids: &[i32]) -> Result<(Vec<String>, usize)> {
    let mut sockets = BTreeSet::new();
    let mut addresses = Vec::new();
    for pid in pids {
        let directory = format!("/proc/{pid}/fd");
        let entries = match std::fs::read_dir(&directory) {
            // It has ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.on("look at", &directory)?,
        };
        for entry in entries.flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            sockets.extend(inode.map(str::to_owned));
        }
    }
    let Some(first) = pids.first() else {
        return Ok((addresses, 0));
    };
    // Of the network that these processes live in, which need not be ours.
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/{first}/net/{table}");
        let text = match std::fs::read_to_string(&path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && table == "tcp6" => {
                continue;
            }
            text => text.on("read", &path)?,
        };
        for line in text.lines().skip(1) {
            // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (words.get(1), words.get(3), words.get(9))
            else {
                continue;
            };
            if *state == LISTENING && sockets.contains(*inode) {
                addresses.push(format!("{table} {local}"));
            }
        }
    }
    Ok((addresses, sockets.len()))
}

/// Whether it is one of those that a drill runs. A shell that stands in the directory is a
/// person's, or the server's to fetch WAL, and ends with that.
fn is_a_drills(pid: i32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = program.file_name().map(|name| name.to_string_lossy());
    let name = name.unwrap_or_default();
    // So the kernel writes where the file was replaced meanwhile.
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    PROGRAMS.contains(&name) || name.starts_with("seawall")
}

/// Ends what a drill that was killed left running in its directory: the server, and programs of
/// PostgreSQL's and ours. Each by its id, and only while its working directory says so.
pub(crate) fn end_in(directory: &Path) -> Result<()> {
    let directory = directory.canonicalize().on("find", directory)?;
    let postmaster = std::fs::read_to_string(directory.join("data/postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse::<i32>().ok());
    for (signal, patience) in [(Signal::SIGQUIT, 10), (Signal::SIGKILL, 10)] {
        let deadline = Instant::now() + Duration::from_secs(patience);
        let mut told = Vec::new();
        loop {
            let mut left = working_in(&directory);
            left.retain(|pid| is_a_drills(*pid));
            if left.is_empty() {
                return Ok(());
            }
            // An immediate shutdown by the postmaster ends the others; without one, each is
            // told itself.
            let leader = left.iter().find(|pid| Some(**pid) == postmaster);
            let addressed: Vec<i32> = match (signal, leader) {
                (Signal::SIGQUIT, Some(leader)) => vec![*leader],
                _ => left,
            };
            for pid in addressed {
                if !told.contains(&pid) {
                    told.push(pid);
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Err(Error::failed("the server of a dead drill does not end").at(directory.display()))
}

fn all() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_and_who_only_connects_is_not() {
        let own = [std::process::id() as i32];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let port = format!("{:04X}", address.port());
        let (found, sockets) = listening(&own).unwrap();
        assert!(
            found.iter().any(|one| one.ends_with(&port)) && sockets > 0,
            "{found:?}"
        );
        let _client = std::net::TcpStream::connect(address).unwrap();
        drop(listener);
        let (found, _) = listening(&own).unwrap();
        assert!(!found.iter().any(|one| one.ends_with(&port)), "{found:?}");
    }

    #[test]
    fn a_server_that_was_left_is_ended_and_a_shell_in_its_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("drill");
        std::fs::create_dir(&place).unwrap();
        let server = directory.path().join("postgres");
        std::fs::copy("/bin/sleep", &server).unwrap();
        let start = |program: &Path| {
            let mut command = std::process::Command::new(program);
            command.arg("600").current_dir(&place).spawn().unwrap()
        };
        let (mut server, mut shell) = (start(&server), start(Path::new("/bin/sleep")));
        let waits = std::thread::spawn(move || server.wait().unwrap());
        end_in(&place).unwrap();
        assert!(!waits.join().unwrap().success());
        assert!(shell.try_wait().unwrap().is_none(), "it was ended");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn a_child_is_in_the_tree_and_takes_memory() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(20);
        // A process that is just becoming another program has neither words nor memory.
        let (found, memory, command) = loop {
            let found = tree(std::process::id() as i32).contains(&pid);
            let seen = (found, memory_of(pid), command_of(pid));
            if seen.1 > 0 && seen.2 == "sleep 60" || Instant::now() > deadline {
                break seen;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found && memory > 0, "{found} {memory}");
        assert_eq!(command, "sleep 60");
        assert_eq!(memory_of(pid), 0);
    }
}
