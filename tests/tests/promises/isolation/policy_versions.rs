//! Two versions of a service, and two services, over one store: a record is only for the rules that it was made under.

use axum::routing::post;
use axum::{Extension, Router};
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, Refusal, idempotent};
use idem_tests::got::ResponseKind::{self, Ran, Refused, Replay};
use idem_tests::got::{Gate, MISMATCH, POLICY_CHANGED, got, json_of, send};

mod v1 {
    use super::*;

    #[idempotent]
    pub(super) async fn order(Extension(gate): Extension<Gate>) -> &'static str {
        gate.pass().await
    }
}

/// Two policies for one handler's path, as two versions of a service have them.
fn version(store: &MemoryStore, gate: &Gate, handler: axum::routing::MethodRouter) -> Router {
    let layer = IdempotencyLayer::new(Idempotency::new(store.clone()));
    Router::new().route("/orders", handler).layer(layer).layer(Extension(gate.clone()))
}

/// What a request gets while another version runs, and after it recorded.
async fn both(
    old: axum::routing::MethodRouter,
    new: axum::routing::MethodRouter,
    body: &'static str,
) -> (ResponseKind, ResponseKind) {
    let (store, gate) = (MemoryStore::new(), Gate::default());
    let (old, new) = (version(&store, &gate, old), version(&store, &gate, new));
    let first = tokio::spawn(async move { send(&old, "/orders", &[("x-key", "a")], "one").await });
    gate.started.notified().await;
    let running = send(&new, "/orders", &[("x-key", "a")], body).await;
    gate.may_end.add_permits(1);
    assert_eq!(got(&first.await.unwrap()), Ran);
    let recorded = send(&new, "/orders", &[("x-key", "a")], body).await;
    if running.extensions().get::<Refusal>().is_some_and(|refusal| refusal.code().ends_with("policy_changed")) {
        assert_eq!(running.status(), 409);
        assert!(!running.headers().contains_key("retry-after"));
        let problem = json_of(running).await;
        assert_eq!(problem["code"], "idempotency_policy_changed");
        assert!(problem["detail"].as_str().unwrap().contains("Check the state"), "{problem}");
        return (POLICY_CHANGED, got(&recorded));
    }
    (got(&running), got(&recorded))
}

/// A handler with the path `$name` and these options.
macro_rules! handler {
    ($($options:tt)*) => {{
        #[idempotent($($options)*)]
        async fn create(Extension(gate): Extension<Gate>) -> &'static str {
            gate.pass().await
        }
        post(create)
    }};
}

#[tokio::test]
async fn changed_fingerprint_rules_are_no_mismatch() {
    let old = handler!();
    let new = handler!(fingerprint = body);
    assert_eq!(both(old, new, "one").await, (POLICY_CHANGED, POLICY_CHANGED));
}

#[tokio::test]
async fn another_body_under_equal_rules_is_a_mismatch() {
    assert_eq!(both(handler!(), handler!(ttl = "1h"), "two").await, (MISMATCH, MISMATCH));
}

#[tokio::test]
async fn another_tag_with_an_equal_fingerprint_gets_the_record() {
    let locked = Refused("idempotency_key_locked");
    assert_eq!(both(handler!(), handler!(header = "x-key"), "one").await, (locked, Replay));
}

#[tokio::test]
async fn two_services_on_one_store_refuse_each_other() {
    let other_service = handler!();
    assert_eq!(both(post(v1::order), other_service, "one").await, (POLICY_CHANGED, POLICY_CHANGED));
}

#[tokio::test]
async fn with_namespaces_services_on_one_store_never_meet() {
    let (store, gate) = (MemoryStore::new(), Gate::default());
    gate.may_end.add_permits(2);
    let service = |name: &str| {
        let idempotency = Idempotency::builder(store.clone()).namespace(name).build();
        let routes = Router::new().route("/orders", post(v1::order)).layer(IdempotencyLayer::new(idempotency));
        routes.layer(Extension(gate.clone()))
    };
    for name in ["shop", "blog"] {
        assert_eq!(got(&send(&service(name), "/orders", &[], "one").await), Ran, "{name}");
        assert_eq!(got(&send(&service(name), "/orders", &[], "one").await), Replay, "{name}");
    }
}

#[idempotent(shadow, fingerprint = body)]
async fn create(Extension(gate): Extension<Gate>) -> &'static str {
    gate.pass().await
}

#[tokio::test]
async fn shadow_mode_runs_whatever_the_policy_was() {
    let (store, gate) = (MemoryStore::new(), Gate::default());
    gate.may_end.add_permits(2);
    let old = version(&store, &gate, handler!());
    let new = version(&store, &gate, post(create));
    assert_eq!(got(&send(&old, "/orders", &[], "one").await), Ran);
    assert_eq!(got(&send(&new, "/orders", &[], "one").await), Ran);
}
