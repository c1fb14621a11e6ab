//! Transactions of handlers: where an adapter, a store and an extractor meet.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The place of the transaction of one request. Clones share it.
///
/// An adapter plants it in the request, and an extractor [wants](Self::want) a transaction there. The store begins the transaction
/// together with the claim, and puts it in before the handler runs. The extracted value takes it out while it is in use. The claim
/// ends with the transaction: `complete` commits, and `release` rolls back.
#[derive(Clone, Default)]
pub struct TransactionSlot {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    wanted: Option<TypeId>,
    transaction: Option<Box<dyn Any + Send>>,
    was_opened: bool,
    is_unkeyed: bool,
    keeps_writes: bool,
    timeout: Option<Duration>,
    fault: Option<&'static str>,
}

impl TransactionSlot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants a transaction of the type `T`. Returns `false` if one is wanted already.
    pub fn want<T: Any>(&self) -> bool {
        let mut state = self.state();
        let is_first = state.wanted.is_none();
        state.wanted.get_or_insert(TypeId::of::<T>());
        is_first
    }

    /// Returns whether an extractor wants a transaction.
    pub fn is_wanted(&self) -> bool {
        self.state().wanted.is_some()
    }

    /// Returns whether the transaction that is wanted has the type `T`.
    pub fn wants<T: Any>(&self) -> bool {
        self.state().wanted == Some(TypeId::of::<T>())
    }

    /// Puts the transaction in.
    pub fn put<T: Any + Send>(&self, transaction: T) {
        let mut state = self.state();
        state.was_opened = true;
        state.transaction = Some(Box::new(transaction));
    }

    /// Takes the transaction out. `None` if it is not open, or taken.
    pub fn take<T: Any + Send>(&self) -> Option<T> {
        let mut state = self.state();
        match state.transaction.take()?.downcast() {
            Ok(transaction) => Some(*transaction),
            Err(other) => {
                state.transaction = Some(other);
                None
            }
        }
    }

    /// Returns whether a store has put a transaction in.
    pub fn was_opened(&self) -> bool {
        self.state().was_opened
    }

    /// Says that the request has no key: the transaction has no claim, and leaves no record.
    pub fn set_unkeyed(&self) {
        self.state().is_unkeyed = true;
    }

    /// Returns whether the request has no key.
    pub fn is_unkeyed(&self) -> bool {
        self.state().is_unkeyed
    }

    /// Says how long the handler may run.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.state().timeout = timeout;
    }

    /// Returns how long the handler may run.
    pub fn timeout(&self) -> Option<Duration> {
        self.state().timeout
    }

    /// Says that what the handler wrote is kept. By default it is not.
    pub fn keep_writes(&self) {
        self.state().keeps_writes = true;
    }

    /// Returns whether what the handler wrote is kept. After a [mistake](Self::set_fault) it is not, since the caller gets an error.
    pub fn keeps_writes(&self) -> bool {
        let state = self.state();
        state.keeps_writes && state.fault.is_none()
    }

    /// Reports a mistake in the service's code, which a retry does not mend. The response is 500.
    pub fn set_fault(&self, fault: &'static str) {
        self.state().fault = Some(fault);
    }

    /// Returns the mistake.
    pub fn fault(&self) -> Option<&'static str> {
        self.state().fault
    }
}

impl fmt::Debug for TransactionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionSlot").field("is_wanted", &self.is_wanted()).finish_non_exhaustive()
    }
}
