//! `Policy::ACP` and `Policy::WEBHOOK`.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use idem_tests::got::ResponseKind::{Ran, Replay};
use idem_tests::got::{REPLAYED, got, json_of, send};
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
