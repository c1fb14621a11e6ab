//! Bodies that arrive in many frames: the fingerprint is that of their bytes, and they are not copied for it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{Response, StatusCode};
use axum::routing::post;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, idempotent};
use tower::ServiceExt;

/// What an extractor may read of a body on `/limited`.
const LIMIT: usize = 5000;

/// Reads the body without keeping it.
#[idempotent]
async fn upload(request: Request) -> String {
    let mut body = request.into_body().into_data_stream();
    let mut length = 0;
    while let Some(data) = body.next().await {
        length += data.unwrap().len();
    }
    length.to_string()
}

/// Responds to a body above the limit as well, so that the response is recorded.
#[idempotent]
async fn lenient(body: Result<Bytes, BytesRejection>) -> String {
    body.map_or_else(|rejection| rejection.body_text(), |body| body.len().to_string())
}

/// A body of any size, read by an extractor that has no limit, as those of some other crates.
struct Everything(Vec<u8>);

impl<S: Sync> FromRequest<S> for Everything {
    type Rejection = StatusCode;

    async fn from_request(request: Request, _: &S) -> Result<Self, StatusCode> {
        let read = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        read.map(|body| Self(body.into())).map_err(|_| StatusCode::BAD_REQUEST)
    }
}

#[idempotent]
async fn everything(Everything(body): Everything) -> String {
    body.len().to_string()
}

/// A body of which the extractor has read the start, and the handler reads the rest.
struct Started(Body);

impl<S: Sync> FromRequest<S> for Started {
    type Rejection = StatusCode;

    async fn from_request(request: Request, _: &S) -> Result<Self, StatusCode> {
        let (mut body, mut read) = (request.into_body(), 0);
        while read < LIMIT + 1000 {
            let Some(Ok(frame)) = body.frame().await else { return Err(StatusCode::BAD_REQUEST) };
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(Self(body))
    }
}

#[idempotent]
async fn started(Started(rest): Started) -> String {
    axum::body::to_bytes(rest, usize::MAX).await.map_or(0, |rest| rest.len()).to_string()
}

/// A body that the extractor has read to its end, and keeps.
struct Ended(usize, Body);

impl<S: Sync> FromRequest<S> for Ended {
    type Rejection = StatusCode;

    async fn from_request(request: Request, _: &S) -> Result<Self, StatusCode> {
        let (mut body, mut read) = (request.into_body(), 0);
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(Self(read, body))
    }
}

#[idempotent]
async fn ended(Ended(read, _body): Ended) -> String {
    read.to_string()
}

fn app() -> Router {
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()));
    let routes = Router::new()
        .route("/upload", post(upload).layer(DefaultBodyLimit::disable()))
        .route("/limited", post(lenient).layer(DefaultBodyLimit::max(LIMIT)))
        .route("/everything", post(everything).layer(DefaultBodyLimit::max(LIMIT)))
        .route("/started", post(started).layer(DefaultBodyLimit::max(LIMIT)))
        .route("/ended", post(ended).layer(DefaultBodyLimit::max(LIMIT)));
    routes.layer(layer)
}

fn in_frames(frames: Vec<Bytes>) -> Body {
    Body::from_stream(stream::iter(frames.into_iter().map(Ok::<_, Infallible>)))
}

async fn send(app: &Router, key: &str, body: Body) -> Response<Body> {
    send_to(app, "/upload", key, body).await
}

async fn send_to(app: &Router, path: &str, key: &str, body: Body) -> Response<Body> {
    let request = Request::post(path).header("idempotency-key", key).body(body).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn the_same_bytes_are_the_same_body_in_whatever_frames_they_come() {
    let app = app();
    // Around the length from which on a body is hashed while it arrives.
    for length in [1, 4095, 4096, 4097, 10_000] {
        let bytes = Bytes::from(vec![7; length]);
        let key = format!("of-{length}");
        assert_eq!(send(&app, &key, bytes.clone().into()).await.status(), StatusCode::OK);
        for size in [1, 64, 4095, 4096, 4097] {
            let frames = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let replay = send(&app, &key, in_frames(frames)).await;
            assert_eq!(replay.headers()["idempotent-replayed"], "true", "{length} bytes in frames of {size}");
        }
        // One byte more or less, and another byte at the end.
        let last = [bytes.slice(1..), Bytes::from_static(b"x")].concat();
        for other in [[&bytes[..], b"\x07"].concat(), bytes[1..].to_vec(), last] {
            for size in [64, 20_000] {
                let frames = other.chunks(size).map(Bytes::copy_from_slice).collect();
                let refused = send(&app, &key, in_frames(frames)).await;
                assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY, "{} bytes, not {length}", other.len());
            }
        }
    }
}

#[tokio::test]
async fn of_a_body_above_the_limit_the_bytes_within_it_count_in_whatever_frames_they_come() {
    let app = app();
    let chunks = |bytes: &[u8], size| in_frames(bytes.chunks(size).map(Bytes::copy_from_slice).collect());
    let bytes = vec![7; LIMIT + 1];
    let send = async |bytes: &[u8], size| send_to(&app, "/limited", "k", chunks(bytes, size)).await;
    assert_eq!(send(&bytes, bytes.len()).await.status(), StatusCode::OK);
    // What is beyond the limit may differ, and is in the frame that exceeds it or follows.
    let longer = [&bytes[..LIMIT], &[8; 3000]].concat();
    let mut other = bytes.clone();
    other[LIMIT - 1] = 8;
    for size in [1, 100, 4096, 4999, LIMIT, LIMIT + 1, 20_000] {
        for same in [&bytes, &longer] {
            let replay = send(same, size).await;
            assert_eq!(replay.headers()["idempotent-replayed"], "true", "{} bytes in frames of {size}", same.len());
        }
        for other in [&other[..], &bytes[..LIMIT]] {
            let refused = send(other, size).await;
            assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY, "{} bytes, frames of {size}", other.len());
        }
    }
}

#[tokio::test]
async fn what_an_extractor_reads_above_the_limit_counts_in_whatever_frames_it_comes() {
    let app = app();
    let chunks = |bytes: &[u8], size| in_frames(bytes.chunks(size).map(Bytes::copy_from_slice).collect());
    for length in [LIMIT + 1, 20_000] {
        let bytes = vec![7; length];
        let key = length.to_string();
        let send = async |bytes: &[u8], size| send_to(&app, "/everything", &key, chunks(bytes, size)).await;
        assert_eq!(send(&bytes, 1000).await.status(), StatusCode::OK);
        let last = [&bytes[1..], b"x"].concat();
        for size in [100, LIMIT, LIMIT + 1, 30_000] {
            let replay = send(&bytes, size).await;
            assert_eq!(replay.headers()["idempotent-replayed"], "true", "{length} bytes in frames of {size}");
            for other in [&last[..], &[&bytes[..], b"\x07"].concat(), &bytes[1..]] {
                let refused = send(other, size).await;
                assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY, "{length} bytes in frames of {size}");
            }
        }
    }
}

#[tokio::test]
async fn a_handler_gets_no_rest_of_a_body_that_the_fingerprint_does_not_cover() {
    let app = app();
    for end in [7, 8] {
        let frames = vec![Bytes::from(vec![7; LIMIT]), Bytes::from(vec![7; 2000]), Bytes::from(vec![end; 2000])];
        let refused = send_to(&app, "/started", "k", in_frames(frames)).await;
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test]
async fn a_handler_gets_a_body_of_which_its_extractor_has_read_all() {
    let app = app();
    let large = [vec![7; LIMIT], vec![7; 2000]].map(|frame| Ok(Bytes::from(frame)));
    let broken = [Ok(Bytes::from(vec![7; 1000])), Err("the client is gone")];
    for (key, frames, read) in [("large", large, LIMIT + 2000), ("broken", broken, 1000)] {
        let response = send_to(&app, "/ended", key, Body::from_stream(stream::iter(frames))).await;
        assert_eq!(response.status(), StatusCode::OK, "{key}");
        let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(body, read.to_string(), "{key}");
    }
}

#[test]
fn a_large_body_is_not_copied_for_the_fingerprint() {
    const FRAME: usize = 64 * 1024;
    const FRAMES: usize = 256;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let app = app();
    let frame = Bytes::from(vec![7; FRAME]);
    let peak = |key: &str| {
        // Clones of one frame, so that the body itself takes no memory.
        let frames = vec![frame.clone(); FRAMES];
        allocation_counter::measure(|| {
            runtime.block_on(async {
                let response = send(&app, key, in_frames(frames)).await;
                let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
                assert_eq!(body, (FRAME * FRAMES).to_string());
            });
        })
    };
    // What is allocated once and kept.
    peak("warm-up");
    let bytes = peak("a").bytes_max;
    assert!(bytes < 256 * 1024, "{bytes} bytes for a body of {}", FRAME * FRAMES);
}
