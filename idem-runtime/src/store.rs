//! What a store must do.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::origin::{Beginning, Origin};
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
/// - **Unreadable is an error,** never a miss: [`StoreError::Unreadable`].
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

    /// As [`begin`](Self::begin), on all the terms of the execution that wants to begin. The engine calls this one.
    ///
    /// A claim outlives its owner, so that a retry learns that the outcome is unknown; but not for ever. A store whose
    /// abandoned claims go away by themselves keeps one for [`ttl`](Terms::ttl) from the end of its lease, also where that is
    /// the shorter of the two: an owner that is cut off may still run the body. A store that can be [inspected](Self::inspect) keeps the [`origin`](Terms::origin) with the claim.
    ///
    /// By default this calls `begin`: right where an abandoned claim stays until somebody ends or forgets it.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<Begin<Self::Claim>, StoreError>> + Send {
        self.begin(key, fingerprint, terms.lease)
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

    /// Says what stands under `key`, and changes nothing: it claims nothing, extends no lease, and is no replay. `None` where the
    /// key is free.
    ///
    /// For operators. A store that judges expiry itself says nothing of what has expired. By default a store cannot be
    /// inspected.
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] where this store never can, [`StoreError::Unavailable`] where it is not known what it holds.
    fn inspect(&self, key: &StorageKey) -> impl Future<Output = Result<Option<Found>, StoreError>> + Send {
        let _ = key;
        std::future::ready(Err(StoreError::CannotInspect))
    }

    /// Resolves when nothing is left that this store does on its own after a call has ended, such as giving back a claim whose
    /// grant nobody heard of. [`Idempotency::drain`](crate::Idempotency::drain) waits for it. By default there is nothing.
    ///
    /// Cancel safe: dropping the future only stops the waiting.
    fn drained(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

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
///
/// ```
/// use idem_runtime::Duties;
///
/// // A store that several processes share judges expiry itself, and its leases must be renewed.
/// let shared = Duties { expire: false, renew: true };
/// assert_ne!(shared, Duties::ALL);
/// ```
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

/// On what terms an execution wants to begin.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Terms<'a> {
    /// How long the claim lives without renewal.
    pub lease: Duration,
    /// How long a record of the endpoint lives, and at least as long, from the end of its lease, a claim that is abandoned.
    pub ttl: Duration,
    from: Whence<'a>,
}

#[derive(Clone, Copy)]
enum Whence<'a> {
    Nowhere,
    Known(&'a Origin),
    Beginning(&'a Beginning<'a>),
}

impl<'a> Terms<'a> {
    /// Terms of an execution of unknown origin.
    pub const fn new(lease: Duration, ttl: Duration) -> Self {
        Self { lease, ttl, from: Whence::Nowhere }
    }

    /// The same terms, for an execution of this origin.
    #[must_use]
    pub const fn with_origin(self, origin: &'a Origin) -> Self {
        Self { from: Whence::Known(origin), ..self }
    }

    pub(crate) const fn beginning(self, beginning: &'a Beginning<'a>) -> Self {
        Self { from: Whence::Beginning(beginning), ..self }
    }

    /// Where the execution comes from, to be kept with its claim. The first call makes it, so call it only where it is needed.
    pub fn origin(&self) -> Option<Origin> {
        match self.from {
            Whence::Nowhere => None,
            Whence::Known(origin) => Some(origin.clone()),
            Whence::Beginning(beginning) => Some(beginning.origin().clone()),
        }
    }

    /// As [`origin`](Self::origin), where the store knows what time it is by the engine's clock.
    pub fn origin_at(&self, now: Timestamp) -> Option<Origin> {
        match self.from {
            Whence::Beginning(beginning) => Some(beginning.origin_at(now).clone()),
            _ => self.origin(),
        }
    }
}

impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("lease", &self.lease).field("ttl", &self.ttl).finish_non_exhaustive()
    }
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

/// What [`Store::inspect`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Found {
    /// What stands under the key.
    pub standing: Standing,
    /// Where the execution of the claim came from. A record has its origin inside.
    pub origin: Option<Origin>,
    /// Until when the claim's owner counts as alive unless it renews its lease, by the store's clock.
    pub lease_until: Option<Timestamp>,
    /// When a record, or a claim that nobody renews, is gone, by the store's clock. `None` where it stays, or nobody knows.
    pub expires_at: Option<Timestamp>,
    /// How often the record was replayed, where the store counts.
    pub replays: Option<u64>,
}

impl Found {
    /// Found to stand under a key; all the rest is not known.
    pub const fn new(standing: Standing) -> Self {
        Self { standing, origin: None, lease_until: None, expires_at: None, replays: None }
    }
}

/// What stands under a key that is not free.
#[derive(Clone, Debug)]
pub enum Standing {
    /// A claim with this fingerprint, whose owner is alive as far as the store knows.
    InFlight(Fingerprint),
    /// A claim with this fingerprint, whose owner is gone.
    Abandoned(Fingerprint),
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
///
/// ```
/// use std::io;
/// use idem_runtime::StoreError;
///
/// let error = StoreError::unavailable(io::Error::from(io::ErrorKind::ConnectionReset));
/// assert_eq!(error.to_string(), "the store is unavailable");
/// // What the client sees never has the source; the log does.
/// assert!(std::error::Error::source(&error).is_some());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room for a new key. Existing keys are still answered.
    Full,
    /// The store could not be reached, or its answer not understood.
    Unavailable(Arc<dyn Error + Send + Sync>),
    /// The claim belongs to somebody else by now.
    Lost,
    /// There is something under the key that cannot be read: damaged, or of a later version. The body has run, or may have.
    Unreadable(Arc<dyn Error + Send + Sync>),
    /// This store cannot say what stands under a key without claiming it.
    CannotInspect,
}

impl StoreError {
    /// The store could not be reached, or its answer not understood, because of `source`.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(Arc::from(source.into()))
    }

    /// What stands under the key could not be read, because of `source`.
    pub fn unreadable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreadable(Arc::from(source.into()))
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
            Self::Unreadable(_) => "what stands under the key cannot be read",
            Self::CannotInspect => "this store cannot be inspected",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(source) | Self::Unreadable(source) => Some(&**source),
            Self::Full | Self::Lost | Self::CannotInspect => None,
        }
    }
}
