//! `IdempotencyKey` as an argument.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idem_axum::{
    Clock, Idempotency, IdempotencyKey, IdempotencyLayer, MemoryClaim, MemoryStore, Store, StoreCapabilities,
    StoreError, idempotent,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Ask, Probe, Setup, post as send, within};

#[idempotent(record = success - 200 + 200, scope = header("X-Tenant"))]
async fn derives(State(probe): State<Probe>, key: IdempotencyKey) -> String {
    probe.run().await;
    let (charge, mail) = (key.derive("charge"), key.derive("mail"));
    let again = key.clone().derive("charge");
    assert_eq!(charge.as_str(), again.as_str(), "stable within a run");
    format!("{} {} {} {}", key.as_str(), charge.as_str(), mail.as_str(), charge.derive("charge").as_str())
}

/// Never recorded, so that each request runs.
#[idempotent(record = server_error, scope = header("X-Tenant"))]
async fn derives_again(State(probe): State<Probe>, key: IdempotencyKey, _body: String) -> String {
    probe.run().await;
    key.derive("charge").as_str().to_owned()
}

#[idempotent]
async fn optional(State(probe): State<Probe>, key: Option<IdempotencyKey>) -> String {
    probe.run().await;
    key.map_or_else(|| "none".to_owned(), |key| key.as_str().to_owned())
}

#[idempotent(header = "X-Operation", min_key = 3)]
async fn mandatory(State(probe): State<Probe>, key: IdempotencyKey) -> String {
    probe.run().await;
    key.as_str().to_owned()
}

async fn outside(key: IdempotencyKey) -> String {
    key.as_str().to_owned()
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/derives", post(derives))
        .route("/again", post(derives_again))
        .route("/optional", post(optional))
        .route("/mandatory", post(mandatory))
        .route("/outside", post(outside));
    Setup::of(routes)
}

async fn text(setup: &Setup, ask: Ask) -> String {
    let reply = ask.to(&setup.app).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.text().to_owned()
}

#[tokio::test]
async fn the_key_is_what_the_client_sent_without_quotes() {
    let setup = setup();
    assert_eq!(text(&setup, send("/optional").key(r#""a\"b";v=1"#)).await, r#"a"b"#);
    assert_eq!(text(&setup, send("/mandatory").header("x-operation", "abc")).await, "abc");
}

#[tokio::test]
async fn where_the_key_is_optional_it_may_be_none() {
    let setup = setup();
    assert_eq!(text(&setup, send("/optional")).await, "none");
    assert_eq!(text(&setup, send("/optional")).await, "none");
    assert_eq!(setup.probe.runs(), 2);
}

#[tokio::test]
async fn a_handler_that_takes_the_key_refuses_a_request_without_it() {
    let setup = setup();
    let refused = send("/mandatory").to(&setup.app).await;
    refused.assert_refused(400, "idempotency_key_missing");
    assert!(refused.text().contains("x-operation"), "by its own policy: {refused:?}");
    send("/mandatory").header("x-operation", "ab").to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
    assert_eq!(setup.probe.runs(), 0);
}

#[tokio::test]
async fn outside_of_an_idempotent_handler_the_default_policy_holds() {
    let setup = setup();
    assert_eq!(text(&setup, send("/outside").key("\"k\"")).await, "k");
    send("/outside").to(&setup.app).await.assert_refused(400, "idempotency_key_missing");
    send("/outside").key("a b").to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
}

#[tokio::test]
async fn child_keys_differ_by_label_and_are_keys() {
    let setup = setup();
    let response = text(&setup, send("/derives").key("k")).await;
    let keys: Vec<&str> = response.split(' ').collect();
    assert_eq!(keys[0], "k");
    for (at, key) in keys.iter().enumerate().skip(1) {
        assert!(key.len() == 36 && key.is_ascii() && !keys[..at].contains(key), "{response}");
    }
}

#[tokio::test]
async fn a_child_key_is_the_same_on_every_run_of_the_same_request_and_of_no_other() {
    let setup = setup();
    let ask = |tenant: &str, key: &str| send("/again").header("x-tenant", tenant).key(key);
    let base = text(&setup, ask("a", "k")).await;
    assert_eq!(text(&setup, ask("a", "k")).await, base, "a second run");
    assert_eq!(text(&setup, ask("a", "\"k\"")).await, base, "another spelling");
    assert_eq!(setup.probe.runs(), 3);
    for other in [ask("b", "k"), ask("a", "K"), ask("a", "k").body("other")] {
        assert_ne!(text(&setup, other).await, base);
    }
    // Another process computes the same.
    assert_eq!(text(&self::setup(), ask("a", "k")).await, base);
}

#[idempotent(shadow)]
async fn in_shadow(key: IdempotencyKey) -> String {
    key.as_str().to_owned()
}

#[tokio::test]
async fn in_shadow_mode_the_extractor_says_what_is_wrong_with_the_key() {
    let setup = Setup::of(Router::new().route("/", post(in_shadow)));
    assert_eq!(text(&setup, send("/").key("k")).await, "k");
    send("/").to(&setup.app).await.assert_refused(400, "idempotency_key_missing");
    send("/").key("a, b").to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
}

/// As a store outside the process, which says at each renewal that another run took the claim over.
struct Overtaken;

impl Hooks<MemoryStore> for Overtaken {
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = store.attach(clock);
        StoreCapabilities::default()
    }

    async fn renew(&self, _: &mut MemoryClaim, _: Duration) -> Result<(), StoreError> {
        Err(StoreError::Lost)
    }
}

#[idempotent]
async fn awaits_its_loss(key: IdempotencyKey) -> &'static str {
    key.lease().lost().await;
    "lost"
}

#[tokio::test(start_paused = true)]
async fn a_handler_learns_from_the_key_that_its_lease_was_lost() {
    let idempotency = Idempotency::builder(Intercept::new(MemoryStore::new(), Overtaken)).build();
    let app = Router::new().route("/", post(awaits_its_loss)).layer(IdempotencyLayer::new(idempotency));
    let reply = within("the loss", send("/").key("a").to(&app)).await;
    assert_eq!((reply.status, reply.text()), (200, "lost"));
}
