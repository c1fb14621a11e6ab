//! Counts round trips: a proxy that notes each time a client speaks after its server did.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;

/// The most bytes that are passed on at once; more than any reply here has.
const CHUNK: usize = 64 << 10;

/// A proxy before one server, for connections that are used one after the other.
#[derive(Debug)]
pub struct RoundTrips {
    port: u16,
    count: Arc<AtomicU64>,
}

impl RoundTrips {
    /// Listens, and passes everything on to `port` of this machine, as long as the runtime lives.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn to(port: u16) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self { port: listener.local_addr()?.port(), count: Arc::default() };
        let count = Arc::clone(&proxy.count);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move { connect(client, port, count).await });
            }
        });
        Ok(proxy)
    }

    /// Where to connect to instead.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many round trips there were so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

async fn connect(client: TcpStream, port: u16, count: Arc<AtomicU64>) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // Whether the client's next word begins a round trip.
    let turn = Arc::new(AtomicBool::new(true));
    let replied = Arc::clone(&turn);
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let asking = pass_on(from_client, to_server, move || {
        if turn.swap(false, Ordering::SeqCst) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let replying = pass_on(from_server, to_client, move || replied.store(true, Ordering::SeqCst));
    tokio::try_join!(asking, replying).map(drop)
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, note: impl Fn()) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        // Before it is passed on, since the reply may come at once.
        note();
        to.write_all(&chunk[..length]).await?;
    }
}
