//! The control: a middleware as it is often written. It knows keys, fingerprints and replays, but runs the handler inside the
//! future of the request, which the server drops when the client hangs up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::shop::identity;
use crate::history::{RequestIdentity, latin1};

type ScopedKey = (String, String);

/// What was begun and what was recorded.
#[derive(Default)]
pub(super) struct Inline(Mutex<HashMap<ScopedKey, Slot>>);

struct Slot {
    fp: String,
    recorded: Option<(StatusCode, HeaderMap, Bytes)>,
}

/// Frees a key whose request was dropped, so that a retry may run.
struct Guard(Arc<Inline>, Option<ScopedKey>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(key) = self.1.take() {
            self.0.0.lock().unwrap().remove(&key);
        }
    }
}

pub(super) async fn run_inline(State(inline): State<Arc<Inline>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    let header =
        |name| parts.headers.get(name).map_or_else(String::new, |value: &HeaderValue| latin1(value.as_bytes()));
    let (tenant, key) = (header("x-tenant"), header("idempotency-key"));
    let RequestIdentity { scope, key, fp, .. } = identity(parts.uri.path(), &tenant, &key, &latin1(&body));
    let key = (scope, key);
    if let Some(response) = begin(&inline, &key, &fp) {
        return response;
    }
    let mut guard = Guard(inline.clone(), Some(key.clone()));
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return StatusCode::BAD_GATEWAY.into_response() };
    guard.1 = None;
    let recorded = Some((parts.status, parts.headers.clone(), body.clone()));
    inline.0.lock().unwrap().insert(key, Slot { fp, recorded });
    Response::from_parts(parts, Body::from(body))
}

/// The response that the state of the key makes; `None` if it was free, and is not any more.
fn begin(inline: &Inline, key: &ScopedKey, fp: &str) -> Option<Response> {
    let mut slots = inline.0.lock().unwrap();
    let Some(slot) = slots.get(key) else {
        slots.insert(key.clone(), Slot { fp: fp.to_owned(), recorded: None });
        return None;
    };
    if slot.fp != fp {
        return Some(refusal(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_mismatch"));
    }
    let Some((status, headers, body)) = &slot.recorded else {
        return Some(refusal(StatusCode::CONFLICT, "idempotency_key_locked"));
    };
    let mut replay = (*status, headers.clone(), body.clone()).into_response();
    replay.headers_mut().remove(header::SET_COOKIE);
    replay.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    replay.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(replay)
}

fn refusal(status: StatusCode, code: &str) -> Response {
    let json = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, json, format!("{{\"code\":\"{code}\"}}")).into_response()
}
