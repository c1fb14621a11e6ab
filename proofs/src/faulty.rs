//! Seeded faults: each is a mistake that a store, or what stands around it, can make. A checker that does not find them
//! proves nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use http_body_util::BodyExt;
use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Record, StorageKey, Store, StoreCapabilities, StoreError,
    StoredEntry,
};
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
}

/// A store whose claims give the key back when they are dropped: what a middleware does that cleans up after a client
/// that hung up, or after a panic.
#[derive(Clone, Debug)]
pub struct ReleaseOnDrop<S>(pub S);

/// A claim of [`ReleaseOnDrop`].
#[derive(Debug)]
pub struct ReleasingClaim<C: Claim>(Option<C>);

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for ReleaseOnDrop<S> {
    type Claim = ReleasingClaim<S::Claim>;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        Ok(match self.0.begin(key, fingerprint, options).await? {
            Begin::Claimed(claim) => Begin::Claimed(ReleasingClaim(Some(claim))),
            Begin::Abandoned(claim) => Begin::Abandoned(ReleasingClaim(Some(claim))),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.0.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.0.forget(key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.0.inspect(key).await
    }

    async fn inspect_unknown(
        &self,
        from: Option<&bytes::Bytes>,
    ) -> Result<idem_runtime::KeyPage<StoredEntry>, StoreError> {
        self.0.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.0.revoke(key).await
    }

    async fn drained(&self) {
        self.0.drained().await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.0.attach(clock)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Claim> Claim for ReleasingClaim<C> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.0.as_mut().ok_or(StoreError::Lost)?.renew(lease).await
    }

    async fn complete(mut self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.0.take().ok_or(StoreError::Lost)?.complete(record, ttl).await
    }

    async fn release(mut self) -> Result<(), StoreError> {
        self.0.take().ok_or(StoreError::Lost)?.release().await
    }

    fn try_clone(&self) -> Option<Self> {
        // A copy would release the claim when it is dropped.
        None
    }
}

impl<C: Claim> Drop for ReleasingClaim<C> {
    fn drop(&mut self) {
        if let Some(claim) = self.0.take() {
            // Stores in memory release at once.
            let _ = claim.release().now_or_never();
        }
    }
}

/// A fingerprint over parts that are put together as they are, without tags and lengths.
pub fn joined_fingerprint(parts: &[&[u8]]) -> Fingerprint {
    Fingerprint::from_bytes(Sha256::digest(parts.concat()).into())
}

/// Status and body by key.
type Answers = HashMap<Vec<u8>, (StatusCode, Bytes)>;

/// A middleware that replays by key alone, before the handler and its extractors have seen the request.
pub fn replay_before_extractors(routes: Router) -> Router {
    let recorded: Arc<Mutex<Answers>> = Arc::default();
    routes.layer(from_fn(move |request: Request, next: Next| {
        let recorded = Arc::clone(&recorded);
        async move { replay(&mut *recorded.lock().await, request, next).await }
    }))
}

async fn replay(recorded: &mut Answers, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("idempotency-key").map(|key| key.as_bytes().to_vec()) else {
        return next.run(request).await;
    };
    if let Some(answer) = recorded.get(&key) {
        return answer.clone().into_response();
    }
    let response = next.run(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    recorded.insert(key, (status, body.clone()));
    (status, body).into_response()
}
