//! A client that keeps its connection for a while, hangs up now and then, and retries with the same key.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use idem_testkit::dice::Dice;

/// How long a client waits for a response before it takes the connection for dead.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The response of an execution.
    Response {
        /// Which execution it was.
        execution: String,
        /// Whether it says that it was made from a record.
        replayed: bool,
    },
    /// A refusal.
    Refusal {
        /// Its status.
        status: u16,
        /// Its code, or the whole response if it has none.
        code: String,
    },
}

impl Reply {
    /// Whether this is the refusal with `code`.
    pub fn is_refusal(&self, code: &str) -> bool {
        matches!(self, Self::Refusal { code: said, .. } if said == code)
    }
}

/// One client.
#[derive(Debug)]
pub struct Client {
    port: u16,
    connection: Option<TcpStream>,
}

impl Client {
    /// A client of a port of this machine.
    pub fn new(port: u16) -> Self {
        Self { port, connection: None }
    }

    /// Sends a request and waits for its response; `headers` are whole lines.
    ///
    /// # Errors
    /// The connection broke, or nothing came. What became of the request is unknown.
    pub async fn ask(&mut self, path: &str, key: &str, headers: &str) -> io::Result<Reply> {
        let mut connection = self.send(path, key, headers).await?;
        let reply = timeout(TIMEOUT, read_reply(&mut connection)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        // A new connection now and then, so that a client meets every process.
        self.connection = (Dice::unseeded().within(0..=2) > 0).then_some(connection);
        Ok(reply)
    }

    /// Sends a request and disconnects before the response, or shortly after.
    ///
    /// # Errors
    /// The connection broke even earlier.
    pub async fn hang_up(&mut self, path: &str, key: &str) -> io::Result<()> {
        let connection = self.send(path, key, "").await?;
        tokio::time::sleep(Dice::unseeded().millis(0..=30)).await;
        if Dice::unseeded().within(0..=1) == 0 {
            connection.set_zero_linger()?;
        }
        Ok(())
    }

    async fn send(&mut self, path: &str, key: &str, headers: &str) -> io::Result<TcpStream> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?,
        };
        connection.set_nodelay(true)?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: cluster\r\nidempotency-key: {key}\r\n{headers}content-length: 0\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        Ok(connection)
    }
}

async fn read_reply(connection: &mut TcpStream) -> io::Result<Reply> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(connection, &mut read).await?;
    };
    let lines = String::from_utf8_lossy(&read[..head]).to_lowercase();
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap_or("0");
    let length: usize = length.trim().parse().map_err(io::Error::other)?;
    while read.len() < head + length {
        more(connection, &mut read).await?;
    }
    let body = String::from_utf8_lossy(&read[head..]).into_owned();
    let status: u16 = lines.split(' ').nth(1).unwrap_or_default().parse().map_err(io::Error::other)?;
    Ok(if status == 201 {
        Reply::Response { execution: body, replayed: lines.contains("\nidempotent-replayed: true") }
    } else {
        let code = body.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or(&body);
        Reply::Refusal { status, code: code.to_owned() }
    })
}

async fn more(connection: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<()> {
    if connection.read_buf(read).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
