//! Stores whose answers are lost, late or refusals: 103 to 105 and 108 (107 is in phases.rs).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idem_axum::{
    Begin, BeginOptions, Claim, Fingerprint, Idempotency, MemoryStore, Record, StorageKey, Store, StoreError,
};
use idem_tests::{Ask, Probe, Server, Setup, Shelf, ShelfClaim, post as send, within};

use crate::app::{assert_alive, assert_small, routes};
use crate::{Coded, coded};

pub const INPUTS: &[Coded] = coded![
    103 => the_answer_to_begin_is_lost,
    104 => the_answer_to_complete_is_lost,
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

#[derive(Clone)]
struct Unsure {
    shelf: Shelf,
    fault: Fault,
    once: Arc<AtomicBool>,
}

impl Unsure {
    fn fails_now(&self, fault: Fault) -> bool {
        self.fault == fault && !self.once.swap(true, Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct UnsureClaim(ShelfClaim, Unsure);

fn lost() -> StoreError {
    StoreError::unavailable("the connection was lost")
}

impl Store for Unsure {
    type Claim = UnsureClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<UnsureClaim>, StoreError> {
        if self.fault == Fault::ReadOnly {
            return Err(StoreError::unavailable("READONLY"));
        }
        let begun = self.shelf.begin(key, fingerprint, options).await?;
        if self.fails_now(Fault::BeginLost) {
            return Err(lost());
        }
        Ok(match begun {
            Begin::Claimed(claim) => Begin::Claimed(UnsureClaim(claim, self.clone())),
            Begin::Abandoned(claim) => Begin::Abandoned(UnsureClaim(claim, self.clone())),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.shelf.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.shelf.forget(key).await
    }
}

impl Claim for UnsureClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let UnsureClaim(claim, store) = self;
        if store.fails_now(Fault::TakenOver) {
            claim.complete(record.tombstone(), ttl).await?;
            return Err(StoreError::Lost);
        }
        claim.complete(record, ttl).await?;
        if store.fails_now(Fault::CompleteLost) { Err(lost()) } else { Ok(()) }
    }

    async fn release(self) -> Result<(), StoreError> {
        self.0.release().await
    }

    fn try_clone(&self) -> Option<Self> {
        Some(self.clone())
    }
}

async fn world(fault: Fault) -> (Idempotency, Probe, Server) {
    let store = Unsure { shelf: Shelf::default(), fault, once: Arc::default() };
    let idempotency = Idempotency::new(store);
    let (app, probe) = Setup::mount(&idempotency, routes());
    (idempotency, probe, Server::start(app).await)
}

fn ask() -> Ask {
    send("/order").key("k").body("x")
}

/// It is not known whether there is a claim, so nothing runs; and as there is one without an owner, nothing runs later.
async fn the_answer_to_begin_is_lost() {
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

async fn the_answer_to_complete_is_lost() {
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
