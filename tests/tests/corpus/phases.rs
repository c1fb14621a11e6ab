//! A client that leaves while its request is in the store, in the body, on its way back (89). What comes before is in requests.txt.

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use idem_axum::{
    Begin, BeginOptions, Claim, Fingerprint, Idempotency, MemoryClaim, MemoryStore, Record, StorageKey, Store,
    StoreError,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Ask, Connection, Probe, Server, Setup, feed, once, post as send, responding, within};

use crate::app::{assert_alive, routes};
use crate::{CodedInput, coded};

pub const INPUTS: &[CodedInput] = coded![
    89 => while_the_store_is_asked,
    89 => while_the_handler_runs,
    89 => while_the_record_is_written,
    89 => while_the_response_is_sent,
    107 => a_store_that_replies_late,
];

/// The steps of the store wait at gates.
struct Gates {
    begin: Probe,
    complete: Probe,
}

impl Hooks<MemoryStore> for Gates {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.begin.run().await;
        store.begin(key, fingerprint, options).await
    }

    async fn complete(&self, claim: MemoryClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.complete.run().await;
        claim.complete(record, ttl).await
    }
}

struct World {
    store: Intercept<MemoryStore, Gates>,
    idempotency: Idempotency,
    probe: Probe,
    server: Server,
}

async fn world() -> World {
    let store = Intercept::new(MemoryStore::new(), Gates { begin: Probe::new(), complete: Probe::new() });
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
    // No client waited for it, but it was done, once.
    let retry = ask().at(&world.server).await;
    assert_eq!((retry.status, retry.text(), world.probe.runs()), (201, "run 1", 1), "{retry:?}");
    assert!(ask().at(&world.server).await.is_replay());
    assert_eq!(world.store.store.usage().entries, 1);
    assert_alive(&world.server).await;
}

async fn while_the_store_is_asked() {
    leaves_at(|world| world.store.hooks.begin.clone()).await;
}

async fn while_the_handler_runs() {
    leaves_at(|world| world.probe.clone()).await;
}

async fn while_the_record_is_written() {
    leaves_at(|world| world.store.hooks.complete.clone()).await;
}

async fn while_the_response_is_sent() {
    let (feed, body) = feed();
    let mut setup = responding!([], once(body));
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

/// However long the store takes, every request meanwhile gets a response, and the handler runs once.
async fn a_store_that_replies_late() {
    let world = world().await;
    world.store.hooks.begin.close();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(&world.server).await;
        connection.send(ask().bytes()).await;
        connections.push(connection);
    }
    world.store.hooks.begin.started(4).await;
    assert_eq!((world.probe.runs(), world.store.store.usage().entries), (0, 0));
    world.store.hooks.begin.open();
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
