//! What of a response is recorded, and when: trailers, statuses without a body, known lengths, streams that misbehave.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use idem_axum::{Idempotency, idempotent};
use idem_tests::support::{self, TestServer, app, comparable, post as send, read_until, text};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

/// A body of these frames, which then ends, or never does.
struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    /// Pends once before each frame, so that the body is recorded live.
    pends: bool,
    /// Pends once before the end.
    pends_at_end: bool,
    pended: bool,
    ends: bool,
    exact: Option<u64>,
    _guard: Option<PanicsOnDrop>,
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("while it is dropped");
    }
}

impl Frames {
    fn new(data: &[&'static str]) -> Self {
        let frames = data.iter().map(|data| Frame::data(Bytes::from_static(data.as_bytes()))).collect();
        Self { frames, pends: false, pends_at_end: false, pended: false, ends: true, exact: None, _guard: None }
    }

    fn trailer(mut self, name: &'static str, value: &'static str) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, HeaderValue::from_static(value));
        self.frames.push_back(Frame::trailers(trailers));
        self
    }

    fn live(self) -> Self {
        Self { pends: true, ..self }
    }

    fn ends_later(self) -> Self {
        Self { pends_at_end: true, ..self }
    }

    fn endless(self) -> Self {
        Self { ends: false, ..self }
    }

    fn exact(self, length: u64) -> Self {
        Self { exact: Some(length), ..self }
    }
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let pends = self.pends || (self.pends_at_end && self.frames.is_empty());
        if pends && !self.pended {
            self.pended = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.pended = false;
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn body(frames: Frames) -> Response {
    Body::new(frames).into_response()
}

#[idempotent]
async fn stream(Path(kind): Path<String>) -> Response {
    let two = || Frames::new(&["one", "two"]);
    match kind.as_str() {
        "trailers" => ([("trailer", "x-sum, x-other")], body(two().trailer("x-sum", "6"))).into_response(),
        "trailers-live" => ([("trailer", "x-sum")], body(two().trailer("x-sum", "6").live())).into_response(),
        "trailers-end-later" => {
            ([("trailer", "x-sum")], body(two().trailer("x-sum", "6").ends_later())).into_response()
        }
        "trailers-unannounced" => body(two().trailer("x-sum", "6")),
        // Its length is known until its data has been read.
        "length-trailers-later" => {
            let trailers = async {
                tokio::task::yield_now().await;
                Some(Ok(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("6"))])))
            };
            let body = Full::new(Bytes::from_static(b"onetwo")).with_trailers(trailers);
            ([("trailer", "x-sum")], Body::new(body)).into_response()
        }
        "205" => (StatusCode::RESET_CONTENT, "five5").into_response(),
        "204" => (StatusCode::NO_CONTENT, "five5").into_response(),
        // Nothing of that length is sent, so nothing is waited for.
        "204-length" => (StatusCode::NO_CONTENT, [("content-length", "5")], body(Frames::new(&[]))).into_response(),
        "known-header" => ([("content-length", "6")], body(two().live().endless())).into_response(),
        "known-header-ready" => ([("content-length", "6")], body(two().endless())).into_response(),
        "known-hint" => body(two().live().endless().exact(6)),
        "beyond" => ([("content-length", "5")], body(two().live().endless())).into_response(),
        "drop" => body(Frames { _guard: Some(PanicsOnDrop), ..two() }),
        "drop-live" => body(Frames { _guard: Some(PanicsOnDrop), ..two().live() }),
        "short" => ([("content-length", "9")], body(two().live())).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[idempotent]
async fn head() -> Response {
    ([("content-length", "1234"), ("x-a", "1")], Body::empty()).into_response()
}

fn routes() -> Router {
    Router::new().route("/head", any(head)).route("/{kind}", any(stream))
}

fn request(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nte: trailers\r\nconnection: close\r\n\r\n")
        .into()
}

#[tokio::test]
async fn a_replay_is_equal_to_the_first_response_on_the_wire() {
    for (method, kind) in [
        ("POST", "trailers"),
        ("POST", "trailers-live"),
        ("POST", "trailers-end-later"),
        ("POST", "trailers-unannounced"),
        ("POST", "length-trailers-later"),
        ("POST", "205"),
        ("POST", "204"),
        ("POST", "204-length"),
        ("HEAD", "head"),
    ] {
        let served = TestServer::new(routes()).await;
        let first = served.send(&request(method, &format!("/{kind}"))).await;
        let second = served.send(&request(method, &format!("/{kind}"))).await;
        assert!(second.contains("idempotent-replayed: true"), "{kind}: {second}");
        let (mut first, mut second) = (comparable(&first), comparable(&second));
        if kind.starts_with("trailers") {
            // Frames are chunks in the first response; the names that were announced and not sent are gone.
            for lines in [&mut first, &mut second] {
                let body = lines.pop().unwrap();
                lines.retain(|line| !line.starts_with("trailer:"));
                assert_eq!(body.contains("x-sum: 6"), kind != "trailers-unannounced", "{kind}: {body}");
            }
        }
        if kind == "length-trailers-later" {
            // As without the attribute: a client does not wait for more than the length, and no trailers are sent after it.
            assert!(first.contains(&"content-length: 6".to_owned()), "{first:?}");
            first.retain(|line| !line.starts_with("trailer:"));
        }
        if kind == "204-length" {
            // The handler's own, as without the attribute, and about a body that is not sent.
            first.retain(|line| line != "content-length: 5");
        }
        assert_eq!(second, first, "{kind}");
    }
    let served = TestServer::new(routes()).await;
    for _ in 0..2 {
        let response = served.send(&request("HEAD", "/head")).await;
        assert!(response.contains("content-length: 1234"), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_equal_to_the_first_response_over_http2() {
    for (method, path) in [
        ("POST", "/204"),
        ("POST", "/205"),
        ("POST", "/trailers"),
        ("POST", "/trailers-live"),
        ("POST", "/trailers-end-later"),
        ("HEAD", "/head"),
    ] {
        let served = TestServer::new(routes()).await;
        let mut responses = Vec::new();
        for _ in 0..2 {
            let url = format!("http://{}{path}", served.address);
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["-sS", "-i", "--http2-prior-knowledge", "-H", "idempotency-key: a"]).kill_on_drop(true);
            let method = if method == "HEAD" { vec!["-I"] } else { vec!["-X", method] };
            curl.args(method).arg(url);
            let output = tokio::time::timeout(support::LONG, curl.output()).await.expect("curl ends").unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            responses.push(format!("{}{errors}", String::from_utf8_lossy(&output.stdout)));
        }
        if path == "/204" {
            // curl does not accept it over HTTP/2, with or without the attribute.
            assert!(responses[0].contains("PROTOCOL_ERROR"), "{}", responses[0]);
            assert_eq!(responses[1], responses[0]);
            continue;
        }
        assert!(responses[1].contains("idempotent-replayed: true"), "{path}: {}", responses[1]);
        let announced = |line: &String| !line.starts_with("trailer:");
        let [first, second] =
            [0, 1].map(|nth| comparable(&responses[nth]).into_iter().filter(announced).collect::<Vec<_>>());
        assert_eq!(second, first, "{path}");
    }
}

/// curl stops at the length, and so does not see the trailers.
#[tokio::test]
async fn over_http2_trailers_after_a_known_length_are_replayed() {
    let served = TestServer::new(routes()).await;
    for replayed in [false, true] {
        let (client, connection) = h2::client::handshake(served.connect().await).await.unwrap();
        let connection = tokio::spawn(connection);
        let uri = "http://a.example/length-trailers-later";
        let request = Request::post(uri).header("idempotency-key", "a").body(()).unwrap();
        let (response, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
        let mut body = response.into_body();
        let mut data = Vec::new();
        while let Some(bytes) = body.data().await {
            data.extend_from_slice(&bytes.unwrap());
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        assert_eq!((&data[..], trailers.get("x-sum").map(HeaderValue::as_bytes)), (&b"onetwo"[..], Some(&b"6"[..])));
        connection.abort();
    }
}

#[tokio::test]
async fn trailers_and_bodies_are_equal_without_a_server_too() {
    // As HTTP/2 sends them: whatever the body has.
    for kind in ["trailers", "trailers-live", "trailers-end-later", "trailers-unannounced", "204", "205"] {
        let app = app(&Idempotency::in_memory(), routes());
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut body = send(&app, &format!("/{kind}"), "a", "").await.into_body();
            let (mut data, mut trailers) = (Vec::new(), Vec::new());
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                match frame.unwrap().into_data() {
                    Ok(bytes) => data.extend_from_slice(&bytes),
                    Err(frame) => trailers.push(frame.into_trailers().unwrap()),
                }
            }
            seen.push((data, trailers));
        }
        assert_eq!(seen[1], seen[0], "{kind}");
        assert_eq!(seen[0].1.len(), usize::from(kind.starts_with("trailers")), "{kind}");
    }
}

#[tokio::test]
async fn a_recording_is_complete_when_the_known_length_was_delivered() {
    for (kind, length) in [("known-header", 6), ("known-header-ready", 6), ("known-hint", 6), ("beyond", 5)] {
        let served = TestServer::new(routes()).await;
        let mut connection = served.connect().await;
        let request = format!("POST /{kind} HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let body = &"onetwo"[..length];
        let first = read_until(&mut connection, body).await;
        assert!(first.ends_with(body), "{kind}: {first}");
        connection.write_all(request.as_bytes()).await.unwrap();
        let second = read_until(&mut connection, body).await;
        assert!(second.contains("200 OK") && second.contains("idempotent-replayed"), "{kind}: {second}");
        tokio::time::timeout(support::LONG, served.idempotency.drain()).await.expect("nothing runs");
    }
}

#[tokio::test]
async fn a_stream_shorter_than_its_known_length_is_not_replayed() {
    let served = TestServer::new(routes()).await;
    let first = served.send(&request("POST", "/short")).await;
    assert!(first.ends_with("onetwo"), "{first}");
    let second = served.send(&request("POST", "/short")).await;
    assert!(second.contains("idempotency_not_replayable"), "{second}");
}

#[tokio::test]
async fn a_stream_whose_drop_panics_ends_and_is_replayed() {
    for kind in ["drop", "drop-live"] {
        let app = app(&Idempotency::in_memory(), routes());
        for _ in 0..2 {
            let response = send(&app, &format!("/{kind}"), "a", "").await;
            assert_eq!(response.status(), 200);
            let body = tokio::time::timeout(support::LONG, text(response)).await.expect("the response ends");
            assert_eq!(body, "onetwo");
        }
    }
}

#[derive(Clone)]
struct Gate(Arc<Semaphore>);

const LARGE: usize = 1024 * 1024 - 1024;

/// A stream of almost 1 MiB in many frames.
#[idempotent]
async fn large(State(gate): State<Gate>) -> Body {
    let frames = futures_util::stream::unfold((gate, 0), |(gate, sent)| async move {
        if sent == LARGE {
            return None;
        }
        tokio::task::yield_now().await;
        if sent + 1024 == LARGE {
            gate.0.add_permits(1);
        }
        Some((Ok::<_, Infallible>(Bytes::from(vec![7; 1024])), (gate, sent + 1024)))
    });
    Body::from_stream(frames)
}

/// As [`large`], of frames that are all ready.
#[idempotent]
async fn ready(State(gate): State<Gate>) -> Body {
    let frames = (0..LARGE / 1024).map(move |frame| {
        if frame + 1 == LARGE / 1024 {
            gate.0.add_permits(1);
        }
        Ok::<_, Infallible>(Bytes::from(vec![7; 1024]))
    });
    Body::from_stream(futures_util::stream::iter(frames))
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn streams_that_are_not_read_cost_their_record_and_are_counted() {
    for path in ["/large", "/ready"] {
        are_not_read(path).await;
    }
}

async fn are_not_read(path: &str) {
    const STREAMS: usize = 150;
    let (idempotency, gate) = (Idempotency::in_memory(), Gate(Arc::new(Semaphore::new(0))));
    let routes = Router::new().route("/large", post(large)).route("/ready", post(ready)).with_state(gate.clone());
    let app = app(&idempotency, routes);
    let before = resident();
    let mut unread = Vec::new();
    for number in 0..STREAMS {
        unread.push(send(&app, path, &number.to_string(), "").await);
    }
    let all_sent = gate.0.acquire_many(u32::try_from(STREAMS).unwrap());
    drop(tokio::time::timeout(support::LONG, all_sent).await.expect("no stream waits for its caller").unwrap());
    // Each is recorded, although it was not read.
    for number in 0..STREAMS {
        let retry = loop {
            let retry = send(&app, path, &number.to_string(), "").await;
            if retry.status() == 200 {
                break retry;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(retry.headers()["idempotent-replayed"], "true");
    }
    let used = resident().saturating_sub(before);
    assert!(used < STREAMS * LARGE * 3 / 2, "{} bytes for each stream of {LARGE}", used / STREAMS);
    assert_eq!(idempotency.executions(), STREAMS, "a stream that is not read takes the place of an execution");
    let drained = idempotency.drain_until(std::future::ready(())).await;
    assert_eq!(drained.map_err(|left| left.executions()), Err(STREAMS), "a drain waits for them");
    let last = unread.pop().unwrap();
    drop(unread);
    assert_eq!(text(last).await.len(), LARGE);
    tokio::time::timeout(support::LONG, idempotency.drain()).await.expect("all are read or dropped");
    assert_eq!(idempotency.executions(), 0);
}
