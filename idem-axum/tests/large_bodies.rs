//! Bodies that arrive in many frames: the fingerprint is that of their bytes, and they are not copied for it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Response, StatusCode};
use axum::routing::post;
use futures_util::{StreamExt, stream};
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, idempotent};
use tower::ServiceExt;

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

fn app() -> Router {
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()));
    Router::new().route("/upload", post(upload)).layer(layer).layer(DefaultBodyLimit::disable())
}

fn in_frames(frames: Vec<Bytes>) -> Body {
    Body::from_stream(stream::iter(frames.into_iter().map(Ok::<_, Infallible>)))
}

async fn send(app: &Router, key: &str, body: Body) -> Response<Body> {
    let request = Request::post("/upload").header("idempotency-key", key).body(body).unwrap();
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
