//! How a replication session comes about: the socket, TLS as `sslmode` asks for it, the startup
//! message, the password.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::wire::{ServerMessage, Stream, Wire, tag};
use crate::error::{Error, Result};
use crate::postgres::connection::{
    self, ConnectionString, Endpoint, Host, Password, SslMode, TargetSession, tls,
};

/// Whether an attempt uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    No,
    IfOffered,
    Yes,
}

/// Connects to one host, in as many attempts as its `sslmode` allows.
pub(super) async fn connect_to(to: &ConnectionString, host: &Host) -> Result<Wire> {
    let attempts: &[Tls] = match (&host.endpoint, to.ssl_mode) {
        // As libpq: never TLS over a Unix socket, whatever the mode.
        (Endpoint::Socket(_), _) | (_, SslMode::Disable) => &[Tls::No],
        (_, SslMode::Allow) => &[Tls::No, Tls::Yes],
        (_, SslMode::Prefer) => &[Tls::IfOffered, Tls::No],
        _ => &[Tls::Yes],
    };
    let place = place(to, host);
    let limit = to.connect_timeout.unwrap_or(Duration::from_secs(3600));
    for (i, attempt) in attempts.iter().enumerate() {
        let made = tokio::time::timeout(limit, session(to, host, *attempt, &place)).await;
        match made {
            Ok(Ok(wire)) => {
                will_do(&wire, to.target_session_attrs)?;
                return Ok(wire);
            }
            // The other way is worth a try where TLS or its absence may be what was refused.
            Ok(Err(refused)) if refused.other_way && i + 1 < attempts.len() => {}
            Ok(Err(refused)) => return Err(refused.error),
            Err(_) => {
                return Err(connection::no_answer(limit, &place));
            }
        }
    }
    Err(Error::failed("cannot connect to PostgreSQL").at(&place))
}

/// Why an attempt ended.
struct Refused {
    error: Error,
    /// Whether it may succeed with TLS where it was without, or the other way round.
    other_way: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self {
            error,
            other_way: false,
        }
    }
}

fn place(to: &ConnectionString, host: &Host) -> String {
    format!("{host} user={} replication=true", to.user)
}

async fn session(
    to: &ConnectionString,
    host: &Host,
    with: Tls,
    place: &str,
) -> Result<Wire, Refused> {
    let failed = |error: std::io::Error| {
        Error::failed("cannot connect to PostgreSQL")
            .at(place)
            .hint("is PostgreSQL running there? look at host, port and sslmode")
            .retryable(true)
            .because(error)
    };
    let stream: Box<dyn Stream> = match &host.endpoint {
        Endpoint::Socket(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", host.port));
            Box::new(UnixStream::connect(path).await.map_err(failed)?)
        }
        Endpoint::Tcp { name, address } => {
            let stream = match address {
                Some(address) => TcpStream::connect((*address, host.port)).await,
                None => TcpStream::connect((name.as_str(), host.port)).await,
            };
            let stream = stream.map_err(failed)?;
            set_options(&stream, to.keepalives_idle).map_err(failed)?;
            match with {
                Tls::No => Box::new(stream),
                _ => encrypted(stream, to, name, with, place).await?,
            }
        }
    };
    let mut wire = Wire::new(stream, place.to_owned());
    start(&mut wire, to, host).await?;
    Ok(wire)
}

/// A peer that vanished is noticed: a stream of WAL or of a backup writes nothing itself.
fn set_options(stream: &TcpStream, idle: Option<Duration>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new();
    let keepalive = match idle {
        Some(idle) => keepalive.with_time(idle),
        None => keepalive,
    };
    let socket = socket2::SockRef::from(stream);
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Asks for TLS, and makes it.
async fn encrypted(
    mut stream: TcpStream,
    to: &ConnectionString,
    name: &str,
    with: Tls,
    place: &str,
) -> Result<Box<dyn Stream>, Refused> {
    let failed = |error: std::io::Error| {
        // A certificate that does not prove enough stays so.
        let proof = error
            .get_ref()
            .is_some_and(|inner| inner.is::<rustls::Error>());
        Error::failed("cannot set up TLS with PostgreSQL")
            .at(place)
            .hint("look at sslmode and sslrootcert; a certificate names its host as subjectAltName")
            .retryable(!proof)
            .because(error)
    };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(failed)?;
    match stream.read_u8().await.map_err(failed)? {
        b'S' => {}
        b'N' if with == Tls::IfOffered => return Ok(Box::new(stream)),
        _ => {
            let error = Error::failed("the server has no TLS")
                .at(place)
                .hint("set ssl = on in postgresql.conf, or choose another sslmode");
            return Err(error.into());
        }
    }
    let config = tls::client_config(to.ssl_mode, &to.ssl_root).map_err(|error| error.at(place))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| {
        Error::usage("the host's name is none that a certificate can have")
            .at(place)
            .because(error)
    })?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        // As libpq goes on without TLS where TLS is merely preferred.
        Err(error) => Err(Refused {
            error: failed(error),
            other_way: with == Tls::IfOffered,
        }),
    }
}

const STARTING: &str = "open a replication session";

/// The time limit is the attempt's.
const NO_LIMIT: Duration = Duration::from_secs(3600);

/// From the startup message to the first ReadyForQuery.
async fn start(wire: &mut Wire, to: &ConnectionString, host: &Host) -> Result<(), Refused> {
    let mut parameters = vec![
        ("user", to.user.as_str()),
        ("replication", "true"),
        ("application_name", to.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    if let Some(options) = &to.options {
        parameters.push(("options", options));
    }
    let mut message = BytesMut::new();
    frontend::startup_message(parameters, &mut message).map_err(|error| unsendable(wire, error))?;
    wire.send(&message).await?;
    let password = password(to, host);
    let mut scram = None;
    loop {
        let answer = wire.receive(NO_LIMIT).await?;
        match answer.tag {
            tag::AUTHENTICATION => {
                authenticate(wire, to, &password, &mut scram, answer.body).await?;
            }
            tag::BACKEND_KEY_DATA | tag::NEGOTIATE_PROTOCOL_VERSION => {}
            tag::READY_FOR_QUERY => return Ok(()),
            tag::ERROR_RESPONSE => {
                let said = ServerMessage::parse(&answer.body);
                // invalid_authorization_specification: a rule of pg_hba.conf.
                let other_way = said.sqlstate == "28000";
                let error = said.into_error(&format!("cannot {STARTING}"), &wire.place);
                let error = match &password {
                    Password::Ignored(why) => error.hint(why.clone()),
                    _ => error,
                };
                return Err(Refused { error, other_way });
            }
            _ => return Err(wire.unexpected(&answer, STARTING).into()),
        }
    }
}

/// As libpq's programs do: a password file names a replication session by the database
/// `replication`; a line for the cluster's own database will do as well.
fn password(to: &ConnectionString, host: &Host) -> Password {
    let mut by_word = to.clone();
    by_word.dbname = "replication".into();
    match by_word.password_for(host) {
        Password::Unknown => to.password_for(host),
        found => found,
    }
}

/// Answers one request of the server's for a proof.
async fn authenticate(
    wire: &mut Wire,
    to: &ConnectionString,
    password: &Password,
    scram: &mut Option<ScramSha256>,
    mut body: Bytes,
) -> Result<()> {
    let kind = body
        .try_get_u32()
        .map_err(|_| wire.strange("its wish for a password"))?;
    if kind == 0 {
        return Ok(());
    }
    let known = || match password {
        Password::Known(password) => Ok(password.as_slice()),
        Password::Ignored(why) => Err(no_password(&wire.place).hint(why.clone())),
        Password::Unknown => Err(no_password(&wire.place).hint(
            "use a password file, or connection = { file = … } or { env = … } with password=…",
        )),
    };
    let mut answer = BytesMut::new();
    let made = match kind {
        3 => frontend::password_message(known()?, &mut answer),
        5 => {
            let salt = body.first_chunk::<4>().copied();
            let salt = salt.ok_or_else(|| wire.strange("its salt"))?;
            let hash = md5_hash(to.user.as_bytes(), known()?, salt);
            frontend::password_message(hash.as_bytes(), &mut answer)
        }
        10 => {
            let mut offered = body.split(|byte| *byte == 0);
            if !offered.any(|name| name == sasl::SCRAM_SHA_256.as_bytes()) {
                return Err(method_unknown(wire, "SASL without SCRAM-SHA-256"));
            }
            let first = ScramSha256::new(known()?, ChannelBinding::unsupported());
            let made =
                frontend::sasl_initial_response(sasl::SCRAM_SHA_256, first.message(), &mut answer);
            *scram = Some(first);
            made
        }
        11 | 12 => {
            let Some(scram) = scram else {
                return Err(wire.strange("SASL that nobody began"));
            };
            let step = match kind {
                11 => scram.update(&body),
                _ => scram.finish(&body),
            };
            step.map_err(|error| {
                Error::failed(
                    "the server does not know our password, or is not who it claims to be",
                )
                .at(&wire.place)
                .because(error)
            })?;
            if kind == 12 {
                return Ok(());
            }
            frontend::sasl_response(scram.message(), &mut answer)
        }
        other => {
            return Err(method_unknown(
                wire,
                &format!("authentication method {other}"),
            ));
        }
    };
    made.map_err(|error| unsendable(wire, error))?;
    wire.send(&answer).await
}

fn no_password(place: &str) -> Error {
    Error::failed("the server asks for a password, and there is none").at(place)
}

fn method_unknown(wire: &Wire, method: &str) -> Error {
    Error::failed(format!("the server asks for {method}, which is not supported"))
        .at(&wire.place)
        .hint("scram-sha-256, md5, password, peer, cert by sslmode and trust are: choose one in pg_hba.conf")
}

fn unsendable(wire: &Wire, error: std::io::Error) -> Error {
    Error::usage("user, application_name, options or password hold what no message can")
        .at(&wire.place)
        .because(error)
}

/// Whether the server is what `target_session_attrs` asks for, by what it reported itself.
fn will_do(wire: &Wire, target: TargetSession) -> Result<()> {
    let is_on = |name: &str| wire.parameters.get(name).is_some_and(|value| value == "on");
    let standby = is_on("in_hot_standby");
    let read_only = standby || is_on("default_transaction_read_only");
    let fits = match target {
        TargetSession::Any => true,
        TargetSession::ReadWrite => !read_only,
        TargetSession::ReadOnly => read_only,
        TargetSession::Primary => !standby,
        TargetSession::Standby => standby,
    };
    if fits {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the server is not what target_session_attrs asks for ({target:?})"
    ))
    .at(&wire.place)
    .hint("name all servers in host=, or leave target_session_attrs out")
    .retryable(true))
}
