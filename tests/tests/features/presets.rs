//! `Policy::ACP`, `Policy::WEBHOOK`, and the declarations of the guide that no program in `examples/` has.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use idem_tests::got::ResponseKind::{Ran, Replay};
use idem_tests::got::{MISMATCH, REPLAYED, got, json_of, send};
use serde_json::json;
use tower::ServiceExt;

#[idempotent(policy = Policy::ACP)]
async fn complete(Extension(status): Extension<StatusCode>) -> StatusCode {
    status
}

#[idempotent(policy = Policy::WEBHOOK, header = "webhook-id")]
async fn receive(Extension(status): Extension<StatusCode>) -> StatusCode {
    status
}

/// Handlers that return `status`, over one store.
fn routes(idempotency: &Idempotency, status: StatusCode) -> Router {
    Router::new()
        .route("/sessions/{id}/complete", post(complete))
        .route("/hooks/{id}", post(receive))
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .layer(Extension(status))
}

#[tokio::test]
async fn acp_has_the_errors_of_the_protocol() {
    let app = routes(&Idempotency::in_memory(), StatusCode::CREATED);
    let missing = Request::post("/sessions/A/complete").body(Body::empty()).unwrap();
    let missing = app.clone().oneshot(missing).await.unwrap();
    assert_eq!(missing.status(), 400);
    let error = json_of(missing).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request"), &json!("idempotency_key_required")));
    assert_eq!(error.as_object().unwrap().len(), 3, "{error}");

    let path = "/sessions/A/complete";
    assert_eq!(got(&send(&app, path, &[], r#"{"a": 1.0, "b": null}"#).await), Ran);
    let replay = send(&app, path, &[], r#"{"b":null,"a":1}"#).await;
    assert_eq!((replay.status(), &replay.headers()[REPLAYED]), (StatusCode::CREATED, &"true".parse().unwrap()));
    let conflict = send(&app, path, &[], r#"{"a": 1}"#).await;
    assert_eq!(conflict.status(), 422, "null is not absent");
    assert_eq!(json_of(conflict).await["code"], "idempotency_conflict");
    assert_eq!(got(&send(&app, "/sessions/B/complete", &[], "{}").await), Ran, "another path");
}

#[tokio::test]
async fn acp_does_not_record_server_errors() {
    let idempotency = Idempotency::in_memory();
    let [down, up] = [503, 404].map(|status| routes(&idempotency, StatusCode::from_u16(status).unwrap()));
    assert_eq!(got(&send(&down, "/sessions/A/complete", &[], "{}").await), Ran);
    assert_eq!(got(&send(&up, "/sessions/A/complete", &[], "{}").await), Ran);
    assert_eq!(got(&send(&up, "/sessions/A/complete", &[], "{}").await), Replay);
}

#[tokio::test]
async fn a_webhook_is_its_id_on_one_path_and_only_a_success_is_recorded() {
    let idempotency = Idempotency::in_memory();
    let [down, up] = [400, 204].map(|status| routes(&idempotency, StatusCode::from_u16(status).unwrap()));
    let id = ("webhook-id", "evt_1");
    let other = ("cookie", "proxy=2");
    assert_eq!(got(&send(&down, "/hooks/1", &[id], "first").await), Ran);
    assert_eq!(got(&send(&up, "/hooks/1", &[id], "second").await), Ran);
    assert_eq!(got(&send(&up, "/hooks/1", &[id, other], "third").await), Replay);
    assert_eq!(got(&send(&up, "/hooks/2", &[id], "third").await), Ran);
}

/// The rows of the guide's table of APIs that are no program in `examples/`.
mod declared {
    use super::{Extension, StatusCode, idempotent};

    #[derive(Clone)]
    pub(super) struct Client {
        pub(super) id: &'static str,
    }

    /// Universal Commerce Protocol.
    #[idempotent(scope = (client.id, path), fingerprint = body, mismatch = 409, ttl = "48h")]
    pub(super) async fn create_checkout(Extension(client): Extension<Client>) -> &'static str {
        client.id
    }

    /// Iceberg REST catalog.
    #[idempotent(scope = global, fingerprint = path, mismatch = 409, in_flight = wait("5s"), record = all - 401 - 403 - server_error)]
    pub(super) async fn commit_table(Extension(status): Extension<StatusCode>) -> StatusCode {
        status
    }
}

#[tokio::test]
async fn in_the_universal_commerce_protocol_a_key_is_its_clients_on_one_path_and_the_bytes_count() {
    let idempotency = Idempotency::in_memory();
    let [alice, bob] = ["alice", "bob"].map(|id| {
        Router::new()
            .route("/checkouts/{id}", post(declared::create_checkout))
            .layer(IdempotencyLayer::new(idempotency.clone()))
            .layer(Extension(declared::Client { id }))
    });
    assert_eq!(got(&send(&alice, "/checkouts/1", &[], r#"{"a":1}"#).await), Ran);
    assert_eq!(got(&send(&alice, "/checkouts/1", &[("authorization", "renewed")], r#"{"a":1}"#).await), Replay);
    assert_eq!(send(&alice, "/checkouts/1", &[], r#"{"a": 1}"#).await.status(), 409);
    assert_eq!(got(&send(&alice, "/checkouts/2", &[], r#"{"a":1}"#).await), Ran);
    assert_eq!(got(&send(&bob, "/checkouts/1", &[], r#"{"a":1}"#).await), Ran);
}

#[tokio::test]
async fn in_the_iceberg_catalog_a_key_is_one_operation_for_all_and_no_refusal_of_the_server_is_recorded() {
    let idempotency = Idempotency::in_memory();
    let [unauthorized, forbidden, down, up] = [401, 403, 503, 409].map(|status| {
        Router::new()
            .route("/tables/{id}", post(declared::commit_table))
            .layer(IdempotencyLayer::new(idempotency.clone()))
            .layer(Extension(StatusCode::from_u16(status).unwrap()))
    });
    for app in [&unauthorized, &forbidden, &down, &up] {
        assert_eq!(got(&send(app, "/tables/1", &[], "first").await), Ran);
    }
    let another = [("authorization", "another")];
    assert_eq!(got(&send(&up, "/tables/1", &another, "second").await), Replay);
    let elsewhere = send(&up, "/tables/2", &[], "first").await;
    assert_eq!((got(&elsewhere), elsewhere.status()), (MISMATCH, StatusCode::CONFLICT), "a key is global");
}
