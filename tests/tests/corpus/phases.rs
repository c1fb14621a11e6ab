//! A client that leaves while its request is in the store, in the body, on its way back (89). What comes before is in requests.txt.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use idem_axum::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Idempotency, MemoryClaim, MemoryStore, Record, StorageKey, Store,
    StoreCapabilities, StoreError, StoredEntry,
};
use idem_tests::{Ask, Connection, Probe, Server, Setup, answering, feed, once, post as send, within};

use crate::app::{assert_alive, routes};
use crate::{Coded, coded};

pub const INPUTS: &[Coded] = coded![
    89 => while_the_store_is_asked,
    89 => while_the_body_runs,
    89 => while_the_record_is_written,
    89 => while_the_answer_is_sent,
    107 => a_store_that_answers_late,
];

/// A [`MemoryStore`] whose steps wait at gates.
#[derive(Clone)]
struct Slow {
    store: MemoryStore,
    begin: Probe,
    complete: Probe,
}

struct SlowClaim(MemoryClaim, Probe);

#[deny(clippy::missing_trait_methods)]
impl Store for Slow {
    type Claim = SlowClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<SlowClaim>, StoreError> {
        self.begin.run().await;
        Ok(match self.store.begin(key, fingerprint, options).await? {
            Begin::Claimed(claim) => Begin::Claimed(SlowClaim(claim, self.complete.clone())),
            Begin::Abandoned(claim) => Begin::Abandoned(SlowClaim(claim, self.complete.clone())),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.forget(key).await
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.store.attach(clock)
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.store.inspect(key).await
    }

    async fn inspect_unknown(
        &self,
        from: Option<&axum::body::Bytes>,
    ) -> Result<idem_axum::KeyPage<StoredEntry>, StoreError> {
        self.store.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.revoke(key).await
    }

    async fn drained(&self) {
        self.store.drained().await;
    }
}

#[deny(clippy::missing_trait_methods)]
impl Claim for SlowClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.1.run().await;
        self.0.complete(record, ttl).await
    }

    async fn release(self) -> Result<(), StoreError> {
        self.0.release().await
    }

    fn try_clone(&self) -> Option<Self> {
        Some(Self(self.0.try_clone()?, self.1.clone()))
    }
}

struct World {
    store: Slow,
    idempotency: Idempotency,
    probe: Probe,
    server: Server,
}

async fn world() -> World {
    let store = Slow { store: MemoryStore::new(), begin: Probe::new(), complete: Probe::new() };
    let idempotency = Idempotency::new(store.clone());
    let (app, probe) = Setup::mount(&idempotency, routes());
    World { store, idempotency, probe, server: Server::start(app).await }
}

fn ask() -> Ask {
    send("/order").key("k").body("x")
}

/// Sends a request, and leaves when `gate` has been reached; opens it when the server has noticed.
async fn leaves_at(gate: impl Fn(&World) -> Probe) {
    let world = world().await;
    let gate = gate(&world);
    gate.close();
    let mut connection = Connection::open(&world.server).await;
    connection.send(ask().bytes()).await;
    gate.started(1).await;
    connection.reset();
    world.probe.left(1).await;
    gate.open();
    within("the end of every execution", world.idempotency.drain()).await;
    // Nobody waited for it, but it was done, once.
    let retry = ask().at(&world.server).await;
    assert_eq!((retry.status, retry.text(), world.probe.runs()), (201, "run 1", 1), "{retry:?}");
    assert!(ask().at(&world.server).await.is_replay());
    assert_eq!(world.store.store.usage().entries, 1);
    assert_alive(&world.server).await;
}

async fn while_the_store_is_asked() {
    leaves_at(|world| world.store.begin.clone()).await;
}

async fn while_the_body_runs() {
    leaves_at(|world| world.probe.clone()).await;
}

async fn while_the_record_is_written() {
    leaves_at(|world| world.store.complete.clone()).await;
}

async fn while_the_answer_is_sent() {
    let (feed, body) = feed();
    let mut setup = answering!([], once(body));
    setup.app = std::mem::replace(&mut setup.app, Router::new()).route("/alive", any(async || "alive"));
    let server = setup.serve().await;
    let ask = send("/").key("k");
    let mut connection = Connection::open(&server).await;
    connection.send(ask.bytes()).await;
    assert_eq!(connection.head().await.status, 200);
    feed.send("one, ");
    assert_eq!(connection.chunk().await.as_deref(), Some(&b"one, "[..]));
    connection.reset();
    feed.send("two");
    drop(feed);
    setup.settled().await;
    let retry = ask.at(&server).await;
    assert_eq!((retry.text(), retry.is_replay(), setup.probe.runs()), ("one, two", true, 1), "{retry:?}");
    assert_alive(&server).await;
}

/// However long the store takes, every one of those who asked meanwhile gets an answer, and the body runs once.
async fn a_store_that_answers_late() {
    let world = world().await;
    world.store.begin.close();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(&world.server).await;
        connection.send(ask().bytes()).await;
        connections.push(connection);
    }
    world.store.begin.started(4).await;
    assert_eq!((world.probe.runs(), world.store.store.usage().entries), (0, 0));
    world.store.begin.open();
    for connection in &mut connections {
        let reply = connection.reply().await;
        match reply.status {
            201 => assert_eq!(reply.text(), "run 1"),
            _ => reply.assert_refused(409, "idempotency_key_locked"),
        }
    }
    assert_eq!(world.probe.runs(), 1);
    assert!(ask().at(&world.server).await.is_replay());
    assert_alive(&world.server).await;
}
