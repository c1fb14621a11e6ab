//! A client of HTTP/1.1 that sends any bytes, and reads exactly one response at a time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Reply, Server, within};

/// One TCP connection.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub async fn open(server: &Server) -> Self {
        let stream = within("the connection", TcpStream::connect(server.address)).await.expect("it connects");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("it is sent");
    }

    /// Sends what a server may refuse half-way.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within("the sending", self.stream.write_all(bytes.as_ref())).await
    }

    /// Closes the connection: a FIN.
    pub fn hang_up(self) {}

    /// Resets the connection: an RST.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("no linger");
    }

    /// Closes the sending half alone.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.expect("it is closed");
    }

    /// Reads one response. What follows it stays for the next one.
    pub async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        let chunked = reply.header("transfer-encoding").map(|coding| assert_eq!(coding, "chunked")).is_some();
        let length = reply.header("content-length").map(|length| length.parse().expect("a length"));
        assert!(!(chunked && length.is_some()), "two framings: {reply:?}");
        reply.body = match length {
            _ if matches!(reply.status, 100..=199 | 204 | 304) => Vec::new(),
            _ if chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await {
                    body.extend(chunk);
                }
                body
            }
            Some(length) => self.take(length).await,
            None => self.rest().await,
        };
        reply
    }

    /// Reads the head of a response.
    pub async fn head(&mut self) -> Reply {
        let status_line = self.line().await;
        let mut parts = status_line.splitn(3, |&byte| byte == b' ');
        assert!(parts.next().is_some_and(|version| version.starts_with(b"HTTP/1.")), "{}", status_line.escape_ascii());
        let status = parts.next().and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|&byte| byte == b':').expect("a header has a colon");
            let name = String::from_utf8_lossy(&line[..colon]).to_lowercase();
            headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
        Reply { status: status.expect("a status"), headers, body: Vec::new() }
    }

    /// Reads one chunk of a chunked body, or its end.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line().await;
        let size = std::str::from_utf8(&size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let chunk = self.take(size.expect("the size of a chunk")).await;
        assert_eq!(self.line().await, b"", "the end of a chunk");
        (!chunk.is_empty()).then_some(chunk)
    }

    /// Reads to the end of the connection, however it ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    async fn line(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let mut line: Vec<u8> = self.read.drain(..end + 2).collect();
                line.truncate(end);
                return line;
            }
            assert!(self.more().await, "the connection ended within a line: {}", self.read.escape_ascii());
        }
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.more().await, "the connection ended within a body: {}", self.read.escape_ascii());
        }
        self.read.drain(..length).collect()
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let count = within("bytes from the server", self.stream.read(&mut buffer)).await.unwrap_or(0);
        self.read.extend_from_slice(&buffer[..count]);
        count > 0
    }
}
