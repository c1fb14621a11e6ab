//! The value of a function: what is recorded of it, and read again.

use std::any::type_name;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::key::StorageKey;
use crate::outcome::{Outcome, RefusalReason};
use crate::panics::discard;
use crate::record::RecordBuilder;

/// The first byte of a recorded value, before its JSON. A recorded HTTP response starts with its version, a small number.
const JSON: u8 = b'J';
/// How deeply arrays and objects may be nested for `serde_json` to read them. It writes deeper ones as well.
const MAX_DEPTH: usize = 127;

impl Outcome {
    /// Returns a record of a value, in the format of [`Idempotency::once`](crate::Idempotency::once), for
    /// [`Once::settle`](super::Once::settle). What a function returns is recorded by the engine itself.
    ///
    /// # Errors
    /// The value does not serialize as JSON, or has more than 127 arrays and objects within each other, which could not be read again.
    /// Nothing was recorded.
    pub fn value(value: &impl Serialize) -> Result<Self, io::Error> {
        let json = serde_json::to_vec(value)?;
        // Most values are too small to be read for that.
        if json.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_DEPTH {
            serde_json::from_slice::<serde_json::Value>(&json)?;
        }
        let mut record = RecordBuilder::with_capacity(1 + json.len());
        record.put(&[JSON]);
        record.put(&json);
        Ok(Self::Record(record))
    }
}

/// Returns what to remember of a function that succeeded. It had its effects, so nothing that fails here releases the claim.
pub(super) fn record<T: Serialize>(key: StorageKey, value: &T) -> Outcome {
    let error = match catch_unwind(AssertUnwindSafe(|| Outcome::value(value))) {
        Ok(Ok(outcome)) => return outcome,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            discard(panic);
            "it panicked".to_owned()
        }
    };
    let value = type_name::<T>();
    tracing::error!(%key, value, error, "the value of a function does not serialize; it is returned, and later calls are refused as not replayable");
    Outcome::NotReplayable
}

/// Reads what [`Outcome::value`] wrote.
pub(super) fn decode<T: DeserializeOwned>(key: StorageKey, content: &Bytes) -> Result<T, RefusalReason> {
    let unreadable = |cause: &dyn fmt::Display| {
        let text = format!(
            "the value recorded under key {key} does not decode as `{}`: {cause}; change the type back, or forget the key",
            type_name::<T>()
        );
        RefusalReason::StoreUnavailable(StoreError::unreadable(text))
    };
    match content.split_first() {
        Some((&JSON, json)) => serde_json::from_slice(json).map_err(|error| unreadable(&error)),
        _ => Err(unreadable(&"it has another format")),
    }
}
