//! The policy document, and the way a refused client is shown to it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::extract::{Json, Path, Request, State};
use axum::http::header::{LINK, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use idem_axum::{
    AddedHeader, Idempotency, IdempotencyKey, IdempotencyLayer, Part, Policies, Policy, Refusal, Statuses, idempotent,
};
use idem_tests::{Ask, Logs, Probe, Reply, get as read, post as send};
use serde_json::{Value, json};

const AT: &str = "/.well-known/idempotency";
const DESCRIBED_BY: &str = "</.well-known/idempotency>; rel=\"describedby\"";

/// Routes beneath a layer that knows the policies, which are served as well.
fn app<S: Clone + Send + Sync + 'static>(policies: &Policies<S>, routes: Router<S>, state: S) -> Router {
    let layer = IdempotencyLayer::new(Idempotency::in_memory()).described_by(policies);
    routes.layer(layer).merge(policies.router()).with_state(state)
}

fn document<S>(policies: &Policies<S>) -> Value {
    serde_json::from_str(&policies.document()).expect("JSON")
}

fn keyed(ask: Ask) -> Ask {
    ask.key("k")
}

#[idempotent]
async fn nothing() {}

mod shapes {
    use super::*;

    #[idempotent(ttl = "1s")]
    pub async fn parts(_: State<Probe>, _: HeaderMap, _: Option<Extension<u8>>) -> impl IntoResponse {}

    #[idempotent(ttl = "2s")]
    pub async fn text(_: Path<String>, _: String) -> Result<(), StatusCode> {
        Ok(())
    }

    #[idempotent(ttl = "3s")]
    pub async fn either(_: Result<Json<u8>, axum::extract::rejection::JsonRejection>) {}

    #[idempotent(ttl = "4s")]
    pub async fn whole(_: Request) {}

    #[idempotent(ttl = "5s")]
    pub async fn generic<const N: usize, T: Clone + Send + Sync + 'static>(_: Extension<T>, _: Json<[u8; N]>) {}

    pub struct Orders<T>(T);

    impl<T: Send + Sync + 'static> Orders<T> {
        /// An associated function, and another attribute in between.
        #[tracing::instrument(skip_all)]
        #[idempotent(ttl = "6s", scope = who)]
        pub async fn create(Path(who): Path<String>, _: (State<Probe>, State<Probe>)) {}
    }
}

#[test]
fn any_handler_is_listed_as_it_is_mounted() {
    let policies = Policies::<Probe>::at(AT)
        .endpoint(Method::POST, "/0", nothing)
        .endpoint(Method::POST, "/1", shapes::parts)
        .endpoint(Method::POST, "/2", shapes::text)
        .endpoint(Method::POST, "/3", shapes::either)
        .endpoint(Method::POST, "/4", shapes::whole)
        .endpoint(Method::POST, "/5", shapes::generic::<3, u8, _, _>)
        .endpoint(Method::POST, "/6", shapes::Orders::<u8>::create);
    let document = document(&policies);
    let times = document["endpoints"].as_array().expect("a list").iter().map(|endpoint| &endpoint["ttl"]["seconds"]);
    assert_eq!(json!(times.collect::<Vec<_>>()), json!([86400, 1, 2, 3, 4, 5, 6]));
    assert_eq!(document["endpoints"][6]["scope"], json!({"kind": "arguments"}));
}

/// If a list is merged with routes that have a state, the state need not be named.
#[tokio::test]
async fn the_state_is_inferred_from_the_routes() {
    let policies =
        Policies::at(AT).endpoint(Method::PUT, "/parts", shapes::parts).mount(Method::POST, "/parts", shapes::parts);
    let routes =
        Router::new().merge(policies.routes()).route("/parts", get("a route of the same path").put(shapes::parts));
    let app = app(&policies, routes, Probe::new());
    for method in ["POST", "PUT"] {
        assert_eq!(Ask::new(method, "/parts").key(method).to(&app).await.status, 200);
    }
    assert_eq!(policies.undocumented(), [""; 0]);
}

fn refused(refusal: &Refusal) -> Response {
    let link = [(LINK, HeaderValue::from_static("</help>; rel=\"help describedby\""))];
    (StatusCode::IM_A_TEAPOT, link, Json(json!({"why": refusal.code()}))).into_response()
}

fn linked(refusal: &Refusal) -> Response {
    ([(LINK, HeaderValue::from_static("</status>; rel=\"status\""))], refusal.problem()).into_response()
}

const BASE: Policy = Policy::DEFAULT
    .replay_with(&[AddedHeader::new("X-Retry", "no").on(Statuses::SERVER_ERROR), AddedHeader::new("x-all", "1")])
    .dangerously_run_without_store();

#[idempotent(
    policy = BASE, header = "X-Key", required, min_key = 8, ttl = "1h 30m",
    fingerprint = header("X-Version") + json("/b", "/a") + path, scope = header("X-Tenant"), in_flight = wait("1500ms"),
    mismatch = 409, record = success + 404, replay = body, replay_status = 409, replay_header = "X-Replay",
    abandoned = rerun, max_response = "1KiB", errors = refused
)]
async fn everything() {}

#[test]
fn the_document_says_what_the_policy_declares() {
    let policies =
        Policies::<()>::at(AT).endpoint(Method::POST, "/b", everything).endpoint(Method::POST, "/a/{id}", nothing);
    let refusal = |code: &str, title: &str, status: u16, retry_after: Option<u64>| {
        let mut refusal =
            json!({"code": code, "title": title, "status": status, "content_type": "application/problem+json"});
        if let Some(seconds) = retry_after {
            refusal["retry_after"] = json!(seconds);
        }
        refusal
    };
    let document = document(&policies);
    assert_eq!((&document["version"], document["endpoints"].as_array().map(Vec::len)), (&json!(1), Some(2)));
    assert_eq!(
        document["endpoints"][0],
        json!({
            "method": "POST",
            "path": "/a/{id}",
            "enforced": true,
            "key": {
                "header": "idempotency-key",
                "required": false,
                "min_length": 1,
                "max_length": 255,
                "pattern": "^(?:[\\x21\\x23-\\x2B\\x2D-\\x3A\\x3C-\\x7E]{1,255}|\"(?:[\\x21\\x23-\\x5B\\x5D-\\x7E]|\\\\[\"\\\\]){1,255}\")$",
            },
            "ttl": {"seconds": 86400, "duration": "24h"},
            "fingerprint": [{"part": "endpoint"}, {"part": "method"}, {"part": "path"}, {"part": "query"}, {"part": "body"}],
            "scope": {"kind": "caller", "name": "authorization"},
            "in_flight": {"action": "reject", "status": 409},
            "mismatch": {"status": 422},
            "record": [{"from": 200, "to": 999}],
            "replay": {
                "status": true,
                "headers": true,
                "body": true,
                "marker": {"name": "idempotent-replayed", "value": "true"},
                "added_headers": [],
            },
            "abandoned": "refuse",
            "without_store": "refuse",
            "max_response": {"bytes": 1024 * 1024},
            "refusals": [
                refusal("idempotency_key_invalid", "Idempotency key invalid", 400, None),
                refusal("idempotency_key_locked", "Request in progress", 409, Some(1)),
                refusal("idempotency_key_mismatch", "Idempotency key used for another request", 422, None),
                refusal("idempotency_policy_changed", "Idempotency rules changed", 409, None),
                refusal("idempotency_outcome_unknown", "Outcome unknown", 409, None),
                refusal("idempotency_not_replayable", "Response not available again", 409, None),
                refusal("idempotency_store_unavailable", "Idempotency store unavailable", 503, Some(1)),
                refusal("idempotency_store_full", "Idempotency store full", 503, Some(5)),
                refusal("idempotency_too_many_executions", "Too many requests in progress", 503, Some(1)),
                refusal("idempotency_handler_panicked", "Request failed", 500, None),
            ],
        })
    );
    let mut second = document["endpoints"][1].clone();
    let refusals = second["refusals"].take();
    second["key"]["pattern"].take();
    assert_eq!(
        second,
        json!({
            "method": "POST",
            "path": "/b",
            "enforced": true,
            "key": {"header": "x-key", "required": true, "min_length": 8, "max_length": 255, "pattern": null},
            "ttl": {"seconds": 5400, "duration": "1h 30m"},
            "fingerprint": [
                {"part": "endpoint"},
                {"part": "path"},
                {"part": "json", "pointers": ["/a", "/b"]},
                {"part": "header", "name": "x-version"},
            ],
            "scope": {"kind": "header", "name": "x-tenant"},
            "in_flight": {"action": "wait", "status": 409, "seconds": 1.5, "duration": "1s 500ms"},
            "mismatch": {"status": 409},
            "record": [{"from": 200, "to": 299}, {"from": 404, "to": 404}],
            "replay": {
                "status": false,
                "headers": false,
                "body": true,
                "replay_status": 409,
                "marker": {"name": "x-replay", "value": "true"},
                "added_headers": [
                    {"name": "x-retry", "value": "no", "on": [{"from": 500, "to": 599}]},
                    {"name": "x-all", "value": "1", "on": [{"from": 200, "to": 999}]},
                ],
            },
            "abandoned": "rerun",
            "without_store": "run",
            "max_response": {"bytes": 1024},
            "refusals": null,
        })
    );
    let refusals = refusals.as_array().expect("a list");
    assert_eq!(refusals.first().map(|first| &first["code"]), Some(&json!("idempotency_key_missing")));
    assert!(refusals.iter().all(|refusal| refusal["status"] == 418 && refusal["content_type"] == "application/json"));
    // A retry runs again, but the first request may have been overtaken.
    assert!(refusals.iter().any(|refusal| refusal["code"] == "idempotency_outcome_unknown"), "{refusals:?}");
}

#[tokio::test]
async fn the_document_is_served_with_a_tag() {
    let policies = Policies::at(AT).endpoint(Method::POST, "/", nothing);
    let app = app(&policies, Router::new(), ());
    let whole = read(AT).to(&app).await;
    assert_eq!((whole.status, whole.text()), (200, policies.document().as_str()));
    assert_eq!(whole.header("content-type"), Some("application/json"));
    assert_eq!(whole.header("cache-control"), Some("public, max-age=300"));
    let tag = whole.header("etag").expect("a tag").to_owned();
    for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let same = read(AT).header("if-none-match", &known).to(&app).await;
        assert_eq!((same.status, same.text(), same.header("etag")), (304, "", Some(tag.as_str())), "{known}");
    }
    assert_eq!(read(AT).header("if-none-match", "\"other\"").to(&app).await, whole);
    let other = Policies::at(AT).endpoint(Method::PUT, "/", nothing);
    let other = read(AT).to(&self::app(&other, Router::new(), ())).await;
    assert_ne!(other.header("etag"), Some(tag.as_str()));
}

#[idempotent(required)]
async fn required(State(probe): State<Probe>, body: String) -> String {
    probe.run().await;
    body
}

#[idempotent]
async fn takes_a_key(_: IdempotencyKey) {}

#[idempotent]
async fn takes_a_key_first(_: IdempotencyKey, _: String) {}

#[idempotent]
async fn panics() {
    panic!("on purpose");
}

#[idempotent(required, errors = refused)]
async fn describes_itself() {}

#[idempotent(required, errors = linked)]
async fn links_elsewhere() {}

#[track_caller]
fn assert_described(reply: &Reply, status: u16, code: &str) {
    reply.assert_refused(status, code);
    assert_eq!(reply.header("link"), Some(DESCRIBED_BY), "{reply:?}");
}

#[tokio::test]
async fn every_refusal_says_where_the_policy_is() {
    let probe = Probe::new();
    let policies = Policies::at(AT)
        .mount(Method::POST, "/required", required)
        .mount(Method::POST, "/key", takes_a_key)
        .mount(Method::POST, "/key-first", takes_a_key_first)
        .mount(Method::POST, "/panics", panics);
    let app = app(&policies, policies.routes(), probe.clone());
    assert_described(&send("/required").to(&app).await, 400, "idempotency_key_missing");
    assert_described(&send("/required").key("a b").to(&app).await, 400, "idempotency_key_invalid");
    for path in ["/key", "/key-first"] {
        assert_described(&send(path).to(&app).await, 400, "idempotency_key_missing");
    }
    assert_described(&send("/panics").key("a").to(&app).await, 500, "idempotency_handler_panicked");

    probe.close();
    let running = tokio::spawn({
        let app = app.clone();
        async move { keyed(send("/required")).to(&app).await }
    });
    probe.started(1).await;
    assert_described(&keyed(send("/required")).to(&app).await, 409, "idempotency_key_locked");
    probe.open();
    let first = running.await.expect("no panic");
    first.assert_ran(200);
    assert_described(&keyed(send("/required")).body("other").to(&app).await, 422, "idempotency_key_mismatch");

    // No refusals: a response, a replay, and an extractor's rejection.
    let replay = keyed(send("/required")).to(&app).await;
    replay.assert_replay_of(&first);
    let rejection = send("/required").key("r").body(vec![0xff]).to(&app).await;
    assert_eq!(rejection.status, 400);
    for reply in [first, replay, rejection] {
        assert_eq!(reply.header("link"), None, "{reply:?}");
    }
}

#[tokio::test]
async fn a_link_of_the_policys_own_stays() {
    let policies =
        Policies::at(AT).mount(Method::POST, "/own", describes_itself).mount(Method::POST, "/other", links_elsewhere);
    let app = app(&policies, policies.routes(), ());
    assert_eq!(send("/own").to(&app).await.all("link"), [b"</help>; rel=\"help describedby\""]);
    assert_eq!(
        send("/other").to(&app).await.all("link"),
        [b"</status>; rel=\"status\"".as_slice(), DESCRIBED_BY.as_bytes()]
    );
}

#[tokio::test]
async fn a_link_may_lead_elsewhere_and_nothing_is_said_by_default() {
    let routes = || Router::new().route("/", post(links_elsewhere));
    let bare = routes().layer(IdempotencyLayer::new(Idempotency::in_memory()));
    assert_eq!(send("/").to(&bare).await.all("link"), [b"</status>; rel=\"status\""]);
    let policies = Policies::<()>::at(AT);
    let layer = || IdempotencyLayer::new(Idempotency::in_memory());
    let elsewhere = "https://example.com/docs#retries";
    for layer in [
        layer().described_at(elsewhere),
        layer().described_at(elsewhere).described_by(&policies),
        layer().described_by(&policies).described_at(elsewhere),
    ] {
        let reply = send("/").to(&routes().layer(layer)).await;
        assert_eq!(reply.all("link")[1], b"<https://example.com/docs#retries>; rel=\"describedby\"");
    }
}

#[idempotent(ttl = "1h")]
async fn for_an_hour() {}

#[tokio::test]
async fn an_endpoint_that_is_not_listed_is_named_once() {
    let policies = Policies::at(AT)
        .endpoint(Method::GET, "/listed/{id}", nothing)
        .endpoint(Method::POST, "/drifted", for_an_hour)
        .endpoint(Method::POST, "/nested", nothing)
        .endpoint(Method::POST, "/same", nothing);
    let routes = Router::new()
        .route("/listed/{id}", any(nothing))
        .route("/drifted", post(nothing))
        .route("/same", post(nothing))
        .nest("/v1", Router::new().route("/nested", post(nothing)))
        .fallback(nothing);
    let app = app(&policies, routes, ());
    let (logs, _guard) = Logs::capture();
    for ask in [read("/listed/1"), Ask::new("HEAD", "/listed/2"), send("/same"), send("/same").key("k")] {
        assert_eq!(ask.to(&app).await.status, 200);
    }
    assert_eq!((logs.text().matches("WARN").count(), policies.undocumented()), (0, Vec::new()));

    for _ in 0..2 {
        for ask in [send("/listed/3"), send("/drifted"), send("/v1/nested"), send("/no/template")] {
            assert_eq!(ask.to(&app).await.status, 200);
        }
    }
    assert_eq!(policies.undocumented(), ["POST (fallback)", "POST /drifted", "POST /listed/{id}", "POST /v1/nested"]);
    let text = logs.text();
    let warnings: Vec<&str> = text.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    assert!(!text.contains("/no/template"), "what the client wrote is no template: {text}");
    assert!(
        warnings.iter().any(|line| line.contains("/drifted") && line.contains("has another policy")),
        "{warnings:#?}"
    );
}

#[tokio::test]
async fn a_client_that_makes_up_methods_fills_no_memory_and_hides_nothing() {
    let policies = Policies::<()>::at(AT);
    let routes = Router::new().route("/any", any(nothing)).route("/pay", post(nothing));
    let app = app(&policies, routes, ());
    for number in 0..300 {
        let method: &'static str = format!("M{number}").leak();
        assert_eq!(Ask::new(method, "/any").to(&app).await.status, 200);
    }
    assert_eq!(send("/pay").to(&app).await.status, 200);
    assert_eq!(policies.undocumented(), ["OTHER /any", "POST /pay"]);
}

fn dated(refusal: &Refusal) -> Response {
    let mut problem = refusal.problem();
    problem.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("Fri, 31 Dec 2027 23:59:59 GMT"));
    problem
}

#[idempotent(errors = dated)]
async fn gives_a_date() {}

#[test]
fn a_date_to_retry_after_is_no_number_of_seconds() {
    let policies = Policies::<()>::at(AT).endpoint(Method::POST, "/", gives_a_date);
    let document = document(&policies);
    let refusals = document["endpoints"][0]["refusals"].as_array().expect("a list");
    assert!(
        !refusals.is_empty() && refusals.iter().all(|refusal| refusal.get("retry_after").is_none()),
        "{refusals:?}"
    );
}

#[idempotent(replay_status = 204)]
async fn no_content() {}

#[idempotent(replay_status = 205)]
async fn reset_content() {}

#[idempotent(replay_status = 304)]
async fn not_modified() {}

#[test]
fn a_status_without_a_body_replays_none() {
    let policies = Policies::<()>::at(AT)
        .endpoint(Method::POST, "/0", nothing)
        .endpoint(Method::POST, "/204", no_content)
        .endpoint(Method::POST, "/205", reset_content)
        .endpoint(Method::POST, "/304", not_modified);
    let document = document(&policies);
    let bodies = document["endpoints"].as_array().expect("a list").iter().map(|endpoint| &endpoint["replay"]["body"]);
    assert_eq!(json!(bodies.collect::<Vec<_>>()), json!([true, false, false, false]));
}

/// Responds before the handler that it is put around.
async fn put_in_between(_: String) -> StatusCode {
    StatusCode::OK
}

#[test]
fn a_list_that_cannot_be_right_is_a_panic_that_says_so() {
    let policies = || Policies::<()>::at(AT).endpoint(Method::POST, "/a", nothing);
    let said = |list: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(list)).expect_err("a panic");
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
    };
    let twice = said(&|| drop(policies().endpoint(Method::POST, "/a", for_an_hour)));
    assert_eq!(twice.as_deref(), Some("POST /a is listed already"));
    let relative = said(&|| drop(policies().endpoint(Method::POST, "a", nothing)));
    assert_eq!(relative.as_deref(), Some("the path of an endpoint begins with `/`, and `a` does not"));
    let method = Method::from_bytes(b"PURGE").expect("a method");
    let unknown = said(&|| drop(policies().mount(method.clone(), "/b", nothing)));
    assert_eq!(unknown.as_deref(), Some("axum mounts nothing for the method PURGE"));
    let no_policy = said(&|| {
        drop(policies().endpoint(Method::POST, "/c", async |_| put_in_between(String::new()).await.into_response()));
    });
    let wanted = "POST /c does not say its policy: is something between it and the attribute?";
    assert_eq!(no_policy.as_deref(), Some(wanted));
    for path in ["idempotency", "/{id}", "/a?b", "/a b"] {
        assert!(catch_unwind(|| Policies::<()>::at(path)).is_err(), "{path}");
    }
}

#[test]
fn json_of_no_pointers_is_no_part_of_a_fingerprint() {
    const NONE: &[Part] = &[Part::Method, Part::JsonPointers(&[])];
    let panic =
        catch_unwind(|| Policy::DEFAULT.fingerprint(NONE)).expect_err("a panic, and in a `const` a compile error");
    let wanted = "`Part::JsonPointers` has no pointer: write `&[\"/a\", \"/b/0\"]`, or `Part::Json` for the whole body";
    assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(wanted));
}
