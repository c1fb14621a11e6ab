//! The client leaves while it sends the body of its request: nothing has happened, and nothing is claimed.

use std::io;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, H2, Probe, Server, Setup, post as send};
use tower::ServiceExt;

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

/// Looks at the first frame of a body, to tell what kind it is, and leaves the rest.
struct FirstFrame;

impl<S: Sync> FromRequest<S> for FirstFrame {
    type Rejection = StatusCode;

    async fn from_request(request: Request, _: &S) -> Result<Self, StatusCode> {
        let mut frames = request.into_body().into_data_stream();
        let first = frames.next().await.and_then(Result::ok);
        first.map(|_| Self).ok_or(StatusCode::BAD_REQUEST)
    }
}

#[idempotent]
async fn order_of_a_kind(State(probe): State<Probe>, _: FirstFrame) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/orders", post(order))
        .route("/bare", post(order_without_extractors))
        .route("/kind", post(order_of_a_kind));
    Setup::of(routes)
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
async fn an_upload_that_breaks_off_behind_what_its_extractor_reads_claims_nothing_either() {
    let setup = setup();
    let frames = [Ok(Bytes::from("01")), Err(io::Error::other("the upload broke off"))];
    let ask = send("/kind").key("k");
    let broken = setup.app.clone().oneshot(ask.request("/kind", Body::from_stream(stream::iter(frames)))).await;
    assert_eq!(broken.unwrap().status(), 400);
    setup.assert_nothing_stored();
    assert_eq!(setup.probe.runs(), 0);
    ask.body("0123456789").to(&setup.app).await.assert_ran(201);
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
