//! What `idem` is made of, put together by hand: a layer hands the store over, the body is read and parsed before the key is looked
//! up, key and request are hashed with SHA-256, a claim holds a mutex, the handler runs in a task, and moka keeps the record. So it is
//! the least that such a design costs. Do not use it: all callers share their keys, its memory has no bound, and a handler that panics
//! blocks its key for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use moka::Expiry;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use crate::app::{self, NewOrder, PATH, Shop};

type Hash = [u8; 32];

struct Store {
    claims: Mutex<HashMap<Hash, Claim>>,
    records: Cache<Hash, Arc<Record>>,
}

struct Claim {
    fingerprint: Hash,
    _lock: Arc<tokio::sync::Mutex<()>>,
}

struct Record {
    fingerprint: Hash,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

enum Begin {
    Claimed(OwnedMutexGuard<()>),
    Recorded(Arc<Record>),
    InFlight,
    Mismatch,
}

struct OneDay;

impl Expiry<Hash, Arc<Record>> for OneDay {
    fn expire_after_create(&self, _: &Hash, _: &Arc<Record>, _: Instant) -> Option<Duration> {
        Some(Duration::from_secs(24 * 60 * 60))
    }
}

/// A router that does what the attribute does, within its handler.
pub fn router(shop: &Shop) -> Router {
    let store = Store { claims: Mutex::default(), records: Cache::builder().expire_after(OneDay).build() };
    Router::new().route(PATH, post(handler)).layer(Extension(Arc::new(store))).with_state(shop.clone())
}

async fn handler(State(shop): State<Shop>, Extension(store): Extension<Arc<Store>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return StatusCode::BAD_REQUEST.into_response() };
    let body = body.to_bytes();
    let Ok(new) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let Some(key) = head.headers.get("idempotency-key") else { return app::create(shop, new).await.into_response() };
    let key = Sha256::digest(key).into();
    let fingerprint = fingerprint(&head, &body);
    match store.begin(key, fingerprint) {
        Begin::Recorded(record) => {
            let mut response = respond(&record);
            response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
            response
        }
        Begin::InFlight => StatusCode::CONFLICT.into_response(),
        Begin::Mismatch => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        Begin::Claimed(claim) => match tokio::spawn(execute(shop, new, store, key, fingerprint, claim)).await {
            Ok(Some(record)) => respond(&record),
            Ok(None) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
    }
}

fn fingerprint(head: &Parts, body: &[u8]) -> Hash {
    let mut hash = Sha256::new();
    for part in [head.method.as_str().as_bytes(), head.uri.path().as_bytes(), module_path!().as_bytes(), body] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

async fn execute(
    shop: Shop,
    new: NewOrder,
    store: Arc<Store>,
    key: Hash,
    fingerprint: Hash,
    claim: OwnedMutexGuard<()>,
) -> Option<Arc<Record>> {
    let (head, body) = app::create(shop, new).await.into_response().into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let record = Arc::new(Record { fingerprint, status: head.status, headers: head.headers, body });
    store.records.insert(key, Arc::clone(&record));
    store.claims().remove(&key);
    drop(claim);
    Some(record)
}

impl Store {
    fn claims(&self) -> MutexGuard<'_, HashMap<Hash, Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, key: Hash, fingerprint: Hash) -> Begin {
        let mut claims = self.claims();
        if let Some(claim) = claims.get(&key) {
            return if claim.fingerprint == fingerprint { Begin::InFlight } else { Begin::Mismatch };
        }
        if let Some(record) = self.records.get(&key) {
            return if record.fingerprint == fingerprint { Begin::Recorded(record) } else { Begin::Mismatch };
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        let Ok(held) = Arc::clone(&lock).try_lock_owned() else { return Begin::InFlight };
        claims.insert(key, Claim { fingerprint, _lock: lock });
        Begin::Claimed(held)
    }
}

fn respond(record: &Record) -> Response {
    let mut response = Response::new(Body::from(record.body.clone()));
    *response.status_mut() = record.status;
    *response.headers_mut() = record.headers.clone();
    response
}
