//! The key for the handler.

use std::fmt;
use std::sync::{Arc, OnceLock};

use idem_runtime::{Fingerprint, Key, Lease, StorageKey};

/// The key of the request, as an extractor. If the key is optional, take `Option<IdempotencyKey>`.
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
/// [`Refusal::KeyMissing`](crate::Refusal::KeyMissing) if the request has no key, and
/// [`Refusal::KeyInvalid`](crate::Refusal::KeyInvalid) if the key is malformed. Outside an `#[idempotent]` handler the rules of
/// [`Policy::DEFAULT`](crate::Policy::DEFAULT) apply. An endpoint with `key = ..` has no key when its extractors run. There
/// the response is 500, and an error is logged: call [`IdempotencyKey::from_text`] in the handler.
#[derive(Clone)]
pub struct IdempotencyKey {
    key: Key,
    request: Arc<RequestIdentity>,
}

/// What is known of the request after its key.
#[derive(Default)]
struct RequestIdentity {
    /// Set when the arguments are extracted, and so before the handler runs.
    identity: OnceLock<(StorageKey, Fingerprint)>,
    /// Set when the handler starts.
    lease: OnceLock<Lease>,
}

impl IdempotencyKey {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, request: Arc::default() }
    }

    /// Returns `text` as a key, for a handler with `key = ..`, whose extractors run before its key is known. Returns `None` if `text` is
    /// empty.
    ///
    /// The key depends on the text alone: [`derive`](Self::derive) depends on text and label, and [`lease`](Self::lease) is never
    /// lost.
    ///
    /// ```
    /// use axum::Json;
    /// use idem_axum::{IdempotencyKey, Policy, idempotent};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Event {
    ///     id: String,
    /// }
    ///
    /// # async fn charge(_: &str) {}
    /// #[idempotent(policy = Policy::WEBHOOK, key = event.id, required)]
    /// async fn receive(Json(event): Json<Event>) {
    ///     if let Some(key) = IdempotencyKey::from_text(&event.id) {
    ///         charge(key.derive("charge").as_str()).await;
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Key::from_text(text).map(Self::new)
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn set_identity(&self, storage_key: StorageKey, fingerprint: Fingerprint) {
        let _ = self.request.identity.set((storage_key, fingerprint));
    }

    pub(crate) fn set_lease(&self, lease: Lease) {
        let _ = self.request.lease.set(lease);
    }

    /// Returns the key, as the client sent it, without quotes. It may be a secret: do not log it.
    pub fn as_str(&self) -> &str {
        self.key.as_str()
    }

    /// Returns the lease of the handler's claim. With `abandoned = rerun`, a store outside this process may have given the claim to another
    /// run. So check the lease before a step that must not happen twice.
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
    /// Outside an `#[idempotent]` handler it is a lease that is never lost.
    pub fn lease(&self) -> Lease {
        self.request.lease.get().cloned().unwrap_or_default()
    }

    /// Returns a stable child key for a downstream call: a UUID (version 8) made from the scope, the key, the fingerprint and `label`.
    /// Every run for the same request gives the same child key. Another caller, request or label gives another one, so the downstream
    /// service never mixes two of them up.
    ///
    /// Call it in an `#[idempotent]` handler. In an extractor, in `scope` or in a handler without the attribute the request is
    /// not known in full, and the child key depends only on key and label: two callers with the same key get the same one. So it is in
    /// shadow mode if the request body is too large or too slow to judge the request.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use idem_axum::{IdempotencyKey, idempotent};
    ///
    /// # async fn charge(_: &str) {}
    /// # async fn send_receipt(_: &str) {}
    /// #[idempotent(required)]
    /// async fn pay(key: IdempotencyKey) -> StatusCode {
    ///     // One key for each step, and the same ones if this handler runs again.
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
