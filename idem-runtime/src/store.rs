//! What a store must do.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;

/// Where claims and records live.
///
/// # Contract
///
/// The engine relies on these rules for every promise it makes. `conformance` checks what of them can be checked from outside:
///
/// - **`begin` is one atomic step.** Of any number of concurrent calls with one key, at most one gets
///   [`Begin::Claimed`] until that claim is released or its record has expired.
/// - **Nothing live is dropped.** A claim or a record that has not expired is never evicted to make room;
///   [`StoreError::Full`] refuses the newcomer.
/// - **Only the owner changes a claim.** Every change is a compare-and-set on a random owner token that the claim carries.
///   The same owner repeating a step gets the same answer, since acknowledgements get lost.
/// - **A dropped claim stays.** Dropping a [`Claim`] without [`complete`](Claim::complete) or [`release`](Claim::release)
///   leaves the key abandoned: at once, or when its lease has run out.
/// - **Unreadable is an error,** never a miss.
/// - **Cancel safety.** A future that is dropped before it is ready may or may not have taken effect, but leaves the
///   key absent, claimed by a live owner, abandoned, or recorded, and nothing in between.
///
/// A store sees opaque keys and bytes, and knows nothing of HTTP. It needs three methods, and its claim three:
///
/// ```
/// use std::{future::{self, Future}, time::Duration};
/// use idem_runtime::{Begin, Claim, Fingerprint, Record, StorageKey, Store, StoreError};
///
/// struct Nowhere;
/// struct NoClaim;
///
/// impl Store for Nowhere {
///     type Claim = NoClaim;
///     async fn begin(&self, _: &StorageKey, _: &Fingerprint, _: Duration) -> Result<Begin<NoClaim>, StoreError> {
///         Err(StoreError::Full)
///     }
///     async fn ended(&self, _: &StorageKey) {}
///     async fn forget(&self, _: &StorageKey) -> Result<bool, StoreError> {
///         Ok(false)
///     }
/// }
///
/// impl Claim for NoClaim {
///     async fn renew(&mut self, _: Duration) -> Result<(), StoreError> { Err(StoreError::Lost) }
///     async fn complete(self, _: Record, _: Duration) -> Result<(), StoreError> { Err(StoreError::Lost) }
///     async fn release(self) -> Result<(), StoreError> { Err(StoreError::Lost) }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store for records and claims",
    note = "use `MemoryStore`, or implement `idem_runtime::Store`; its rustdoc states the contract"
)]
pub trait Store: Send + Sync + 'static {
    /// The right to run the body, as this store grants it.
    type Claim: Claim;

    /// Claims `key` for a request with `fingerprint`, or says what stands in the way.
    ///
    /// The claim lives for `lease` unless it is renewed; a store whose claims cannot outlive their owner may ignore it.
    /// An abandoned claim whose fingerprint differs is reported as [`Begin::InFlight`] with that fingerprint.
    ///
    /// # Errors
    /// [`StoreError::Full`] where a new key has no room, [`StoreError::Unavailable`] where it is not known what the store
    /// holds. The body does not run on any error.
    fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> impl Future<Output = Result<Begin<Self::Claim>, StoreError>> + Send;

    /// As [`begin`](Self::begin), for an endpoint whose records live for `ttl`. The engine calls this one.
    ///
    /// A claim outlives its owner, so that a retry learns that the outcome is unknown; but not for ever. A store whose
    /// abandoned claims go away by themselves keeps one for `ttl` from its last renewal, which must not be shorter than
    /// the lease. By default this calls `begin`: right where an abandoned claim stays until somebody ends or forgets it.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    fn begin_with_ttl(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
        ttl: Duration,
    ) -> impl Future<Output = Result<Begin<Self::Claim>, StoreError>> + Send {
        let _ = ttl;
        self.begin(key, fingerprint, lease)
    }

    /// Resolves when the claim that `begin` reported in flight may have ended. Spurious wake-ups are fine: the engine
    /// calls `begin` again.
    fn ended(&self, key: &StorageKey) -> impl Future<Output = ()> + Send;

    /// Removes the record or the abandoned claim under `key`, and says whether there was one. A claim whose owner is alive
    /// stays.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where it is not known whether it was removed.
    fn forget(&self, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Called once, before any other method, with the engine's clock; says what the engine must do for this store.
    ///
    /// By default the engine does everything: it compares the expiry written in each record with its clock, forgets
    /// what is over, and renews the lease of a claim while the body runs. It can do the former only where a single
    /// engine uses the store, so a store shared by several processes must judge expiry itself, within `begin`, by its
    /// own clock, and clear [`Duties::expire`].
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = clock;
        Duties::ALL
    }
}

/// What the engine must do for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duties {
    /// Judge by the engine's clock whether a record has expired. Clear it where `begin` never reports an expired record.
    pub expire: bool,
    /// Renew the lease of a claim while the body runs. Clear it where a claim lives as long as its owner.
    pub renew: bool,
}

impl Duties {
    /// The engine judges expiry and renews leases.
    pub const ALL: Self = Self { expire: true, renew: true };
    /// The store judges expiry, and its claims need no renewal.
    pub const NONE: Self = Self { expire: false, renew: false };
}

/// What [`Store::begin`] found.
#[derive(Debug)]
pub enum Begin<C> {
    /// Nothing: the key is now claimed, and the body may run.
    Claimed(C),
    /// A claim with the same fingerprint whose owner is gone. The body may have had effects. Dropping the claim leaves the
    /// key as it is; [`Claim::renew`] takes it over.
    Abandoned(C),
    /// A claim with this fingerprint, whose owner is alive as far as the store knows.
    InFlight(Fingerprint),
    /// A record.
    Completed(Record),
}

/// The right to run the body: a value that only its owner has, so that nobody else can complete or release it, and
/// the compiler stops a second completion.
pub trait Claim: Send + 'static {
    /// Extends the lease to `lease` from now. Cancel safe: the engine drops it when the body ends meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Lost`] if the claim is not the owner's any more.
    fn renew(&mut self, lease: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Replaces the claim by `record`, which lives for `ttl` from now.
    ///
    /// Where there is no room for all its bytes, the store keeps [`Record::tombstone`] instead.
    ///
    /// # Errors
    /// [`StoreError::Lost`] if the claim is not the owner's any more, [`StoreError::Unavailable`] if it is not known
    /// whether the record was kept.
    fn complete(self, record: Record, ttl: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the claim back, as if it had never been.
    ///
    /// # Errors
    /// As for [`complete`](Claim::complete).
    fn release(self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The same claim once more, with the same owner token: the engine uses it to repeat a `complete` or `release` whose
    /// answer was an error or was lost. `None`, the default, where a step cannot be repeated; then the outcome stays
    /// unknown.
    fn twin(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room for a new key. Existing keys are still answered.
    Full,
    /// The store could not be reached, or its answer not understood.
    Unavailable(Arc<dyn Error + Send + Sync>),
    /// The claim belongs to somebody else by now.
    Lost,
}

impl StoreError {
    /// The store could not be reached, or its answer not understood, because of `source`.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(Arc::from(source.into()))
    }

    /// What is behind the error, for logs.
    pub(crate) fn cause(&self) -> Option<String> {
        self.source().map(ToString::to_string)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the store has no room for a new key",
            Self::Unavailable(_) => "the store is unavailable",
            Self::Lost => "the claim is not held by this owner any more",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(source) => Some(&**source),
            Self::Full | Self::Lost => None,
        }
    }
}
