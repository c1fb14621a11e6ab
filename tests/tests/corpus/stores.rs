//! Stores whose replies are lost, late or refusals: 103 to 105 and 108 (107 is in phases.rs).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idem_axum::{
    Begin, BeginOptions, Claim, Fingerprint, Idempotency, MemoryStore, Record, StorageKey, Store, StoreError,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Ask, Probe, Server, Setup, Shelf, ShelfClaim, post as send, within};

use crate::app::{assert_alive, assert_small, routes};
use crate::{CodedInput, coded};

pub const INPUTS: &[CodedInput] = coded![
    103 => the_reply_to_begin_is_lost,
    104 => the_reply_to_complete_is_lost,
    105 => a_completion_after_a_takeover,
    108 => a_store_without_room,
    108 => a_store_that_cannot_write,
];

/// What goes wrong with a [`Shelf`].
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// `begin` takes effect, and fails.
    BeginLost,
    /// `complete` takes effect, and fails.
    CompleteLost,
    /// Another owner has completed.
    TakenOver,
    /// Nothing can be written.
    ReadOnly,
}

struct FaultHooks {
    fault: Fault,
    once: AtomicBool,
}

impl FaultHooks {
    fn fails_now(&self, fault: Fault) -> bool {
        self.fault == fault && !self.once.swap(true, Ordering::SeqCst)
    }
}

fn lost() -> StoreError {
    StoreError::unavailable("the connection was lost")
}

impl Hooks<Shelf> for FaultHooks {
    async fn begin(
        &self,
        store: &Shelf,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<ShelfClaim>, StoreError> {
        if self.fault == Fault::ReadOnly {
            return Err(StoreError::unavailable("READONLY"));
        }
        let begun = store.begin(key, fingerprint, options).await?;
        if self.fails_now(Fault::BeginLost) { Err(lost()) } else { Ok(begun) }
    }

    async fn complete(&self, claim: ShelfClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        if self.fails_now(Fault::TakenOver) {
            claim.complete(record.tombstone(), ttl).await?;
            return Err(StoreError::Lost);
        }
        claim.complete(record, ttl).await?;
        if self.fails_now(Fault::CompleteLost) { Err(lost()) } else { Ok(()) }
    }

    fn try_clone(&self, claim: &ShelfClaim) -> Option<ShelfClaim> {
        Some(claim.clone())
    }
}

async fn world(fault: Fault) -> (Idempotency, Probe, Server) {
    let store = Intercept::new(Shelf::default(), FaultHooks { fault, once: AtomicBool::new(false) });
    let idempotency = Idempotency::new(store);
    let (app, probe) = Setup::mount(&idempotency, routes());
    (idempotency, probe, Server::start(app).await)
}

fn ask() -> Ask {
    send("/order").key("k").body("x")
}

/// It is not known whether there is a claim, so nothing runs; and as there is one without an owner, nothing runs later.
async fn the_reply_to_begin_is_lost() {
    let (_idempotency, probe, server) = world(Fault::BeginLost).await;
    let refused = ask().at(&server).await;
    refused.assert_refused(503, "idempotency_store_unavailable");
    assert_small(&refused);
    for _ in 0..3 {
        ask().at(&server).await.assert_refused(409, "idempotency_key_locked");
        ask().body("y").at(&server).await.assert_refused(422, "idempotency_key_mismatch");
    }
    assert_eq!(probe.runs(), 0);
    assert_alive(&server).await;
}

async fn the_reply_to_complete_is_lost() {
    let (idempotency, probe, server) = world(Fault::CompleteLost).await;
    let first = ask().at(&server).await;
    first.assert_ran(201);
    ask().at(&server).await.assert_replay_of(&first);
    within("the end of every execution", idempotency.drain()).await;
    ask().at(&server).await.assert_replay_of(&first);
    assert_eq!(probe.runs(), 1);
    assert_alive(&server).await;
}

/// The first caller gets what its run made, and a retry what the store holds.
async fn a_completion_after_a_takeover() {
    let (idempotency, probe, server) = world(Fault::TakenOver).await;
    let first = ask().at(&server).await;
    first.assert_ran(201);
    within("the end of every execution", idempotency.drain()).await;
    ask().at(&server).await.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(probe.runs(), 1);
    assert_alive(&server).await;
}

async fn a_store_without_room() {
    let setup = Setup::with(MemoryStore::builder().max_entries(1).build(), |builder| builder, routes());
    let server = setup.serve().await;
    let first = ask().at(&server).await;
    first.assert_ran(201);
    for key in 0..50 {
        let refused = send("/order").key(&format!("other-{key}")).at(&server).await;
        refused.assert_refused(503, "idempotency_store_full");
        assert!(refused.header("retry-after").is_some());
        assert_small(&refused);
    }
    ask().at(&server).await.assert_replay_of(&first);
    assert_eq!((setup.probe.runs(), setup.store.usage().entries), (1, 1));
    assert_alive(&server).await;
}

async fn a_store_that_cannot_write() {
    let (_idempotency, probe, server) = world(Fault::ReadOnly).await;
    let refused = ask().at(&server).await;
    refused.assert_refused(503, "idempotency_store_unavailable");
    assert!(refused.header("retry-after").is_some() && !refused.text().contains("READONLY"), "{refused:?}");
    assert_eq!(probe.runs(), 0);
    assert_alive(&server).await;
}
