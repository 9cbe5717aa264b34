//! Connections, plain or over TLS: a limited number of them, each for a limited time. Whoever is
//! slow with his handshake holds up nobody else.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{HttpConfig, Listen};
use crate::error::{Error, Result};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// So many connections at most: what they take must never be missing to a backup.
const MOST: usize = 64;

/// How long a connection may last. Whoever asks again opens another.
const LIFETIME: Duration = Duration::from_secs(60);

/// How often an address is tried that the server before has not left yet.
const TRIES: usize = 20;

/// A connection.
pub(super) struct Connection {
    stream: Stream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connections that are ready to be served.
pub(super) struct Connections {
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// Listens as configured. Also says under which address one looks.
pub(super) async fn open(config: &HttpConfig) -> Result<(Connections, String)> {
    let Listen::At(address) = config.listen else {
        return Err(Error::usage("http.listen is off"));
    };
    let tls = match (&config.tls_certificate, &config.tls_key) {
        (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
        _ => None,
    };
    let mut listener = TcpListener::bind(address).await;
    for _ in 0..TRIES {
        if !matches!(&listener, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        listener = TcpListener::bind(address).await;
    }
    let failed = |error| Error::failed(format!("cannot listen at {address}")).because(error);
    let listener = listener.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (sender, ready) = mpsc::channel(16);
    let accepting = tokio::spawn(accept(listener, tls, sender));
    let connections = Connections {
        ready,
        address,
        accepting,
    };
    Ok((connections, format!("{scheme}://{address}/")))
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let unusable = |path: &Path, why: String| {
        Error::usage("the certificate or its key cannot be used")
            .at(path.display())
            .because(why)
    };
    let certificates = CertificateDer::pem_file_iter(certificate)
        .and_then(|read| read.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unusable(certificate, error.to_string()))?;
    let key_read = PrivateKeyDer::from_pem_file(key);
    let key_read = key_read.map_err(|error| unusable(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key_read)
        });
    let mut config = config.map_err(|error| unusable(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(MOST));
    loop {
        // Others wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, say: that passes.
                tracing::debug!("a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let ready = ready.clone();
        let connection = move |stream| Connection {
            stream,
            end: Box::pin(tokio::time::sleep(LIFETIME)),
            _permit: permit,
        };
        match tls.clone() {
            None => drop(ready.send((connection(Stream::Plain(stream)), peer)).await),
            Some(tls) => drop(tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let stream = Stream::Tls(Box::new(stream));
                        let _ = ready.send((connection(stream), peer)).await;
                    }
                    Ok(Err(error)) => tracing::debug!("{peer}: {error}"),
                    Err(_) => tracing::debug!("{peer}: no handshake"),
                }
            })),
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // Whoever accepts has ended, and so do we.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let connection = self.get_mut();
        if connection.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        match &mut connection.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let connection = self.get_mut();
        // Whoever reads nothing of his answer.
        if connection.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        match &mut connection.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
