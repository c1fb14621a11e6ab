//! Idempotency for plain functions: queue consumers, webhook receivers and cron jobs.

mod fingerprint;
mod value;

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::attempt::{Abandoned, Attempt, Rules};
use crate::caller_transaction::CallerTransaction;
use crate::endpoint::Endpoint;
use crate::engine::{Idempotency, KeyReport, SettleError, Settled};
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::lease::Lease;
use crate::outcome::{Executed, Outcome, Recording, RefusalReason, Replay, RunResult, codes};
use crate::panics::drop_quietly;
use crate::store::Store;
use crate::telemetry::span::RequestSpan;
use fingerprint::fingerprint;
use value::{decode, record};

/// So much of a scope is decoded for its name, which is cut far below that.
const MAX_NAME: usize = 256;

/// What a call gets while an execution with its key and its fingerprint is in flight.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Idempotency, WhenInFlight};
///
/// let once = Idempotency::in_memory().once("ship", "order-17").in_flight(WhenInFlight::Wait(Duration::from_secs(5)));
/// # let _ = once;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenInFlight {
    /// [`RefusalReason::InFlight`] at once.
    #[default]
    Reject,
    /// The recorded value, if the execution ends in time. If it ends with an error or a panic, this call runs its own function.
    /// After this long: [`RefusalReason::InFlight`].
    Wait(Duration),
}

/// A plain function that runs at most once for its key. [`Idempotency::once`] makes one.
#[derive(Clone)]
#[must_use = "nothing runs until `run` is called"]
pub struct Once {
    idempotency: Idempotency,
    key: StorageKey,
    name: Endpoint,
    rules: Rules,
    fingerprint: Result<Fingerprint, RefusalReason>,
}

impl Idempotency {
    /// Runs a plain async function at most once for `scope` and `key`, without HTTP. A later call gets the recorded value.
    ///
    /// Both may be any bytes. `scope` names the function or the queue. Operators see it in spans, in metrics and in
    /// [`KeyReport::endpoint`], so use few different scopes, and no secrets. `key` identifies one message, event or date; only its hash is
    /// stored. An empty key is a key as well: if some messages have no id, refuse them, or all of them are the same message. The same key in another scope is another key, and so is the same key that a client sent in a header.
    ///
    /// ```
    /// use std::time::Duration;
    /// use idem_runtime::{Idempotency, RefusalReason};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Clone, Serialize)]
    /// struct OrderPaid { id: String, item: String }
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// struct Receipt { parcel: String }
    ///
    /// #[derive(Debug)]
    /// enum ShipError { OutOfStock, Refused(RefusalReason) }
    ///
    /// impl From<RefusalReason> for ShipError {
    ///     fn from(reason: RefusalReason) -> Self {
    ///         Self::Refused(reason)
    ///     }
    /// }
    ///
    /// async fn ship(order: OrderPaid) -> Result<Receipt, ShipError> {
    ///     if order.item.is_empty() { Err(ShipError::OutOfStock) } else { Ok(Receipt { parcel: order.item }) }
    /// }
    ///
    /// async fn on_order_paid(idempotency: &Idempotency, order: OrderPaid) -> Result<Receipt, ShipError> {
    ///     let receipt: Receipt = idempotency
    ///         .once("ship", &order.id)
    ///         .ttl(Duration::from_secs(7 * 86_400))
    ///         .fingerprint(&order)
    ///         .run(async move || ship(order).await)
    ///         .await?;
    ///     Ok(receipt)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), ShipError> {
    /// let idempotency = Idempotency::in_memory();
    /// let order = OrderPaid { id: "order-17".to_owned(), item: "tea".to_owned() };
    /// let first = on_order_paid(&idempotency, order.clone()).await?;
    /// // The queue delivers the message again: nothing is shipped, and the receipt is the same.
    /// assert_eq!(on_order_paid(&idempotency, order.clone()).await?, first);
    /// // Another order under the same id is refused.
    /// let other = OrderPaid { item: "coffee".to_owned(), ..order };
    /// let refused = on_order_paid(&idempotency, other).await;
    /// assert!(matches!(refused, Err(ShipError::Refused(RefusalReason::Mismatch))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn once(&self, scope: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Once {
        let scope = scope.as_ref();
        Once {
            key: StorageKey::once(self.namespace(), scope, key.as_ref()),
            name: name(scope),
            rules: Rules::DEFAULT,
            fingerprint: Ok(Fingerprint::builder().finish()),
            idempotency: self.clone(),
        }
    }
}

impl Once {
    /// Sets how long the recorded value lives, counted from the end of the function. Default: 24 hours. Choose a longer time than the
    /// queue, or any other caller, keeps repeating the call.
    ///
    /// # Panics
    /// If `ttl` is zero: every call would run the function.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        assert!(!ttl.is_zero(), "`ttl` must be longer than zero, or every call would run the function");
        self.rules.ttl = ttl;
        self
    }

    /// Sets what must be equal in every call with this key: the message, say. A call with another value gets [`RefusalReason::Mismatch`],
    /// even while the first one runs. Default: nothing.
    ///
    /// Only a hash of its canonical JSON (RFC 8785) is stored, so the order of fields and of map entries does not matter. Integers
    /// of 2^53 and above are hashed as strings, as appendix D of the RFC asks, since its numbers cannot tell them apart.
    ///
    /// A value that does not serialize (a map whose keys are not strings, an integer of more than 64 bits) does not panic:
    /// [`run`](Self::run) returns [`RefusalReason::FingerprintFailed`]. Within a value, `serde_json` writes `NaN` and infinite numbers as
    /// `null`, so the fingerprint does not tell them apart from `None`.
    pub fn fingerprint(mut self, value: &impl Serialize) -> Self {
        self.fingerprint = fingerprint(value).map_err(|error| RefusalReason::FingerprintFailed(Arc::new(error)));
        self
    }

    /// Sets what a call gets while an execution with this key is in flight. Default: [`WhenInFlight::Reject`].
    pub fn in_flight(mut self, then: impl Into<WhenInFlight>) -> Self {
        self.rules.wait = match then.into() {
            WhenInFlight::Reject => None,
            WhenInFlight::Wait(max) => Some(max),
        };
        self
    }

    /// Sets what a call gets if the process that ran the function disappeared, and what the function did is unknown. Default:
    /// [`Abandoned::Refuse`], which is [`RefusalReason::OutcomeUnknown`].
    pub fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.rules.abandoned = abandoned;
        self
    }

    /// Runs `function` if the key is free, and otherwise returns the recorded value of the execution that succeeded.
    ///
    /// The function runs in a task, to its end, even if the caller is dropped; [`Idempotency::drain`] waits for it. Task-locals do
    /// not reach it. Its `Ok` is recorded as JSON before this returns. Its `Err` and its panic release the claim, so the next call
    /// runs its function again: what was done before the error is done twice unless it is undone.
    ///
    /// JSON does not tell `Some(())` from `None`, and has no `NaN`, which becomes `null`: later calls get `None`, or an error. So return a
    /// value that JSON keeps.
    ///
    /// A value that does not serialize, or is nested too deeply, or whose serialization panics, is returned to this caller, and an error is logged. Later calls get
    /// [`RefusalReason::NotReplayable`], since the function ran.
    ///
    /// # Errors
    /// The function's own error, or a [`RefusalReason`] as `E`. [`RefusalReason::is_retryable`] says whether a later call may
    /// succeed. A recorded value that does not decode as `T` is [`RefusalReason::StoreUnavailable`] because of
    /// [`StoreError::Unreadable`]; its text names the hash of the key and the type. The function does not run then.
    ///
    /// # Panics
    /// A panic of the function is resumed in the caller.
    ///
    /// # Cancel safety
    /// As for [`Idempotency::run`]: once the function started, it runs to its end, and its value is recorded.
    pub async fn run<F, Fut, T, E>(self, function: F) -> Result<T, E>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: From<RefusalReason> + Send + 'static,
    {
        let key = self.key;
        let (sender, mut receiver) = oneshot::channel();
        let handler: BoxedHandler = Box::new(move |_| {
            Box::pin(async move {
                let result = unwind_caught(function).await;
                let outcome = outcome_of(key, &result);
                // The caller may be gone. What is dropped here is the user's, and the claim has not ended.
                if let Err(unread) = sender.send(result) {
                    drop_quietly(unread);
                }
                Executed { response: (), recording: Recording::Done(outcome) }
            })
        });
        let (result, span) = self.run_boxed(handler).await;
        match result? {
            RunResult::Executed(()) => match receiver.try_recv() {
                Ok(Ok(result)) => result,
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => Err(RefusalReason::OutcomeUnknown.into()),
            },
            RunResult::Replayed(replay) => Ok(replayed(&span, key, &replay)?),
        }
    }

    /// Runs the engine. Nothing from here on is compiled once more for each function.
    async fn run_boxed(self, handler: BoxedHandler) -> (Result<RunResult<()>, RefusalReason>, RequestSpan) {
        let Self { idempotency, key, name, rules, fingerprint } = self;
        let span = RequestSpan::new(|| name);
        let work = async {
            span.set_key(&key);
            let result = match fingerprint {
                Ok(fingerprint) => idempotency.run(Attempt::new(key, fingerprint, rules).at(name), handler).await,
                Err(reason) => Err(reason),
            };
            report(&span, &result);
            result
        };
        (span.instrument(work).await, span)
    }

    /// Returns the store of the engine, if it is an `S`.
    #[doc(hidden)]
    pub fn store<S: Store>(&self) -> Option<&S> {
        self.idempotency.store()
    }

    /// As [`run`](Self::run), in the caller's future, with a claim and a record that are rows of the caller's transaction.
    #[doc(hidden)]
    pub async fn run_in_transaction_of_caller<X, T, E>(
        self,
        transaction: &mut X,
        function: impl AsyncFnOnce(&mut X) -> Result<T, E>,
    ) -> Result<T, E>
    where
        X: CallerTransaction,
        T: Serialize + DeserializeOwned,
        E: From<RefusalReason>,
    {
        let Self { idempotency, key, name, rules, fingerprint } = self;
        let handler = async |transaction: &mut X| {
            let result = unwind_caught(|| function(transaction)).await;
            let recording = Recording::Done(outcome_of(key, &result));
            Executed { response: result, recording }
        };
        let span = RequestSpan::new(|| name);
        let work = async {
            span.set_key(&key);
            let result = match fingerprint {
                Ok(fingerprint) => {
                    let attempt = Attempt::new(key, fingerprint, rules).at(name);
                    idempotency.run_in_transaction_of_caller(attempt, transaction, handler).await
                }
                Err(reason) => Err(reason),
            };
            report(&span, &result);
            result
        };
        match span.instrument(work).await? {
            RunResult::Executed(Ok(result)) => result,
            RunResult::Executed(Err(panic)) => resume_unwind(panic),
            RunResult::Replayed(replay) => Ok(replayed(&span, key, &replay)?),
        }
    }

    /// Returns the state of the key without changing it, or `None` if it is free. The [content](KeyReport::content) of a recorded
    /// value is one byte for the format, and then its JSON.
    ///
    /// # Errors
    /// As for [`Idempotency::inspect`].
    pub async fn inspect(&self) -> Result<Option<KeyReport>, StoreError> {
        self.idempotency.inspect_key(self.key).await
    }

    /// Removes the recorded value or the abandoned claim, and returns whether there was one. The next call **runs its function**,
    /// whatever an earlier one did. A claim whose owner is alive stays.
    ///
    /// # Errors
    /// As for [`Idempotency::forget`].
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, it may or may not have taken effect.
    pub async fn forget(&self) -> Result<bool, StoreError> {
        self.idempotency.forget_key(self.key).await
    }

    /// Decides an unknown outcome, once an operator has found out what the function did: later calls get a value
    /// ([`Outcome::value`]), or are refused because there is none ([`Outcome::NotReplayable`]), or run their function
    /// ([`Outcome::Release`]). A value lives from now on for the TTL of the call that was lost.
    ///
    /// ```
    /// # async fn example(idempotency: idem_runtime::Idempotency) -> Result<(), Box<dyn std::error::Error>> {
    /// use idem_runtime::Outcome;
    ///
    /// // The parcel left the house before the process died, so nothing is to be shipped again.
    /// idempotency.once("ship", "order-17").settle(Outcome::value(&"parcel 4")?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Idempotency::settle`].
    ///
    /// # Cancel safety
    /// Once the future was polled, nothing that happens to it stops the call.
    pub async fn settle(&self, outcome: Outcome) -> Result<Settled, SettleError> {
        self.idempotency.settle_key(self.key, outcome, None).await
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, rules, fingerprint, .. } = self;
        f.debug_struct("Once")
            .field("name", &self.name.as_str())
            .field("key", key)
            .field("rules", rules)
            .field("fingerprint", fingerprint)
            .finish_non_exhaustive()
    }
}

/// A boxed function. It sends its result through a channel.
type BoxedHandler = Box<dyn FnOnce(Lease) -> Pin<Box<dyn Future<Output = Executed<()>> + Send>> + Send>;

/// Returns the name of a function in spans, metrics and execution infos.
fn name(scope: &[u8]) -> Endpoint {
    let scope = String::from_utf8_lossy(&scope[..scope.len().min(MAX_NAME)]);
    Endpoint::new("once", &scope.replace(char::is_control, "\u{fffd}"))
}

/// Writes a refusal to the span. A replay is one only if its value can be read.
fn report<T>(span: &RequestSpan, result: &Result<T, RefusalReason>) {
    if let Err(reason) = result {
        span.refused(code(reason));
    }
}

/// Returns the recorded value, and writes to the span what the call gets.
fn replayed<T: DeserializeOwned>(span: &RequestSpan, key: StorageKey, replay: &Replay) -> Result<T, RefusalReason> {
    let value = decode(key, replay.content());
    report(span, &value);
    if value.is_ok() {
        span.replayed(replay);
    }
    value
}

/// What a function returned, or what it panicked with.
type Returned<T, E> = Result<Result<T, E>, Box<dyn Any + Send>>;

/// Returns what to remember of a function.
fn outcome_of<T: Serialize, E>(key: StorageKey, returned: &Returned<T, E>) -> Outcome {
    match returned {
        Ok(Ok(value)) => record(key, value),
        Ok(Err(_)) | Err(_) => Outcome::Release,
    }
}

/// Runs `function` to its end. `Err` is what it panicked with.
async fn unwind_caught<F, Fut>(function: F) -> Result<Fut::Output, Box<dyn Any + Send>>
where
    F: FnOnce() -> Fut,
    Fut: Future,
{
    // The call may panic as well as its future.
    let mut future = pin!(async move { function().await });
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Returns the name of a refusal in spans and metrics, the same as for HTTP.
fn code(reason: &RefusalReason) -> &'static str {
    match reason {
        RefusalReason::InFlight => codes::KEY_LOCKED,
        RefusalReason::Mismatch => codes::KEY_MISMATCH,
        RefusalReason::PolicyChanged => codes::POLICY_CHANGED,
        RefusalReason::OutcomeUnknown => codes::OUTCOME_UNKNOWN,
        RefusalReason::NotReplayable => codes::NOT_REPLAYABLE,
        RefusalReason::StoreUnavailable(_) => codes::STORE_UNAVAILABLE,
        RefusalReason::StoreFull => codes::STORE_FULL,
        RefusalReason::TooManyExecutions => codes::TOO_MANY_EXECUTIONS,
        RefusalReason::FingerprintFailed(_) => "idempotency_fingerprint_failed",
    }
}

#[cfg(test)]
mod tests;
