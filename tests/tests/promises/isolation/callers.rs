//! A record is only for the caller, the scope, the authority, the path and the rules that it was made for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyLayer, InFlight, Key, MemoryStore, Part, Policy, Refusal, Scope, idempotent};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;
use tracing::field::{Field, Visit};
use tracing::span;

const REPLAYED: &str = "idempotent-replayed";

fn app(routes: Router) -> Router {
    routes.layer(IdempotencyLayer::new(Idempotency::in_memory()))
}

/// Sends a request with the key `a` and these headers.
async fn send(app: &Router, path: &str, headers: &[(&str, &str)], body: &'static str) -> Response<Body> {
    let mut request = Request::post(path).header("Idempotency-Key", "a");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

/// What a request got: a run of the handler, a replay, or the code of a refusal.
#[derive(Debug, PartialEq)]
enum Got {
    Ran,
    Replay,
    Refused(&'static str),
}

use Got::{Ran, Refused, Replay};

const MISMATCH: Got = Refused("idempotency_key_mismatch");
const POLICY_CHANGED: Got = Refused("idempotency_policy_changed");

fn got(response: &Response<Body>) -> Got {
    match response.extensions().get::<Refusal>() {
        Some(refusal) => Refused(refusal.code()),
        None if response.headers().contains_key(REPLAYED) => Replay,
        None => Ran,
    }
}

async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

mod caller {
    use super::*;

    #[idempotent]
    async fn cart() -> &'static str {
        "a cart"
    }

    #[idempotent(scope = global)]
    async fn everyone() -> &'static str {
        "the same for everyone"
    }

    #[idempotent(scope = header("X-Tenant"))]
    async fn tenant() -> &'static str {
        "a tenant's"
    }

    fn routes() -> Router {
        app(Router::new().route("/", post(cart)).route("/global", post(everyone)).route("/tenant", post(tenant)))
    }

    #[tokio::test]
    async fn a_cookie_binds_the_key_if_there_is_no_authorization() {
        let app = routes();
        assert_eq!(got(&send(&app, "/", &[("cookie", "session=alice")], "").await), Ran);
        assert_eq!(got(&send(&app, "/", &[("cookie", "session=alice")], "").await), Replay);
        assert_eq!(got(&send(&app, "/", &[("cookie", "session=bob")], "").await), MISMATCH);
        assert_eq!(got(&send(&app, "/", &[], "").await), MISMATCH);
        assert_eq!(got(&send(&app, "/", &[("authorization", "session=alice")], "").await), MISMATCH);
    }

    #[tokio::test]
    async fn a_cookie_does_not_count_beside_an_authorization() {
        let app = routes();
        let alice = ("authorization", "Bearer alice");
        assert_eq!(got(&send(&app, "/", &[alice, ("cookie", "seen=1")], "").await), Ran);
        assert_eq!(got(&send(&app, "/", &[alice, ("cookie", "seen=2")], "").await), Replay);
        assert_eq!(got(&send(&app, "/", &[("authorization", "Bearer bob"), ("cookie", "seen=1")], "").await), MISMATCH);
    }

    #[tokio::test]
    async fn empty_credentials_are_none() {
        let (alice, bob) = (("cookie", "session=alice"), ("cookie", "session=bob"));
        for empty in [&[("authorization", "")][..], &[("authorization", " ")], &[("authorization", ""); 2]] {
            let app = routes();
            let with = |cookie| [empty, &[cookie]].concat();
            assert_eq!(got(&send(&app, "/", &with(alice), "").await), Ran);
            assert_eq!(got(&send(&app, "/", &with(bob), "").await), MISMATCH);
            assert_eq!(got(&send(&app, "/", &[alice], "").await), Replay, "as without the header");
        }
        let app = routes();
        assert_eq!(got(&send(&app, "/", &[("cookie", ""), ("authorization", "")], "").await), Ran);
        assert_eq!(got(&send(&app, "/", &[], "").await), Replay);
        let app = routes();
        for cookie in [alice, bob] {
            let sent = send(&app, "/tenant", &[("x-tenant", ""), cookie], "").await;
            assert_eq!(got(&sent), if cookie == alice { Ran } else { MISMATCH }, "an empty tenant is none");
        }
    }

    #[tokio::test]
    async fn cookies_may_be_spread_over_lines() {
        let app = routes();
        assert_eq!(got(&send(&app, "/", &[("cookie", "a=1; b=2")], "").await), Ran);
        assert_eq!(got(&send(&app, "/", &[("cookie", "a=1"), ("cookie", "b=2")], "").await), Replay);
        assert_eq!(got(&send(&app, "/", &[("cookie", "a=1"), ("cookie", "b=3")], "").await), MISMATCH);
    }

    #[tokio::test]
    async fn a_global_scope_binds_no_caller() {
        let app = routes();
        assert_eq!(got(&send(&app, "/global", &[("cookie", "session=alice")], "").await), Ran);
        assert_eq!(got(&send(&app, "/global", &[("cookie", "session=bob")], "").await), Replay);
        assert_eq!(got(&send(&app, "/global", &[("authorization", "Bearer carol")], "").await), Replay);
    }

    #[tokio::test]
    async fn a_header_scope_whose_header_is_missing_is_the_caller() {
        let app = routes();
        let cookie = |value| ("cookie", value);
        assert_eq!(got(&send(&app, "/tenant", &[cookie("session=alice")], "").await), Ran);
        assert_eq!(got(&send(&app, "/tenant", &[cookie("session=bob")], "").await), MISMATCH);
        assert_eq!(got(&send(&app, "/tenant", &[cookie("session=alice"), ("x-tenant", "t")], "").await), Ran);
        assert_eq!(got(&send(&app, "/tenant", &[cookie("session=bob"), ("x-tenant", "t")], "").await), Replay);
    }

    /// Keeps the warnings about cookies.
    #[derive(Clone, Default)]
    struct Warnings(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            struct Text(String);
            impl Visit for Text {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    let _ = write!(self.0, "{field}={value:?} ");
                }
            }
            let mut text = Text(String::new());
            event.record(&mut text);
            if text.0.contains("Cookie") {
                self.0.lock().unwrap().push(text.0);
            }
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test]
    async fn a_caller_known_by_a_cookie_is_warned_of_once_for_each_endpoint() {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        let seen = || warnings.0.lock().unwrap().len();
        let app = routes();
        send(&app, "/", &[("authorization", "Bearer alice"), ("cookie", "a=1")], "").await;
        send(&app, "/global", &[("cookie", "a=1")], "").await;
        send(&app, "/tenant", &[("cookie", "a=1"), ("x-tenant", "t")], "").await;
        assert_eq!(seen(), 0, "no cookie was used");
        for path in ["/", "/", "/tenant", "/tenant", "/"] {
            send(&app, path, &[("cookie", "a=2")], "").await;
        }
        let warnings = warnings.0.lock().unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for (warning, endpoint) in warnings.iter().zip(["POST /", "POST /tenant"]) {
            assert!(warning.contains(endpoint) && warning.contains("scope = user.id"), "{warning}");
            assert!(!warning.contains("a=2"), "{warning}");
        }
    }
}

mod host {
    use super::*;

    #[idempotent(scope = header("Host"))]
    async fn scoped() -> &'static str {
        "for one authority"
    }

    #[idempotent(fingerprint = method + path + header("Host"), scope = global)]
    async fn compared() -> &'static str {
        "for one authority"
    }

    async fn server() -> std::net::SocketAddr {
        let app = app(Router::new().route("/scoped", post(scoped)).route("/compared", post(compared)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        address
    }

    /// Sends a request with the key `a` over HTTP/1.1, and returns the status and whether it was a replay.
    async fn http1(address: std::net::SocketAddr, target: &str, host: &str) -> (u16, bool) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nIdempotency-Key: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        (response[9..12].parse().unwrap(), response.contains(REPLAYED))
    }

    /// The same over HTTP/2.
    async fn http2(address: std::net::SocketAddr, path: &str, authority: &str) -> (u16, bool) {
        let stream = TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let uri = format!("http://{authority}{path}");
        let request = Request::post(uri).header("idempotency-key", "a").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        connection.abort();
        (response.status().as_u16(), response.headers().contains_key(REPLAYED))
    }

    #[tokio::test]
    async fn a_scope_by_host_is_the_authority_over_both_versions_of_http() {
        let address = server().await;
        assert_eq!(http2(address, "/scoped", "a.example").await, (200, false));
        assert_eq!(http2(address, "/scoped", "b.example").await, (200, false), "another tenant");
        assert_eq!(http2(address, "/scoped", "A.example").await, (200, true));
        assert_eq!(http1(address, "/scoped", "a.example").await, (200, true), "the same authority");
        assert_eq!(http1(address, "/scoped", "c.example").await, (200, false));
        assert_eq!(http1(address, "http://c.example/scoped", "b.example").await, (200, true), "the target wins");
    }

    #[tokio::test]
    async fn a_fingerprint_with_the_host_has_the_authority_over_both_versions_of_http() {
        let address = server().await;
        assert_eq!(http2(address, "/compared", "a.example").await, (200, false));
        assert_eq!(http2(address, "/compared", "b.example").await, (422, false));
        assert_eq!(http1(address, "/compared", "a.example").await, (200, true));
        assert_eq!(http1(address, "/compared", "b.example").await, (422, false));
        assert_eq!(http1(address, "http://a.example/compared", "b.example").await, (200, true));
    }
}

mod path {
    use super::*;

    const PATH: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::Path);
    const GLOBAL: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::GlobalAndPath);
    const TENANT: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::HeaderAndPath("X-Tenant"));

    #[idempotent(policy = PATH)]
    async fn cancel() {}
    #[idempotent(policy = GLOBAL)]
    async fn cancel_for_anyone() {}
    #[idempotent(policy = TENANT)]
    async fn cancel_for_tenant() {}

    /// Nested, so that the router cuts a prefix off the path.
    fn routes(idempotency: &Idempotency) -> Router {
        let nested = Router::new()
            .route("/{id}/cancel", post(cancel).put(cancel))
            .route("/{id}/anyone", post(cancel_for_anyone))
            .route("/{id}/tenant", post(cancel_for_tenant));
        Router::new()
            .nest("/sessions", nested.clone())
            .nest("/carts", nested)
            .layer(IdempotencyLayer::new(idempotency.clone()))
    }

    const ALICE: (&str, &str) = ("authorization", "Bearer alice");
    const BOB: (&str, &str) = ("authorization", "Bearer bob");

    #[tokio::test]
    async fn the_same_key_on_another_path_is_independent() {
        let app = routes(&Idempotency::in_memory());
        for path in ["/sessions/A/cancel", "/sessions/B/cancel", "/carts/A/cancel", "/sessions/%41/cancel"] {
            assert_eq!(got(&send(&app, path, &[ALICE], "").await), Ran, "{path}");
            assert_eq!(got(&send(&app, path, &[ALICE], "").await), Replay, "{path}");
            assert_eq!(got(&send(&app, path, &[BOB], "").await), MISMATCH, "the caller is bound: {path}");
        }
        assert_eq!(got(&send(&app, "/sessions/A/cancel?q=1", &[ALICE], "").await), Replay, "the query is no path");
        let put = Request::put("/sessions/A/cancel").header("idempotency-key", "a").header(ALICE.0, ALICE.1);
        let put = app.clone().oneshot(put.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(got(&put), Ran, "another method");
    }

    #[tokio::test]
    async fn with_global_no_caller_is_bound() {
        let app = routes(&Idempotency::in_memory());
        assert_eq!(got(&send(&app, "/sessions/A/anyone", &[ALICE], "").await), Ran);
        assert_eq!(got(&send(&app, "/sessions/A/anyone", &[BOB], "").await), Replay);
        assert_eq!(got(&send(&app, "/sessions/B/anyone", &[BOB], "").await), Ran);
    }

    #[tokio::test]
    async fn operators_find_a_key_by_the_table_of_scopes() {
        let idempotency = Idempotency::in_memory();
        let app = routes(&idempotency);
        let key = Key::parse(b"a").unwrap();
        let tenant = ("x-tenant", "acme");
        for (path, headers, scope) in [
            ("/sessions/A/cancel", &[ALICE][..], Scope::GLOBAL.with_path("POST", "/sessions/A/cancel")),
            ("/sessions/A/anyone", &[ALICE], Scope::GLOBAL.with_path("POST", "/sessions/A/anyone")),
            ("/sessions/A/tenant", &[ALICE], Scope::GLOBAL.with_path("POST", "/sessions/A/tenant")),
            (
                "/sessions/A/tenant",
                &[tenant],
                Scope::header("X-Tenant").with(b"acme").with_path("POST", "/sessions/A/tenant"),
            ),
        ] {
            assert!(idempotency.inspect(&scope, &key).await.unwrap().is_none(), "{path}");
            assert_eq!(got(&send(&app, path, headers, "").await), Ran, "{path}");
            assert!(idempotency.inspect(&scope, &key).await.unwrap().is_some(), "{path}");
        }
    }
}

mod presets {
    use super::*;

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
}

/// Handlers that say that they started, and end when they may.
#[derive(Clone)]
struct Gate {
    started: Arc<Notify>,
    go_on: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self { started: Arc::default(), go_on: Arc::new(Semaphore::new(0)) }
    }

    async fn pass(&self) -> &'static str {
        self.started.notify_one();
        self.go_on.acquire().await.unwrap().forget();
        "done"
    }
}

mod in_flight {
    use super::*;

    const ACCEPTED: Policy = Policy::DEFAULT.in_flight(InFlight::reject(202));
    const NO_CONTENT: Policy = Policy::DEFAULT.in_flight(InFlight::reject(204));

    #[idempotent(policy = ACCEPTED)]
    async fn accepted(Extension(gate): Extension<Gate>) -> &'static str {
        gate.pass().await
    }

    #[idempotent(policy = NO_CONTENT)]
    async fn no_content(Extension(gate): Extension<Gate>) -> &'static str {
        gate.pass().await
    }

    #[tokio::test]
    async fn a_success_status_acknowledges_what_is_in_flight() {
        for (path, status) in [("/accepted", 202), ("/no_content", 204)] {
            let gate = Gate::new();
            let routes = Router::new().route("/accepted", post(accepted)).route("/no_content", post(no_content));
            let app = app(routes).layer(Extension(gate.clone()));
            let first = tokio::spawn({
                let app = app.clone();
                async move { send(&app, path, &[], "").await }
            });
            gate.started.notified().await;
            let acknowledged = send(&app, path, &[], "").await;
            assert_eq!(acknowledged.status(), status);
            assert_eq!(got(&acknowledged), Refused("idempotency_key_locked"));
            assert!(!acknowledged.headers().contains_key("retry-after"), "it is not to be repeated");
            let has_type = acknowledged.headers().contains_key("content-type");
            let body = acknowledged.into_body().collect().await.unwrap().to_bytes();
            assert_eq!((has_type, body.is_empty()), (status == 202, status == 204));
            if status == 202 {
                assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], 202);
            }
            gate.go_on.add_permits(1);
            assert_eq!(first.await.unwrap().status(), 200);
            assert_eq!(got(&send(&app, path, &[], "").await), Replay);
        }
    }
}

mod versions {
    use super::*;

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
    ) -> (Got, Got) {
        let (store, gate) = (MemoryStore::new(), Gate::new());
        let (old, new) = (version(&store, &gate, old), version(&store, &gate, new));
        let first = tokio::spawn(async move { send(&old, "/orders", &[("x-key", "a")], "one").await });
        gate.started.notified().await;
        let running = send(&new, "/orders", &[("x-key", "a")], body).await;
        gate.go_on.add_permits(1);
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
        let (store, gate) = (MemoryStore::new(), Gate::new());
        gate.go_on.add_permits(2);
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
        let (store, gate) = (MemoryStore::new(), Gate::new());
        gate.go_on.add_permits(2);
        let old = version(&store, &gate, handler!());
        let new = version(&store, &gate, post(create));
        assert_eq!(got(&send(&old, "/orders", &[], "one").await), Ran);
        assert_eq!(got(&send(&new, "/orders", &[], "one").await), Ran);
    }
}

mod fingerprint_none {
    use super::*;

    const NONE: Policy = Policy::DEFAULT.no_fingerprint();
    const POINTER: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["/amount"])]);

    #[idempotent(policy = NONE)]
    async fn nothing() {}
    #[idempotent(policy = NONE)]
    async fn nothing_either() {}
    #[idempotent(policy = POINTER)]
    async fn amount() {}

    #[tokio::test]
    async fn only_handler_endpoint_and_caller_take_part() {
        let app = app(Router::new().route("/{id}", post(nothing)).route("/{id}/b", post(nothing_either)));
        let alice = ("authorization", "alice");
        assert_eq!(got(&send(&app, "/1", &[alice], "one").await), Ran);
        assert_eq!(got(&send(&app, "/2?q=1", &[alice], "two").await), Replay);
        assert_eq!(got(&send(&app, "/1", &[], "one").await), MISMATCH);
        assert_eq!(got(&send(&app, "/1/b", &[alice], "one").await), MISMATCH, "another endpoint");
    }

    #[tokio::test]
    async fn a_pointer_of_a_const_policy_counts() {
        let app = app(Router::new().route("/", post(amount)));
        assert_eq!(got(&send(&app, "/", &[], r#"{"amount":5}"#).await), Ran);
        assert_eq!(got(&send(&app, "/", &[], r#"{"amount":5,"note":""}"#).await), Replay);
        assert_eq!(got(&send(&app, "/", &[], r#"{"amount":999999}"#).await), MISMATCH);
    }
}
