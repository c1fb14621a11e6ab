//! Any store with hooks: for tests of stores that are slow, fail, or lose what they say.
//!
//! The file is a module of this crate's own tests, and of `testkit`, which is for the tests of all other crates.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, KeyPage, Record, StorageKey, Store, StoreCapabilities, StoreError,
    StoredEntry,
};

/// What happens in place of the steps of a store `S`. Each hook takes the step, unless it is written otherwise.
pub trait Hooks<S: Store>: Send + Sync + 'static {
    fn begin(
        &self,
        store: &S,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> impl Future<Output = Result<Begin<S::Claim>, StoreError>> + Send {
        store.begin(key, fingerprint, options)
    }

    fn ended(&self, store: &S, key: &StorageKey) -> impl Future<Output = ()> + Send {
        store.ended(key)
    }

    fn forget(&self, store: &S, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        store.forget(key)
    }

    fn inspect(
        &self,
        store: &S,
        key: &StorageKey,
    ) -> impl Future<Output = Result<Option<StoredEntry>, StoreError>> + Send {
        store.inspect(key)
    }

    fn inspect_unknown(
        &self,
        store: &S,
        from: Option<&Bytes>,
    ) -> impl Future<Output = Result<KeyPage<StoredEntry>, StoreError>> + Send {
        store.inspect_unknown(from)
    }

    fn revoke(&self, store: &S, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        store.revoke(key)
    }

    fn drained(&self, store: &S) -> impl Future<Output = ()> + Send {
        store.drained()
    }

    fn attach(&self, store: &S, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        store.attach(clock)
    }

    fn renew(&self, claim: &mut S::Claim, lease: Duration) -> impl Future<Output = Result<(), StoreError>> + Send {
        claim.renew(lease)
    }

    fn complete(
        &self,
        claim: S::Claim,
        record: Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        claim.complete(record, ttl)
    }

    fn release(&self, claim: S::Claim) -> impl Future<Output = Result<(), StoreError>> + Send {
        claim.release()
    }

    fn try_clone(&self, claim: &S::Claim) -> Option<S::Claim> {
        claim.try_clone()
    }

    /// A claim is dropped that was neither completed nor released.
    fn dropped(&self, claim: S::Claim) {
        drop(claim);
    }
}

/// Keeps what a store needs, such as its server or its folder, for as long as the store.
#[derive(Debug)]
pub struct Keeps<T>(pub T);

impl<S: Store, T: Send + Sync + 'static> Hooks<S> for Keeps<T> {}

/// A store whose steps are taken by `hooks`.
#[derive(Debug)]
pub struct Intercept<S, H> {
    pub store: S,
    pub hooks: Arc<H>,
}

impl<S, H> Intercept<S, H> {
    pub fn new(store: S, hooks: H) -> Self {
        Self { store, hooks: Arc::new(hooks) }
    }
}

impl<S: Clone, H> Clone for Intercept<S, H> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), hooks: Arc::clone(&self.hooks) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store, H: Hooks<S>> Store for Intercept<S, H> {
    type Claim = InterceptedClaim<S, H>;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        let claim = |claim| InterceptedClaim { claim: Some(claim), hooks: Arc::clone(&self.hooks) };
        Ok(match self.hooks.begin(&self.store, key, fingerprint, options).await? {
            Begin::Claimed(claimed) => Begin::Claimed(claim(claimed)),
            Begin::Abandoned(abandoned) => Begin::Abandoned(claim(abandoned)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.hooks.ended(&self.store, key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.hooks.forget(&self.store, key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.hooks.inspect(&self.store, key).await
    }

    async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        self.hooks.inspect_unknown(&self.store, from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.hooks.revoke(&self.store, key).await
    }

    async fn drained(&self) {
        self.hooks.drained(&self.store).await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.hooks.attach(&self.store, clock)
    }
}

/// A claim of [`Intercept`].
pub struct InterceptedClaim<S: Store, H: Hooks<S>> {
    /// Taken when it is completed or released.
    claim: Option<S::Claim>,
    hooks: Arc<H>,
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store, H: Hooks<S>> Claim for InterceptedClaim<S, H> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.hooks.renew(self.claim.as_mut().ok_or(StoreError::Lost)?, lease).await
    }

    async fn complete(mut self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let claim = self.claim.take().ok_or(StoreError::Lost)?;
        self.hooks.complete(claim, record, ttl).await
    }

    async fn release(mut self) -> Result<(), StoreError> {
        let claim = self.claim.take().ok_or(StoreError::Lost)?;
        self.hooks.release(claim).await
    }

    fn try_clone(&self) -> Option<Self> {
        let claim = self.hooks.try_clone(self.claim.as_ref()?)?;
        Some(Self { claim: Some(claim), hooks: Arc::clone(&self.hooks) })
    }
}

impl<S: Store, H: Hooks<S>> Drop for InterceptedClaim<S, H> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.hooks.dropped(claim);
        }
    }
}
