//! Total loss: the drill is kept away from the primary, its disks and its network, as if they
//! were gone; and shows that it is.
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

use landlock::{
    ABI, Access, AccessNet, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seawall::config::{ClusterConfig, Config, RepositoryConfig};
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::connection::{ConnectionString, Endpoint, Surroundings};
use seawall::postgres::sql::Client;

use crate::report::Isolation;

/// Ports that every drill may connect to: names (53), and where clouds hand out credentials (80).
const ALWAYS: [u16; 2] = [53, 80];

/// What the drill is kept away from.
#[derive(Debug)]
pub struct Walls {
    /// Directories of the primary.
    hidden: Vec<PathBuf>,
    /// Why paths are not hidden, if they are not.
    paths_open: Option<String>,
    /// Ports that are left, or why all are.
    ports: Result<BTreeSet<u16>, String>,
}

impl Walls {
    /// Builds them around this process and all that it starts. Call it before the first thread
    /// is made, as the user who runs the servers.
    ///
    /// # Errors
    /// What the drill needs lies where it would be hidden. A host that allows no walls is no
    /// error: see [`prove`](Self::prove).
    pub fn build(
        cluster: &ClusterConfig,
        config: &Config,
        repository: &RepositoryConfig,
        scratch: &Path,
    ) -> Result<Self> {
        let hidden = directories(&cluster.data_directory);
        let local = repository.url.strip_prefix("file://").map(PathBuf::from);
        let needed = [Some(config.path.clone()), local, Some(scratch.to_owned())];
        for needed in needed.into_iter().flatten() {
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
        let paths_open = hide(&hidden, &sockets(cluster)).err();
        Ok(Self {
            hidden,
            paths_open: paths_open.map(|error| error.one_line()),
            ports: close_ports(repository).map_err(|error| error.one_line()),
        })
    }

    /// Tries to read the primary's disks and to connect to it, as this drill and all that it
    /// runs could: both must fail.
    pub async fn prove(&self, cluster: &ClusterConfig) -> Vec<Isolation> {
        let read = self.hidden.iter().find_map(|path| {
            let file = path.join("PG_VERSION");
            File::open(&file).is_ok().then_some(file)
        });
        let how = match &self.paths_open {
            None => "an empty file system lies over it".to_owned(),
            Some(why) => format!("this host does not let the drill hide it ({why})"),
        };
        let names: Vec<String> = self
            .hidden
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let disks = Isolation {
            claim: "the primary's disks are unreadable",
            held: Some(read.is_none()),
            proof: match read {
                None => format!("no PG_VERSION can be opened in {}; {how}", names.join(", ")),
                Some(file) => format!("{} can be opened; {how}", file.display()),
            },
        };
        let ports = match &self.ports {
            Ok(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                format!("the kernel allows TCP to ports {} only", ports.join(", "))
            }
            Err(why) => format!("this host does not let the drill close ports ({why})"),
        };
        let reached = Client::of_cluster(cluster).await;
        let network = Isolation {
            claim: "the primary cannot be reached",
            held: Some(reached.is_err()),
            proof: match reached {
                Ok(client) => format!("{} answers; {ports}", client.place()),
                Err(error) => format!("connecting failed: {}; {ports}", error.one_line()),
            },
        };
        vec![disks, network]
    }
}

/// Refuses where a wall does not hold.
pub fn require(proofs: &[Isolation]) -> Result<()> {
    match proofs.iter().find(|wall| wall.held == Some(false)) {
        None => Ok(()),
        Some(open) => Err(Error::refused(format!(
            "this is no total loss: not true that {}",
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

/// The Unix sockets of the cluster's connection.
fn sockets(cluster: &ClusterConfig) -> Vec<PathBuf> {
    let text = cluster
        .connection
        .as_ref()
        .and_then(|text| text.resolve().ok())
        .unwrap_or_default();
    let Ok(connection) = ConnectionString::parse(&text, &Surroundings::of_process()) else {
        return Vec::new();
    };
    let hosts = connection.hosts.iter();
    hosts
        .filter_map(|host| match &host.endpoint {
            Endpoint::Socket(directory) => Some(directory.join(format!(".s.PGSQL.{}", host.port))),
            Endpoint::Tcp { .. } => None,
        })
        .collect()
}

/// Hides directories and sockets from this process and its children, in a namespace of theirs.
fn hide(directories: &[PathBuf], sockets: &[PathBuf]) -> Result<()> {
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
fn close_ports(repository: &RepositoryConfig) -> Result<BTreeSet<u16>> {
    let cannot = |error: landlock::RulesetError| Error::failed("cannot close ports").because(error);
    let ports = ports_of(repository);
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
    let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
    let proxies: Vec<String> = proxies
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .collect();
    let texts = options.iter().chain(&proxies);
    let found = texts
        .filter_map(|text| url::Url::parse(text).ok())
        .filter_map(|url| url.port_or_known_default());
    ports.extend(found);
    ports
}
