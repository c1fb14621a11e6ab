//! The key for the handler.

use std::fmt;
use std::sync::{Arc, OnceLock};

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use idem_runtime::{Fingerprint, Key, Lease, StorageKey};

use crate::layer::Mounted;
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request;

/// The key of the request, as an extractor. Where the key is optional, take `Option<IdempotencyKey>`.
///
/// `Debug` and `Display` are for logs and show a hash; [`as_str`](Self::as_str) is the key itself.
///
/// ```
/// use idem_axum::{IdempotencyKey, idempotent};
///
/// #[idempotent(required)]
/// async fn pay(key: IdempotencyKey) -> String {
///     // A call to another service, which is safe to retry as well.
///     let child = key.derive("charge");
///     child.as_str().to_owned()
/// }
/// ```
///
/// # Rejections
/// [`Refusal::KeyMissing`] where the request has no key, [`Refusal::KeyInvalid`] where it is malformed. Outside an
/// `#[idempotent]` handler the key is read by [`Policy::DEFAULT`].
#[derive(Clone)]
pub struct IdempotencyKey {
    key: Key,
    request: Arc<Known>,
}

/// What becomes known of the request after its key.
#[derive(Default)]
struct Known {
    /// Set when the arguments are extracted, and so before the body runs.
    identity: OnceLock<(StorageKey, Fingerprint)>,
    /// Set when the body starts.
    lease: OnceLock<Lease>,
}

impl IdempotencyKey {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, request: Arc::default() }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn belongs_to(&self, storage_key: StorageKey, fingerprint: Fingerprint) {
        // Once per request; a second time would say the same.
        let _ = self.request.identity.set((storage_key, fingerprint));
    }

    pub(crate) fn runs_under(&self, lease: Lease) {
        let _ = self.request.lease.set(lease);
    }

    /// The key, as the client sent it, without quotes. It may be a secret: do not log it.
    pub fn as_str(&self) -> &str {
        self.key.as_str()
    }

    /// The lease under which the body runs, for a body that must stop before its next step when a store outside this process
    /// has given its claim to another run (`abandoned = rerun`).
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use idem_axum::{IdempotencyKey, idempotent};
    ///
    /// #[idempotent(required, abandoned = rerun)]
    /// async fn pay(key: IdempotencyKey) -> StatusCode {
    ///     // .. something slow ..
    ///     if key.lease().is_lost() {
    ///         return StatusCode::SERVICE_UNAVAILABLE;
    ///     }
    ///     // .. the step that must not happen twice ..
    ///     StatusCode::CREATED
    /// }
    /// ```
    ///
    /// Anywhere but in the body of an `#[idempotent]` handler it is a lease that is never lost.
    pub fn lease(&self) -> Lease {
        self.request.lease.get().cloned().unwrap_or_default()
    }

    /// A stable child key for a downstream call: a UUID (version 8) made from the scope, the key, the fingerprint and
    /// `label`. Every run for the same request gives the same child key, and another caller, request or label another, so
    /// that the downstream service never mixes two of them up.
    ///
    /// Call it in the body of an `#[idempotent]` handler. Anywhere else, in an extractor, in `scope` or in a handler without
    /// the attribute, the request is not known in full, and the child key depends on key and label alone: two callers with
    /// the same key get the same one.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use idem_axum::{IdempotencyKey, idempotent};
    ///
    /// # async fn charge(_: &str) {}
    /// # async fn send_receipt(_: &str) {}
    /// #[idempotent(required)]
    /// async fn pay(key: IdempotencyKey) -> StatusCode {
    ///     // One key for each step, and the same ones if this body runs again.
    ///     charge(key.derive("charge").as_str()).await;
    ///     send_receipt(key.derive("receipt").as_str()).await;
    ///     StatusCode::CREATED
    /// }
    /// ```
    #[must_use]
    pub fn derive(&self, label: &str) -> Self {
        let within = self.request.identity.get().map(|(storage_key, fingerprint)| (storage_key, fingerprint));
        Self { key: self.key.derive(within, label), request: Arc::clone(&self.request) }
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({})", self.key)
    }
}

/// What an `#[idempotent]` endpoint found by its own policy: left in the request for the extractors.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) policy: &'static Policy,
    pub(crate) key: Option<IdempotencyKey>,
}

fn presented(parts: &Parts) -> Result<Presented, Refusal> {
    if let Some(Mounted { presented: Some(presented), .. }) = parts.extensions.get::<Mounted>() {
        return Ok(presented.clone());
    }
    let policy = &Policy::DEFAULT;
    match request::key(&parts.headers, policy) {
        Ok(key) => Ok(Presented { policy, key: key.map(IdempotencyKey::new) }),
        Err(reason) => Err(Refusal::KeyInvalid { policy, reason }),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Presented { policy, key } = presented(parts)?;
        key.ok_or(Refusal::KeyMissing { policy })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Refusal> {
        presented(parts).map(|presented| presented.key)
    }
}
