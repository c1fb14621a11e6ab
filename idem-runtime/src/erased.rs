//! Stores without their type, so that neither a handler nor a layer carries a type parameter.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, Claim, Duties, Store, StoreError};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type BoxClaim = Box<dyn ErasedClaim>;

/// [`Store`] with futures that own what they need: a task can take over a `begin` that the request started.
pub(crate) trait ErasedStore: Send + Sync {
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties;
    fn begin(
        self: Arc<Self>,
        key: StorageKey,
        fingerprint: Fingerprint,
        lease: Duration,
        ttl: Duration,
    ) -> BoxFuture<Result<Begin<BoxClaim>, StoreError>>;
    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()>;
    fn forget(self: Arc<Self>, key: StorageKey) -> BoxFuture<Result<bool, StoreError>>;
}

impl<S: Store> ErasedStore for S {
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        Store::attach(self, clock)
    }

    fn begin(
        self: Arc<Self>,
        key: StorageKey,
        fingerprint: Fingerprint,
        lease: Duration,
        ttl: Duration,
    ) -> BoxFuture<Result<Begin<BoxClaim>, StoreError>> {
        Box::pin(async move {
            Ok(match Store::begin_with_ttl(&*self, &key, &fingerprint, lease, ttl).await? {
                Begin::Claimed(claim) => Begin::Claimed(Box::new(claim) as BoxClaim),
                Begin::Abandoned(claim) => Begin::Abandoned(Box::new(claim) as BoxClaim),
                Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
                Begin::Completed(record) => Begin::Completed(record),
            })
        })
    }

    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()> {
        Box::pin(async move { Store::ended(&*self, &key).await })
    }

    fn forget(self: Arc<Self>, key: StorageKey) -> BoxFuture<Result<bool, StoreError>> {
        Box::pin(async move { Store::forget(&*self, &key).await })
    }
}

pub(crate) trait ErasedClaim: Send {
    fn renew(&mut self, lease: Duration) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>>;
    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> BoxFuture<Result<(), StoreError>>;
    fn release(self: Box<Self>) -> BoxFuture<Result<(), StoreError>>;
    fn twin(&self) -> Option<BoxClaim>;
}

impl<C: Claim> ErasedClaim for C {
    fn renew(&mut self, lease: Duration) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(Claim::renew(self, lease))
    }

    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> BoxFuture<Result<(), StoreError>> {
        Box::pin(Claim::complete(*self, record, ttl))
    }

    fn release(self: Box<Self>) -> BoxFuture<Result<(), StoreError>> {
        Box::pin(Claim::release(*self))
    }

    fn twin(&self) -> Option<BoxClaim> {
        Claim::twin(self).map(|twin| Box::new(twin) as BoxClaim)
    }
}
