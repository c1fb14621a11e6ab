//! Seeded faults: each is a mistake that a store, or what is around it, can make. A checker that does not find them
//! proves nothing.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use http_body_util::BodyExt;
use idem_runtime::{Claim, Fingerprint, Store};
use idem_testkit::intercept::Hooks;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

/// A mistake of a [`MapStore`](crate::map_store::MapStore).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `begin` looks, and then claims: two steps.
    CheckThenAct,
    /// Changes are not compared with the owner: one that comes late changes what is another one's.
    NoOwnerToken,
    /// At the limit the oldest key goes, whatever it holds.
    EvictsTheOldest,
    /// Lease and TTL are one: the key is free when the lease has expired.
    ClaimVanishesWithLease,
    /// Lease and TTL are one: the record lives for the lease.
    RecordDiesWithLease,
    /// Lease and TTL are one: the claim of a crashed owner stays for as long as a record would.
    ClaimOutlivesLease,
    /// Records that are over are still given out.
    ReportsExpired,
    /// A record that cannot be read counts as none.
    UnreadableIsAMiss,
    /// An abandoned claim is given to a request with another fingerprint.
    AbandonedForAll,
    /// An owner whose claim was released or forgotten records its response nevertheless.
    RecordsUnderAFreeKey,
    /// An owner that repeats its release is told that it has lost the claim.
    RepeatedReleaseIsLost,
}

/// Claims release the key when they are dropped: what a middleware does that cleans up after a client that hung up, or after a
/// panic.
#[derive(Debug)]
pub struct ReleaseOnDrop;

impl<S: Store> Hooks<S> for ReleaseOnDrop {
    fn try_clone(&self, _: &S::Claim) -> Option<S::Claim> {
        // A copy would release the claim when it is dropped.
        None
    }

    fn dropped(&self, claim: S::Claim) {
        // Stores in memory release at once.
        let _ = claim.release().now_or_never();
    }
}

/// A fingerprint over parts that are put together as they are, without tags and lengths.
pub fn joined_fingerprint(parts: &[&[u8]]) -> Fingerprint {
    Fingerprint::from_bytes(Sha256::digest(parts.concat()).into())
}

/// Status and body by key.
type Responses = HashMap<Vec<u8>, (StatusCode, Bytes)>;

/// A middleware that replays by key alone, before the handler and its extractors have seen the request.
pub fn replay_before_extractors(routes: Router) -> Router {
    let recorded: Arc<Mutex<Responses>> = Arc::default();
    routes.layer(from_fn(move |request: Request, next: Next| {
        let recorded = Arc::clone(&recorded);
        async move { replay(&mut *recorded.lock().await, request, next).await }
    }))
}

async fn replay(recorded: &mut Responses, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("idempotency-key").map(|key| key.as_bytes().to_vec()) else {
        return next.run(request).await;
    };
    if let Some(response) = recorded.get(&key) {
        return response.clone().into_response();
    }
    let response = next.run(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    recorded.insert(key, (status, body.clone()));
    (status, body).into_response()
}
