//! Bodies of requests: every extractor that takes one, and the limits.

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Form, Json, Multipart, RawForm, Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{RequestExt, Router};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, Probe, Setup, post as send};
use serde_json::Value;
use tokio::sync::mpsc;

#[idempotent]
async fn string(State(probe): State<Probe>, body: String) -> String {
    format!("{}: {body}", probe.run().await)
}

#[idempotent]
async fn bytes(State(probe): State<Probe>, body: Bytes) -> String {
    format!("{}: {}", probe.run().await, body.len())
}

#[idempotent]
async fn request(State(probe): State<Probe>, request: Request) -> String {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    format!("{}: {}", probe.run().await, body.len())
}

#[idempotent]
async fn raw(State(probe): State<Probe>, body: Body) -> String {
    let body = body.collect().await.unwrap().to_bytes();
    format!("{}: {}", probe.run().await, body.len())
}

#[idempotent]
async fn form(State(probe): State<Probe>, Form(fields): Form<Vec<(String, String)>>) -> String {
    format!("{}: {fields:?}", probe.run().await)
}

#[idempotent]
async fn raw_form(State(probe): State<Probe>, RawForm(form): RawForm) -> String {
    format!("{}: {}", probe.run().await, form.len())
}

#[idempotent]
async fn optional_json(State(probe): State<Probe>, json: Option<Json<Value>>) -> String {
    format!("{}: {:?}", probe.run().await, json.map(|json| json.0))
}

#[idempotent]
async fn multipart(State(probe): State<Probe>, mut multipart: Multipart) -> String {
    let mut text = probe.run().await.to_string();
    while let Some(field) = multipart.next_field().await.unwrap() {
        text += &format!(", {}={}", field.name().unwrap_or_default().to_owned(), field.text().await.unwrap());
    }
    text
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/string", post(string))
        .route("/bytes", post(bytes))
        .route("/request", post(request))
        .route("/raw", post(raw))
        .route("/form", post(form))
        .route("/raw-form", post(raw_form))
        .route("/json", post(optional_json))
        .route("/multipart", post(multipart));
    Setup::of(routes)
}

const MULTIPART: &str = "--B\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\none\r\n--B\r\n\
    content-disposition: form-data; name=\"b\"\r\n\r\ntwo\r\n--B--\r\n";

#[tokio::test]
async fn every_extractor_gets_the_body_and_a_retry_the_replay() {
    let form = "application/x-www-form-urlencoded";
    let cases = [
        (send("/string").body("text"), "1: text"),
        (send("/bytes").body("bytes"), "1: 5"),
        (send("/request").body("request"), "1: 7"),
        (send("/raw").body("raw"), "1: 3"),
        (send("/form").header("content-type", form).body("a=1&b=2"), "1: [(\"a\", \"1\"), (\"b\", \"2\")]"),
        (send("/raw-form").header("content-type", form).body("a=1"), "1: 3"),
        (send("/json").json("[1]"), "1: Some(Array [Number(1)])"),
        (send("/json"), "1: None"),
        (
            send("/multipart").header("content-type", "multipart/form-data; boundary=B").body(MULTIPART),
            "1, a=one, b=two",
        ),
    ];
    for (ask, expected) in cases {
        let setup = setup();
        let server = setup.serve().await;
        let ask = ask.key("k");
        let first = ask.at(&server).await;
        assert_eq!((first.status, first.text()), (200, expected));
        ask.at(&server).await.assert_replay_of(&first);
        ask.body("other").at(&server).await.is_replay().then(|| panic!("{expected}"));
        assert_eq!(setup.probe.runs(), 1);
    }
}

fn sized(bytes: usize) -> Ask {
    send("/bytes").key("k").body("x".repeat(bytes))
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_claims_nothing() {
    for path in ["/bytes", "/string", "/request", "/raw"] {
        let routes = Router::new()
            .route("/bytes", post(bytes))
            .route("/string", post(string))
            .route("/request", post(request))
            .route("/raw", post(raw))
            .layer(DefaultBodyLimit::max(10));
        let setup = Setup::of(routes);
        let server = setup.serve().await;
        let ask = |bytes| Ask { target: path.to_owned(), ..sized(bytes) };
        assert_eq!(ask(11).at(&server).await.status, 413, "{path}");
        let mut client = Connection::open(&server).await;
        client
            .send([ask(0).head(), b"transfer-encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n".to_vec()].concat())
            .await;
        assert_eq!(client.reply().await.status, 413, "{path}");
        setup.assert_nothing_stored();
        ask(10).at(&server).await.assert_ran(200);
        assert_eq!(setup.probe.runs(), 1, "{path}");
    }
}

#[tokio::test]
async fn the_default_limit_is_axums_two_megabytes_and_can_be_raised() {
    let two_megabytes = 2 * 1024 * 1024;
    let setup = setup();
    assert_eq!(sized(two_megabytes + 1).to(&setup.app).await.status, 413);
    setup.assert_nothing_stored();
    sized(two_megabytes).to(&setup.app).await.assert_ran(200);
    for limit in [DefaultBodyLimit::max(3 * 1024 * 1024), DefaultBodyLimit::disable()] {
        let setup = Setup::of(Router::new().route("/bytes", post(bytes)).layer(limit));
        sized(two_megabytes + 1).to(&setup.app).await.assert_ran(200);
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_is_rejected_and_uses_up_nothing() {
    let setup = setup();
    let ask = send("/string").key("k");
    assert_eq!(ask.clone().body(vec![0xff]).to(&setup.app).await.status, 400);
    setup.assert_nothing_stored();
    ask.body("fine").to(&setup.app).await.assert_ran(200);
}

/// The first part of the streamed body goes to the test, which only then sends the second.
#[derive(Clone)]
struct ReceivedParts(mpsc::UnboundedSender<Bytes>);

#[idempotent(fingerprint = method + path)]
async fn streamed(
    State(probe): State<Probe>,
    axum::Extension(parts): axum::Extension<ReceivedParts>,
    body: Body,
) -> (StatusCode, String) {
    probe.run().await;
    let mut length = 0;
    let mut stream = body.into_data_stream();
    while let Some(Ok(part)) = stream.next().await {
        length += part.len();
        parts.0.send(part).unwrap();
    }
    (StatusCode::CREATED, length.to_string())
}

#[tokio::test]
async fn a_body_that_the_fingerprint_leaves_out_reaches_the_handler_as_it_comes() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let setup = Setup::of(Router::new().route("/", post(streamed)).layer(axum::Extension(ReceivedParts(sender))));
    let server = setup.serve().await;
    let ask = send("/").key("k").body("a retry is a retry, whatever its body");
    let mut client = Connection::open(&server).await;
    client.send([ask.head(), b"content-length: 8\r\n\r\nhalf".to_vec()].concat()).await;
    assert_eq!(idem_tests::within("the first half", seen.recv()).await.unwrap(), "half");
    ask.at(&server).await.assert_refused(409, "idempotency_key_locked");
    client.send("half").await;
    let first = client.reply().await;
    assert_eq!((first.status, first.text()), (201, "8"));
    ask.at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[idempotent(fingerprint = method + path)]
async fn unbuffered_limit(State(probe): State<Probe>, request: Request) -> Result<String, StatusCode> {
    probe.run().await;
    let body = request.with_limited_body().into_body().collect().await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    Ok(body.to_bytes().len().to_string())
}

#[tokio::test]
async fn a_limit_found_by_the_handler_gives_a_response_like_any_other() {
    let setup = Setup::of(Router::new().route("/", post(unbuffered_limit)).layer(DefaultBodyLimit::max(4)));
    let ask = send("/").key("k").body("12345");
    let first = ask.to(&setup.app).await;
    first.assert_ran(413);
    ask.to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_client_that_leaves_while_the_handler_reads_gets_what_the_handler_made_of_it() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let setup = Setup::of(Router::new().route("/", post(streamed)).layer(axum::Extension(ReceivedParts(sender))));
    let server = setup.serve().await;
    let ask = send("/").key("k");
    let mut client = Connection::open(&server).await;
    client.send([ask.head(), b"content-length: 8\r\n\r\nhalf".to_vec()].concat()).await;
    assert_eq!(idem_tests::within("the first half", seen.recv()).await.unwrap(), "half");
    client.reset();
    setup.settled().await;
    let replay = ask.at(&server).await;
    assert_eq!((replay.status, replay.text(), replay.is_replay()), (201, "4", true));
    assert_eq!(setup.probe.runs(), 1);
}
