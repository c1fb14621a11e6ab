//! Transactions of the caller: where `once` and a store meet.

use std::future::Future;
use std::time::Duration;

use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, BeginOptions};

/// A transaction that the caller has begun, and will end: the claim and the record of [`Once`](crate::Once) are rows in it.
pub trait CallerTransaction: Send {
    /// Claims the key. Unless the result is a claim, the transaction is left as it was.
    fn begin(
        &mut self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> impl Future<Output = Result<Begin<()>, StoreError>> + Send;

    /// Takes over the claim that was reported as abandoned. After an error the transaction is left as it was.
    fn take_over(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Puts the record in the place of the claim. An error means that everything since the claim is undone, or, if it is
    /// [`StoreError::Lost`], that the function has ended the transaction.
    fn complete(&mut self, record: &Record, ttl: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Undoes everything since the claim, with the claim. [`StoreError::Lost`] means that the function has ended the transaction.
    fn undo(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}
