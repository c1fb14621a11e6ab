//! A way to the server on which things go wrong, as planned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::Server;

/// What happens to a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It never arrives.
    Unreached(End),
    /// It arrives, and in the same moment its connection is reset, on both sides.
    HungUp,
    /// Its response is made, and does not come back.
    Lost(End),
    /// The connection ends within the status line of its response.
    TornHead(End),
    /// The connection ends within the body of its response.
    TornBody(End),
    /// Its response is made, and comes back later.
    Late(Duration),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// With a FIN.
    Close,
    /// With an RST.
    Reset,
}

type Plan = Arc<dyn Fn(&str) -> Option<Fault> + Send + Sync>;

/// A proxy on a free port of 127.0.0.1, until it is dropped. It speaks as much of HTTP/1.1 as to see where a message ends:
/// it needs `Content-Length` or no body.
pub struct Proxy {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// Asks `plan` about each request, which it is given whole.
    pub async fn start(to: &Server, plan: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (server, plan): (_, Plan) = (to.address, Arc::new(plan));
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("it accepts");
                connections.spawn(carry(client, server, plan.clone()));
                // What went wrong on a connection is the plan, unless it is a bug in here.
                while let Some(ended) = connections.try_join_next() {
                    ended.expect("the proxy works");
                }
            }
        });
        Self { address, serving }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Carries requests and responses until either side, or the plan, ends the connection.
async fn carry(mut client: TcpStream, server: SocketAddr, plan: Plan) {
    client.set_nodelay(true).expect("no delay");
    let mut read = Vec::new();
    while let Some(request) = message(&mut client, &mut read).await {
        let fault = plan(&String::from_utf8_lossy(&request.bytes));
        if let Some(Fault::Unreached(end)) = fault {
            return finish(client, end);
        }
        let mut upstream = TcpStream::connect(server).await.expect("the server is there");
        upstream.set_nodelay(true).expect("no delay");
        upstream.write_all(&request.bytes).await.expect("the server reads");
        if fault == Some(Fault::HungUp) {
            finish(upstream, End::Reset);
            return finish(client, End::Reset);
        }
        let response = message(&mut upstream, &mut Vec::new()).await.expect("the server responds");
        let (sent, end) = match fault {
            Some(Fault::Lost(end)) => (0, Some(end)),
            // Half of `HTTP/1.1 200 OK`, none of the status.
            Some(Fault::TornHead(end)) => ("HTTP/1.1 ".len(), Some(end)),
            Some(Fault::TornBody(end)) => (response.head + (response.bytes.len() - response.head) / 2, Some(end)),
            Some(Fault::Late(by)) => {
                tokio::time::sleep(by).await;
                (response.bytes.len(), None)
            }
            _ => (response.bytes.len(), None),
        };
        // The client may have lost its patience.
        let passed_on = client.write_all(&response.bytes[..sent]).await;
        match end {
            Some(end) => return finish(client, end),
            None if passed_on.is_err() => return,
            None => {}
        }
    }
}

fn finish(connection: TcpStream, end: End) {
    if end == End::Reset {
        connection.set_zero_linger().expect("no linger");
    }
}

/// A request or a response.
struct Message {
    bytes: Vec<u8>,
    /// How many of the bytes are its head.
    head: usize,
}

/// Reads a message. What follows it stays in `read`. `None` if the connection ends before a whole one.
async fn message(from: &mut TcpStream, read: &mut Vec<u8>) -> Option<Message> {
    let head = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(from, read).await?;
    };
    let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
    assert!(!text.contains("\r\ntransfer-encoding:"), "a body whose length is not said: {text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
    while read.len() < head + length {
        more(from, read).await?;
    }
    Some(Message { bytes: read.drain(..head + length).collect(), head })
}

async fn more(from: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    match from.read_buf(read).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
