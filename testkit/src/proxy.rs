//! A TCP proxy that does to a connection what networks do.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use idem_testkit::proxy::{Direction, Fault, Proxy};
//!
//! let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
//! let proxy = Proxy::to(server.local_addr().unwrap().port()).await;
//! proxy.set(Direction::ToClient, Fault::Drop);
//! // A client of `proxy.port()` now talks to the server, and gets no reply.
//! proxy.heal();
//! # });
//! ```

use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer,
    /// Replies.
    ToClient,
}

/// What happens to bytes that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// They arrive later.
    Delay(Duration),
    /// They vanish, and both ends believe that they arrived. What follows them on the same connection vanishes, too.
    Drop,
    /// They wait until another fault, or none, is set.
    Hold,
    /// After this many more bytes the connection is reset, and then there is no fault any more.
    ResetAfter(usize),
}

/// A proxy in front of one port of this machine. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: watch::Sender<u16>,
    to_server: Lane,
    to_client: Lane,
    /// Counts how often all connections were cut.
    cuts: watch::Sender<u64>,
    /// Whether new connections are cut at once.
    refuses: watch::Sender<bool>,
    /// How many connections there have been, and how many of them have been forgotten.
    made: AtomicU64,
    forgotten: AtomicU64,
    round_trips: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    fault: watch::Sender<Fault>,
    /// How many bytes came in since the fault was set, whatever became of them.
    seen: watch::Sender<usize>,
}

impl Lane {
    fn new() -> Self {
        Self { fault: watch::Sender::new(Fault::None), seen: watch::Sender::new(0) }
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }
}

impl Proxy {
    /// A proxy in front of `port`, without faults.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("a bound port").port();
        let shared = Arc::new(Shared {
            server: watch::Sender::new(port),
            to_server: Lane::new(),
            to_client: Lane::new(),
            cuts: watch::Sender::new(0),
            refuses: watch::Sender::new(false),
            made: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            round_trips: AtomicUsize::new(0),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self { port: own, shared, listening }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the bytes that go `direction` meet `fault`, on connections old and new.
    pub fn set(&self, direction: Direction, fault: Fault) {
        let lane = self.shared.lane(direction);
        lane.seen.send_replace(0);
        lane.fault.send_replace(fault);
    }

    /// Nothing arrives any more, in neither direction, and no connection ends: a network that is gone.
    pub fn black_hole(&self) {
        self.set(Direction::ToServer, Fault::Hold);
        self.set(Direction::ToClient, Fault::Hold);
    }

    /// Whatever is sent on the connections of now vanishes, and neither end learns of it, as behind a firewall that has forgotten
    /// them. New ones are let through.
    pub fn forget(&self) {
        self.shared.forgotten.store(self.connections(), Ordering::SeqCst);
    }

    /// Returns how many connections there have been.
    pub fn connections(&self) -> u64 {
        self.shared.made.load(Ordering::SeqCst)
    }

    /// Resets all connections. New ones are let through, unless [`refuse`](Self::refuse) says otherwise.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Resets all connections, and each new one as soon as it is there.
    pub fn refuse(&self) {
        self.shared.refuses.send_replace(true);
        self.cut();
    }

    /// No faults any more. What was held is passed on.
    pub fn heal(&self) {
        self.shared.refuses.send_replace(false);
        self.set(Direction::ToServer, Fault::None);
        self.set(Direction::ToClient, Fault::None);
    }

    /// New connections go to another port of this machine, as after a failover.
    pub fn redirect(&self, port: u16) {
        self.shared.server.send_replace(port);
    }

    /// Returns how many bytes have gone `direction` since a fault was last set for it, whatever became of them.
    pub fn bytes(&self, direction: Direction) -> usize {
        *self.shared.lane(direction).seen.borrow()
    }

    /// Returns how many round trips there were: how often a client spoke first on a connection, or after its server did.
    pub fn round_trips(&self) -> usize {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    /// Resolves when bytes have gone `direction` since a fault was last set for it, whatever became of them.
    pub async fn seen(&self, direction: Direction) {
        let mut seen = self.shared.lane(direction).seen.subscribe();
        seen.wait_for(|&bytes| bytes > 0).await.expect("the proxy holds the sender");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, Arc::clone(&shared)));
    }
}

/// One connection, from its beginning to its end.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let port = *shared.server.borrow();
    if *shared.refuses.borrow() {
        return reset(client);
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return reset(client) };
    let number = shared.made.fetch_add(1, Ordering::SeqCst);
    let is_forgotten = || number < shared.forgotten.load(Ordering::SeqCst);
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let replied = AtomicBool::new(true);
    let asks = || {
        if replied.swap(false, Ordering::SeqCst) {
            shared.round_trips.fetch_add(1, Ordering::SeqCst);
        }
    };
    let replies = || replied.store(true, Ordering::SeqCst);
    let both = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_server, &shared.to_server, asks, is_forgotten),
            pump(&mut from_server, &mut to_client, &shared.to_client, replies, is_forgotten),
        )
    };
    let whole = tokio::select! {
        ended = both => ended.is_ok(),
        _ = cuts.changed() => false,
    };
    if !whole {
        let _ = from_client.reunite(to_client).map(reset);
        let _ = from_server.reunite(to_server).map(reset);
    }
}

/// Ends a connection so that the other end sees a reset and not an orderly close.
fn reset(connection: TcpStream) {
    let _ = connection.set_zero_linger();
}

/// The connection has to be reset.
struct Reset;

/// Carries bytes one way. A fault may be set, changed and healed while bytes wait.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    lane: &Lane,
    note: impl Fn(),
    is_forgotten: impl Fn() -> bool,
) -> Result<(), Reset> {
    let mut faults = lane.fault.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    // TCP never passes on what follows lost bytes: a client would take it for the reply to another request.
    let mut has_lost = false;
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Reset)?;
        if read == 0 {
            if is_forgotten() {
                pending::<()>().await;
            }
            let _ = to.shutdown().await;
            return Ok(());
        }
        let bytes = &buffer[..read];
        note();
        lane.seen.send_modify(|seen| *seen += read);
        if has_lost || is_forgotten() {
            continue;
        }
        loop {
            let fault = *faults.borrow_and_update();
            match fault {
                Fault::None => {}
                Fault::Drop => {
                    has_lost = true;
                    break;
                }
                Fault::Delay(delay) => {
                    tokio::select! {
                        () = sleep(delay) => {}
                        _ = faults.changed() => continue,
                    }
                }
                Fault::Hold => {
                    faults.changed().await.map_err(|_| Reset)?;
                    continue;
                }
                Fault::ResetAfter(left) if left < read => {
                    lane.fault.send_replace(Fault::None);
                    let _ = to.write_all(&bytes[..left]).await;
                    return Err(Reset);
                }
                Fault::ResetAfter(left) => {
                    lane.fault.send_replace(Fault::ResetAfter(left - read));
                }
            }
            to.write_all(bytes).await.map_err(|_| Reset)?;
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says everything back, and a client of it through a proxy.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap().port()).await;
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (mut from, mut to) = connection.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        (proxy, client)
    }

    async fn says(client: &mut TcpStream, text: &[u8]) {
        client.write_all(text).await.unwrap();
    }

    async fn hears(client: &mut TcpStream, text: &[u8]) {
        let mut received = vec![0; text.len()];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(received, text);
    }

    #[tokio::test]
    async fn what_is_held_arrives_when_healed_and_what_is_dropped_does_not() {
        let (proxy, mut client) = echo().await;
        says(&mut client, b"one").await;
        hears(&mut client, b"one").await;
        proxy.black_hole();
        says(&mut client, b"two").await;
        proxy.seen(Direction::ToServer).await;
        proxy.heal();
        hears(&mut client, b"two").await;
        proxy.set(Direction::ToClient, Fault::Drop);
        says(&mut client, b"three").await;
        proxy.seen(Direction::ToClient).await;
        proxy.heal();
        // Not on this connection, which has lost a part of its stream.
        says(&mut client, b"four").await;
        proxy.seen(Direction::ToClient).await;
        let mut other = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        says(&mut other, b"five").await;
        hears(&mut other, b"five").await;
        proxy.cut();
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received).await;
        assert_eq!(received, b"");
    }

    #[tokio::test]
    async fn a_round_trip_begins_when_a_client_speaks_after_its_server() {
        let (proxy, mut client) = echo().await;
        for said in 1..=3 {
            says(&mut client, b"one").await;
            hears(&mut client, b"one").await;
            assert_eq!(proxy.round_trips(), said);
        }
    }

    #[tokio::test]
    async fn a_forgotten_connection_is_silent_and_a_new_one_is_not() {
        let (proxy, mut forgotten) = echo().await;
        says(&mut forgotten, b"one").await;
        hears(&mut forgotten, b"one").await;
        proxy.forget();
        says(&mut forgotten, b"two").await;
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        says(&mut client, b"three").await;
        hears(&mut client, b"three").await;
        assert_eq!(proxy.connections(), 2);
        assert!(forgotten.try_read(&mut [0]).is_err(), "there is nothing to read, and no end");
    }

    #[tokio::test]
    async fn a_reset_comes_after_its_bytes_and_only_once() {
        let (proxy, mut client) = echo().await;
        proxy.set(Direction::ToClient, Fault::ResetAfter(2));
        says(&mut client, b"abc").await;
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received).await;
        assert!(end.is_err() && received.len() <= 2, "{end:?}, {received:?}");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        says(&mut client, b"abc").await;
        hears(&mut client, b"abc").await;
    }

    #[tokio::test]
    async fn a_cut_ends_every_connection_and_refusing_the_new_ones_too() {
        let (proxy, mut client) = echo().await;
        says(&mut client, b"one").await;
        hears(&mut client, b"one").await;
        proxy.refuse();
        assert!(client.read_u8().await.is_err());
        if let Ok(mut refused) = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await {
            assert!(refused.read_u8().await.is_err());
        }
        proxy.heal();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        says(&mut client, b"two").await;
        hears(&mut client, b"two").await;
    }
}
