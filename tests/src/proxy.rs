//! A TCP proxy before a store that can be told to fail as networks and stores do.
//!
//! A change of fault breaks the connections that are open, so that a client that keeps them
//! alive meets the new fault at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::process::wait_until;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens: "connection refused".
    Refuse,
    /// Connections are accepted and nothing ever comes back.
    Hang,
    /// Each connection is cut once so many bytes have come *from the store*.
    CutDownloadAfter(u64),
    /// Each connection is cut once so many bytes have gone *to the store*.
    CutUploadAfter(u64),
    /// Every request is answered with this HTTP status; the store sees none.
    Status(u16),
    /// Requests whose first line holds the text (`PUT `, `list-type=2`, a key) are answered
    /// with this status; the others pass.
    StatusFor(String, u16),
    /// At most so many bytes a second in each direction of each connection.
    Slow(u64),
}

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    listening: watch::Receiver<bool>,
    connections: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    uploaded: Arc<AtomicU64>,
    // Last, so that tasks end after all else.
    _runtime: tokio::runtime::Runtime,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `store`.
    #[track_caller]
    pub fn start(store: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("127.0.0.1 has a free port");
        let address = listener.local_addr().expect("it is bound");
        let (fault, faults_set) = watch::channel(Fault::None);
        let (is_listening, listening) = watch::channel(true);
        let proxy = Self {
            address,
            fault,
            listening,
            connections: Arc::default(),
            faults: Arc::default(),
            uploaded: Arc::default(),
            _runtime: runtime,
        };
        let counters = Counters {
            connections: Arc::clone(&proxy.connections),
            faults: Arc::clone(&proxy.faults),
            uploaded: Arc::clone(&proxy.uploaded),
        };
        let task = listen(listener, store, faults_set, is_listening, counters);
        proxy._runtime.spawn(task);
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this goes wrong. Returns once it does.
    #[track_caller]
    pub fn set(&self, fault: Fault) {
        let listens = fault != Fault::Refuse;
        self.fault.send_replace(fault);
        wait_until("the proxy follows", Duration::from_secs(10), || {
            *self.listening.borrow() == listens
        });
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many bytes have gone to the store, requests and all.
    pub fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    /// How many connections met a fault: for a test to see that it tested something.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
struct Counters {
    connections: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    uploaded: Arc<AtomicU64>,
}

async fn listen(
    listener: TcpListener,
    store: SocketAddr,
    mut fault: watch::Receiver<Fault>,
    is_listening: watch::Sender<bool>,
    counters: Counters,
) {
    let address = listener.local_addr().expect("it is bound");
    let mut listener = Some(listener);
    loop {
        if *fault.borrow_and_update() == Fault::Refuse {
            listener = None;
        } else if listener.is_none() {
            // Connections of the time before may linger on the port for a moment.
            listener = TcpListener::bind(address).await.ok();
            if listener.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        }
        is_listening.send_replace(listener.is_some());
        let Some(listener) = &listener else {
            if fault.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = fault.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                counters.connections.fetch_add(1, Ordering::Relaxed);
                let mut changes = fault.clone();
                let current = changes.borrow_and_update().clone();
                let counters = counters.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = serve(client, store, current, &counters) => {}
                        _ = changes.changed() => {}
                    }
                });
            }
        }
    }
}

async fn serve(
    mut client: TcpStream,
    store: SocketAddr,
    fault: Fault,
    counters: &Counters,
) -> std::io::Result<()> {
    let faults = &counters.faults;
    let unlimited = u64::MAX;
    let (upload, download, rate) = match fault {
        Fault::None => (unlimited, unlimited, unlimited),
        Fault::Refuse => return Ok(()),
        Fault::Hang => {
            faults.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
            return Ok(());
        }
        Fault::Status(status) => {
            faults.fetch_add(1, Ordering::Relaxed);
            read_head(&mut client).await?;
            return answer(client, status).await;
        }
        Fault::StatusFor(text, status) => {
            return serve_unless(client, store, &text, status, faults).await;
        }
        Fault::CutUploadAfter(bytes) => (bytes, unlimited, unlimited),
        Fault::CutDownloadAfter(bytes) => (unlimited, bytes, unlimited),
        Fault::Slow(rate) => (unlimited, unlimited, rate.max(1)),
    };
    let mut server = TcpStream::connect(store).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let not_counted = AtomicU64::new(0);
    tokio::select! {
        cut = pass(from_client, to_server, upload, rate, &counters.uploaded) => {
            if cut? { faults.fetch_add(1, Ordering::Relaxed); }
        }
        cut = pass(from_server, to_client, download, rate, &not_counted) => {
            if cut? { faults.fetch_add(1, Ordering::Relaxed); }
        }
    }
    Ok(())
}

/// Copies until the end, or until `limit` bytes: then true.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    limit: u64,
    rate: u64,
    count: &AtomicU64,
) -> std::io::Result<bool> {
    let mut left = limit;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            // Half closed: the other direction decides when the connection ends.
            to.shutdown().await?;
            std::future::pending::<()>().await;
        }
        let allowed = (n as u64).min(left);
        to.write_all(&buffer[..allowed as usize]).await?;
        left -= allowed;
        count.fetch_add(allowed, Ordering::Relaxed);
        if left == 0 {
            return Ok(true);
        }
        if rate != u64::MAX {
            tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate as f64)).await;
        }
    }
}

/// One request a connection: told so by a header, the store closes after its answer. The
/// header is hop-by-hop, and no request signature covers it.
async fn serve_unless(
    mut client: TcpStream,
    store: SocketAddr,
    text: &str,
    status: u16,
    faults: &AtomicU64,
) -> std::io::Result<()> {
    let head = read_head(&mut client).await?;
    let line_end = head.windows(2).position(|w| w == b"\r\n").unwrap_or(0);
    if String::from_utf8_lossy(&head[..line_end]).contains(text) {
        faults.fetch_add(1, Ordering::Relaxed);
        return answer(client, status).await;
    }
    let mut server = TcpStream::connect(store).await?;
    server.write_all(&head[..line_end]).await?;
    server.write_all(b"\r\nConnection: close").await?;
    server.write_all(&head[line_end..]).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let download = async {
        let (mut from, mut to) = (from_server, to_client);
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    };
    let not_counted = AtomicU64::new(0);
    tokio::select! {
        ended = pass(from_client, to_server, u64::MAX, u64::MAX, &not_counted) => ended.map(drop),
        ended = download => ended,
    }
}

/// Reads up to the empty line; what follows in the same packet comes along.
async fn read_head(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

async fn answer(mut client: TcpStream, status: u16) -> std::io::Result<()> {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>the fault proxy says so</Message></Error>"
    );
    let head = format!(
        "HTTP/1.1 {status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).await?;
    client.shutdown().await?;
    // Read what the client still sends: closing with unread bytes resets the connection, and
    // the client would see that instead of the answer.
    let mut rest = vec![0; 64 << 10];
    let drain = async { while matches!(client.read(&mut rest).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(Duration::from_secs(10), drain).await;
    Ok(())
}
