//! Where the daemon shows its metrics and its status page, and to whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::SecretValue;

/// Where the daemon listens for those who look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::At).map_err(|_| {
                format!("{text:?} is no address: write one such as \"127.0.0.1:9734\", or \"off\"")
            }),
        }
    }
}

/// The metrics and the status page. They change nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where. Others than this host's own addresses need a token, and TLS or a proxy.
    pub listen: Listen,
    /// What those who look must bring: `Authorization: Bearer TOKEN`, or as a browser asks for
    /// it, any user with the token as the password. Default: nothing.
    pub token: Option<SecretValue>,
    /// A PEM file with the certificate and those between it and its root.
    pub tls_certificate: Option<PathBuf>,
    /// A PEM file with its key.
    pub tls_key: Option<PathBuf>,
    /// Whether a proxy in front of it encrypts.
    pub behind_proxy: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: Listen::At(SocketAddr::from(([127, 0, 0, 1], 9734))),
            token: None,
            tls_certificate: None,
            tls_key: None,
            behind_proxy: false,
        }
    }
}

impl HttpConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return Err("http.tls_certificate and http.tls_key go together".into());
        }
        let Listen::At(address) = self.listen else {
            return Ok(());
        };
        if address.ip().is_loopback() {
            return Ok(());
        }
        if self.token.is_none() {
            return Err(format!(
                "http.listen = \"{address}\" can be reached from other hosts: http.token must be set"
            ));
        }
        if self.tls_certificate.is_none() && !self.behind_proxy {
            return Err(format!(
                "http.listen = \"{address}\" can be reached from other hosts, and the token would go there in the clear: set http.tls_certificate and http.tls_key, or http.behind_proxy = true"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let config: HttpConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate()
    }

    #[test]
    fn other_hosts_are_served_only_with_a_token_and_over_tls_or_a_proxy() {
        for fine in [
            "",
            "listen = \"off\"",
            "listen = \"[::1]:80\"",
            "listen = \"0.0.0.0:80\"\ntoken = \"x\"\nbehind_proxy = true",
            "listen = \"10.0.0.1:80\"\ntoken = \"x\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for (wrong, why) in [
            ("listen = \"localhost\"", "is no address"),
            ("tls_key = \"/k\"", "go together"),
            ("listen = \"0.0.0.0:80\"", "http.token must be set"),
            ("listen = \"0.0.0.0:80\"\ntoken = \"x\"", "in the clear"),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
