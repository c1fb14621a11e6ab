//! A client always gets to read its response, and the handler the request body as it came.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use idem_axum::{IdempotencyKey, Part, Policy, idempotent};
use idem_testkit::wait::until;
use idem_tests::support::{self, TestServer, read_all, read_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const WITHOUT_BODY: Policy = Policy::DEFAULT.fingerprint(&[Part::Method, Part::Path]);
const REQUIRED: Policy = WITHOUT_BODY.required();

type Runs = Arc<AtomicUsize>;

async fn length(body: Body) -> usize {
    axum::body::to_bytes(body, usize::MAX).await.unwrap().len()
}

#[idempotent(policy = WITHOUT_BODY)]
async fn upload(State(runs): State<Runs>, body: Body) -> String {
    runs.fetch_add(1, Ordering::SeqCst);
    length(body).await.to_string()
}

#[idempotent(policy = WITHOUT_BODY)]
async fn unread(State(runs): State<Runs>) -> &'static str {
    runs.fetch_add(1, Ordering::SeqCst);
    "unread"
}

#[idempotent(policy = REQUIRED)]
async fn required(body: Body) -> String {
    length(body).await.to_string()
}

#[idempotent(policy = WITHOUT_BODY)]
async fn key_first(_: IdempotencyKey, _: Body) {}

type Named = IdempotencyKey;

/// A mistake: the key is not known yet.
#[idempotent(policy = WITHOUT_BODY, key = uri.path())]
async fn key_too_early(uri: Uri, _: Named, _: Body) {
    let _ = uri;
}

#[idempotent(policy = WITHOUT_BODY)]
async fn key_last(_: IdempotencyKey) {}

#[idempotent(policy = WITHOUT_BODY, timeout = "200ms")]
async fn takes_long(body: Body) -> String {
    length(body).await.to_string()
}

#[idempotent(policy = WITHOUT_BODY)]
async fn panics(body: Body) {
    let mut frames = body.into_data_stream();
    frames.next().await;
    panic!("after the first frame");
}

#[idempotent]
async fn in_fingerprint(State(runs): State<Runs>, body: Body) -> String {
    runs.fetch_add(1, Ordering::SeqCst);
    length(body).await.to_string()
}

fn routes(runs: &Runs) -> Router {
    Router::new()
        .route("/upload", post(upload))
        .route("/unread", post(unread))
        .route("/required", post(required))
        .route("/key-first", post(key_first))
        .route("/key-last", post(key_last))
        .route("/key-too-early", post(key_too_early))
        .route("/in-fingerprint", post(in_fingerprint))
        .route("/takes-long", post(takes_long))
        .route("/panics", post(panics))
        .with_state(runs.clone())
}

const SIZE: usize = 8 << 20;

#[tokio::test]
async fn a_connection_is_used_again_after_a_body_was_discarded() {
    let served = TestServer::new(routes(&Runs::default())).await;
    let mut connection = served.connect().await;
    let request = format!("POST /unread HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\ncontent-length: {SIZE}\r\n\r\n");
    let mut request = request.into_bytes();
    request.resize(request.len() + SIZE, b'x');
    let first =
        served.send(b"POST /unread HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nconnection: close\r\n\r\n").await;
    assert!(first.ends_with("unread"), "{first}");
    for _ in 0..3 {
        connection.write_all(&request).await.unwrap();
        let replay = read_until(&mut connection, "\r\n\r\nunread").await;
        assert!(replay.contains("idempotent-replayed: true"), "{replay}");
        assert!(!replay.contains("connection: close"), "{replay}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_the_extractor_of_the_key_refused() {
    let served = TestServer::new(routes(&Runs::default())).await;
    let mut connection = served.connect().await;
    for (path, end) in [
        ("/key-first", "idempotency_key_missing\"}"),
        ("/key-last", "idempotency_key_missing\"}"),
        ("/key-too-early", "\r\n\r\n"),
        ("/key-first", "idempotency_key_missing\"}"),
    ] {
        let mut request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n").into_bytes();
        request.resize(request.len() + SIZE, b'x');
        connection.write_all(&request).await.unwrap();
        let refused = read_until(&mut connection, end).await;
        let status = if path == "/key-too-early" { "500" } else { "400" };
        assert!(refused.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {refused}");
        assert!(!refused.contains("connection: close"), "{path} {refused}");
    }
}

#[tokio::test]
async fn a_client_that_awaits_100_continue_is_not_asked_for_its_body() {
    let served = TestServer::new(routes(&Runs::default())).await;
    let head = |path: &str, key: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\n{key}content-length: {SIZE}\r\nexpect: 100-continue\r\n\r\n")
    };
    served.send(b"POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nconnection: close\r\n\r\n").await;
    for (path, key, status) in [("/upload", "idempotency-key: a\r\n", "200"), ("/required", "", "400")] {
        let mut connection = served.connect().await;
        connection.write_all(head(path, key).as_bytes()).await.unwrap();
        let response = read_all(&mut connection).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert!(response.contains("connection: close"), "{response}");
    }
    // It was asked for the body that is part of the fingerprint, so that is read to its end.
    let mut connection = served.connect().await;
    connection.write_all(head("/in-fingerprint", "idempotency-key: c\r\n").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut connection, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    connection.write_all(&vec![b'x'; SIZE]).await.unwrap();
    let response = read_until(&mut connection, "\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 413") && !response.contains("connection: close"), "{response}");
    // The handler that reads its body still asks for it.
    let mut connection = served.connect().await;
    connection.write_all(head("/upload", "idempotency-key: b\r\n").as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut connection, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    connection.write_all(&vec![b'x'; SIZE]).await.unwrap();
    assert!(read_until(&mut connection, "\r\n\r\n8388608").await.starts_with("HTTP/1.1 200"));
}

/// The handler has the body when it ends.
#[tokio::test]
async fn a_connection_is_used_again_after_a_handler_that_reads_the_body_was_stopped() {
    let served = TestServer::new(routes(&Runs::default())).await;
    let mut connection = served.connect().await;
    for (path, key, end) in [
        ("/takes-long", "idempotency-key: a\r\n", "idempotency_handler_timed_out\"}"),
        ("/takes-long", "", "idempotency_handler_timed_out\"}"),
        ("/panics", "idempotency-key: b\r\n", "idempotency_handler_panicked\"}"),
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{key}content-length: {SIZE}\r\n\r\n");
        connection.write_all(&[head.as_bytes(), &[b'x'; 4]].concat()).await.unwrap();
        let ended = served.idempotency.clone();
        until("the handler has ended", async || key.is_empty() || ended.executions() == 0).await;
        let mut early = [0];
        let early = timeout(Duration::from_millis(300), connection.read(&mut early)).await;
        assert!(early.is_err(), "{path} {key}: the upload is not at its end: {early:?}");
        connection.write_all(&vec![b'x'; SIZE - 4]).await.unwrap();
        let response = read_until(&mut connection, end).await;
        let status = if path == "/panics" { "500" } else { "504" };
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {key}: {response}");
        assert!(!response.contains("connection: close"), "{path} {key}: {response}");
    }
}

#[tokio::test]
async fn an_endless_upload_is_cut_off_and_holds_no_claim() {
    let served = TestServer::new(routes(&Runs::default())).await;
    served.send(b"POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nconnection: close\r\n\r\n").await;
    let connection = served.connect().await;
    let (mut read, mut write) = connection.into_split();
    let head = b"POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\ntransfer-encoding: chunked\r\n\r\n";
    write.write_all(head).await.unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b'x'; 1 << 20], b"\r\n".to_vec()].concat();
    let upload = async move {
        let mut sent = 0;
        while write.write_all(&chunk).await.is_ok() {
            sent += 1;
        }
        sent
    };
    let mut response = Vec::new();
    let (sent, _) = tokio::time::timeout(support::LONG, async {
        tokio::join!(upload, tokio::io::AsyncReadExt::read_to_end(&mut read, &mut response))
    })
    .await
    .expect("the upload is cut off");
    assert!((64..80).contains(&sent), "{sent} MiB");
    assert_eq!(served.idempotency.executions(), 0);
    // One that is known to be larger is not read at all.
    let head = b"POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\ncontent-length: 67108865\r\n\r\n";
    let response = served.send(head).await;
    assert!(response.contains("idempotent-replayed: true") && response.contains("connection: close"), "{response}");
}

/// A body of `length` bytes that keeps what says whether it was dropped.
fn watched(length: usize) -> (Body, std::sync::Weak<()>) {
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let frames = futures_util::stream::unfold((alive, length), |(alive, left)| async move {
        (left > 0).then(|| (Ok::<_, std::convert::Infallible>(vec![b'x'; 1024]), (alive, left - 1024)))
    });
    (Body::from_stream(frames), weak)
}

#[idempotent(policy = WITHOUT_BODY)]
async fn drops_its_body(State(alive): State<Arc<std::sync::Mutex<std::sync::Weak<()>>>>, body: Body) -> String {
    drop(body);
    alive.lock().unwrap().upgrade().is_none().to_string()
}

#[tokio::test]
async fn a_body_belongs_to_the_handler_that_runs() {
    let alive = Arc::<std::sync::Mutex<std::sync::Weak<()>>>::default();
    let routes = Router::new().route("/drops", post(drops_its_body)).with_state(alive.clone());
    let app = support::app(&idem_axum::Idempotency::in_memory(), routes);
    let (body, weak) = watched(1 << 20);
    *alive.lock().unwrap() = weak;
    let response = support::post(&app, "/drops", "a", body).await;
    assert_eq!(support::text(response).await, "true", "it is dropped when the handler drops it");
}

// ---- Bodies that are part of the fingerprint. ----

#[derive(Clone, Default)]
struct Trailers(Arc<std::sync::Mutex<Option<HeaderMap>>>);

#[idempotent]
async fn with_trailers(State(seen): State<Trailers>, mut body: Body) -> String {
    let mut length = 0;
    while let Some(frame) =
        std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await
    {
        match frame.unwrap().into_data() {
            Ok(data) => length += data.len(),
            Err(frame) => *seen.0.lock().unwrap() = frame.into_trailers().ok(),
        }
    }
    length.to_string()
}

#[tokio::test]
async fn request_trailers_reach_the_handler_with_a_key() {
    let seen = Trailers::default();
    let served = TestServer::new(Router::new().route("/", post(with_trailers)).with_state(seen.clone())).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nconnection: close\r\ntrailer: x-sum\r\n\
                   transfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-sum: 3\r\n\r\n";
    let response = served.send(request.as_bytes()).await;
    assert!(response.ends_with("\r\n\r\n3"), "{response}");
    assert_eq!(seen.0.lock().unwrap().as_ref().map(|trailers| trailers["x-sum"].clone()), Some("3".parse().unwrap()));
}

#[idempotent]
async fn decides(body: Result<Json<serde_json::Value>, JsonRejection>) -> Response {
    match body {
        Ok(_) => "read".into_response(),
        Err(rejection) => (StatusCode::IM_A_TEAPOT, rejection.body_text()).into_response(),
    }
}

#[idempotent]
async fn json(Json(_): Json<serde_json::Value>) {}

#[idempotent]
async fn whole_request(_: Request) {}

#[idempotent]
async fn none() {}

#[tokio::test]
async fn an_extractor_decides_about_a_body_over_the_limit() {
    let routes = || {
        Router::new()
            .route("/decides", post(decides))
            .route("/json", post(json))
            .route("/request", post(whole_request))
            .route("/none", post(none))
            .layer(DefaultBodyLimit::max(2 << 20))
    };
    let large = 3 << 20;
    for (path, content_type, status, body) in [
        ("/decides", "application/json", 418, "length limit exceeded"),
        ("/json", "application/json", 413, "length limit exceeded"),
        ("/json", "text/plain", 415, "Expected request with"),
        ("/request", "application/json", 413, "length limit exceeded"),
        ("/none", "application/json", 413, "length limit exceeded"),
    ] {
        let served = TestServer::new(routes()).await;
        let mut connection = served.connect().await;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\ncontent-type: {content_type}\r\n\
             content-length: {large}\r\nconnection: close\r\n\r\n"
        );
        let mut request = request.into_bytes();
        request.resize(request.len() + large, b'1');
        // As without the attribute, a server need not read what an extractor rejects.
        let _ = connection.write_all(&request).await;
        let response = read_until(&mut connection, "\r\n\r\n").await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {response}");
        let text = tokio::time::timeout(support::LONG, async {
            let mut text = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        let text = text.await.unwrap();
        assert!(text.contains(body), "{path}: {text}");
        let key = idem_runtime::Key::parse(b"a").unwrap();
        let found = served.idempotency.inspect(&idem_runtime::Scope::GLOBAL, &key).await.unwrap();
        assert_eq!(found.is_some(), path == "/decides", "{path}: only a handler that ran leaves something");
    }
}

/// A layer may make a body of a stream, and this one must not be asked again after its end.
#[tokio::test]
async fn a_body_that_was_read_to_its_end_is_not_asked_for_more() {
    let streamed = |request: Request| async {
        request.map(|body| {
            let frames =
                stream::unfold(body.into_data_stream(), async |mut frames| Some((frames.next().await?, frames)));
            Body::from_stream(frames)
        })
    };
    #[idempotent(policy = WITHOUT_BODY)]
    async fn read(State(runs): State<Runs>, body: String) -> String {
        runs.fetch_add(1, Ordering::SeqCst);
        body
    }
    let runs = Runs::default();
    let routes = Router::new().route("/read", post(read)).with_state(runs.clone()).layer(map_request(streamed));
    let served = TestServer::new(routes).await;
    for replayed in [false, true] {
        let request = b"POST /read HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\ntext";
        let response = served.send(request).await;
        assert!(response.ends_with("text"), "{response}");
        assert_eq!(response.contains("idempotent-replayed: true"), replayed, "{response}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}
