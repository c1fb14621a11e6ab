//! A replay never desynchronises a connection, whatever the handler said of its length.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::{StreamExt, stream};
use idem_axum::idempotent;
use idem_tests::{Connection, Probe, Reply, ResponseFactory, Setup, get as fetch, post as send, responding};

fn with_headers(headers: &[(&'static str, &'static str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

/// Sends twice over one connection, and then something else, to see that the connection is still good.
async fn twice(setup: &Setup) -> (Reply, Reply) {
    let server = setup.serve().await;
    let ask = send("/").key("k");
    let first = ask.over(&mut Connection::open(&server).await).await;
    let mut connection = Connection::open(&server).await;
    let replay = ask.over(&mut connection).await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(send("/none").over(&mut connection).await.status, 404, "the connection stays usable");
    assert_eq!(ask.over(&mut connection).await.body, replay.body, "the connection stays usable");
    assert_eq!(setup.probe.runs(), 1);
    (first, replay)
}

/// What a wrong header does to the first response is between the handler and hyper (which panics on it in debug builds, and
/// sends it in release builds), so that one does not go over a socket here.
#[tokio::test]
async fn a_wrong_content_length_does_not_reach_the_replay() {
    for wrong in ["3", "100"] {
        let setup = responding!([], move || with_headers(&[("content-length", wrong)], "0123456789"));
        let ask = send("/").key("k");
        assert_eq!(ask.response(&setup.app).await.headers()["content-length"], wrong);
        let (_, replay) = twice(&setup).await;
        assert_eq!((replay.header("content-length"), replay.text()), (Some("10"), "0123456789"));
    }
}

#[tokio::test]
async fn a_transfer_encoding_from_the_handler_does_not_reach_the_replay() {
    let setup = responding!([], || with_headers(&[("transfer-encoding", "gzip, chunked")], "0123456789"));
    send("/").key("k").to(&setup.app).await.assert_ran(200);
    let (_, replay) = twice(&setup).await;
    assert_eq!((replay.header("content-length"), replay.text()), (Some("10"), "0123456789"));
    assert!(replay.all("transfer-encoding").is_empty());
}

#[tokio::test]
async fn a_body_that_a_status_forbids_does_not_desynchronise() {
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let setup = responding!([], move || (status, [("x-a", "1")], "HTTP/1.1 200 OK\r\n\r\n"));
        let ask = send("/").key("k");
        ask.to(&setup.app).await;
        let server = setup.serve().await;
        let mut connection = Connection::open(&server).await;
        let replay = ask.over(&mut connection).await;
        assert!(replay.is_replay() && replay.status == status.as_u16(), "{replay:?}");
        assert_eq!((replay.body.len(), replay.header("x-a")), (0, Some("1")), "{replay:?}");
        assert!(ask.over(&mut connection).await.is_replay());
    }
}

#[tokio::test]
async fn a_stream_is_replayed_with_its_length() {
    let setup = responding!([], || {
        let frames = ["one", "two"].map(Ok::<_, std::io::Error>);
        Body::from_stream(stream::iter(frames))
    });
    let (_, replay) = twice(&setup).await;
    assert_eq!((replay.text(), replay.header("content-length")), ("onetwo", Some("6")));
}

/// The frames of a stream that waits for nothing.
fn ready(frames: &'static [&'static str]) -> Body {
    Body::from_stream(stream::iter(frames).map(|frame| Ok::<_, io::Error>(*frame)))
}

/// RFC 9110, 8.6: a 204 has no length, and that of a 304 is the one that a 200 would have.
#[tokio::test]
async fn a_stream_under_a_status_without_body_has_no_length_in_its_replay() {
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        for setup in [
            responding!([], move || (status, ready(&[]))),
            responding!([], move || (status, ready(&["one"]))),
            responding!([replay = status + headers], move || (status, ready(&["one"]))),
        ] {
            let (first, replay) = twice(&setup).await;
            assert_eq!((first.status, first.header("content-length")), (status.as_u16(), None), "{first:?}");
            assert_eq!((replay.status, replay.header("content-length")), (status.as_u16(), None), "{replay:?}");
        }
    }
}

/// A proxy passes on the headers of the service behind it. axum adds a length to a body that says one, and hyper sends no response that has
/// both.
#[tokio::test]
async fn a_stream_with_a_transfer_encoding_stays_one_though_it_is_ready_at_once() {
    for frames in [&["one", "two"][..], &["one"], &[]] {
        let setup = responding!([], move || with_headers(&[("transfer-encoding", "chunked")], ready(frames)));
        let (first, replay) = twice(&setup).await;
        assert_eq!((first.text(), first.header("transfer-encoding")), (&*frames.concat(), Some("chunked")));
        assert_eq!(replay.text(), first.text());
    }
}

#[idempotent]
async fn read(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[tokio::test]
async fn head_is_another_method_and_its_replay_has_no_body() {
    let setup = Setup::of(Router::new().route("/", get(read)));
    let server = setup.serve().await;
    let mut connection = Connection::open(&server).await;
    let ask = idem_tests::Ask::new("HEAD", "/").key("k");
    for replayed in [false, true] {
        connection.send(ask.bytes()).await;
        let head = connection.head().await;
        assert_eq!((head.status, head.is_replay(), head.header("content-length")), (200, replayed, Some("5")));
    }
    fetch("/").key("k").over(&mut connection).await.assert_refused(422, "idempotency_key_mismatch");
}

#[idempotent]
async fn made(State(probe): State<Probe>, Extension(factory): Extension<ResponseFactory>) -> Response {
    probe.run().await;
    (factory.0)()
}

#[tokio::test]
async fn the_body_of_a_response_to_head_is_not_waited_for_and_its_length_is_replayed() {
    fn idle() -> Body {
        Body::from_stream(stream::pending::<io::Result<Bytes>>())
    }
    let makers: [(fn() -> Response, _); 5] = [
        (|| Response::new(vec![b'x'; 5 << 20].into()), Some("5242880")),
        (|| with_headers(&[("content-length", "7")], idle()), Some("7")),
        (|| with_headers(&[("content-length", "6291456")], Body::empty()), Some("6291456")),
        (|| Response::new(idle()), None),
        (|| Response::new(Body::empty()), Some("0")),
    ];
    for (make, length) in makers {
        let setup = Setup::of(Router::new().route("/", get(made)).layer(Extension(ResponseFactory(Arc::new(make)))));
        let server = setup.serve().await;
        let mut connection = Connection::open(&server).await;
        let ask = idem_tests::Ask::new("HEAD", "/").key("k");
        for replayed in [false, true, true] {
            connection.send(ask.bytes()).await;
            let head = connection.head().await;
            let wanted = (200, replayed, length);
            assert_eq!((head.status, head.is_replay(), head.header("content-length")), wanted, "{head:?}");
            setup.settled().await;
        }
        assert_eq!(setup.probe.runs(), 1);
    }
}

#[tokio::test]
async fn a_replay_over_http_1_0_is_one_response() {
    let setup = responding!([], || "body");
    let server = setup.serve().await;
    let ask = "POST / HTTP/1.0\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    for replayed in [false, true] {
        let mut connection = Connection::open(&server).await;
        connection.send(ask).await;
        let reply = connection.reply().await;
        assert_eq!((reply.text(), reply.is_replay()), ("body", replayed));
    }
}
