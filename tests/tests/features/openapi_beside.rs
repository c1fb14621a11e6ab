//! An operation's own words in an OpenAPI document, if a refusal or a replay comes beside them.

use axum::http::Method;
use idem_axum::{Policies, idempotent};
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::{OpenApi as Document, Ref, RefOr};

#[derive(OpenApi)]
#[openapi(paths(pay, refund))]
struct Api;

#[utoipa::path(
    post, path = "/pay",
    responses(
        (status = "4XX", description = "Ours.", body = u32, content_type = "application/vnd.ours+json"),
        (status = "default", description = "Anything.", body = String, content_type = "text/plain"),
    ),
)]
#[idempotent(required)]
async fn pay() {}

#[utoipa::path(post, path = "/refund", responses((status = "2XX", body = String), (status = "default", body = String)))]
#[idempotent(required, record = success)]
async fn refund() {}

fn policies() -> Policies {
    Policies::at("/.well-known/idempotency").endpoint(Method::POST, "/pay", pay).endpoint(
        Method::POST,
        "/refund",
        refund,
    )
}

fn responses(path: &str) -> Value {
    let mut api = Api::openapi();
    policies().describe(&mut api).expect("an operation for each endpoint");
    json!(api)["paths"][path]["post"]["responses"].take()
}

fn media_types(response: &Value) -> Vec<&str> {
    response["content"].as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn a_refusal_hides_nothing_that_an_operation_says_of_a_range() {
    let responses = responses("/pay");
    for status in ["400", "409", "422"] {
        let response = &responses[status];
        assert_eq!(media_types(response), ["application/problem+json", "application/vnd.ours+json"], "{status}");
        assert!(response["description"].as_str().is_some_and(|text| text.starts_with("Ours.\n\n")), "{response}");
    }
    assert_eq!(media_types(&responses["503"]), ["application/problem+json", "text/plain"]);
    assert_eq!(media_types(&responses["4XX"]), ["application/vnd.ours+json"], "it stays as it was");
    assert_eq!(media_types(&responses["default"]), ["text/plain"], "it stays as it was");
}

#[test]
fn what_is_recorded_by_default_may_be_a_replay() {
    let marks = |response: &Value| response["headers"].get("idempotent-replayed").is_some();
    let recorded = responses("/pay");
    assert!(marks(&recorded["default"]) && marks(&recorded["4XX"]), "{recorded}");
    let success = responses("/refund");
    assert!(marks(&success["2XX"]) && !marks(&success["default"]), "nothing else is recorded: {success}");
}

#[track_caller]
fn assert_unresolved(mut api: Document, referred: &str) {
    let before = json!(api);
    let undescribed = policies().describe(&mut api).expect_err("it leads nowhere");
    assert_eq!(undescribed.endpoints(), ["POST /pay"]);
    assert_eq!(
        undescribed.to_string(),
        format!(
            "the OpenAPI document has nothing at {referred}, which POST /pay refers to: add the component before it is \
             described"
        )
    );
    assert!(json!(api) == before, "nothing is added");
}

#[test]
fn a_reference_that_leads_nowhere_is_an_error() {
    for referred in ["#/components/responses/Conflict", "common.yaml#/components/responses/Down"] {
        let mut api = Api::openapi();
        let operation = api.paths.paths.get_mut("/pay").and_then(|item| item.post.as_mut()).expect("an operation");
        operation.responses.responses.insert("409".to_owned(), Ref::new(referred).into());
        assert_unresolved(api, referred);
    }
    let mut api = Api::openapi();
    let operation = api.paths.paths.get_mut("/pay").and_then(|item| item.post.as_mut()).expect("an operation");
    operation.parameters = Some(vec![RefOr::Ref(Ref::new("#/components/parameters/Key"))]);
    assert_unresolved(api, "#/components/parameters/Key");
}
