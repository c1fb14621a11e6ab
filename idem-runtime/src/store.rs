//! What a store must do.

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::transaction::TransactionSlot;

/// Where claims and records live.
///
/// # Contract
///
/// The engine relies on these rules for every guarantee. `conformance` checks those that can be checked from outside:
///
/// - **`begin` is one atomic step.** Of any number of concurrent calls with one key, at most one gets
///   [`Begin::Claimed`] until that claim is released or its record has expired.
/// - **Nothing live is dropped.** A claim or a record that has not expired is never evicted to make room;
///   [`StoreError::Full`] refuses the new key.
/// - **Only the owner changes a claim.** Every change is a compare-and-set on a random owner token that the claim carries.
///   If the same owner repeats a step it gets the same result, since acknowledgements can be lost.
/// - **A dropped claim stays.** Dropping a [`Claim`] without [`complete`](Claim::complete) or [`release`](Claim::release)
///   leaves the key abandoned: at once, or when its lease expires.
/// - **Unreadable is an error,** never a miss: [`StoreError::Unreadable`].
/// - **Cancel safety.** A future that is dropped before it is ready may or may not have taken effect, but leaves the
///   key absent, claimed by a live owner, abandoned, or recorded, and nothing in between.
///
/// A store sees opaque keys and bytes, and knows nothing of HTTP. Three methods are required, and three of its claim. That is
/// enough for a store that one process uses. A store that several processes share also judges expiry itself, and says so in
/// [`attach`](Self::attach); it keeps a claim for its [TTL](BeginOptions::ttl) after the lease, supports
/// [`inspect`](Self::inspect), and repeats steps with [`try_clone`](Claim::try_clone).
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store, StoreError};
///
/// struct AlwaysFull;
/// struct NoClaim;
///
/// impl Store for AlwaysFull {
///     type Claim = NoClaim;
///     async fn begin(&self, _: &StorageKey, _: &Fingerprint, _: &BeginOptions) -> Result<Begin<NoClaim>, StoreError> {
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
///
/// A wrapper around another store must forward every method. `#[deny(clippy::missing_trait_methods)]` on its `impl` makes the
/// compiler check that.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store for records and claims",
    note = "pass a store, such as `MemoryStore::new()` or `PostgresStore::from_pool(pool)`, or implement `Store`",
    note = "if this makes a store, `.await`, `?` or `.build()` may be missing"
)]
pub trait Store: Send + Sync + 'static {
    /// The right to run the handler, as this store grants it.
    type Claim: Claim;

    /// Claims `key` for a request with `fingerprint`, or reports what prevents it. One atomic step.
    ///
    /// The owner counts as alive for [`options.lease`](BeginOptions::lease), and longer if it renews the claim. A store that sees when an
    /// owner is gone may ignore the lease. The claim of an owner that is gone stays, abandoned, so that a retry learns that the outcome is
    /// unknown. A store whose abandoned claims expire keeps each for [`options.ttl`](BeginOptions::ttl) after its lease, even if the TTL is
    /// shorter than the lease: an owner that is cut off may still run the handler. A store that can be [inspected](Self::inspect) keeps
    /// [`options.info`](BeginOptions::info) with the claim.
    ///
    /// An abandoned claim with another fingerprint is reported as [`Begin::InFlight`] with its own fingerprint.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room for a new key. [`StoreError::Unavailable`] if the state of the key is not known.
    /// [`StoreError::Unreadable`] if its value cannot be read. After an error the handler does not run.
    fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> impl Future<Output = Result<Begin<Self::Claim>, StoreError>> + Send;

    /// Resolves when the claim that `begin` reported in flight may have ended. Spurious wake-ups are allowed: the engine
    /// calls `begin` again.
    fn ended(&self, key: &StorageKey) -> impl Future<Output = ()> + Send;

    /// Removes the record or the abandoned claim under `key`, and returns whether there was one. A claim whose owner is alive
    /// stays.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is not known whether it was removed.
    fn forget(&self, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Returns what is stored under `key` without changing it: it claims nothing, extends no lease, and does not count as a
    /// replay. `None` if the key is free.
    ///
    /// For operators. A store that judges expiry itself does not return what has expired. By default a store cannot be
    /// inspected.
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] if this store does not support it, [`StoreError::Unavailable`] if the state of the key is
    /// not known.
    fn inspect(&self, key: &StorageKey) -> impl Future<Output = Result<Option<StoredEntry>, StoreError>> + Send {
        let _ = key;
        ready(Err(StoreError::CannotInspect))
    }

    /// Returns a page of the keys whose [outcome is unknown](KeyState::Abandoned), and changes nothing. A page covers a limited part of the
    /// store, which begins at `from`, or at the start. So a page may be empty although [more](KeyPage::next) follow.
    ///
    /// A key that stays abandoned until the last page was read is on one of the pages, and may be on several.
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] if this store does not support it, [`StoreError::Unavailable`] if it could not be read.
    fn inspect_unknown(
        &self,
        from: Option<&Bytes>,
    ) -> impl Future<Output = Result<KeyPage<StoredEntry>, StoreError>> + Send {
        let _ = from;
        ready(Err(StoreError::CannotInspect))
    }

    /// Takes the claim under `key` away from an owner that is alive, and returns whether there was one. From then on the key is abandoned,
    /// with the same fingerprint and info. It stays as long as any abandoned claim. Each later step of the owner is [`StoreError::Lost`],
    /// and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::CannotRevoke`] if this store does not support it, [`StoreError::Unavailable`] if it is not known whether
    /// the claim was taken away.
    fn revoke(&self, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = key;
        ready(Err(StoreError::CannotRevoke))
    }

    /// Resolves when the store has finished everything that it does after a call has ended, such as releasing unconfirmed
    /// claims. [`Idempotency::drain`](crate::Idempotency::drain) waits for it. By default there is nothing to finish.
    ///
    /// Cancel safe: dropping the future only stops the waiting.
    fn drained(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Receives the engine's clock, and returns what the store does itself; by default nothing. The engine calls this once, before any
    /// other method.
    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = clock;
        StoreCapabilities::default()
    }
}

/// For a store that is used beside its engine, such as one that counts its calls in a test.
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Arc<S> {
    type Claim = S::Claim;

    fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> impl Future<Output = Result<Begin<Self::Claim>, StoreError>> + Send {
        (**self).begin(key, fingerprint, options)
    }

    fn ended(&self, key: &StorageKey) -> impl Future<Output = ()> + Send {
        (**self).ended(key)
    }

    fn forget(&self, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        (**self).forget(key)
    }

    fn inspect(&self, key: &StorageKey) -> impl Future<Output = Result<Option<StoredEntry>, StoreError>> + Send {
        (**self).inspect(key)
    }

    fn inspect_unknown(
        &self,
        from: Option<&Bytes>,
    ) -> impl Future<Output = Result<KeyPage<StoredEntry>, StoreError>> + Send {
        (**self).inspect_unknown(from)
    }

    fn revoke(&self, key: &StorageKey) -> impl Future<Output = Result<bool, StoreError>> + Send {
        (**self).revoke(key)
    }

    fn drained(&self) -> impl Future<Output = ()> + Send {
        (**self).drained()
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        (**self).attach(clock)
    }
}

/// What a store does itself, and the engine need not do for it.
///
/// ```
/// use idem_runtime::StoreCapabilities;
///
/// // Several processes share this store, so it judges expiry by its own clock; its leases need renewal.
/// let shared = StoreCapabilities { judges_expiry: true, ..StoreCapabilities::default() };
/// assert!(!shared.claims_live_with_owner);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCapabilities {
    /// `begin` never reports an expired record. Otherwise the engine compares each record's expiry with its clock, and forgets what has
    /// expired. That is only correct if a single engine uses the store.
    pub judges_expiry: bool,
    /// The store sees when the owner of a claim is gone, and the claim is then abandoned at once. Otherwise the engine renews the lease
    /// while the handler runs.
    pub claims_live_with_owner: bool,
}

/// How an execution begins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BeginOptions {
    /// How long the claim lives without renewal.
    pub lease: Duration,
    /// How long a record of the endpoint lives. A claim that is not renewed lives as long, from the end of its lease.
    pub ttl: Duration,
    /// What is known of the execution, to be kept with its claim.
    pub info: Option<ExecutionInfo>,
    /// Where a transaction is wanted that is the claim. A store that cannot begin one leaves it empty.
    #[doc(hidden)]
    pub transaction: Option<TransactionSlot>,
}

impl BeginOptions {
    /// Returns the options of an execution of which nothing is known.
    pub const fn new(lease: Duration, ttl: Duration) -> Self {
        Self { lease, ttl, info: None, transaction: None }
    }

    /// Returns the same options for this execution.
    #[must_use]
    pub fn with_info(self, info: ExecutionInfo) -> Self {
        Self { info: Some(info), ..self }
    }

    /// Returns the same options, with the place of the transaction that is to be the claim.
    #[doc(hidden)]
    #[must_use]
    pub fn in_transaction(self, transaction: TransactionSlot) -> Self {
        Self { transaction: Some(transaction), ..self }
    }
}

/// What [`Store::begin`] found.
#[derive(Debug)]
pub enum Begin<C> {
    /// The key was free. It is now claimed, and the handler may run.
    Claimed(C),
    /// A claim with the same fingerprint whose owner disappeared. The handler may have had effects. Dropping the claim leaves
    /// the key as it is; [`Claim::renew`] takes it over.
    Abandoned(C),
    /// A claim with this fingerprint, whose owner is alive as far as the store knows. Or an abandoned claim, if its fingerprint is not the
    /// one that was asked for.
    InFlight(Fingerprint),
    /// A record. If its fingerprint is not the one that was asked for, the request is refused, and the store may report the record
    /// [without its content](Record::without_content), to save its bytes.
    Completed(Record),
}

/// What [`Store::inspect`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredEntry {
    /// The state of the key.
    pub state: KeyState,
    /// What is known of the execution that holds the claim. A record contains its own.
    pub info: Option<ExecutionInfo>,
    /// The end of the lease, by the store's clock. After that the owner of the claim does not count as alive. A renewal extends it.
    pub lease_until: Option<Timestamp>,
    /// When a record, or a claim that is not renewed, expires, by the store's clock. `None` if it stays, or if that is not
    /// known.
    pub expires_at: Option<Timestamp>,
    /// How often the record was replayed, if the store counts.
    pub replays: Option<u64>,
}

impl StoredEntry {
    /// Makes an entry of which only the state is known.
    pub const fn new(state: KeyState) -> Self {
        Self { state, info: None, lease_until: None, expires_at: None, replays: None }
    }
}

/// A page of keys, each with what was found under it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyPage<T> {
    /// The keys.
    pub keys: Vec<(StorageKey, T)>,
    /// Where the next page begins, in the store's own format. `None` if this is the last one.
    pub next: Option<Bytes>,
}

impl<T> KeyPage<T> {
    /// Makes a page with these keys.
    pub const fn new(keys: Vec<(StorageKey, T)>, next: Option<Bytes>) -> Self {
        Self { keys, next }
    }
}

/// The state of a key that is not free, as a store knows it.
#[derive(Clone, Debug)]
pub enum KeyState {
    /// A claim with this fingerprint, whose owner is alive as far as the store knows.
    InFlight(Fingerprint),
    /// A claim with this fingerprint, whose owner disappeared.
    Abandoned(Fingerprint),
    /// A record.
    Completed(Record),
}

/// The right to run the handler. Only its owner has this value, so no one else can complete or release it, and the compiler
/// prevents a second completion.
pub trait Claim: Send + 'static {
    /// Extends the lease to `lease` from now. On an abandoned claim, this takes the claim over, unless its owner has renewed it since: the
    /// claim gets this owner's token, and the [info](BeginOptions::info) of the `begin` that reported it.
    ///
    /// Cancel safe: the engine drops the future if the handler ends meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Lost`] if the claim is no longer the owner's, or no longer abandoned.
    fn renew(&mut self, lease: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Replaces the claim by `record`, which lives for `ttl` from now.
    ///
    /// If there is no room for all its bytes, the store keeps [`Record::tombstone`] instead.
    ///
    /// # Errors
    /// [`StoreError::Lost`] if the claim is no longer the owner's, [`StoreError::Unavailable`] if it is not known
    /// whether the record was stored.
    fn complete(self, record: Record, ttl: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Releases the claim: the key is free, as if it had never been claimed.
    ///
    /// # Errors
    /// As for [`complete`](Claim::complete).
    fn release(self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the same claim again, with the same owner token. The engine uses it to repeat a `complete` or a `release` that
    /// failed or whose acknowledgement was lost. `None`, the default, if a step cannot be repeated; then the outcome stays
    /// unknown.
    fn try_clone(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}
