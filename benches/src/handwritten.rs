//! A middleware as it is written in an afternoon: a map from key to response. It shows what the least costs, and the table
//! of promises shows what it gets wrong: two at once both run, another body gets the first one's response, a caller that
//! hangs up leaves the work half done, and the map grows for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::app::{self, Shop};

type Recorded = Arc<Mutex<HashMap<String, RecordedResponse>>>;

#[derive(Clone)]
struct RecordedResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl IntoResponse for RecordedResponse {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The handler under the middleware.
pub fn router(shop: &Shop) -> Router {
    app::bare(shop).layer(middleware::from_fn_with_state(Recorded::default(), remember))
}

async fn remember(State(recorded): State<Recorded>, request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let Some(key) = key else { return next.run(request).await };
    let known = recorded.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(known) = known {
        let mut response = known.into_response();
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
        return response;
    }
    let (head, body) = next.run(request).await.into_parts();
    let Ok(body) = body.collect().await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let response = RecordedResponse { status: head.status, headers: head.headers, body: body.to_bytes() };
    recorded.lock().unwrap_or_else(PoisonError::into_inner).insert(key, response.clone());
    response.into_response()
}
