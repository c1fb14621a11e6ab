//! The client leaves while it sends the body of its request: nothing has happened, and nothing is claimed.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, H2, Probe, Server, Setup, post as send};

#[idempotent]
async fn order(State(probe): State<Probe>, body: Bytes) -> (StatusCode, Bytes) {
    probe.run().await;
    (StatusCode::CREATED, body)
}

/// The fingerprint reads the body, though the handler does not.
#[idempotent]
async fn order_without_extractors() -> StatusCode {
    StatusCode::CREATED
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/orders", post(order)).route("/bare", post(order_without_extractors)))
}

fn ask() -> Ask {
    send("/orders").key("k").body("0123456789")
}

fn two_of_ten(framing: &str) -> Vec<u8> {
    [ask().head(), framing.as_bytes().to_vec()].concat()
}

async fn assert_the_retry_runs(setup: &Setup, server: &Server) {
    setup.assert_nothing_stored();
    assert_eq!(setup.probe.runs(), 0);
    let first = ask().at(server).await;
    first.assert_ran(201);
    assert_eq!(first.body, b"0123456789");
    ask().at(server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

async fn an_upload_that_breaks_off(sent: &str, leave: impl AsyncFnOnce(Connection)) {
    let setup = setup();
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    client.send(two_of_ten(sent)).await;
    setup.probe.entered(1).await;
    setup.assert_nothing_stored();
    leave(client).await;
    setup.probe.over(1).await;
    assert_the_retry_runs(&setup, &server).await;
}

#[tokio::test]
async fn an_upload_that_closes_claims_nothing() {
    an_upload_that_breaks_off("content-length: 10\r\n\r\n01", async |client| client.hang_up()).await;
}

#[tokio::test]
async fn an_upload_that_resets_claims_nothing() {
    an_upload_that_breaks_off("content-length: 10\r\n\r\n01", async |client| client.reset()).await;
}

#[tokio::test]
async fn an_upload_that_half_closes_is_400_and_claims_nothing() {
    an_upload_that_breaks_off("content-length: 10\r\n\r\n01", async |mut client| {
        client.half_close().await;
        let rest = client.rest().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{}", rest.escape_ascii());
    })
    .await;
}

#[tokio::test]
async fn a_chunked_upload_that_closes_claims_nothing() {
    an_upload_that_breaks_off("transfer-encoding: chunked\r\n\r\n2\r\n01\r\n", async |client| client.hang_up()).await;
}

#[tokio::test]
async fn a_chunked_upload_with_a_broken_chunk_claims_nothing() {
    an_upload_that_breaks_off("transfer-encoding: chunked\r\n\r\n2\r\n01\r\n", async |mut client| {
        client.send("nonsense\r\n").await;
        client.rest().await;
    })
    .await;
}

#[tokio::test]
async fn an_http2_upload_that_is_cancelled_claims_nothing() {
    let setup = setup();
    let server = setup.serve().await;
    let client = H2::open(&server).await;
    let (_response, mut stream) = client.upload(&ask().header("content-length", "10")).await;
    stream.send_data(Bytes::from("01"), false).unwrap();
    setup.probe.entered(1).await;
    H2::cancel(&mut stream);
    setup.probe.over(1).await;
    assert_the_retry_runs(&setup, &server).await;
}

#[tokio::test]
async fn an_http2_upload_that_closes_claims_nothing() {
    let setup = setup();
    let server = setup.serve().await;
    let client = H2::open(&server).await;
    let (_response, mut stream) = client.upload(&ask().header("content-length", "10")).await;
    stream.send_data(Bytes::from("01"), false).unwrap();
    setup.probe.entered(1).await;
    client.hang_up();
    setup.probe.over(1).await;
    assert_the_retry_runs(&setup, &server).await;
}

#[tokio::test]
async fn an_upload_to_a_handler_that_takes_no_body_claims_nothing_either() {
    let setup = setup();
    let server = setup.serve().await;
    let ask = send("/bare").key("k").body("0123456789");
    let mut client = Connection::open(&server).await;
    client.send([ask.head(), b"content-length: 10\r\n\r\n01".to_vec()].concat()).await;
    setup.probe.entered(1).await;
    client.hang_up();
    setup.probe.over(1).await;
    setup.assert_nothing_stored();
    ask.at(&server).await.assert_ran(201);
}

#[tokio::test]
async fn two_uploads_at_once_with_one_key_run_once() {
    let setup = setup();
    let server = setup.serve().await;
    let mut slow = Connection::open(&server).await;
    slow.send(two_of_ten("content-length: 10\r\n\r\n01")).await;
    setup.probe.entered(1).await;
    // The slow one has claimed nothing, so the fast one overtakes it.
    let first = ask().at(&server).await;
    first.assert_ran(201);
    slow.send("23456789").await;
    slow.reply().await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_asked_to_go_on() {
    let setup = setup();
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    client.send(two_of_ten("expect: 100-continue\r\ncontent-length: 10\r\n\r\n")).await;
    assert_eq!(client.head().await.status, 100);
    client.send("0123456789").await;
    client.reply().await.assert_ran(201);
}
