//! The row of a claim in a transaction, and the statements that write it.

use std::time::Duration;

use idem_runtime::remote::OwnerToken;
use idem_runtime::{BeginOptions, ExecutionInfo, Fingerprint, Record, StorageKey, StoreError};

use super::fill;
use crate::dialect::{Dialect, MAX_TTL, NO_LEASE, Statements, Value, hex, retention};
use crate::execute::key_value;
use crate::table::policy_lock;

/// What is written into the row of a claim.
#[derive(Clone)]
pub(super) struct ClaimRow {
    pub(super) key: StorageKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) owner: OwnerToken,
    pub(super) info: Option<ExecutionInfo>,
    pub(super) ttl: Duration,
}

impl ClaimRow {
    /// Returns the row of a new owner.
    pub(super) fn new(key: &StorageKey, fingerprint: &Fingerprint, options: &BeginOptions) -> Result<Self, StoreError> {
        let (owner, info) = (OwnerToken::random()?, options.info.clone());
        Ok(Self { key: *key, fingerprint: *fingerprint, owner, info, ttl: options.ttl })
    }

    /// Returns the name of the savepoint after the claim. No other code knows it: if the savepoint is gone, other code has ended the
    /// transaction.
    pub(super) fn savepoint(&self) -> String {
        format!("idem_{}", hex(self.owner.as_bytes()))
    }

    /// Returns the statement that claims the key. It has the row that prevents it, or no row if another transaction holds the key.
    pub(super) fn claim<D: Dialect>(&self, statements: &Statements) -> String {
        let info = self.info.as_ref();
        let [endpoint, policy] =
            policy_lock(&self.key, info).map_or([Value::Nullable(None); 2], |lock| lock.map(Value::Number));
        let info = info.map(ExecutionInfo::to_bytes);
        let values = [
            key_value(&self.key),
            Value::Bytes(self.owner.as_bytes()),
            Value::Bytes(self.fingerprint.as_bytes()),
            NO_LEASE,
            Value::Number(D::ticks(retention(Duration::ZERO, self.ttl))),
            Value::Nullable(info.as_deref()),
            endpoint,
            policy,
        ];
        fill::<D>(&statements.claim_in_transaction, &values)
    }

    /// Returns the statement that takes over the claim of an owner that disappeared.
    pub(super) fn take_over<D: Dialect>(&self, statements: &Statements, previous_owner: &OwnerToken) -> String {
        let info = self.info.as_ref().map(ExecutionInfo::to_bytes);
        let values = [
            key_value(&self.key),
            Value::Bytes(self.owner.as_bytes()),
            NO_LEASE,
            Value::Number(D::ticks(retention(Duration::ZERO, self.ttl))),
            Value::Bytes(previous_owner.as_bytes()),
            Value::Bytes(self.fingerprint.as_bytes()),
            Value::Nullable(info.as_deref()),
        ];
        fill::<D>(&statements.take_over, &values)
    }

    /// Returns the statement that puts the record in the place of the claim.
    pub(super) fn complete<D: Dialect>(&self, statements: &Statements, record: &Record, ttl: Duration) -> String {
        let bytes = record.to_checksummed_bytes(&self.key);
        let values = [
            key_value(&self.key),
            Value::Bytes(self.owner.as_bytes()),
            Value::Bytes(&bytes),
            Value::Number(D::ticks(ttl.min(MAX_TTL))),
        ];
        fill::<D>(&statements.complete_in_transaction, &values)
    }

    /// Returns the statement that removes the claim.
    pub(super) fn release<D: Dialect>(&self, statements: &Statements) -> String {
        fill::<D>(&statements.release, &[key_value(&self.key), Value::Bytes(self.owner.as_bytes())])
    }
}
