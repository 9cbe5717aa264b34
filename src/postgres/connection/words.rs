//! libpq's keywords: those that are honoured, and those that are refused by name.

use std::net::IpAddr;

use super::{Endpoint, Host, SOCKET_DIRECTORY, usage};
use crate::error::Result;

/// Words that are honoured.
pub(super) const KNOWN: [&str; 17] = [
    "application_name",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "host",
    "hostaddr",
    "keepalives_idle",
    "options",
    "passfile",
    "password",
    "port",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
    "gssencmode",
];

/// libpq's other words, and what to do instead.
pub(super) const REFUSED: [(&str, &str); 27] = [
    (
        "service",
        "write the service's settings into the connection string",
    ),
    (
        "servicefile",
        "write the service's settings into the connection string",
    ),
    (
        "sslcert",
        "client certificates are not supported; use scram-sha-256 with a passfile",
    ),
    (
        "sslkey",
        "client certificates are not supported; use scram-sha-256 with a passfile",
    ),
    (
        "sslcertmode",
        "client certificates are not supported; leave it out",
    ),
    (
        "sslpassword",
        "client certificates are not supported; leave it out",
    ),
    ("sslcrl", "revocation lists are not supported; leave it out"),
    (
        "sslcrldir",
        "revocation lists are not supported; leave it out",
    ),
    (
        "sslcompression",
        "TLS compression is unsafe and not supported; leave it out",
    ),
    ("sslsni", "the host's name is always sent; leave it out"),
    (
        "sslnegotiation",
        "TLS is negotiated as by every server since 7.1; leave it out",
    ),
    (
        "ssl_min_protocol_version",
        "TLS 1.2 or later is always used; leave it out",
    ),
    (
        "ssl_max_protocol_version",
        "TLS 1.2 or later is always used; leave it out",
    ),
    (
        "channel_binding",
        "it is used wherever the server offers it; leave it out",
    ),
    (
        "require_auth",
        "use sslmode=verify-full to be sure of the server",
    ),
    (
        "requirepeer",
        "restrict who can write to the socket's directory instead",
    ),
    ("requiressl", "use sslmode=require"),
    (
        "krbsrvname",
        "Kerberos is not supported; use scram-sha-256 with a passfile",
    ),
    (
        "gsslib",
        "Kerberos is not supported; use scram-sha-256 with a passfile",
    ),
    (
        "gssdelegation",
        "Kerberos is not supported; use scram-sha-256 with a passfile",
    ),
    ("replication", "it is set where it is needed; leave it out"),
    (
        "load_balance_hosts",
        "hosts are tried in their order; leave it out",
    ),
    (
        "keepalives",
        "keepalives are always on; set keepalives_idle, or leave it out",
    ),
    (
        "keepalives_interval",
        "set keepalives_idle, or leave it out",
    ),
    ("keepalives_count", "set keepalives_idle, or leave it out"),
    ("tcp_user_timeout", "set keepalives_idle, or leave it out"),
    ("authtype", "it has had no meaning for long; leave it out"),
];

/// The words that were given. Like libpq's, a later one wins and an empty one is none.
#[derive(Default)]
pub(super) struct Words(Vec<(String, String)>);

impl Words {
    pub(super) fn set(&mut self, keyword: &str, value: String) -> Result<()> {
        if KNOWN.contains(&keyword) {
            self.0.retain(|(known, _)| known != keyword);
            if !value.is_empty() {
                self.0.push((keyword.to_owned(), value));
            }
            return Ok(());
        }
        if let Some((_, hint)) = REFUSED.iter().find(|(refused, _)| *refused == keyword) {
            return Err(usage(&format!("{keyword} is not honoured"), hint));
        }
        let near = KNOWN.iter().max_by(|a, b| {
            let like = |word: &str| strsim::jaro_winkler(word, keyword);
            like(a).total_cmp(&like(b))
        });
        let hint = match near.filter(|near| strsim::jaro_winkler(near, keyword) > 0.8) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known are {}", KNOWN.join(", ")),
        };
        Err(usage(&format!("{keyword:?} is unknown"), &hint))
    }

    pub(super) fn take(&mut self, keyword: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == keyword)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn seconds(&mut self, keyword: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(keyword) else {
            return Ok(None);
        };
        match value.trim().parse::<i64>() {
            Ok(seconds) => Ok(Some(seconds.max(0).unsigned_abs())),
            Err(_) => Err(usage(
                &format!("{keyword} is no number of seconds"),
                "give whole seconds",
            )),
        }
    }

    pub(super) fn hosts(&mut self) -> Result<Vec<Host>> {
        let list = |value: Option<String>| -> Vec<String> {
            let split = |value: String| value.split(',').map(|v| v.trim().to_owned()).collect();
            value.map(split).unwrap_or_default()
        };
        let (names, addresses) = (list(self.take("host")), list(self.take("hostaddr")));
        let ports = list(self.take("port"));
        let count = names.len().max(addresses.len()).max(1);
        let fits = |given: usize| given <= 1 && count == 1 || given == 0 || given == count;
        if !fits(names.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1)
        {
            return Err(usage(
                "host, hostaddr and port list different numbers of servers",
                "give one port for all, or as many as hosts",
            ));
        }
        (0..count)
            .map(|i| {
                let port = ports.get(i).or(ports.first().filter(|_| ports.len() == 1));
                let port = match port.map(String::as_str).filter(|port| !port.is_empty()) {
                    None => 5432,
                    Some(port) => match port.parse() {
                        Ok(port) if port > 0 => port,
                        _ => return Err(usage(&format!("{port:?} is no port"), "1 to 65535")),
                    },
                };
                let given = |list: &[String]| list.get(i).filter(|v| !v.is_empty()).cloned();
                let address = match given(&addresses) {
                    None => None,
                    Some(address) => Some(address.parse::<IpAddr>().map_err(|_| {
                        usage(
                            &format!("hostaddr {address:?} is no IP address"),
                            "use host=",
                        )
                    })?),
                };
                let endpoint = match (given(&names), address) {
                    (Some(name), None) if name.starts_with('/') => Endpoint::Socket(name.into()),
                    (Some(name), None) if name.starts_with('@') => {
                        return Err(usage(
                            "abstract sockets are not supported",
                            "use host=DIRECTORY",
                        ));
                    }
                    (None, None) => Endpoint::Socket(SOCKET_DIRECTORY.into()),
                    (Some(name), address) => Endpoint::Tcp { name, address },
                    (None, Some(address)) => Endpoint::Tcp {
                        name: address.to_string(),
                        address: Some(address),
                    },
                };
                Ok(Host { endpoint, port })
            })
            .collect()
    }
}
