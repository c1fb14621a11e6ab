//! An operation's own words in an OpenAPI document, if a refusal or a replay comes beside them.

use axum::http::Method;
use idem_axum::{Policies, idempotent};
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::{OpenApi as Document, Ref, RefOr};

#[derive(OpenApi)]
#[openapi(paths(pay, refund, timed, only_201, only_errors, only_404, marked))]
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

#[utoipa::path(post, path = "/timed", responses((status = 201)))]
#[idempotent(timeout = "1s")]
async fn timed() {}

#[utoipa::path(post, path = "/only-201", responses((status = 201)))]
#[idempotent(record = 201)]
async fn only_201() {}

#[utoipa::path(post, path = "/only-errors", responses((status = 201, body = u32), (status = "default", body = String)))]
#[idempotent(record = all - success, replay_status = 208)]
async fn only_errors() {}

#[utoipa::path(post, path = "/only-404", responses((status = 404, body = u32), (status = "default", body = String)))]
#[idempotent(record = 404, replay_status = 208)]
async fn only_404() {}

#[utoipa::path(post, path = "/marked", responses((status = 201, body = String)))]
#[idempotent(replay_status = 208, replay_with = header("X-Failed", "f", server_error))]
async fn marked() {}

fn policies() -> Policies {
    Policies::at("/.well-known/idempotency")
        .endpoint(Method::POST, "/pay", pay)
        .endpoint(Method::POST, "/refund", refund)
        .endpoint(Method::POST, "/timed", timed)
        .endpoint(Method::POST, "/only-201", only_201)
        .endpoint(Method::POST, "/only-errors", only_errors)
        .endpoint(Method::POST, "/only-404", only_404)
        .endpoint(Method::POST, "/marked", marked)
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

fn marks(response: &Value) -> bool {
    response["headers"].get("idempotent-replayed").is_some()
}

#[test]
fn what_is_recorded_by_default_may_be_a_replay() {
    let recorded = responses("/pay");
    assert!(marks(&recorded["default"]) && marks(&recorded["4XX"]), "{recorded}");
    let success = responses("/refund");
    assert!(marks(&success["2XX"]) && !marks(&success["default"]), "nothing else is recorded: {success}");
    assert!(!marks(&success["500"]), "{success}");
    let one = responses("/only-201");
    assert!(marks(&one["201"]) && !marks(&one["500"]), "{one}");
}

#[test]
fn a_timeout_that_is_recorded_may_be_a_replay() {
    let timed = responses("/timed");
    assert!(marks(&timed["500"]) && marks(&timed["504"]) && !marks(&timed["503"]), "{timed}");
}

#[test]
fn a_replay_with_another_status_has_what_a_success_has_that_is_recorded() {
    let only_errors = responses("/only-errors");
    assert_eq!(only_errors["208"]["content"], only_errors["default"]["content"]);
    assert!(!marks(&only_errors["500"]), "its replay is a 208: {only_errors}");
    assert_eq!(responses("/only-404")["208"].get("content"), None);
    let marked = responses("/marked");
    assert!(marks(&marked["208"]) && marked["208"]["headers"].get("x-failed").is_some(), "{marked}");
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
