//! Claims: every change is one statement, a compare-and-set on the owner token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idem_runtime::{Fingerprint, Origin, Record, StorageKey, StoreError};

use crate::core::{Core, FOR_EVER, key_value};
use crate::database::{Database, Value};
use crate::errors::{DatabaseError, Problem, Step};

pub(crate) struct CoreClaim<D: Database> {
    core: Arc<Core<D>>,
    pub(crate) key: StorageKey,
    pub(crate) fingerprint: Fingerprint,
    owner: [u8; 16],
    /// The owner that is gone, until `renew` has taken the claim over.
    former: Option<[u8; 16]>,
    /// Where the execution of an heir comes from.
    origin: Option<Origin>,
    ttl: Duration,
    /// A release was sent, and was done or may have been. Shared by twins.
    maybe_released: Arc<AtomicBool>,
}

impl<D: Database> CoreClaim<D> {
    pub(crate) fn new(
        core: &Arc<Core<D>>,
        key: StorageKey,
        fingerprint: Fingerprint,
        owner: [u8; 16],
        ttl: Duration,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            key,
            fingerprint,
            owner,
            former: None,
            origin: None,
            ttl,
            maybe_released: Arc::default(),
        }
    }

    pub(crate) fn heir_of(self, former: [u8; 16], origin: Option<Origin>) -> Self {
        Self { former: Some(former), origin, ..self }
    }

    /// There is a record in the way, which is a replay if the fingerprints are equal.
    pub(crate) fn finds_record_of(&self, owner: [u8; 16], fingerprint: &Fingerprint) {
        if let Some(counter) = self.core.counter.as_ref().filter(|_| *fingerprint == self.fingerprint) {
            counter.count(self.key, owner);
        }
    }

    pub(crate) fn twin(&self) -> Self {
        let Self { core, maybe_released, origin, .. } = self;
        Self { core: Arc::clone(core), maybe_released: Arc::clone(maybe_released), origin: origin.clone(), ..*self }
    }

    /// For how long a claim stays from its last renewal: for its lease, and then, abandoned, for its TTL, however the two
    /// compare. Where it went with the lease, the key would be free while an owner that is cut off runs the body.
    pub(crate) fn retention(&self, lease: Duration) -> Duration {
        lease.min(FOR_EVER) + self.ttl.min(FOR_EVER)
    }

    pub(crate) async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let sql = &self.core.sql;
        let retention = D::ticks(self.retention(lease));
        let values = [
            key_value(&self.key),
            Value::Bytes(&self.owner),
            Value::Number(D::ticks(lease.min(FOR_EVER))),
            Value::Number(retention),
        ];
        let done = match &self.former {
            None => self.change(Step::Renew, &sql.renew, &values).await?,
            Some(former) => {
                let [key, owner, lease, retention] = values;
                let fingerprint = Value::Bytes(self.fingerprint.as_bytes());
                let origin = Value::Maybe(self.origin.as_ref().map(|origin| &origin.bytes()[..]));
                let values = [key, owner, lease, retention, Value::Bytes(former), fingerprint, origin];
                self.change(Step::Renew, &sql.take_over, &values).await?
            }
        };
        if !done.changed {
            return Err(StoreError::Lost);
        }
        self.former = None;
        Ok(())
    }

    pub(crate) async fn complete(self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let kept = match self.keep(record, ttl).await {
            // The body ran, and that must be known, even if there is no room for its answer.
            Err(DatabaseError { problem: Problem::Full(_), .. }) => self.keep(&record.tombstone(), ttl).await,
            kept => kept,
        };
        if !kept?.changed {
            return Err(StoreError::Lost);
        }
        self.core.waiters.wake(&self.key);
        Ok(())
    }

    async fn keep(&self, record: &Record, ttl: Duration) -> Result<Done, DatabaseError> {
        let sealed = record.seal(&self.key);
        let ttl = Value::Number(D::ticks(ttl.min(FOR_EVER)));
        let values = [key_value(&self.key), Value::Bytes(&self.owner), Value::Bytes(&sealed), ttl];
        self.change(Step::Complete, &self.core.sql.complete, &values).await
    }

    pub(crate) async fn release(self) -> Result<(), StoreError> {
        let values = [key_value(&self.key), Value::Bytes(&self.owner)];
        let earlier = self.maybe_released.swap(true, Ordering::SeqCst);
        // A release that is dropped half-way, or fails, leaves the flag set.
        let Done { changed, repeated } = self.change(Step::Release, &self.core.sql.release, &values).await?;
        // What is not there any more was released by the try whose answer was lost, or is somebody else's by now. Either
        // way the claim is not this owner's, which is all that a release is for.
        if changed || repeated || earlier {
            self.core.waiters.wake(&self.key);
            return Ok(());
        }
        self.maybe_released.store(false, Ordering::SeqCst);
        Err(StoreError::Lost)
    }

    async fn change(&self, step: Step, sql: &Arc<str>, values: &[Value<'_>]) -> Result<Done, DatabaseError> {
        let asked = self.core.asker.ask(step, sql, values).await?;
        Ok(Done { changed: !asked.rows.is_empty(), repeated: asked.repeated })
    }
}

struct Done {
    changed: bool,
    repeated: bool,
}

impl<D: Database> fmt::Debug for CoreClaim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("key", &self.key).finish_non_exhaustive()
    }
}
