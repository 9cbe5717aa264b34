//! Walls between a drill and production. Every drill gives up all TCP connections but those to
//! its repositories: SQL connects by itself, through a subscription, a foreign table or dblink.
//! For a total loss the drill is kept away from the primary, its disks and its network, as if
//! they were gone, and shows that it is; in a rehearsal it is kept away, too.
//!
//! The process puts itself into a mount namespace of its own (a user namespace makes that
//! possible without rights, Linux 3.8) in which the primary's directories are empty and its
//! socket leads nowhere, and gives up all TCP connections but those to the ports of the
//! repository (Landlock, Linux 6.7). Whatever it runs inherits both: the server, the
//! restore_command, the checks. Where a host allows neither, what counts is the attempt: a
//! drill that can reach the primary is refused.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use landlock::{
    ABI, Access, AccessNet, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seawall::config::{ClusterConfig, Config, RepositoryConfig};
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::connection::{ConnectionString, Endpoint, Host, Surroundings};
use tokio::net::{TcpStream, UnixStream};

use crate::report::Isolation;

/// The wall of every drill.
const OUTGOING: &str = "no connection but to the repository";

/// How long a server may take to accept.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ports that every drill may connect to: names (53), and where clouds hand out credentials (80).
const ALWAYS: [u16; 2] = [53, 80];

/// What a drill is kept away from.
#[derive(Debug)]
pub struct Walls {
    /// Directories of the primary, and why they are not hidden, if they are not.
    hidden: Option<(Vec<PathBuf>, Result<(), String>)>,
    /// Where its server may listen.
    endpoints: Result<Vec<Host>, String>,
    /// Ports that are left, or why all are.
    ports: Result<BTreeSet<u16>, String>,
}

impl Walls {
    /// Builds them around this process and all that it starts: every drill gives up all
    /// connections but those to the `reached` repositories, and with `hide` the primary's
    /// directories and sockets. Call it before the first thread is made, as the user who runs
    /// the servers.
    ///
    /// # Errors
    /// What the drill needs lies where it would be hidden. A host that allows no walls is no
    /// error: see [`prove`](Self::prove).
    pub fn build(
        cluster: &ClusterConfig,
        config: &Config,
        reached: &[&RepositoryConfig],
        hide: bool,
    ) -> Result<Self> {
        let endpoints = endpoints(cluster);
        let hidden = match hide {
            true => {
                let data_directory = cluster.data_directory.as_deref();
                let directories = data_directory.map_or_else(Vec::new, directories);
                refuse_what_would_be_lost(config, reached, &directories)?;
                let sockets = sockets(endpoints.as_deref().unwrap_or_default());
                let done = hide_all(&directories, &sockets);
                Some((directories, done.map_err(|error| error.one_line())))
            }
            false => None,
        };
        Ok(Self {
            hidden,
            endpoints,
            ports: close_ports(reached).map_err(|error| error.one_line()),
        })
    }

    /// Of every drill: that nothing of it connects anywhere but to repositories.
    pub fn outgoing(&self) -> Isolation {
        let (held, proof) = match &self.ports {
            Ok(ports) if ports.is_empty() => {
                (Some(true), "the kernel allows no TCP at all".to_owned())
            }
            Ok(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let left = format!("the kernel allows TCP to ports {} only", ports.join(", "));
                (Some(true), left)
            }
            Err(why) => (
                None,
                format!("not tested: this host does not let the drill close ports ({why})"),
            ),
        };
        Isolation {
            claim: OUTGOING,
            held,
            proof,
        }
    }

    /// Of a total loss: tries to read the primary's disks and to connect to it, as this drill
    /// and all that it runs could. Both must fail.
    pub async fn prove(&self) -> Vec<Isolation> {
        let network = self.network().await;
        let disks = self.disks().into_iter();
        disks.chain([network, self.outgoing()]).collect()
    }

    fn disks(&self) -> Option<Isolation> {
        let (directories, done) = self.hidden.as_ref()?;
        // Any entry at all: neither a tablespace nor a directory of WAL holds a PG_VERSION.
        let open = directories
            .iter()
            .find(|path| std::fs::read_dir(path).is_ok_and(|mut all| all.next().is_some()));
        let how = match done {
            Ok(()) => "an empty file system lies over each that is there".to_owned(),
            Err(why) => format!("this host does not let the drill hide them ({why})"),
        };
        let names = directories.iter().map(|path| path.display().to_string());
        let names: Vec<String> = names.collect();
        Some(Isolation {
            claim: "the primary's disks are unreadable",
            held: Some(open.is_none()),
            proof: match open {
                None => format!("no entry can be read in {}; {how}", names.join(", ")),
                Some(path) => format!("{} can be read; {how}", path.display()),
            },
        })
    }

    /// Whoever accepts is reached, whatever he says then.
    async fn network(&self) -> Isolation {
        let mut tried = Vec::new();
        let mut reached = None;
        for host in self.endpoints.iter().flatten() {
            match knock(host).await {
                Ok(()) => reached = reached.or(Some(named(host))),
                Err(why) => tried.push(format!("{}: {why}", named(host))),
            }
        }
        let (held, proof) = match (&self.endpoints, reached) {
            (Err(why), _) => (
                None,
                format!("not tested: where it listens is not known: {why}"),
            ),
            (Ok(_), Some(place)) => (Some(false), format!("{place} answers")),
            (Ok(_), None) => (
                Some(true),
                format!("connecting fails: {}", tried.join("; ")),
            ),
        };
        let claim = "the primary cannot be reached";
        Isolation { claim, held, proof }
    }
}

/// Refuses where the configuration or a repository would be hidden.
fn refuse_what_would_be_lost(
    config: &Config,
    repositories: &[&RepositoryConfig],
    hidden: &[PathBuf],
) -> Result<()> {
    let local = repositories
        .iter()
        .filter_map(|r| r.url.strip_prefix("file://"));
    let needed = local.map(PathBuf::from).chain([config.path.clone()]);
    for needed in needed {
        let real = needed.canonicalize().unwrap_or_else(|_| needed.clone());
        if let Some(lost) = hidden.iter().find(|path| real.starts_with(path)) {
            return Err(Error::refused(format!(
                "{} would be lost with the primary: it lies in {}",
                needed.display(),
                lost.display()
            ))
            .hint("a backup that dies with its server is none: keep it elsewhere"));
        }
    }
    Ok(())
}

/// One attempt to connect, without a word to the server.
async fn knock(host: &Host) -> Result<(), String> {
    let attempt = async {
        match &host.endpoint {
            Endpoint::Socket(directory) => {
                let socket = directory.join(format!(".s.PGSQL.{}", host.port));
                UnixStream::connect(socket).await.map(drop)
            }
            Endpoint::Tcp {
                address: Some(address),
                ..
            } => TcpStream::connect((*address, host.port)).await.map(drop),
            Endpoint::Tcp { name, .. } => {
                let to = (name.as_str(), host.port);
                TcpStream::connect(to).await.map(drop)
            }
        }
    };
    match tokio::time::timeout(PATIENCE, attempt).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn named(host: &Host) -> String {
    match &host.endpoint {
        Endpoint::Socket(directory) => {
            format!("{}/.s.PGSQL.{}", directory.display(), host.port)
        }
        Endpoint::Tcp { name, .. } => format!("{name}:{}", host.port),
    }
}

/// Refuses where the primary is not shown to be away.
///
/// # Errors
/// Exit code 4.
pub fn require(proofs: &[Isolation]) -> Result<()> {
    let of_the_primary = proofs.iter().filter(|wall| wall.claim != OUTGOING);
    let mut open = of_the_primary.filter(|wall| wall.held != Some(true));
    match open.next() {
        None => Ok(()),
        Some(open) => Err(Error::refused(format!(
            "this is no total loss: it is not shown that {}",
            open.claim
        ))
        .because(open.proof.clone())
        .hint("run the drill on another host, or stop the primary's server for it")),
    }
}

/// The data directory and what its links lead to.
fn directories(data: &Path) -> Vec<PathBuf> {
    let mut directories = vec![data.to_owned()];
    let links = std::fs::read_dir(data.join("pg_tblspc"))
        .into_iter()
        .flatten()
        .flatten();
    let links = links.map(|link| link.path()).chain([data.join("pg_wal")]);
    for link in links {
        if link.is_symlink()
            && let Ok(real) = link.canonicalize()
        {
            directories.push(real);
        }
    }
    let mut real: Vec<PathBuf> = directories
        .into_iter()
        .map(|path| path.canonicalize().unwrap_or(path))
        .collect();
    real.dedup();
    real
}

/// Where the primary's server listens: by the cluster's connection, and by what the server
/// itself wrote down (PostgreSQL 18, `src/include/utils/pidfile.h`).
fn endpoints(cluster: &ClusterConfig) -> Result<Vec<Host>, String> {
    let text = match &cluster.connection {
        Some(text) => text.resolve().map_err(|error| error.one_line())?,
        None => String::new(),
    };
    let connection = ConnectionString::parse(&text, &Surroundings::of_process())
        .map_err(|error| error.one_line())?;
    let path = cluster.data_directory.as_ref();
    let path = path.map(|directory| directory.join("postmaster.pid"));
    let written = path.and_then(|path| std::fs::read_to_string(path).ok());
    let written = written.unwrap_or_default();
    let mut seen: Vec<Host> = Vec::new();
    for host in connection.hosts.into_iter().chain(written_down(&written)) {
        if !seen.contains(&host) {
            seen.push(host);
        }
    }
    Ok(seen)
}

/// What a postmaster.pid says of where its server listens.
fn written_down(text: &str) -> Vec<Host> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [_, _, _, port, directory, listens, ..] = lines.as_slice() else {
        return Vec::new();
    };
    let Ok(port) = port.parse() else {
        return Vec::new();
    };
    let address = match *listens {
        "" => None,
        "*" | "0.0.0.0" | "::" => Some("127.0.0.1"),
        address => Some(address),
    };
    let socket = Some(*directory).filter(|directory| !directory.is_empty());
    let endpoints = [
        socket.map(|directory| Endpoint::Socket(directory.into())),
        address.map(|name| Endpoint::Tcp {
            name: name.to_owned(),
            address: None,
        }),
    ];
    let endpoints = endpoints.into_iter().flatten();
    endpoints.map(|endpoint| Host { endpoint, port }).collect()
}

fn sockets(hosts: &[Host]) -> Vec<PathBuf> {
    let sockets = hosts.iter().filter_map(|host| match &host.endpoint {
        Endpoint::Socket(directory) => Some(directory.join(format!(".s.PGSQL.{}", host.port))),
        Endpoint::Tcp { .. } => None,
    });
    sockets.collect()
}

/// Hides directories and sockets from this process and its children, in a namespace of theirs.
fn hide_all(directories: &[PathBuf], sockets: &[PathBuf]) -> Result<()> {
    let there = |path: &&PathBuf| path.symlink_metadata().is_ok();
    let failed = |what: &str, errno: nix::Error| Error::failed(what.to_owned()).because(errno);
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| failed("cannot make a namespace", errno))?;
    // Until the ids are mapped, nothing can be opened as oneself. See user_namespaces(7).
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = Path::new("/proc/self").join(file);
        let mut file = File::options().write(true).open(&path).on("open", &path)?;
        file.write_all(text.as_bytes()).on("write", &path)?;
    }
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .map_err(|errno| failed("cannot keep mounts to this process", errno))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for directory in directories.iter().filter(there) {
        mount(
            Some("none"),
            directory,
            Some("tmpfs"),
            flags,
            Some("mode=0000,size=4k"),
        )
        .map_err(|errno| failed("cannot hide a directory", errno).at(directory.display()))?;
    }
    for socket in sockets.iter().filter(there) {
        mount(
            Some("/dev/null"),
            socket,
            nothing,
            MsFlags::MS_BIND,
            nothing,
        )
        .map_err(|errno| failed("cannot hide a socket", errno).at(socket.display()))?;
    }
    Ok(())
}

/// Gives up listening and all connections but those to the repository. Returns what is left.
fn close_ports(repositories: &[&RepositoryConfig]) -> Result<BTreeSet<u16>> {
    let cannot = |error: landlock::RulesetError| Error::failed("cannot close ports").because(error);
    let ports: BTreeSet<u16> = repositories.iter().flat_map(|r| ports_of(r)).collect();
    let net = AccessNet::from_all(ABI::V4);
    let mut ruleset = Ruleset::default()
        .handle_access(net)
        .and_then(Ruleset::create)
        .map_err(cannot)?;
    for port in &ports {
        let rule = NetPort::new(*port, AccessNet::ConnectTcp);
        ruleset = ruleset.add_rule(rule).map_err(cannot)?;
    }
    let status = ruleset.restrict_self().map_err(cannot)?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err(Error::failed(
            "this kernel cannot close ports (Linux 6.7 can)",
        ));
    }
    Ok(ports)
}

/// The ports of a repository's URL and of every URL among its options.
fn ports_of(repository: &RepositoryConfig) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from(ALWAYS);
    if repository.url.starts_with("file:") {
        return BTreeSet::new();
    }
    ports.insert(443);
    let options = repository.options.values();
    let options: Vec<String> = options.filter_map(|value| value.resolve().ok()).collect();
    // Proxies, endpoints, and where clouds hand out credentials.
    let named = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.ends_with("_PROXY") || name.contains("ENDPOINT") || name.contains("CREDENTIALS")
    };
    let surroundings: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| named(name))
        .map(|(_, value)| value)
        .collect();
    let texts = options.iter().chain(&surroundings);
    let found = texts
        .filter_map(|text| url::Url::parse(text).ok())
        .filter_map(|url| url.port_or_known_default());
    ports.extend(found);
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_wrote_down_where_it_listens_is_looked_for_there() {
        let text =
            "4711\n/data\n1700000000\n5433\n/var/run/postgresql\n*\n  5433001  0\nready   \n";
        let found: Vec<String> = written_down(text).iter().map(named).collect();
        assert_eq!(
            found,
            ["/var/run/postgresql/.s.PGSQL.5433", "127.0.0.1:5433"]
        );
        assert!(written_down("4711\n").is_empty());
        assert!(written_down("").is_empty());
    }

    #[test]
    fn what_is_not_shown_is_refused_as_what_is_open() {
        let wall = |claim, held| Isolation {
            claim,
            held,
            proof: "looked".to_owned(),
        };
        let network = "the primary cannot be reached";
        assert!(require(&[wall(network, Some(true)), wall(OUTGOING, None)]).is_ok());
        assert!(require(&[wall(network, Some(false))]).is_err());
        assert!(require(&[wall(network, None)]).is_err());
    }

    #[tokio::test]
    async fn a_server_that_accepts_is_reached_whatever_it_says() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint::Tcp {
            name: "127.0.0.1".to_owned(),
            address: None,
        };
        let host = Host { endpoint, port };
        assert!(knock(&host).await.is_ok());
        drop(listener);
        assert!(knock(&host).await.is_err());
    }
}
