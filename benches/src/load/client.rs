//! A client that sends all kinds of requests, and now and then hangs up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::load::soak::PATHS;

/// Keys that several clients use at the same time.
const SHARED: u64 = 20;

/// A client with a connection that it keeps for as long as it can.
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<TcpStream>,
    dice: u64,
    number: u64,
    turns: u64,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, number: u64) -> Self {
        Self { address, connection: None, dice: 0x9E37_79B9_7F4A_7C15 ^ (number + 1), number, turns: 0 }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 33) % sides
    }

    /// One request, and what came of it in a few words.
    pub(crate) async fn turn(&mut self) -> String {
        self.turns += 1;
        // A key that only it uses, an earlier one, or one that others use at the same time.
        let key = match self.roll(10) {
            0..=3 => format!("own-{}-{}", self.number, self.turns),
            4 => format!("own-{}-{}", self.number, self.turns.saturating_sub(1)),
            _ => format!("shared-{}", self.roll(SHARED)),
        };
        let path = PATHS[usize::try_from(self.roll(PATHS.len() as u64)).unwrap_or_default()];
        // Mostly the same body for the same key.
        let body = if self.roll(20) == 0 { "another body" } else { "the body" };
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: soak\r\nidempotency-key: {}{key}\r\ncontent-length: {}\r\n\r\n{body}",
            // Mostly a key for each endpoint, so that most are not refused.
            if self.roll(20) == 0 { "" } else { path },
            body.len()
        );
        let hangs_up = self.roll(30) == 0;
        match self.exchange(request.as_bytes(), hangs_up).await {
            Ok(Some(heard)) => heard,
            Ok(None) => "hung up".to_owned(),
            Err(error) => {
                self.connection = None;
                format!("broken: {error}")
            }
        }
    }

    async fn exchange(&mut self, request: &[u8], hangs_up: bool) -> io::Result<Option<String>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => TcpStream::connect(self.address).await?,
        };
        connection.set_nodelay(true)?;
        connection.write_all(request).await?;
        if hangs_up {
            sleep(Duration::from_micros(self.roll(3000))).await;
            if self.roll(2) == 0 {
                connection.set_zero_linger()?;
            }
            return Ok(None);
        }
        let mut read = Vec::new();
        let head = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            more(&mut connection, &mut read).await?;
        };
        let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
        match text.lines().find_map(|line| line.strip_prefix("content-length:")) {
            Some(length) => {
                let length: usize = length.trim().parse().map_err(io::Error::other)?;
                while read.len() < head + length {
                    more(&mut connection, &mut read).await?;
                }
            }
            None => {
                while !read.ends_with(b"0\r\n\r\n") {
                    more(&mut connection, &mut read).await?;
                }
            }
        }
        // A server may end a connection after any response, if it says so.
        self.connection = (!text.contains("connection: close")).then_some(connection);
        let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let problem = String::from_utf8_lossy(&read[head..]);
        let code = problem.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next());
        Ok(Some(match code {
            _ if text.contains("idempotent-replayed") => format!("replayed {status}"),
            Some(code) => format!("{status} {code}"),
            None if status == "200" => "ran".to_owned(),
            None => format!("{status} ran"),
        }))
    }
}

async fn more(connection: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<()> {
    if connection.read_buf(read).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
