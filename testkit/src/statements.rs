//! A proxy before a PostgreSQL server that stops an exchange at its n-th statement.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Where an exchange stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPoint {
    /// The statement does not reach the server.
    Before,
    /// The server has run the statement, and its reply does not reach the client.
    After,
}

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Statements {
    port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    log: Mutex<Log>,
    /// Whether the statement was met.
    stopped: watch::Sender<bool>,
    /// Ends the connections that stopped.
    cut: Notify,
}

#[derive(Debug, Default)]
struct Log {
    statements: Vec<String>,
    stop_at: Option<(usize, StopPoint)>,
}

impl Statements {
    /// A proxy in front of `port`, which passes everything on.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("a bound port").port();
        let (log, stopped, cut) = (Mutex::default(), watch::Sender::new(false), Notify::new());
        let shared = Arc::new(Shared { server: port, log, stopped, cut });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self { port: own, shared, listening }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Counts from now on, and stops at the statement with this number, of which the first is 0.
    pub fn stop_at(&self, statement: usize, stop: StopPoint) {
        self.shared.stopped.send_replace(false);
        *self.shared.log() = Log { statements: Vec::new(), stop_at: Some((statement, stop)) };
    }

    /// Waits until the statement was met.
    ///
    /// # Panics
    /// Never: the proxy holds the sender.
    pub async fn stopped(&self) {
        let mut stopped = self.shared.stopped.subscribe();
        stopped.wait_for(|&stopped| stopped).await.expect("the proxy holds the sender");
    }

    /// Ends the connection that stopped, and passes everything on from now on.
    pub fn cut(&self) {
        self.shared.log().stop_at = None;
        self.shared.cut.notify_waiters();
    }

    /// What was sent since [`stop_at`](Self::stop_at): the text of a simple query, or the letters of the messages of another one.
    pub fn statements(&self) -> Vec<String> {
        self.shared.log().statements.clone()
    }
}

impl Drop for Statements {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

impl Shared {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a statement. Returns where to stop if it is the one.
    fn count(&self, text: String) -> Option<StopPoint> {
        let mut log = self.log();
        log.statements.push(text);
        let number = log.statements.len() - 1;
        log.stop_at.filter(|(at, _)| *at == number).map(|(_, stop)| stop)
    }

    /// Stops until the connection is to end.
    async fn stop(&self) {
        let cut = self.cut.notified();
        self.stopped.send_replace(true);
        cut.await;
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, Arc::clone(&shared)));
    }
}

/// One connection. Both ends are closed when one of them is, or when it was stopped and cut.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whether the next end of a reply is that of the statement.
    let awaited = Arc::new(Mutex::new(false));
    tokio::select! {
        () = requests(from_client, to_server, &shared, &awaited) => {}
        () = replies(from_server, to_client, &shared, &awaited) => {}
    }
}

/// Passes messages on until one is to be stopped at, or the client is gone.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, awaited: &Mutex<bool>) {
    // The first message has no type.
    let Some(first) = message(&mut from, false).await else { return };
    if to.write_all(&first).await.is_err() {
        return;
    }
    let mut letters = String::new();
    while let Some(message) = message(&mut from, true).await {
        letters.push(char::from(message[0]));
        // A simple query, or the end of another one.
        let text = match message[0] {
            b'Q' => Some(String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned()),
            b'S' => Some(std::mem::take(&mut letters)),
            _ => None,
        };
        // A pool pings its connections when it likes.
        let text = text.filter(|text| text != "S");
        if matches!(message[0], b'Q' | b'S') {
            letters.clear();
        }
        if let Some(text) = text {
            match shared.count(text) {
                Some(StopPoint::Before) => return shared.stop().await,
                Some(StopPoint::After) => *awaited.lock().unwrap_or_else(PoisonError::into_inner) = true,
                None => {}
            }
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// Passes messages on until the reply to the statement is there, or the server is gone.
async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, awaited: &Mutex<bool>) {
    while let Some(message) = message(&mut from, true).await {
        if *awaited.lock().unwrap_or_else(PoisonError::into_inner) {
            // The server is ready for the next one.
            if message[0] == b'Z' {
                return shared.stop().await;
            }
            continue;
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// Reads one message: a type, unless it is the first, a length that counts itself, and the rest.
async fn message(from: &mut OwnedReadHalf, has_type: bool) -> Option<Vec<u8>> {
    let head = 4 + usize::from(has_type);
    let mut message = vec![0; head];
    from.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[head - 4..].try_into().ok()?);
    message.resize(head - 4 + usize::try_from(length).ok()?, 0);
    from.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}
