//! A served application, and a client that sends and reads bytes.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use idem_axum::{Idempotency, IdempotencyLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

/// Longer than anything takes here: a test that hangs fails.
pub const LONG: Duration = Duration::from_secs(60);

/// An application on a free port.
pub struct TestServer {
    pub address: SocketAddr,
    pub idempotency: Idempotency,
}

impl TestServer {
    pub async fn new(routes: Router) -> Self {
        Self::over(Idempotency::in_memory(), routes).await
    }

    pub async fn over(idempotency: Idempotency, routes: Router) -> Self {
        let app = routes.layer(IdempotencyLayer::new(idempotency.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }));
        Self { address, idempotency }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request and reads until the server closes the connection.
    pub async fn send(&self, request: &[u8]) -> String {
        let mut connection = self.connect().await;
        connection.write_all(request).await.unwrap();
        read_all(&mut connection).await
    }
}

pub async fn read_all(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(LONG, connection.read_to_end(&mut bytes)).await.expect("the connection stays open").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `end` has come.
pub async fn read_until(connection: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let mut byte = [0];
        let read = tokio::time::timeout(LONG, connection.read(&mut byte)).await;
        let read = read.unwrap_or_else(|_| panic!("nothing comes after {:?}", String::from_utf8_lossy(&bytes)));
        if read.unwrap() == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A response without what differs between a first response and its replay.
pub fn comparable(response: &str) -> Vec<String> {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let differ = ["date:", "idempotent-replayed:", "cache-control:"];
    let mut lines: Vec<_> = head
        .lines()
        .map(str::to_owned)
        .filter(|line| !differ.iter().any(|name| line.to_ascii_lowercase().starts_with(name)))
        .collect();
    lines[1..].sort();
    lines.push(body.to_owned());
    lines
}

/// An application that is called without a server.
pub fn app(idempotency: &Idempotency, routes: Router) -> Router {
    routes.layer(IdempotencyLayer::new(idempotency.clone()))
}

pub async fn post(app: &Router, path: &str, key: &str, body: impl Into<Body>) -> Response {
    let request = Request::post(path).header("idempotency-key", key).body(body.into()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

pub async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
