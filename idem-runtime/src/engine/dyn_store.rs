//! Stores without their type, so that neither a handler nor a layer has a type parameter for it. A panic of a store becomes an
//! error, since it would otherwise take the handler's response with it.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::begin::STORE_TIMEOUT;
use super::renew::renewal_timeout;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::panics::{discard, drop_quietly};
use crate::record::Record;
use crate::store::{Begin, BeginOptions, Claim, KeyPage, Store, StoreCapabilities, StoredEntry};
use crate::telemetry::counters::Operation;
use crate::telemetry::span::StoreTimer;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A step of a store.
pub(crate) struct StoreFuture<'a, T>(Option<StepFuture<'a, T>>);

/// It is taken only to be dropped.
type StepFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

impl<'a, T> StoreFuture<'a, T> {
    pub(crate) fn new(step: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> Self {
        Self(Some(Box::pin(step)))
    }
}

impl<T> Future for StoreFuture<'_, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let poll = || self.0.as_mut().map(|step| step.as_mut().poll(cx));
        let polled = catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|panic| {
            discard(panic);
            None
        });
        polled.unwrap_or_else(|| Poll::Ready(Err(StoreError::unavailable("the store panicked"))))
    }
}

impl<T> Drop for StoreFuture<'_, T> {
    fn drop(&mut self) {
        drop_quietly(self.0.take());
    }
}

pub(crate) type BoxClaim = Box<dyn DynClaim>;

/// [`Store`] with futures that own what they need: a task can take over a `begin` that the request started.
///
/// The engine begins through this trait. An execution whose claim comes from elsewhere, such as a transaction of the handler,
/// implements `begin` in its own way.
pub(crate) trait DynStore: Any + Send + Sync {
    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities;
    fn begin(
        self: Arc<Self>,
        key: StorageKey,
        fingerprint: Fingerprint,
        options: BeginOptions,
    ) -> StoreFuture<'static, Begin<BoxClaim>>;
    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()>;
    fn forget(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, bool>;
    fn inspect(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, Option<StoredEntry>>;
    fn inspect_unknown(self: Arc<Self>, from: Option<Bytes>) -> StoreFuture<'static, KeyPage<StoredEntry>>;
    fn revoke(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, bool>;
    fn drained(self: Arc<Self>) -> BoxFuture<()>;
}

impl<S: Store> DynStore for S {
    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        Store::attach(self, clock)
    }

    fn begin(
        self: Arc<Self>,
        key: StorageKey,
        fingerprint: Fingerprint,
        options: BeginOptions,
    ) -> StoreFuture<'static, Begin<BoxClaim>> {
        StoreFuture::new(async move {
            // A transaction may queue, and the store limits its time.
            let limit = if options.transaction.is_some() { Duration::MAX } else { STORE_TIMEOUT };
            let timer = StoreTimer::start::<S>(Operation::Begin, limit);
            let begun = timer.finish(Store::begin(&*self, &key, &fingerprint, &options).await)?;
            let boxed = |claim: S::Claim| -> BoxClaim { Box::new(TypedClaim::<S>(claim)) };
            Ok(match begun {
                Begin::Claimed(claim) => Begin::Claimed(boxed(claim)),
                Begin::Abandoned(claim) => Begin::Abandoned(boxed(claim)),
                Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
                Begin::Completed(record) => Begin::Completed(record),
            })
        })
    }

    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()> {
        let ended = StoreFuture::new(async move {
            Store::ended(&*self, &key).await;
            Ok(())
        });
        // A panic wakes the request, which then calls `begin` again.
        Box::pin(async move { drop(ended.await) })
    }

    fn forget(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, bool> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Forget, STORE_TIMEOUT);
            timer.finish(Store::forget(&*self, &key).await)
        })
    }

    fn inspect(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, Option<StoredEntry>> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Inspect, STORE_TIMEOUT);
            timer.finish(Store::inspect(&*self, &key).await)
        })
    }

    fn inspect_unknown(self: Arc<Self>, from: Option<Bytes>) -> StoreFuture<'static, KeyPage<StoredEntry>> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Inspect, STORE_TIMEOUT);
            timer.finish(Store::inspect_unknown(&*self, from.as_ref()).await)
        })
    }

    fn revoke(self: Arc<Self>, key: StorageKey) -> StoreFuture<'static, bool> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Revoke, STORE_TIMEOUT);
            timer.finish(Store::revoke(&*self, &key).await)
        })
    }

    fn drained(self: Arc<Self>) -> BoxFuture<()> {
        let drained = StoreFuture::new(async move {
            Store::drained(&*self).await;
            Ok(())
        });
        // After a panic there is nothing more to wait for.
        Box::pin(async move { drop(drained.await) })
    }
}

pub(crate) trait DynClaim: Send {
    fn renew(&mut self, lease: Duration) -> StoreFuture<'_, ()>;
    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> StoreFuture<'static, ()>;
    fn release(self: Box<Self>) -> StoreFuture<'static, ()>;
    fn try_clone(&self) -> Option<BoxClaim>;
}

/// A claim of a store of the type `S`.
struct TypedClaim<S: Store>(S::Claim);

impl<S: Store> DynClaim for TypedClaim<S> {
    fn renew(&mut self, lease: Duration) -> StoreFuture<'_, ()> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Renew, renewal_timeout(lease));
            timer.finish(Claim::renew(&mut self.0, lease).await)
        })
    }

    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> StoreFuture<'static, ()> {
        StoreFuture::new(async move {
            // It is needed until the store has replied, so it has failed whenever it is dropped.
            let timer = StoreTimer::start::<S>(Operation::Complete, Duration::ZERO);
            timer.finish(Claim::complete(self.0, record, ttl).await)
        })
    }

    fn release(self: Box<Self>) -> StoreFuture<'static, ()> {
        StoreFuture::new(async move {
            let timer = StoreTimer::start::<S>(Operation::Release, Duration::ZERO);
            timer.finish(Claim::release(self.0).await)
        })
    }

    fn try_clone(&self) -> Option<BoxClaim> {
        let clone = catch_unwind(AssertUnwindSafe(|| Claim::try_clone(&self.0))).unwrap_or_else(|panic| {
            discard(panic);
            None
        });
        clone.map(|claim| Box::new(Self(claim)) as BoxClaim)
    }
}
