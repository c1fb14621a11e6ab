//! Stores without their type, so that neither a handler nor a layer carries a type parameter; and without their panics,
//! which would take the body's answer with them.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::Clock;
use crate::counted::Operation;
use crate::engine::Attempt;
use crate::key::StorageKey;
use crate::observation::Step;
use crate::origin::{Beginning, Origin};
use crate::record::Record;
use crate::store::{Begin, Claim, Duties, Found, Store, StoreError, Terms};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// What a store answers, some time.
pub(crate) struct Answering<'a, T>(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>);

impl<'a, T> Answering<'a, T> {
    pub(crate) fn new(answer: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> Self {
        Self(Box::pin(answer))
    }
}

impl<T> Future for Answering<'_, T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))).unwrap_or_else(|panic| {
            discard(panic);
            Poll::Ready(Err(StoreError::unavailable("the store panicked")))
        })
    }
}

/// Drops what a panic left, which may panic as well.
fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(again);
    }
}

pub(crate) type BoxClaim = Box<dyn ErasedClaim>;

/// A claim, and where the execution comes from that it was granted to.
pub(crate) struct Granted {
    pub(crate) claim: BoxClaim,
    pub(crate) origin: Origin,
}

/// [`Store`] with futures that own what they need: a task can take over a `begin` that the request started.
pub(crate) trait ErasedStore: Send + Sync {
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties;
    /// Begins for an execution of this origin, or of that of the attempt.
    fn begin(
        self: Arc<Self>,
        attempt: Attempt,
        lease: Duration,
        origin: Option<Origin>,
    ) -> Answering<'static, Begin<Granted>>;
    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()>;
    fn forget(self: Arc<Self>, key: StorageKey) -> Answering<'static, bool>;
    fn inspect(self: Arc<Self>, key: StorageKey) -> Answering<'static, Option<Found>>;
    fn drained(self: Arc<Self>) -> BoxFuture<()>;
}

pub(crate) struct Erased<S> {
    store: S,
    /// The engine's, from when the store is attached on.
    clock: OnceLock<Arc<dyn Clock>>,
}

impl<S: Store> Erased<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, clock: OnceLock::new() }
    }
}

impl<S: Store> ErasedStore for Erased<S> {
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = self.clock.set(Arc::clone(clock));
        self.store.attach(clock)
    }

    fn begin(
        self: Arc<Self>,
        attempt: Attempt,
        lease: Duration,
        origin: Option<Origin>,
    ) -> Answering<'static, Begin<Granted>> {
        Answering::new(async move {
            let Attempt { key, fingerprint, rules, .. } = &attempt;
            let beginning = Beginning::new(&attempt, self.clock.get(), origin);
            let terms = Terms::new(lease, rules.ttl).beginning(&beginning);
            let step = Step::start::<S>(Operation::Begin);
            let begun = step.answered(self.store.begin_on_terms(key, fingerprint, &terms).await)?;
            let granted =
                |claim: S::Claim| Granted { claim: Box::new(Held::<S>(claim)), origin: beginning.origin().clone() };
            Ok(match begun {
                Begin::Claimed(claim) => Begin::Claimed(granted(claim)),
                Begin::Abandoned(claim) => Begin::Abandoned(granted(claim)),
                Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
                Begin::Completed(record) => Begin::Completed(record),
            })
        })
    }

    fn ended(self: Arc<Self>, key: StorageKey) -> BoxFuture<()> {
        let ended = Answering::new(async move {
            self.store.ended(&key).await;
            Ok(())
        });
        // A panic wakes the request up, which then asks again.
        Box::pin(async move { drop(ended.await) })
    }

    fn forget(self: Arc<Self>, key: StorageKey) -> Answering<'static, bool> {
        Answering::new(async move {
            let step = Step::start::<S>(Operation::Forget);
            step.answered(self.store.forget(&key).await)
        })
    }

    fn inspect(self: Arc<Self>, key: StorageKey) -> Answering<'static, Option<Found>> {
        Answering::new(async move {
            let step = Step::start::<S>(Operation::Inspect);
            step.answered(self.store.inspect(&key).await)
        })
    }

    fn drained(self: Arc<Self>) -> BoxFuture<()> {
        let ended = Answering::new(async move {
            self.store.drained().await;
            Ok(())
        });
        // A panic wakes the request up, which then asks again.
        Box::pin(async move { drop(ended.await) })
    }
}

pub(crate) trait ErasedClaim: Send {
    fn renew(&mut self, lease: Duration) -> Answering<'_, ()>;
    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> Answering<'static, ()>;
    fn release(self: Box<Self>) -> Answering<'static, ()>;
    fn twin(&self) -> Option<BoxClaim>;
}

/// A claim of a store of the type `S`.
struct Held<S: Store>(S::Claim);

impl<S: Store> ErasedClaim for Held<S> {
    fn renew(&mut self, lease: Duration) -> Answering<'_, ()> {
        Answering::new(async move {
            let step = Step::start::<S>(Operation::Renew);
            step.answered(Claim::renew(&mut self.0, lease).await)
        })
    }

    fn complete(self: Box<Self>, record: Record, ttl: Duration) -> Answering<'static, ()> {
        Answering::new(async move {
            let step = Step::start::<S>(Operation::Complete);
            step.answered(Claim::complete(self.0, record, ttl).await)
        })
    }

    fn release(self: Box<Self>) -> Answering<'static, ()> {
        Answering::new(async move {
            let step = Step::start::<S>(Operation::Release);
            step.answered(Claim::release(self.0).await)
        })
    }

    fn twin(&self) -> Option<BoxClaim> {
        let twin = catch_unwind(AssertUnwindSafe(|| Claim::twin(&self.0))).unwrap_or_else(|panic| {
            discard(panic);
            None
        });
        twin.map(|twin| Box::new(Self(twin)) as BoxClaim)
    }
}
