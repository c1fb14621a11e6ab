//! As little of an HTTP/1.1 client as will do: what it costs is taken from the load's processor, and from nothing else.

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;
use crate::app::PATH;

/// A request as it goes over the wire: its head, and its body, which many may share.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    head: Vec<u8>,
    body: Bytes,
}

pub(super) fn encode(headers: &[(HeaderName, HeaderValue)], body: &Bytes) -> Encoded {
    let mut head =
        format!("POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    // A small request is one write and one packet, as any client sends it.
    if body.len() <= 4096 {
        head.extend_from_slice(body);
        return Encoded { head, body: Bytes::new() };
    }
    Encoded { head, body: body.clone() }
}

/// What is looked at in a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) marked: bool,
}

/// A connection that is kept alive.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(port: u16) -> Result<Self, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    pub(super) async fn write(&mut self, request: &Encoded) -> Result<(), Failure> {
        self.stream.write_all(&request.head).await?;
        Ok(self.stream.write_all(&request.body).await?)
    }

    /// Sends a request and reads its response to the end.
    pub(super) async fn exchange(&mut self, request: &Encoded, marker: Option<&str>) -> Result<Response, Failure> {
        self.write(request).await?;
        self.read(marker).await
    }

    async fn read(&mut self, marker: Option<&str>) -> Result<Response, Failure> {
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection in the middle of a response".into());
            }
            if let Some((response, length)) = parse(&self.buffer, marker)?
                && self.buffer.len() >= length
            {
                return Ok(response);
            }
        }
    }
}

/// The response and the length of all of it, once its head is there.
fn parse(bytes: &[u8], marker: Option<&str>) -> Result<Option<(Response, usize)>, Failure> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("a response without a status")?.parse()?;
    let mut response = Response { status, marked: false };
    let mut body = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            body = Some(value.trim().parse::<usize>()?);
        }
        response.marked |= marker.is_some_and(|marker| name.eq_ignore_ascii_case(marker));
    }
    let body = body.ok_or("a response without its length")?;
    Ok(Some((response, end + 4 + body)))
}
