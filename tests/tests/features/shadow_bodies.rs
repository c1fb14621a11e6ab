//! Shadow mode leaves the bodies of requests and responses what they are: when they come, how long they are, how they fail.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, RequestExt, Router};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::{Frame, SizeHint};
use idem_axum::idempotent;
use idem_tests::{Server, Setup, Spans, feed, once, post as send, responding, within};
use tower::ServiceExt;

const MIB: usize = 1 << 20;

/// How many frames were asked for.
#[derive(Clone, Default)]
struct FrameCounter(Arc<AtomicUsize>);

impl FrameCounter {
    fn frames(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn body(&self, frames: usize, frame: &'static [u8]) -> Body {
        let counter = self.clone();
        Body::from_stream(stream::iter(0..frames).map(move |_| {
            counter.0.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>(Bytes::from_static(frame))
        }))
    }
}

/// Says how much had been asked for when it began, and how much came.
#[idempotent(shadow)]
async fn upload(Extension(counter): Extension<FrameCounter>, request: Request) -> String {
    let before = counter.frames();
    let whole = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    format!("{before} of {}", whole.len())
}

#[idempotent(shadow)]
async fn bodiless() -> &'static str {
    "early"
}

#[idempotent(shadow)]
async fn buffered(body: Bytes) -> String {
    body.len().to_string()
}

#[idempotent]
async fn enforced(body: Bytes) -> String {
    body.len().to_string()
}

/// Takes what is wrong with the body as a value.
#[idempotent(shadow)]
async fn lenient(body: Result<Bytes, BytesRejection>) -> String {
    body.map_or_else(|rejection| rejection.status().to_string(), |body| body.len().to_string())
}

async fn bare(body: Bytes) -> String {
    body.len().to_string()
}

fn routes() -> Router<idem_tests::Probe> {
    Router::new()
        .route("/upload", post(upload))
        .route("/bodiless", post(bodiless))
        .route("/buffered", post(buffered))
        .route("/enforced", post(enforced))
        .route("/lenient", post(lenient))
        .route("/bare", post(bare))
}

fn would(spans: &Spans) -> Vec<String> {
    spans.named("idempotency").iter().filter_map(|span| span.get("would").map(str::to_owned)).collect()
}

async fn text(response: Response) -> String {
    let bytes = within("the body", to_bytes(response.into_body(), usize::MAX)).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn of_a_large_upload_no_more_is_kept_than_the_fingerprint_may_cost() {
    static FRAME: [u8; MIB] = [0; MIB];
    let (spans, _guard) = Spans::capture();
    let counter = FrameCounter::default();
    let setup = Setup::of(routes().layer(DefaultBodyLimit::disable()).layer(Extension(counter.clone())));
    let request = send("/upload").key("large").request("/upload", counter.body(64, &FRAME));
    let response = text(setup.app.clone().oneshot(request).await.unwrap()).await;
    assert_eq!(response, format!("3 of {}", 64 * MIB), "the third frame showed that it is too large");
    assert_eq!(would(&spans), ["unread"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_holds_a_request_up_for_a_second_at_most() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes().layer(Extension(FrameCounter::default())));
    let (_feeder, never) = feed();
    let before = tokio::time::Instant::now();
    let request = send("/bodiless").key("never").request("/bodiless", never);
    assert_eq!(text(setup.app.clone().oneshot(request).await.unwrap()).await, "early");
    assert!(before.elapsed() <= Duration::from_millis(1001), "{:?}", before.elapsed());

    let (feeder, slow) = feed();
    let response = tokio::spawn(setup.app.clone().oneshot(send("/upload").key("slow").request("/upload", slow)));
    feeder.send("ab");
    tokio::time::sleep(Duration::from_secs(2)).await;
    feeder.send("cde");
    drop(feeder);
    assert_eq!(text(response.await.unwrap().unwrap()).await, "0 of 5", "what was read comes before the rest");
    assert_eq!(would(&spans), ["unread", "unread"]);
}

#[tokio::test]
async fn a_limit_that_a_layer_sets_gives_the_response_that_it_gives_without_the_attribute() {
    let limited = |mut request: Request| async move {
        DefaultBodyLimit::max(10).apply(&mut request);
        let mut limited = request.with_limited_body();
        DefaultBodyLimit::max(MIB).apply(&mut limited);
        limited
    };
    let setup = Setup::of(routes());
    let app = setup.app.clone().layer(map_request(limited));
    for path in ["/bare", "/enforced", "/buffered"] {
        let large = send(path).key("large").request(path, FrameCounter::default().body(5, b"12345678"));
        assert_eq!(app.clone().oneshot(large).await.unwrap().status(), 413, "{path}");
    }
}

#[tokio::test]
async fn a_handler_that_takes_a_body_that_cannot_be_read_is_judged_as_enforced_rules_would() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes().layer(DefaultBodyLimit::max(10)));
    let ask = async |key: &str, body: Body| {
        let request = send("/lenient").key(key).request("/lenient", body);
        text(setup.app.clone().oneshot(request).await.unwrap()).await
    };
    let broken = stream::iter([Ok("abc"), Err(io::Error::other("the upload broke off"))]);
    for _ in 0..2 {
        assert_eq!(ask("large", Body::from("more than ten bytes")).await, "413 Payload Too Large");
    }
    assert_eq!(ask("broken", Body::from_stream(broken)).await, "400 Bad Request");
    assert_eq!(ask("broken", Body::from("abcdef")).await, "6");
    assert_eq!(would(&spans), ["execute", "replay", "execute", "execute"]);
}

#[tokio::test]
async fn a_stream_is_not_asked_for_before_its_client_reads() {
    let counter = FrameCounter::default();
    let setup = responding!([shadow], once(counter.body(3, b"abc")));
    let response = send("/").key("a").response(&setup.app).await;
    assert_eq!(counter.frames(), 0);
    assert_eq!(text(response).await, "abcabcabc");
    let (app, _probe) = Setup::mount(&setup.idempotency, responding!(@routes [], || "another"));
    assert_eq!(send("/").key("a").to(&app).await.text(), "abcabcabc");
}

#[tokio::test]
async fn a_body_keeps_what_it_says_of_its_length() {
    let known = || "abc".into_response();
    let unknown = || Response::new(FrameCounter::default().body(1, b"abc"));
    let empty = || Response::new(Body::empty());
    for make in [known, unknown, empty] {
        let (bare, setup) = (make(), responding!([shadow], make));
        let response = send("/").key("a").response(&setup.app).await;
        let said = |body: &Body| (body.size_hint().lower(), body.size_hint().upper(), body.is_end_stream());
        assert_eq!(said(response.body()), said(bare.body()));
    }
}

#[tokio::test]
async fn a_stream_that_panics_has_sent_what_came_before() {
    let frames =
        || stream::iter(0..2).map(|nth| if nth == 0 { Ok::<_, io::Error>("abc") } else { panic!("the stream") });
    let setup = responding!([shadow], move || Response::new(Body::from_stream(frames())));
    let mut body = send("/").key("a").response(&setup.app).await.into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "abc");
    tokio::spawn(async move { body.next().await }).await.unwrap_err();
    setup.settled().await;
    setup.assert_nothing_stored();
}

#[tokio::test]
async fn a_body_of_declared_length_is_recorded_when_that_has_come() {
    // As a proxy does: the length of the response behind it, and its stream, which is not read to its end.
    let frames = || stream::iter(["12345", "67890"]).map(Ok::<_, io::Error>).chain(stream::pending());
    let proxied = move || ([("content-length", "10")], Body::from_stream(frames()));
    let setup = responding!([shadow], proxied);
    let mut body = send("/").key("a").response(&setup.app).await.into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "12345");
    assert_eq!(body.next().await.unwrap().unwrap(), "67890");
    drop(body);
    let (app, _probe) = Setup::mount(&setup.idempotency, responding!(@routes [], || "another"));
    assert_eq!(send("/").key("a").to(&app).await.text(), "1234567890");
}

#[tokio::test]
async fn a_body_that_its_status_cuts_off_is_no_client_that_left() {
    for status in [204, 304] {
        let respond = move || (StatusCode::from_u16(status).unwrap(), "null");
        let setup = responding!([shadow], respond);
        assert_eq!(send("/").key("a").at(&Server::start(setup.app.clone()).await).await.status, status);
        let (app, probe) = Setup::mount(&setup.idempotency, responding!(@routes [], || "another"));
        let retry = send("/").key("a").to(&app).await;
        assert_eq!((retry.status, retry.is_replay(), probe.runs()), (status, true, 0));
    }
}

/// A body of known length, whose frames are there. It counts how often it was asked.
struct Ready {
    frames: std::slice::Iter<'static, &'static str>,
    asked: FrameCounter,
}

impl HttpBody for Ready {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.asked.0.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(self.frames.next().map(|frame| Ok(Frame::data(Bytes::from_static(frame.as_bytes())))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.frames.clone().map(|frame| frame.len() as u64).sum())
    }
}

#[tokio::test]
async fn a_body_that_is_there_is_recorded_to_its_end_and_one_that_says_nothing_is_not_asked_again() {
    for (frames, asked) in [(&["nu", "ll"], 2), (&["", "null"], 1)] {
        let counter = FrameCounter::default();
        let respond = {
            let counter = counter.clone();
            move || Body::new(Ready { frames: frames.iter(), asked: counter.clone() })
        };
        let setup = responding!([shadow], respond);
        // Its caller drops it unread.
        drop(setup.app.clone().oneshot(send("/").key("a").request("/", Body::empty())).await.unwrap());
        assert_eq!(counter.frames(), asked, "{frames:?}");
        if asked == frames.len() {
            let (app, probe) = Setup::mount(&setup.idempotency, responding!(@routes [], || "another"));
            let retry = send("/").key("a").to(&app).await;
            assert_eq!((retry.is_replay(), &retry.body[..], probe.runs()), (true, &b"null"[..], 0));
        }
    }
}
