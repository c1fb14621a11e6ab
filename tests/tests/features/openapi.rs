//! What an OpenAPI document says of the endpoints.

use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use idem_axum::{AddedHeader, Policies, Policy, Refusal, Statuses, idempotent};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi as Document;
use utoipa::{OpenApi, ToResponse, ToSchema};

const AT: &str = "/.well-known/idempotency";

#[derive(OpenApi)]
#[openapi(paths(plain, beside, replaced, rest))]
struct Api;

#[utoipa::path(post, path = "/plain", responses((status = 201, body = String), (status = 402), (status = 404)))]
#[idempotent(required, min_key = 8, record = all - 404)]
async fn plain() {}

/// What the service itself says of the same places.
#[utoipa::path(
    put, path = "/beside/{id}",
    params(
        ("id" = u32, Path),
        ("Idempotency-Key" = String, Header, description = "Ours."),
        ("Idempotency-Key" = String, Query, description = "Another thing of the same name."),
    ),
    responses(
        (status = "2XX", body = String, headers(("Idempotent-Replayed" = bool, description = "Ours."))),
        (status = 400, body = String, content_type = "text/plain"),
        (status = 409, body = Taken, content_type = "application/problem+json", example = json!({"taken": 1})),
        (status = 422, response = inline(Wrong)),
        (status = 503, response = Down),
        (status = "default", description = "Anything else."),
    ),
)]
#[idempotent]
async fn beside(_: Path<u32>) {}

#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct Taken {
    taken: u32,
}

/// Wrong.
#[derive(ToResponse)]
#[response(content_type = "application/problem+json")]
#[allow(dead_code, reason = "only its schema is used")]
struct Wrong(Taken);

/// Down.
#[derive(ToResponse)]
#[allow(dead_code, reason = "only its schema is used")]
struct Down(String);

fn short(refusal: &Refusal) -> Response {
    (refusal.status(), refusal.to_string()).into_response()
}

#[utoipa::path(delete, path = "/replaced", responses((status = 200, body = String)))]
#[idempotent(replay = body, replay_status = 208, errors = short, abandoned = rerun)]
async fn replaced() {}

#[utoipa::path(post, path = "/rest/{path}", params(("path" = String, Path)), responses((status = 200)))]
#[idempotent(replay_header = none)]
async fn rest(_: Path<String>) -> StatusCode {
    StatusCode::OK
}

fn policies() -> Policies {
    Policies::at(AT)
        .endpoint(Method::POST, "/plain", plain)
        .endpoint(Method::PUT, "/beside/{id}", beside)
        .endpoint(Method::DELETE, "/replaced", replaced)
        .endpoint(Method::POST, "/rest/{*path}", rest)
}

/// As utoipa makes it, with a component.
fn made() -> Document {
    let mut api = Api::openapi();
    let (name, down) = <Down as ToResponse>::response();
    api.components.get_or_insert_default().responses.insert(name.to_owned(), down);
    api
}

fn described() -> Value {
    let mut api = made();
    policies().describe(&mut api).expect("an operation for each endpoint");
    json!(api)
}

#[test]
fn an_operation_gets_the_header_the_refusals_and_the_mark_of_replays() {
    let api = described();
    let operation = &api["paths"]["/plain"]["post"];
    let policies: Value = serde_json::from_str(&policies().document()).expect("JSON");
    let mut rules = policies["endpoints"][1].clone();
    assert_eq!(
        operation["parameters"],
        json!([{
            "name": "idempotency-key",
            "in": "header",
            "description": "Unique for this operation, and the same on every retry of it.",
            "required": true,
            "schema": {"type": "string", "pattern": rules["key"]["pattern"]},
        }])
    );
    let names = rules.as_object_mut().expect("an object");
    assert_eq!((names.remove("method"), names.remove("path")), (Some(json!("POST")), Some(json!("/plain"))));
    assert_eq!(operation["x-idempotency"], rules);

    let responses = operation["responses"].as_object().expect("an object");
    let statuses: Vec<&str> = responses.keys().map(String::as_str).collect();
    assert_eq!(statuses, ["201", "400", "402", "404", "409", "422", "500", "503"]);
    let mark = json!({
        "description": "Only on a replay: the recorded response to an earlier request.",
        "schema": {"type": "string", "enum": ["true"]},
    });
    for status in ["201", "402"] {
        assert_eq!(responses[status]["headers"], json!({"idempotent-replayed": mark}), "{status}");
    }
    assert_eq!(responses["404"].get("headers"), None, "it is not recorded");

    let locked = "A request with this key is being processed. It was not started again. Retry the identical request in a \
        moment to get its response.";
    let conflict = &responses["409"];
    assert_eq!(
        conflict["description"],
        "Refused by the idempotency runtime:\n\n- `idempotency_key_locked`: Request in progress\n\
         - `idempotency_policy_changed`: Idempotency rules changed\n- `idempotency_outcome_unknown`: Outcome unknown\n\
         - `idempotency_not_replayable`: Response not available again"
    );
    assert_eq!(
        conflict["headers"],
        json!({"retry-after": {
            "description": "Seconds after which to retry the identical request.",
            "schema": {"type": "integer", "minimum": 0},
        }})
    );
    let content = &conflict["content"]["application/problem+json"];
    assert_eq!(content["schema"], json!({"$ref": "#/components/schemas/IdempotencyProblem"}));
    assert_eq!(
        content["examples"]["idempotency_key_locked"],
        json!({"summary": "Request in progress", "value": {
            "type": "urn:problem-type:idempotency_key_locked",
            "title": "Request in progress",
            "status": 409,
            "detail": locked,
            "code": "idempotency_key_locked",
        }})
    );
    assert_eq!(responses["422"].get("headers"), None, "to wait does not help");
    let problem = &api["components"]["schemas"]["IdempotencyProblem"];
    assert_eq!(problem["required"], json!(["type", "title", "status", "detail", "code"]));
}

#[test]
fn what_an_operation_says_itself_stays_beside_it() {
    let api = described();
    let operation = &api["paths"]["/beside/{id}"]["put"];
    let parameters = operation["parameters"].as_array().expect("a list");
    let named: Vec<(&str, &str, &str)> = parameters
        .iter()
        .map(|parameter| {
            let text = |name: &str| parameter[name].as_str().unwrap_or_default();
            (text("in"), text("name"), text("description"))
        })
        .collect();
    assert_eq!(
        named,
        [
            ("path", "id", ""),
            ("query", "Idempotency-Key", "Another thing of the same name."),
            ("header", "Idempotency-Key", "Ours."),
        ]
    );
    assert!(parameters[2]["schema"]["pattern"].is_string());
    assert_eq!(parameters[2]["schema"].get("maxLength"), None, "quotes and backslashes are no part of the key");
    assert_eq!(parameters[2]["required"], false);

    let responses = &operation["responses"];
    let headers = responses["2XX"]["headers"].as_object().expect("an object");
    assert_eq!(headers.len(), 1, "it has the header, however it is written: {headers:?}");
    assert_eq!(responses["default"]["description"], "Anything else.");
    assert!(responses["default"]["headers"].get("idempotent-replayed").is_some(), "it is recorded");

    let bad = responses["400"]["content"].as_object().expect("an object");
    assert_eq!(bad.keys().collect::<Vec<_>>(), ["application/problem+json", "text/plain"]);

    let taken = &responses["409"]["content"]["application/problem+json"];
    let either =
        json!({"anyOf": [{"$ref": "#/components/schemas/Taken"}, {"$ref": "#/components/schemas/IdempotencyProblem"}]});
    assert_eq!(taken["schema"], either);
    assert_eq!(taken["examples"]["example"], json!({"value": {"taken": 1}}));
    assert_eq!(taken.get("example"), None);
    let names = taken["examples"].as_object().expect("an object").keys().map(String::as_str);
    assert_eq!(
        names.collect::<Vec<_>>(),
        [
            "example",
            "idempotency_key_locked",
            "idempotency_not_replayable",
            "idempotency_outcome_unknown",
            "idempotency_policy_changed"
        ]
    );

    let wrong = &responses["422"];
    assert!(wrong["description"].as_str().is_some_and(|text| text.starts_with("Wrong.\n\nRefused")), "{wrong}");

    // The component is as it was, and the operation has its own.
    assert!(api["components"]["responses"]["Down"]["content"].get("application/problem+json").is_none());
    let down = responses["503"]["content"].as_object().expect("an object");
    assert_eq!(down.keys().collect::<Vec<_>>(), ["application/problem+json", "text/plain"]);
}

#[test]
fn a_replay_with_another_status_is_another_response() {
    let api = described();
    let responses = &api["paths"]["/replaced"]["delete"]["responses"];
    assert_eq!(responses["200"].get("headers"), None);
    assert_eq!(responses["208"]["content"], responses["200"]["content"]);
    assert_eq!(
        responses["208"]["headers"]["idempotent-replayed"]["schema"],
        json!({"type": "string", "enum": ["true"]})
    );
    // Text, by the policy's `errors`.
    assert_eq!(responses["409"]["content"], json!({"text/plain": {}}));

    let rest = &api["paths"]["/rest/{path}"]["post"];
    assert_eq!(rest["responses"]["200"].get("headers"), None, "nothing marks its replays");
    assert_eq!(rest["parameters"].as_array().map(Vec::len), Some(2));
}

#[test]
fn describing_twice_says_nothing_twice() {
    let mut api = made();
    policies().describe(&mut api).expect("an operation for each endpoint");
    let once = json!(api);
    let mut again: Document = serde_json::from_value(once.clone()).expect("a document");
    policies().describe(&mut again).expect("an operation for each endpoint");
    assert!(json!(again) == once, "{}", json!(again));
}

#[test]
fn an_endpoint_without_an_operation_is_named_and_nothing_is_added() {
    let mut api = made();
    let before = json!(api);
    let policies = policies()
        .endpoint(Method::PATCH, "/plain", plain)
        .endpoint(Method::PUT, "/beside/{other}", beside)
        .endpoint(Method::from_bytes(b"PURGE").expect("a method"), "/plain", plain);
    let undescribed = policies.describe(&mut api).expect_err("three endpoints have none");
    assert_eq!(undescribed.endpoints(), ["PUT /beside/{other}", "PATCH /plain", "PURGE /plain"]);
    assert_eq!(
        undescribed.to_string(),
        "the OpenAPI document has no operation for PUT /beside/{other}, PATCH /plain, PURGE /plain: name the handler in \
         `paths(..)`, with the method and the path of the list"
    );
    assert_eq!(json!(api), before);
}

#[utoipa::path(post, path = "/acknowledged", responses((status = 200)))]
#[idempotent(in_flight = reject(202))]
async fn acknowledged() {}

#[test]
fn an_acknowledgement_has_a_status_that_its_schema_allows() {
    #[derive(OpenApi)]
    #[openapi(paths(acknowledged))]
    struct Api;
    let mut api = Api::openapi();
    let policies = Policies::<()>::at(AT).endpoint(Method::POST, "/acknowledged", acknowledged);
    policies.describe(&mut api).expect("an operation for the endpoint");
    let api = json!(api);
    let content = &api["paths"]["/acknowledged"]["post"]["responses"]["202"]["content"]["application/problem+json"];
    let example = content["example"].as_object().or(content["examples"]["idempotency_key_locked"]["value"].as_object());
    let status = example.expect("an example")["status"].as_u64();
    let schema = &api["components"]["schemas"]["IdempotencyProblem"]["properties"]["status"];
    assert_eq!(status, Some(202));
    assert!(schema["minimum"].as_u64() <= status && status <= schema["maximum"].as_u64(), "{schema}");
}

fn breaks_on_a_mismatch(refusal: &Refusal) -> Response {
    assert!(!matches!(refusal, Refusal::Mismatch { .. }), "it cannot happen here");
    short(refusal)
}

const ADDED: Policy = Policy::DEFAULT
    .replay_with(&[AddedHeader::new("X-All", "a"), AddedHeader::new("X-Failed", "f").on(Statuses::SERVER_ERROR)]);

#[utoipa::path(post, path = "/added", responses((status = 201), (status = "4XX"), (status = "5XX")))]
#[idempotent(policy = ADDED, record = all - 503, timeout = "1s")]
async fn added() {}

#[utoipa::path(post, path = "/added-otherwise", responses((status = 200), (status = "default")))]
#[idempotent(policy = ADDED, record = success + 302)]
async fn added_otherwise() {}

#[utoipa::path(post, path = "/added-as-200", responses((status = 201)))]
#[idempotent(policy = ADDED, replay_status = 200, record = success)]
async fn added_as_200() {}

#[utoipa::path(post, path = "/emptily-acknowledged", responses((status = 201)))]
#[idempotent(in_flight = reject(204), errors = breaks_on_a_mismatch)]
async fn emptily_acknowledged() {}

#[derive(OpenApi)]
#[openapi(paths(added, added_otherwise, added_as_200, emptily_acknowledged))]
struct Others;

fn others() -> (Policies, Value) {
    let policies = Policies::at(AT)
        .endpoint(Method::POST, "/added", added)
        .endpoint(Method::POST, "/added-otherwise", added_otherwise)
        .endpoint(Method::POST, "/added-as-200", added_as_200)
        .endpoint(Method::POST, "/emptily-acknowledged", emptily_acknowledged);
    let mut api = Others::openapi();
    policies.describe(&mut api).expect("an operation for each endpoint");
    (policies, json!(api))
}

#[test]
fn a_header_of_replays_is_where_a_replay_may_have_it() {
    let (_, api) = others();
    let headers = |path: &str, status: &str| {
        let response = &api["paths"][path]["post"]["responses"][status];
        assert!(response.is_object(), "{path} {status}");
        let headers = response["headers"].as_object().into_iter().flat_map(|headers| headers.keys());
        headers.map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(headers("/added", "201"), ["idempotent-replayed", "x-all"]);
    assert_eq!(headers("/added", "4XX"), ["idempotent-replayed", "x-all"]);
    assert_eq!(headers("/added", "5XX"), ["idempotent-replayed", "x-all", "x-failed"]);
    assert_eq!(headers("/added-otherwise", "200"), ["idempotent-replayed", "x-all"]);
    assert_eq!(headers("/added-otherwise", "default"), ["idempotent-replayed", "x-all"], "of 302");
    assert_eq!(headers("/added-as-200", "200"), ["idempotent-replayed", "x-all"]);
}

#[test]
fn a_panic_or_a_timeout_that_is_recorded_has_the_mark_of_replays() {
    let api = described();
    let mark = |path: &str, status: &str| {
        let response = &api["paths"][path]["post"]["responses"][status];
        assert!(response["content"]["application/problem+json"].is_object(), "{response}");
        response["headers"].get("idempotent-replayed").is_some()
    };
    assert!(mark("/plain", "500"));
    assert!(!mark("/plain", "422"), "no mismatch is recorded");
}

#[test]
fn a_refusal_is_described_as_it_is_sent() {
    let (policies, api) = others();
    let emptily_acknowledged = &api["paths"]["/emptily-acknowledged"]["post"]["responses"];
    assert_eq!(emptily_acknowledged["204"].get("content"), None, "it has no body");
    // Its `errors` panics, and then the default is sent.
    assert_eq!(
        emptily_acknowledged["422"]["content"]["application/problem+json"]["examples"]["idempotency_key_mismatch"]["value"]
            ["code"],
        "idempotency_key_mismatch"
    );
    let document: Value = serde_json::from_str(&policies.document()).expect("JSON");
    let refusals = document["endpoints"].as_array().and_then(|endpoints| {
        endpoints.iter().find(|endpoint| endpoint["path"] == "/emptily-acknowledged")?["refusals"].as_array()
    });
    let content_type = |code: &str| {
        let refusal = refusals.into_iter().flatten().find(|refusal| refusal["code"] == code).expect("a refusal");
        refusal.get("content_type").and_then(Value::as_str)
    };
    assert_eq!(content_type("idempotency_key_locked"), None);
    assert_eq!(content_type("idempotency_key_mismatch"), Some("application/problem+json"));
}
