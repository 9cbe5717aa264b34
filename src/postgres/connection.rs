//! Connection strings in libpq's words, and what each of them means here.
//!
//! Keyword/value strings and `postgresql://` URIs are read as libpq reads them; a word that
//! is not honoured is refused by name, never ignored. Of the environment only `PGPASSWORD`
//! and `PGPASSFILE` count: a backup must not go to another server because a shell had
//! `PGHOST` set. Connecting itself is `sql`'s work. Facts: chapter "libpq" of PostgreSQL's
//! documentation and `src/interfaces/libpq/fe-connect.c`.

mod passfile;
mod text;
pub mod tls;
mod words;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::config::ClusterConfig;
use crate::error::{Error, Result};
pub use passfile::Password;
pub use tls::RootCertificates;
use words::Words;

/// Where and as whom to connect. Neither `Display` nor `Debug` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    /// Where to try, one after the other; never empty.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// The password, from the string or `PGPASSWORD`; see also [`Self::password_for`].
    password: Option<String>,
    /// Where to look for one otherwise.
    passfile: Option<PathBuf>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// How long one host may take to answer; none waits for ever. 30 s unless
    /// `connect_timeout` says otherwise: nobody watches an unattended backup hang.
    pub connect_timeout: Option<Duration>,
    /// Command-line options for the server's process.
    pub options: Option<String>,
    /// Whether to use TLS, and what it must prove. Unix sockets never do.
    pub ssl_mode: SslMode,
    /// Whom to trust.
    pub ssl_root: RootCertificates,
    /// Which of the hosts will do.
    pub target_session_attrs: TargetSession,
    /// Seconds of silence after which TCP probes the peer; none leaves it to the system.
    pub keepalives_idle: Option<Duration>,
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// How it is reached.
    pub endpoint: Endpoint,
    /// Its port, or the number of its socket.
    pub port: u16,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The directory of a Unix socket.
    Socket(PathBuf),
    /// TCP.
    Tcp {
        /// The name to look up and to find in the certificate.
        name: String,
        /// The address, where `hostaddr` gave it.
        address: Option<IpAddr>,
    },
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS only where the server refuses to go without.
    Allow,
    /// TLS where the server has it.
    Prefer,
    /// TLS; the certificate is checked only if there are root certificates.
    Require,
    /// TLS, and the certificate comes from someone we trust.
    VerifyCa,
    /// And it is for the host that we named.
    VerifyFull,
}

/// libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Any server.
    Any,
    /// One that takes writes.
    ReadWrite,
    /// One that takes none.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is.
    Standby,
}

/// What a connection string takes from around it.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// The operating system's user: the default role.
    pub user: Option<String>,
    /// Where `.pgpass` and `.postgresql` lie.
    pub home: Option<PathBuf>,
    /// `PGPASSWORD`
    pub password: Option<String>,
    /// `PGPASSFILE`
    pub passfile: Option<PathBuf>,
}

/// libpq's default on Debian and Red Hat.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// A server that did not answer in time.
pub(super) fn no_answer(limit: Duration, place: &str) -> Error {
    let seconds = limit.as_secs();
    Error::failed(format!("PostgreSQL did not answer within {seconds} s"))
        .at(place)
        .hint("is it running, and does a firewall let us through? connect_timeout=SECONDS waits longer")
        .retryable(true)
}

impl ConnectionString {
    /// What the configuration says of the server of `cluster`, with the environment's words.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and where a secret cannot be read.
    pub fn of_cluster(cluster: &ClusterConfig) -> Result<Self> {
        let text = match &cluster.connection {
            Some(connection) => connection.resolve()?,
            None => String::new(),
        };
        Self::parse(&text, &Surroundings::of_process())
    }

    /// Reads a connection string. Errors name the word that is wrong and never show a value
    /// that may be a secret.
    pub fn parse(text: &str, around: &Surroundings) -> Result<Self> {
        let mut words = Words::default();
        for (keyword, value) in text::pairs(text)? {
            words.set(&keyword, value)?;
        }
        let user = words.take("user").or_else(|| around.user.clone());
        let user = user.ok_or_else(|| {
            usage(
                "it names no user, and the system has no name for this one",
                "add user=…",
            )
        })?;
        let ssl_root = match words.take("sslrootcert") {
            Some(system) if system == "system" => RootCertificates::System,
            Some(file) => RootCertificates::File(file.into()),
            None => {
                let default = around.home.as_ref().map(|h| h.join(".postgresql/root.crt"));
                default.map_or(RootCertificates::None, RootCertificates::FileIfThere)
            }
        };
        let ssl_mode = match (words.take("sslmode"), &ssl_root) {
            (None, RootCertificates::System) => SslMode::VerifyFull,
            (None, _) => SslMode::Prefer,
            (Some(mode), root) => {
                let mode = mode.parse()?;
                if *root == RootCertificates::System && mode != SslMode::VerifyFull {
                    return Err(usage(
                        "sslrootcert=system with a weak sslmode proves nothing",
                        "use sslmode=verify-full",
                    ));
                }
                mode
            }
        };
        let passfile = words.take("passfile").map(PathBuf::from);
        let passfile = passfile.or_else(|| around.passfile.clone());
        let default = || around.home.as_ref().map(|home| home.join(".pgpass"));
        for (word, fine) in [
            ("client_encoding", &["auto", "utf8", "utf-8"][..]),
            ("gssencmode", &["disable", "prefer"]),
        ] {
            match words.take(word) {
                Some(value) if !fine.contains(&value.to_lowercase().as_str()) => {
                    return Err(usage(&format!("{word} can't be set here"), "leave it out"));
                }
                _ => {}
            }
        }
        let given_name = words.take("application_name");
        let fallback = words.take("fallback_application_name");
        Ok(Self {
            hosts: words.hosts()?,
            dbname: words.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: words.take("password").or_else(|| around.password.clone()),
            passfile: passfile.or_else(default),
            application_name: given_name.or(fallback).unwrap_or_else(|| "seawall".into()),
            connect_timeout: match words.seconds("connect_timeout")? {
                None => Some(Duration::from_secs(30)),
                Some(0) => None,
                // libpq rounds 1 up to 2.
                Some(seconds) => Some(Duration::from_secs(seconds.max(2))),
            },
            options: words.take("options"),
            ssl_mode,
            ssl_root,
            target_session_attrs: match words.take("target_session_attrs") {
                None => TargetSession::Any,
                Some(attributes) => attributes.parse()?,
            },
            keepalives_idle: words
                .seconds("keepalives_idle")?
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        })
    }

    /// The password for one of the hosts: the string's, else `PGPASSWORD`, else what the
    /// password file has for it. The file is read each time: passwords change.
    pub fn password_for(&self, host: &Host) -> Password {
        match (&self.password, &self.passfile) {
            (Some(password), _) => Password::Known(password.clone().into_bytes()),
            (None, None) => Password::Unknown,
            (None, Some(file)) => {
                let name = match &host.endpoint {
                    // libpq's own rule for its default directory.
                    Endpoint::Socket(path) if path.as_os_str() == SOCKET_DIRECTORY => {
                        "localhost".into()
                    }
                    Endpoint::Socket(path) => path.to_string_lossy(),
                    Endpoint::Tcp { name, .. } => name.as_str().into(),
                };
                passfile::look_up(
                    file,
                    [&name, &host.port.to_string(), &self.dbname, &self.user],
                )
            }
        }
    }

    /// One host of several, for messages: `host=… port=… user=… dbname=…`.
    pub fn place(&self, host: &Host) -> String {
        format!("{host} user={} dbname={}", self.user, self.dbname)
    }
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten();
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            home: home
                .map(PathBuf::from)
                .or_else(|| user.as_ref().map(|user| user.dir.clone())),
            user: user.map(|user| user.name),
            password: set("PGPASSWORD"),
            passfile: set("PGPASSFILE").map(PathBuf::from),
        }
    }
}

fn usage(why: &str, hint: &str) -> Error {
    Error::usage(format!("connection string: {why}")).hint(hint)
}

impl FromStr for ConnectionString {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, &Surroundings::of_process())
    }
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(usage(
                    &format!("sslmode {text:?} is unknown"),
                    "disable, allow, prefer, require, verify-ca or verify-full",
                ));
            }
        })
    }
}

impl FromStr for TargetSession {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            _ => {
                return Err(usage(
                    &format!("target_session_attrs {text:?} is not honoured"),
                    "any, read-write, read-only, primary or standby",
                ));
            }
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Socket(directory) => write!(f, "host={}", directory.display())?,
            Endpoint::Tcp { name, .. } => write!(f, "host={name}")?,
        }
        write!(f, " port={}", self.port)
    }
}

impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for host in &self.hosts {
            write!(f, "{host} ")?;
        }
        write!(f, "user={} dbname={}", self.user, self.dbname)
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
