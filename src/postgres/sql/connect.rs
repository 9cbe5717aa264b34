//! How a session comes about: the attempts that an `sslmode` allows, and what to say when none
//! succeeds.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Client;
use crate::error::{Error, Result};
use crate::postgres::connection::{
    self, ConnectionString, Endpoint, Host, Password, SslMode, TargetSession, tls,
};

/// Runs first in every session. Time-outs that an administrator set for applications would
/// cut a backup short; the rest makes answers read the same everywhere.
const SESSION: &str = "SET search_path TO pg_catalog; SET statement_timeout TO 0; \
    SET lock_timeout TO 0; SET idle_in_transaction_session_timeout TO 0; \
    SET idle_session_timeout TO 0; SET DateStyle TO ISO; SET TimeZone TO 'UTC'; \
    SET synchronous_commit TO local";

/// Connects to one host, in as many attempts as its `sslmode` allows.
pub(super) async fn connect_to(to: &ConnectionString, host: &Host) -> Result<Client> {
    use tokio_postgres::config::SslMode as Wire;
    let place = to.place(host);
    let password = to.password_for(host);
    let attempts: &[Wire] = match (&host.endpoint, to.ssl_mode) {
        // As libpq: never TLS over a Unix socket, whatever the mode.
        (Endpoint::Socket(_), _) | (_, SslMode::Disable) => &[Wire::Disable],
        (_, SslMode::Allow) => &[Wire::Disable, Wire::Require],
        (_, SslMode::Prefer) => &[Wire::Prefer, Wire::Disable],
        _ => &[Wire::Require],
    };
    for (i, wire) in attempts.iter().enumerate() {
        let limit = to.connect_timeout.unwrap_or(Duration::MAX);
        let attempt = tokio::time::timeout(limit, attempt(to, host, &password, *wire)).await;
        let error = match attempt {
            Ok(Ok(session)) => return settle(session, to.target_session_attrs, place).await,
            Ok(Err(Attempt::Hopeless(error))) => return Err(error.at(&place)),
            Ok(Err(Attempt::Failed(error))) => error,
            Err(_) => {
                return Err(connection::no_answer(limit, &place));
            }
        };
        // The other way is worth a try where TLS or its absence may be what was refused.
        let by_rule = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        let by_tls = *wire == Wire::Prefer && error.as_db_error().is_none();
        if i + 1 == attempts.len() || !(by_rule || by_tls) {
            return Err(failure(
                "cannot connect to PostgreSQL",
                &place,
                error,
                Some(&password),
            ));
        }
    }
    Err(Error::failed("cannot connect to PostgreSQL").at(&place))
}

/// Why an attempt ended.
enum Attempt {
    /// In a way that no other attempt changes: files that TLS needs.
    Hopeless(Error),
    Failed(tokio_postgres::Error),
}

async fn attempt(
    to: &ConnectionString,
    host: &Host,
    password: &Password,
    wire: tokio_postgres::config::SslMode,
) -> Result<tokio_postgres::Client, Attempt> {
    let mut config = Config::new();
    config
        .user(&to.user)
        .dbname(&to.dbname)
        .application_name(&to.application_name)
        .port(host.port)
        .ssl_mode(wire);
    match &host.endpoint {
        Endpoint::Socket(directory) => config.host_path(directory),
        Endpoint::Tcp { name, address } => {
            if let Some(address) = address {
                config.hostaddr(*address);
            }
            config.host(name)
        }
    };
    if let Password::Known(password) = password {
        config.password(password);
    }
    if let Some(options) = &to.options {
        config.options(options);
    }
    if let Some(idle) = to.keepalives_idle {
        config.keepalives_idle(idle);
    }
    if wire == tokio_postgres::config::SslMode::Disable {
        let (session, connection) = config.connect(NoTls).await.map_err(Attempt::Failed)?;
        drive(connection);
        return Ok(session);
    }
    let tls = tls::client_config(to.ssl_mode, &to.ssl_root).map_err(Attempt::Hopeless)?;
    let connected = config.connect(MakeRustlsConnect::new(tls)).await;
    let (session, connection) = connected.map_err(Attempt::Failed)?;
    drive(connection);
    Ok(session)
}

/// Lets the connection do its work until the session is dropped.
fn drive<F>(connection: F)
where
    F: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a session with PostgreSQL ended: {error}");
        }
    });
}

/// Makes a session ours, if it is on a server that will do.
async fn settle(
    session: tokio_postgres::Client,
    target: TargetSession,
    place: String,
) -> Result<Client> {
    let mut client = Client {
        session,
        place,
        version: 0,
    };
    let version = client.text("SHOW server_version_num").await?;
    client.version = version.parse().map_err(|_| client.strange(&version))?;
    if client.major() < 14 {
        return Err(
            Error::refused(format!("PostgreSQL {} is too old", client.major()))
                .at(&client.place)
                .hint("PostgreSQL 14 and later are supported"),
        );
    }
    client.execute(SESSION).await?;
    let will_do = match target {
        TargetSession::Any => true,
        TargetSession::ReadWrite => client.text("SHOW transaction_read_only").await? == "off",
        TargetSession::ReadOnly => client.text("SHOW transaction_read_only").await? == "on",
        TargetSession::Primary => !client.is_in_recovery().await?,
        TargetSession::Standby => client.is_in_recovery().await?,
    };
    if will_do {
        return Ok(client);
    }
    Err(Error::failed(format!(
        "the server is not what target_session_attrs asks for ({target:?})"
    ))
    .at(&client.place)
    .hint("name all servers in host=, or leave target_session_attrs out")
    .retryable(true))
}

/// An error with what to do about it.
pub(super) fn failure(
    what: &str,
    place: &str,
    error: tokio_postgres::Error,
    password: Option<&Password>,
) -> Error {
    let code = error.code().cloned();
    let is = |wanted: &SqlState| code.as_ref() == Some(wanted);
    let io = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    let tls = io
        .and_then(std::io::Error::get_ref)
        .filter(|inner| inner.is::<rustls::Error>());
    let mut hint = error
        .as_db_error()
        .and_then(|db| db.hint())
        .map(str::to_owned);
    if is(&SqlState::INSUFFICIENT_PRIVILEGE) {
        hint = Some("grant the role what the documentation lists under its privileges".into());
    } else if is(&SqlState::INVALID_PASSWORD) || is(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
    {
        hint = Some("look at the role, its password and pg_hba.conf".into());
    } else if tls.is_some() {
        hint = Some(
            "look at sslmode and sslrootcert; a certificate names its host as subjectAltName"
                .into(),
        );
    } else if code.is_none() && password.is_some() {
        hint = Some("is PostgreSQL running there? look at host, port and sslmode".into());
    }
    // SQLSTATE classes: 08 connection, 53 resources, 57 operator's intervention.
    let passing = code.as_ref().is_none_or(|code| {
        ["08", "53", "57"]
            .iter()
            .any(|class| code.code().starts_with(class))
    });
    let passing = passing && (code.is_some() || error.is_closed() || io.is_some() && tls.is_none());
    let mut failure = Error::failed(what).at(place).retryable(passing);
    if let Some(Password::Ignored(why)) = password {
        hint = Some(format!(
            "{why}{}",
            hint.map(|h| format!("; or {h}")).unwrap_or_default()
        ));
    }
    if let Some(hint) = hint {
        failure = failure.hint(hint);
    }
    failure.because(error)
}
