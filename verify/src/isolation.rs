//! The walls between a scratch instance and production, each looked at while the instance
//! runs, once it is open and again before it stops: in its processes and files, and in what it
//! answers. That its settings ask for them proves nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use seawall::error::Result;
use seawall::postgres::sql::Client;

use crate::instance::Instance;
use crate::report::Isolation;
use crate::scratch::Scratch;
use crate::{libraries, processes};

const NO_PORT: &str = "no TCP port";
const NO_ARCHIVING: &str = "nothing is archived";
const NO_STREAM: &str = "no replication from anywhere";
const OWN_FILES: &str = "all files in the scratch directory";
const OWN_LIBRARIES: &str = "no library that production loads";
const OWN_SOCKET: &str = "a socket for this user alone";

/// Settings that are looked at.
const SETTINGS: [&str; 10] = [
    "listen_addresses",
    "archive_mode",
    "archive_command",
    "max_logical_replication_workers",
    "primary_conninfo",
    "data_directory",
    "unix_socket_directories",
    libraries::SETTINGS[0],
    libraries::SETTINGS[1],
    libraries::SETTINGS[2],
];

/// What is known of libraries before anything is looked at.
pub struct Libraries<'a> {
    /// `[drill.settings]`.
    pub owner: &'a BTreeMap<String, String>,
    /// What the source's configuration says, as far as it was restored.
    pub source: &'a BTreeMap<String, String>,
    /// The server's program.
    pub postgres: &'a Path,
}

/// The first look, with each wall that fell before the second one.
pub fn both(first: Vec<Isolation>, second: Vec<Isolation>) -> Vec<Isolation> {
    let looks = first.into_iter().zip(second);
    looks
        .map(|(first, second)| match (first.held, second.held) {
            (Some(true), Some(false)) => Isolation {
                proof: format!(
                    "it held at first, and not after the checks: {}",
                    second.proof
                ),
                ..second
            },
            (Some(true), None) => second,
            _ => first,
        })
        .collect()
}

/// Looks at each wall of an instance that runs.
///
/// # Errors
/// It does not answer.
pub async fn look(
    instance: &Instance,
    client: &Client,
    scratch: &Scratch,
    libraries: &Libraries<'_>,
) -> Result<Vec<Isolation>> {
    let settings = client.settings(&SETTINGS).await?;
    let shown = |name: &str| {
        settings
            .get(name)
            .map_or("", |setting| setting.value.as_str())
    };
    let pids = processes::tree(instance.pid());
    let session = client.query_text("SELECT pg_backend_pid()").await?;
    let session = session.and_then(|pid| pid.parse::<i32>().ok());
    let mapped = |pid: i32| processes::libraries_of(pid);
    let mapped = (
        mapped(instance.pid()),
        session.map_or_else(Vec::new, mapped),
    );
    let titles: Vec<String> = pids.iter().map(|pid| processes::command_of(*pid)).collect();
    Ok(vec![
        no_port(&pids, shown("listen_addresses")),
        no_archiving(&titles, shown("archive_mode"), shown("archive_command")),
        no_stream(
            &titles,
            shown("max_logical_replication_workers"),
            shown("primary_conninfo"),
        ),
        own_files(scratch, Path::new(shown("data_directory"))),
        own_libraries(libraries, &shown, mapped),
        own_socket(
            scratch,
            instance.socket_directory(),
            shown("unix_socket_directories"),
        ),
    ])
}

/// The same walls where no instance ran that could be looked at.
pub fn not_looked_at() -> Vec<Isolation> {
    [
        NO_PORT,
        NO_ARCHIVING,
        NO_STREAM,
        OWN_FILES,
        OWN_LIBRARIES,
        OWN_SOCKET,
    ]
    .map(|claim| Isolation {
        claim,
        held: None,
        proof: "the server did not open".to_owned(),
    })
    .into()
}

/// Why a drill fails whose walls did not hold.
pub fn failures(walls: &[Isolation]) -> Vec<String> {
    let fallen = walls.iter().filter(|wall| wall.held == Some(false));
    fallen
        .map(|wall| {
            format!(
                "the drill was not apart from production: {}: {}",
                wall.claim, wall.proof
            )
        })
        .collect()
}

fn no_port(pids: &[i32], addresses: &str) -> Isolation {
    let asked = format!("listen_addresses is '{addresses}'");
    match processes::listening(pids) {
        Ok((listening, sockets)) if listening.is_empty() => wall(
            NO_PORT,
            addresses.is_empty(),
            format!(
                "{asked}; none of the {sockets} sockets of {} processes listens in /proc/net/tcp or tcp6",
                pids.len()
            ),
        ),
        Ok((listening, _)) => wall(
            NO_PORT,
            false,
            format!("{asked}; it listens on {}", listening.join(", ")),
        ),
        Err(error) => Isolation {
            claim: NO_PORT,
            held: None,
            proof: format!("{asked}; its sockets are not known: {}", error.one_line()),
        },
    }
}

fn no_archiving(titles: &[String], mode: &str, command: &str) -> Isolation {
    let archiver = process_called(titles, &["archiver"]);
    let seen = archiver.as_deref().unwrap_or("none");
    wall(
        NO_ARCHIVING,
        mode == "off" && archiver.is_none(),
        format!(
            "archive_mode is {mode}, archive_command is '{command}'; archiver among {} processes: {seen}",
            titles.len()
        ),
    )
}

fn no_stream(titles: &[String], workers: &str, conninfo: &str) -> Isolation {
    let receiver = process_called(titles, &["walreceiver", "logical replication"]);
    let seen = receiver.as_deref().unwrap_or("none");
    // It may hold a password.
    let conninfo_words = if conninfo.is_empty() { "''" } else { "set" };
    wall(
        NO_STREAM,
        workers == "0" && conninfo.is_empty() && receiver.is_none(),
        format!(
            "max_logical_replication_workers is {workers}, primary_conninfo is {conninfo_words}; walreceiver or subscription worker among {} processes: {seen}",
            titles.len()
        ),
    )
}

/// A process of PostgreSQL's with that duty. Sessions carry names that anybody may choose.
fn process_called(titles: &[String], duties: &[&str]) -> Option<String> {
    let found = titles.iter().find(|title| {
        let duty = title.strip_prefix("postgres: ").unwrap_or_default();
        let session = duty.contains(" [local] ") || duty.ends_with(" [local]");
        !session && duties.iter().any(|wanted| duty.starts_with(wanted))
    });
    found.cloned()
}

/// The data directory, its WAL and every tablespace, with all links followed.
fn own_files(scratch: &Scratch, data: &Path) -> Isolation {
    let mut places = vec![data.to_owned(), data.join("pg_wal")];
    let links = std::fs::read_dir(data.join("pg_tblspc"));
    let known = links.is_ok();
    places.extend(links.into_iter().flatten().flatten().map(|e| e.path()));
    let outside: Vec<String> = places
        .iter()
        .filter(|place| !scratch.holds(place))
        .map(|place| {
            let real = place.canonicalize().unwrap_or_else(|_| place.clone());
            format!("{} is {}", place.display(), real.display())
        })
        .collect();
    let seen = if outside.is_empty() {
        "all within".to_owned()
    } else {
        outside.join(", ")
    };
    wall(
        OWN_FILES,
        known && outside.is_empty(),
        format!(
            "data directory, pg_wal and {} tablespaces, links followed: {seen}",
            places.len() - 2
        ),
    )
}

/// Nothing is loaded but what the owner asks the drill to: by the settings of a session, and by
/// what the postmaster, whose processes all have what it has, and that session have in their
/// memory. A session may have loaded more, as a conversion of characters: there nothing may be
/// that the source preloads.
fn own_libraries<'a>(
    about: &Libraries<'_>,
    shown: &impl Fn(&str) -> &'a str,
    (postmaster, session): (Vec<PathBuf>, Vec<PathBuf>),
) -> Isolation {
    let mut held = true;
    let seen = libraries::SETTINGS.map(|name| {
        let asked = about.owner.get(name).map_or("", String::as_str);
        let there = shown(name);
        held &= there == asked;
        match there == asked && !asked.is_empty() {
            true => format!("{name} is '{there}', as [drill.settings] says"),
            false => format!("{name} is '{there}'"),
        }
    });
    let asked = libraries::stems(about.owner);
    let preloaded = libraries::stems(about.source);
    let directory = libraries::library_directory(about.postgres);
    // What the owner loads may load others.
    let free = asked.is_empty();
    // libc and its like may lie in the same directory.
    let is_module = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".so") && !name.starts_with("lib")
    };
    let of_server = |path: &Path| free && is_module(path) && directory.as_deref() == path.parent();
    let is_foreign = |path: &Path| {
        let stem = libraries::stem(path);
        preloaded.contains(&stem) && !asked.contains(&stem)
    };
    let mut foreign: Vec<String> = postmaster
        .iter()
        .filter(|path| is_foreign(path) || of_server(path))
        .chain(session.iter().filter(|path| is_foreign(path)))
        .map(|path| path.display().to_string())
        .collect();
    foreign.sort();
    foreign.dedup();
    held &= foreign.is_empty();
    let looked = match (postmaster.is_empty(), foreign.is_empty()) {
        (true, _) => "what the postmaster has loaded is not known".to_owned(),
        (false, true) => "the memory of the postmaster and of a session holds no other".to_owned(),
        (false, false) => format!("loaded all the same: {}", foreign.join(", ")),
    };
    Isolation {
        claim: OWN_LIBRARIES,
        // A process always has libraries: where none are seen, nobody could look.
        held: (!postmaster.is_empty() || !held).then_some(held),
        proof: format!("{}; {looked}", seen.join("; ")),
    }
}

fn own_socket(scratch: &Scratch, sockets: &Path, directories: &str) -> Isolation {
    let Ok(metadata) = sockets.metadata() else {
        return wall(OWN_SOCKET, false, format!("{} is gone", sockets.display()));
    };
    let mode = metadata.mode() & 0o777;
    let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
    let owner = if ours { "this user" } else { "another user" };
    wall(
        OWN_SOCKET,
        mode == 0o700 && ours && scratch.holds(sockets),
        format!(
            "unix_socket_directories is {directories}; the directory is {owner}'s, with mode {mode:04o}"
        ),
    )
}

fn wall(claim: &'static str, held: bool, proof: String) -> Isolation {
    Isolation {
        claim,
        held: Some(held),
        proof,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(all: &[&str]) -> Vec<String> {
        all.iter().map(|title| (*title).to_owned()).collect()
    }

    #[test]
    fn an_archiver_and_a_receiver_are_seen_and_a_session_with_such_a_name_is_not() {
        let well = titles(&["postgres -D x", "postgres: archiver archiver [local] idle"]);
        assert_eq!(no_archiving(&well, "off", "").held, Some(true));
        assert_eq!(no_archiving(&well, "on", "").held, Some(false));
        assert_eq!(no_stream(&well, "0", "").held, Some(true));
        assert_eq!(no_stream(&well, "4", "").held, Some(false));
        let secret = no_stream(&well, "0", "host=x password=geheim");
        assert!(secret.held == Some(false) && !secret.proof.contains("geheim"));
        let archives = titles(&["postgres: archiver last was 00000001000000000000000A"]);
        assert_eq!(no_archiving(&archives, "off", "").held, Some(false));
        for process in [
            "postgres: walreceiver streaming 0/3000000",
            "postgres: logical replication launcher",
        ] {
            assert_eq!(no_stream(&titles(&[process]), "0", "").held, Some(false));
        }
    }

    #[test]
    fn a_tablespace_that_leads_out_of_the_scratch_directory_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let live = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        let data = scratch.path().join("data");
        let tablespace = scratch.path().join("tablespaces/1");
        std::fs::create_dir_all(data.join("pg_wal")).unwrap();
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::fs::create_dir_all(&tablespace).unwrap();
        std::os::unix::fs::symlink(&tablespace, data.join("pg_tblspc/1")).unwrap();
        assert_eq!(own_files(&scratch, &data).held, Some(true));
        std::os::unix::fs::symlink(live.path(), data.join("pg_tblspc/2")).unwrap();
        let fallen = own_files(&scratch, &data);
        let real = live.path().canonicalize().unwrap();
        assert!(fallen.proof.contains(&*real.to_string_lossy()));
        let why = failures(&[fallen, no_archiving(&[], "off", "")]);
        assert_eq!(why.len(), 1);
        assert!(why[0].contains("was not apart from production"), "{why:?}");
    }

    #[test]
    fn a_wall_that_fell_after_the_first_look_has_fallen() {
        let look = |held| vec![no_archiving(&[], if held { "off" } else { "on" }, "")];
        let held = |first, second| both(look(first), look(second))[0].held;
        assert_eq!(held(true, true), Some(true));
        assert_eq!(held(true, false), Some(false));
        assert_eq!(held(false, true), Some(false));
        let why = failures(&both(look(true), look(false)));
        assert!(
            why[0].contains("not after the checks: archive_mode is on"),
            "{why:?}"
        );
    }

    #[test]
    fn a_port_a_foreign_library_and_an_open_directory_are_fallen_walls() {
        let own = [std::process::id() as i32];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(no_port(&own, "").held, Some(false));
        drop(listener);
        assert_eq!(no_port(&[], "*").held, Some(false));
        assert_eq!(no_port(&[], "").held, Some(true));
        let owner = [("shared_preload_libraries".to_owned(), "mine".to_owned())].into();
        let none = BTreeMap::new();
        let source = [(
            "shared_preload_libraries".to_owned(),
            "pg_cron, mine".to_owned(),
        )]
        .into();
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("lib")).unwrap();
        std::fs::create_dir_all(root.join("bin")).unwrap();
        for file in ["lib/plpgsql.so", "bin/postgres"] {
            std::fs::File::create(root.join(file)).unwrap();
        }
        let postgres = root.join("bin/postgres");
        let about = |owner| Libraries {
            owner,
            source: &source,
            postgres: &postgres,
        };
        let shown = |value: &'static str| {
            move |name: &str| match name {
                "shared_preload_libraries" => value,
                _ => "",
            }
        };
        let files = |names: &[&str]| -> Vec<PathBuf> {
            let all = ["/lib/libc.so.6"].iter().chain(names);
            all.map(|name| root.join(name)).collect()
        };
        let judge = |owner, value, postmaster: &[&str], session: &[&str]| {
            let mapped = (files(postmaster), files(session));
            own_libraries(&about(owner), &shown(value), mapped).held
        };
        assert_eq!(judge(&owner, "mine", &["lib/mine.so"], &[]), Some(true));
        assert_eq!(judge(&owner, "pg_cron", &[], &[]), Some(false));
        // Whatever the settings say.
        let cron = &["lib/pg_cron.so"][..];
        assert_eq!(judge(&owner, "mine", cron, &[]), Some(false));
        assert_eq!(judge(&owner, "mine", &[], cron), Some(false));
        let other = &["lib/utf8_and_euc_jp.so"][..];
        assert_eq!(judge(&none, "", &[], other), Some(true));
        assert_eq!(judge(&none, "", other, &[]), Some(false));
        let unseen = own_libraries(&about(&none), &shown(""), (Vec::new(), Vec::new()));
        assert_eq!(unseen.held, None);
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        let judge = |place: &Path| own_socket(&scratch, place, "").held;
        assert_eq!(judge(scratch.path()), Some(true));
        assert_eq!(judge(parent.path()), Some(false));
    }
}
