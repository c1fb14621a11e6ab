//! The conformance suite: what every store must do, as tests that any store's author can run.
//!
//! The cases are plain async functions over [`Store`]. Run them all from one test, with a closure that makes an empty
//! store:
//!
//! ```
//! use idem_runtime::{MemoryStore, conformance};
//!
//! # fn main() {
//! # let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
//! # runtime.block_on(async {
//! conformance::all(|| async { MemoryStore::new() }).await;
//! # });
//! # }
//! ```
//!
//! or each from a separate test with [`conformance_tests!`](crate::conformance_tests). A case panics if the store
//! breaks the [contract](Store#contract), and says which sentence of it. The suite is not part of the stable API: it grows
//! with what is found out about stores.
//!
//! The store may be shared with other cases, or be the same each time: every case uses its own keys. Run the cases on a
//! runtime with several threads, so that concurrent calls are concurrent.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "a failed case panics")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::{Key, StorageKey};
use crate::record::{Record, RecordBuilder};
use crate::scope::Scope;
use crate::store::{Begin, BeginOptions, Store, StoreCapabilities};

mod claims;
mod inspection;
mod records;

pub use claims::*;
pub use inspection::*;
pub use records::*;

/// A lease that no case outlives.
const LEASE: Duration = Duration::from_secs(10 * 60);
/// A TTL that no case outlives.
const TTL: Duration = Duration::from_secs(60 * 60);
/// How long a case waits for what must happen.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The one list of cases, for code that does something with each.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ([$($with:tt)*] $($argument:tt)*) => {
        $($with)*! { $($argument)*
            one_of_many_concurrent_begins_claims
            a_claimed_key_is_in_flight_for_everyone_else
            a_completed_claim_leaves_its_record
            a_released_claim_leaves_nothing
            a_dropped_claim_is_abandoned_and_not_free
            an_abandoned_claim_is_in_flight_for_another_fingerprint
            an_abandoned_claim_can_be_taken_over_once
            a_previous_owner_changes_nothing
            of_many_new_owners_one_takes_over
            a_new_owner_that_is_late_changes_nothing
            an_owner_that_is_only_late_keeps_its_claim
            a_claim_outlives_its_lease_even_if_the_ttl_is_shorter
            a_renewed_claim_stays
            a_cloned_claim_repeats_its_completion
            a_cloned_claim_repeats_its_release
            a_key_that_is_free_has_no_owner
            waiters_wake_when_the_claim_ends
            a_begin_that_is_dropped_leaves_no_claim_without_an_end
            bytes_come_back_as_they_went_in
            keys_do_not_touch_each_other
            nothing_live_is_evicted
            a_record_expires_at_its_ttl_and_not_before
            asking_does_not_move_the_ttl
            of_many_begins_on_an_expired_record_one_claims
            what_is_forgotten_is_gone
            a_claim_with_an_owner_is_not_forgotten
            inspecting_a_claim_shows_it_and_changes_nothing
            inspecting_a_record_shows_it_as_it_was_kept
            what_has_expired_is_not_found
            an_abandoned_claim_keeps_its_info_until_it_is_taken_over
            unknown_outcomes_are_listed_and_nothing_else
            a_revoked_claim_is_abandoned_and_its_owner_changes_nothing
        }
    };
}

/// Makes a `#[tokio::test]` of every case.
///
/// ```ignore
/// idem_runtime::conformance_tests!(|| async { MyStore::connect().await });
/// ```
#[macro_export]
macro_rules! conformance_tests {
    (@each $make:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$case(&$crate::conformance::attached(($make)().await)).await;
            }
        )*
    };
    ($make:expr) => {
        $crate::__conformance_cases! { [$crate::conformance_tests] @each $make; }
    };
}

/// Runs every case, each on a store that `make` makes.
pub async fn all<S, M, F>(make: M)
where
    S: Store,
    M: Fn() -> F,
    F: Future<Output = S>,
{
    macro_rules! run {
        ($($case:ident)*) => {
            $(
                $case(&attached(make().await)).await;
            )*
        };
    }
    crate::__conformance_cases! { [run] }
}

/// A store as a case uses it: attached to a clock, as the engine would.
pub struct Attached<S> {
    store: Arc<S>,
    capabilities: StoreCapabilities,
}

impl<S> std::fmt::Debug for Attached<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}

/// Attaches a store to the system's clock.
pub fn attached<S: Store>(store: S) -> Attached<S> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let capabilities = store.attach(&clock);
    Attached { store: Arc::new(store), capabilities }
}

impl<S: Store> Attached<S> {
    async fn begin(&self, key: &StorageKey, fingerprint: &Fingerprint) -> Result<Begin<S::Claim>, StoreError> {
        within("`begin` returns", self.store.begin(key, fingerprint, &options())).await
    }

    async fn claim(&self, key: &StorageKey, fingerprint: &Fingerprint) -> S::Claim {
        match self.begin(key, fingerprint).await {
            Ok(Begin::Claimed(claim)) => claim,
            other => panic!("a free key can be claimed, but `begin` gave {}", shown(&other)),
        }
    }

    async fn record(&self, key: &StorageKey, fingerprint: &Fingerprint) -> Record {
        match self.begin(key, fingerprint).await {
            Ok(Begin::Completed(record)) => record,
            other => panic!("a completed claim leaves its record, but `begin` gave {}", shown(&other)),
        }
    }
}

/// Options of an execution of which nothing is known.
fn options() -> BeginOptions {
    BeginOptions::new(LEASE, TTL)
}

fn shown<C>(begun: &Result<Begin<C>, StoreError>) -> String {
    match begun {
        Ok(Begin::Claimed(_)) => "a claim".into(),
        Ok(Begin::Abandoned(_)) => "an abandoned claim".into(),
        Ok(Begin::InFlight(fingerprint)) => format!("in flight with {fingerprint:?}"),
        Ok(Begin::Completed(record)) => format!("{record:?}"),
        Err(error) => format!("the error: {error}"),
    }
}

/// Keys are unique over cases, processes and runs, so that a store need not be empty.
fn key() -> StorageKey {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = format!(
        "conformance-{}-{}-{}",
        std::process::id(),
        SystemClock::new().now().as_nanos(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    StorageKey::new("", &Scope::GLOBAL, &Key::parse(unique.as_bytes()).expect("a valid key"))
}

fn fingerprint(text: &str) -> Fingerprint {
    let mut builder = Fingerprint::builder();
    builder.part(b'c', text.as_bytes());
    builder.finish()
}

fn record(fingerprint: &Fingerprint, content: &[u8], ttl: Duration) -> Record {
    record_of(fingerprint, content, ttl, None)
}

fn record_of(fingerprint: &Fingerprint, content: &[u8], ttl: Duration, info: Option<&ExecutionInfo>) -> Record {
    let mut builder = RecordBuilder::with_capacity(content.len());
    builder.put(content);
    Record::with_content(*fingerprint, builder, SystemClock::new().now().after(ttl), info)
}

fn content(record: &Record) -> Option<Bytes> {
    record.read().expect("a readable record").content
}

fn expires_at(record: &Record) -> Timestamp {
    record.read().expect("a readable record").expires_at
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(MAX_WAIT, future).await {
        Ok(result) => result,
        Err(_) => panic!("not within {MAX_WAIT:?}: {what}"),
    }
}
