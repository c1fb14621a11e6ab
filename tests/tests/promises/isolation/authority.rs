//! The authority of a request, in a scope and in a fingerprint, is the same over HTTP/1.1 and HTTP/2.

use axum::Router;
use axum::http::Request;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::got::{REPLAYED, app};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[idempotent(scope = header("Host"))]
async fn scoped() -> &'static str {
    "for one authority"
}

#[idempotent(fingerprint = method + path + header("Host"), scope = global)]
async fn compared() -> &'static str {
    "for one authority"
}

async fn server() -> std::net::SocketAddr {
    let app = app(Router::new().route("/scoped", post(scoped)).route("/compared", post(compared)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Sends a request with the key `a` over HTTP/1.1, and returns the status and whether it was a replay.
async fn http1(address: std::net::SocketAddr, target: &str, host: &str) -> (u16, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: {host}\r\nIdempotency-Key: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    (response[9..12].parse().unwrap(), response.contains(REPLAYED))
}

/// The same over HTTP/2.
async fn http2(address: std::net::SocketAddr, path: &str, authority: &str) -> (u16, bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let uri = format!("http://{authority}{path}");
    let request = Request::post(uri).header("idempotency-key", "a").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    connection.abort();
    (response.status().as_u16(), response.headers().contains_key(REPLAYED))
}

#[tokio::test]
async fn a_scope_by_host_is_the_authority_over_both_versions_of_http() {
    let address = server().await;
    assert_eq!(http2(address, "/scoped", "a.example").await, (200, false));
    assert_eq!(http2(address, "/scoped", "b.example").await, (200, false), "another tenant");
    assert_eq!(http2(address, "/scoped", "A.example").await, (200, true));
    assert_eq!(http1(address, "/scoped", "a.example").await, (200, true), "the same authority");
    assert_eq!(http1(address, "/scoped", "c.example").await, (200, false));
    assert_eq!(http1(address, "http://c.example/scoped", "b.example").await, (200, true), "the target wins");
}

#[tokio::test]
async fn a_fingerprint_with_the_host_has_the_authority_over_both_versions_of_http() {
    let address = server().await;
    assert_eq!(http2(address, "/compared", "a.example").await, (200, false));
    assert_eq!(http2(address, "/compared", "b.example").await, (422, false));
    assert_eq!(http1(address, "/compared", "a.example").await, (200, true));
    assert_eq!(http1(address, "/compared", "b.example").await, (422, false));
    assert_eq!(http1(address, "http://a.example/compared", "b.example").await, (200, true));
}
