//! The policy document and OpenAPI of endpoints in shadow mode, which enforce nothing.

use axum::Router;
use axum::http::Method;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, Policies, idempotent};
use idem_tests::post as send;
use serde_json::{Value, json};
use utoipa::OpenApi;

const AT: &str = "/.well-known/idempotency";

#[derive(OpenApi)]
#[openapi(paths(shadowed, enforced))]
struct Api;

#[utoipa::path(post, path = "/shadowed", responses((status = 200, body = String)))]
#[idempotent(required, min_key = 3, replay_status = 208, shadow)]
async fn shadowed() -> &'static str {
    "ran"
}

#[utoipa::path(post, path = "/enforced", responses((status = 200, body = String)))]
#[idempotent(required, min_key = 3, replay_status = 208)]
async fn enforced() -> &'static str {
    "ran"
}

fn app(policies: &Policies) -> Router {
    let layer = IdempotencyLayer::new(Idempotency::in_memory()).described_by(policies);
    Router::new().route("/shadowed", post(shadowed)).route("/enforced", post(enforced)).layer(layer)
}

fn policies() -> Policies {
    Policies::at(AT).endpoint(Method::POST, "/shadowed", shadowed).endpoint(Method::POST, "/enforced", enforced)
}

#[tokio::test]
async fn the_document_promises_nothing_that_is_not_enforced() {
    let policies = policies();
    let app = app(&policies);
    assert_eq!(send("/shadowed").to(&app).await.status, 200, "it has no key");
    assert_eq!(send("/shadowed").key("a").to(&app).await.status, 200, "its key is too short");
    assert_eq!(policies.undocumented(), [""; 0]);

    let document: Value = serde_json::from_str(&policies.document()).expect("JSON");
    let (enforced, shadowed) = (&document["endpoints"][0], &document["endpoints"][1]);
    assert_eq!((&enforced["enforced"], &shadowed["enforced"]), (&json!(true), &json!(false)));
    assert_eq!((&enforced["key"]["required"], &shadowed["key"]["required"]), (&json!(true), &json!(false)));
    assert_eq!(shadowed["refusals"], json!([]));
    assert!(enforced["refusals"].as_array().is_some_and(|refusals| refusals.len() > 5), "{enforced}");
    // What will hold can be prepared for.
    for rule in ["ttl", "fingerprint", "scope", "in_flight", "record", "replay"] {
        assert_eq!(enforced[rule], shadowed[rule], "{rule}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_listed_in_another_mode_is_undocumented() {
    let policies =
        Policies::at(AT).endpoint(Method::POST, "/shadowed", enforced).endpoint(Method::POST, "/enforced", shadowed);
    let app = app(&policies);
    send("/shadowed").key("one").to(&app).await.assert_ran(200);
    assert_eq!(policies.undocumented(), ["POST /shadowed"]);
    send("/enforced").key("two").to(&app).await.assert_ran(200);
    assert_eq!(policies.undocumented(), ["POST /enforced", "POST /shadowed"]);
}

#[test]
fn openapi_adds_no_responses_that_no_client_gets() {
    let before = json!(Api::openapi());
    let mut api = Api::openapi();
    policies().describe(&mut api).expect("an operation for each endpoint");
    let api = json!(api);
    let operation = &api["paths"]["/shadowed"]["post"];
    assert_eq!(operation["responses"], before["paths"]["/shadowed"]["post"]["responses"]);
    assert_eq!(operation["x-idempotency"]["enforced"], false);
    let parameter = &operation["parameters"][0];
    assert_eq!((&parameter["name"], &parameter["required"]), (&json!("idempotency-key"), &json!(false)));
    assert_eq!(
        parameter["description"],
        "Unique for this operation, and the same on every retry of it. The rules are on trial, and nothing protects a retry yet."
    );

    let responses = api["paths"]["/enforced"]["post"]["responses"].as_object().expect("an object");
    assert!(["208", "400", "409"].iter().all(|status| responses.contains_key(*status)), "{responses:?}");
}
