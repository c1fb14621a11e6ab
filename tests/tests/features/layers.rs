//! What layers around an endpoint do, row by row of the table in the guide's page `layers`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::any::Any;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use futures_util::stream;
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use idem_tests::support::{app, post as send, text};
use tokio::sync::Notify;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::normalize_path::NormalizePathLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;
use tower_sessions::{MemoryStore as Sessions, Session, SessionManagerLayer};

fn replayed(response: &Response) -> bool {
    response.headers().contains_key("idempotent-replayed")
}

/// A handler that waits in the middle.
#[derive(Clone, Default)]
struct Gate {
    started: Arc<Notify>,
    may_end: Arc<Notify>,
    runs: Arc<AtomicUsize>,
}

#[idempotent]
async fn waits(State(gate): State<Gate>) -> StatusCode {
    gate.runs.fetch_add(1, Ordering::SeqCst);
    gate.started.notify_one();
    gate.may_end.notified().await;
    StatusCode::CREATED
}

/// A panic of the handler ends in its task, so the layer sees a response; one of an extractor reaches the layer.
#[tokio::test]
async fn catch_panic_gets_the_panics_of_extractors_and_of_requests_without_a_key() {
    struct Panics;
    impl<S: Sync> FromRequestParts<S> for Panics {
        type Rejection = StatusCode;
        async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, StatusCode> {
            panic!("in an extractor")
        }
    }
    #[idempotent]
    async fn in_handler() {
        panic!("in a handler")
    }
    #[idempotent]
    async fn in_extractor(_: Panics) {}
    fn caught(_: Box<dyn Any + Send>) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, "caught by the layer").into_response()
    }
    let routes = Router::new().route("/handler", post(in_handler)).route("/extractor", post(in_extractor));
    let app = app(&Idempotency::in_memory(), routes.layer(CatchPanicLayer::custom(caught)));

    let response = send(&app, "/handler", "a", "").await;
    assert_eq!(response.status(), 500);
    assert!(text(response).await.contains("idempotency_handler_panicked"));
    assert_eq!(text(send(&app, "/extractor", "b", "").await).await, "caught by the layer");
    let without_key = Request::post("/handler").body(Body::empty()).unwrap();
    assert_eq!(text(app.oneshot(without_key).await.unwrap()).await, "caught by the layer");
}

#[tokio::test]
async fn a_timeout_layer_ends_the_wait_and_not_the_execution() {
    let (gate, idempotency) = (Gate::default(), Idempotency::in_memory());
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(20));
    let routes = Router::new().route("/", post(waits)).layer(timeout).with_state(gate.clone());
    let app = app(&idempotency, routes);
    assert_eq!(send(&app, "/", "a", "").await.status(), 504);
    assert_eq!(send(&app, "/", "a", "").await.status(), 409);
    gate.may_end.notify_one();
    idempotency.drain().await;
    let retry = send(&app, "/", "a", "").await;
    assert_eq!((retry.status(), replayed(&retry), gate.runs.load(Ordering::SeqCst)), (StatusCode::CREATED, true, 1));
}

/// A request whose body is too slow uses up no key. A response that is too slow is recorded, although the client gets a part of it.
#[tokio::test]
async fn a_body_timeout_layer_breaks_off_bodies_and_not_the_record() {
    #[idempotent]
    async fn streams(State(gate): State<Gate>, body: String) -> Body {
        let late = async move {
            gate.may_end.notified().await;
            Ok::<_, Infallible>(body)
        };
        Body::from_stream(stream::once(late))
    }
    let (gate, idempotency, limit) = (Gate::default(), Idempotency::in_memory(), Duration::from_millis(20));
    let routes = Router::new()
        .route("/", post(streams))
        .layer(RequestBodyTimeoutLayer::new(limit))
        .layer(ResponseBodyTimeoutLayer::new(limit))
        .with_state(gate.clone());
    let app = app(&idempotency, routes);
    let slow = Body::from_stream(stream::pending::<Result<&str, Infallible>>());
    assert_eq!(send(&app, "/", "a", slow).await.status(), 400);
    let first = send(&app, "/", "a", "tea").await;
    assert!(!replayed(&first));
    assert!(to_bytes(first.into_body(), 10).await.is_err());
    gate.may_end.notify_one();
    idempotency.drain().await;
    let retry = send(&app, "/", "a", "tea").await;
    assert!(replayed(&retry));
    assert_eq!(text(retry).await, "tea");
}

/// The layer is around the router, so the endpoint never sees the path as sent.
#[tokio::test]
async fn a_normalized_path_is_one_path() {
    #[idempotent(scope = path)]
    async fn order() -> StatusCode {
        StatusCode::CREATED
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/orders", post(order)));
    let app = NormalizePathLayer::trim_trailing_slash().layer(app);
    let order = async |path: &str| {
        let request = Request::post(path).header("idempotency-key", "a").body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap()
    };
    assert!(!replayed(&order("/orders/").await));
    assert!(replayed(&order("/orders").await));
}

#[tokio::test]
async fn a_body_limit_layer_refuses_before_the_key_is_used() {
    #[idempotent]
    async fn length(body: String) -> String {
        body.len().to_string()
    }
    let routes = Router::new().route("/", post(length)).layer(RequestBodyLimitLayer::new(10));
    let app = app(&Idempotency::in_memory(), routes);
    assert_eq!(send(&app, "/", "a", vec![b'x'; 11]).await.status(), 413);
    // Without `Content-Length`, the extractor finds out.
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>("123456"), Ok("789012")]);
    assert_eq!(send(&app, "/", "a", Body::from_stream(chunks)).await.status(), 413);
    let corrected = send(&app, "/", "a", "12345").await;
    assert!(!replayed(&corrected));
    assert_eq!(text(corrected).await, "5");
}

#[tokio::test]
async fn compression_belongs_to_the_exchange_and_not_to_the_record() {
    #[idempotent]
    async fn long() -> String {
        "tea ".repeat(1000)
    }
    let routes = Router::new().route("/", post(long)).layer(CompressionLayer::new());
    let app = app(&Idempotency::in_memory(), routes);
    let ask = async |encoding: &str| {
        let request = Request::post("/").header("idempotency-key", "a").header("accept-encoding", encoding);
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let first = ask("gzip").await;
    assert_eq!(first.headers()["content-encoding"], "gzip");
    let plain = ask("identity").await;
    assert!(replayed(&plain) && !plain.headers().contains_key("content-encoding"));
    assert_eq!(text(plain).await, "tea ".repeat(1000));
    let zipped = ask("gzip").await;
    assert!(replayed(&zipped));
    assert_eq!(zipped.headers()["content-encoding"], "gzip");
}

/// The layer hands the body down as the client wrote it, so that its encoding is not part of the fingerprint.
#[tokio::test]
async fn a_retry_may_be_compressed_otherwise() {
    #[idempotent]
    async fn length(body: String) -> String {
        body.len().to_string()
    }
    let plain = "tea ".repeat(1000);
    let echo = Router::new().route("/", post(async |body: String| body)).layer(CompressionLayer::new());
    let request = Request::post("/").header("accept-encoding", "gzip").body(Body::from(plain.clone())).unwrap();
    let zipped = axum::body::to_bytes(echo.oneshot(request).await.unwrap().into_body(), usize::MAX).await.unwrap();
    assert!(zipped.len() < 1000);

    let routes = Router::new().route("/", post(length)).layer(RequestDecompressionLayer::new());
    let app = app(&Idempotency::in_memory(), routes);
    let request = Request::post("/").header("idempotency-key", "a").header("content-encoding", "gzip");
    let first = app.clone().oneshot(request.body(Body::from(zipped)).unwrap()).await.unwrap();
    assert!(first.status() == 200 && !replayed(&first));
    assert_eq!(text(first).await, "4000");
    assert!(replayed(&send(&app, "/", "a", plain).await));
    assert_eq!(send(&app, "/", "a", "tea").await.status(), 422);
}

#[tokio::test]
async fn a_trace_layer_reports_replays_and_no_execution_whose_client_left() {
    let (gate, idempotency, seen) = (Gate::default(), Idempotency::in_memory(), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&seen);
    let trace = TraceLayer::new_for_http().on_response(move |_: &Response, _: Duration, _: &tracing::Span| {
        counts.fetch_add(1, Ordering::SeqCst);
    });
    let app = app(&idempotency, Router::new().route("/", post(waits)).layer(trace).with_state(gate.clone()));
    let leaves = app.clone();
    let request = tokio::spawn(async move { send(&leaves, "/", "a", "").await });
    gate.started.notified().await;
    request.abort();
    assert!(request.await.is_err());
    gate.may_end.notify_one();
    idempotency.drain().await;
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert!(replayed(&send(&app, "/", "a", "").await));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// Each response has the headers of the origin that asked, and a preflight request reaches no handler.
#[tokio::test]
async fn cors_belongs_to_the_exchange_and_not_to_the_record() {
    let gate = Gate::default();
    gate.may_end.notify_one();
    let origins = ["https://a.example".parse().unwrap(), "https://b.example".parse().unwrap()];
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_headers(["idempotency-key".parse().unwrap()])
        .expose_headers(["idempotent-replayed".parse().unwrap(), "retry-after".parse().unwrap()]);
    let routes = Router::new().route("/", post(waits)).layer(cors).with_state(gate.clone());
    let app = app(&Idempotency::in_memory(), routes);
    let ask = async |origin: &str| {
        let request = Request::post("/").header("idempotency-key", "a").header("origin", origin);
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let preflight = Request::options("/").header("origin", "https://a.example").header("idempotency-key", "a");
    let preflight = preflight.header("access-control-request-method", "POST").body(Body::empty()).unwrap();
    let preflight = app.clone().oneshot(preflight).await.unwrap();
    assert_eq!(preflight.headers()["access-control-allow-headers"], "idempotency-key");
    assert_eq!(gate.runs.load(Ordering::SeqCst), 0);
    for (origin, is_replay) in [("https://a.example", false), ("https://b.example", true)] {
        let response = ask(origin).await;
        assert_eq!((response.status(), replayed(&response)), (StatusCode::CREATED, is_replay));
        assert_eq!(response.headers().get_all("access-control-allow-origin").iter().collect::<Vec<_>>(), [origin]);
        assert_eq!(response.headers()["access-control-expose-headers"], "idempotent-replayed,retry-after");
    }
    let elsewhere = ask("https://c.example").await;
    assert!(replayed(&elsewhere) && !elsewhere.headers().contains_key("access-control-allow-origin"));
}

#[derive(Clone, Debug)]
struct User(u32);

impl AuthUser for User {
    type Id = u32;

    fn id(&self) -> u32 {
        self.0
    }

    fn session_auth_hash(&self) -> &[u8] {
        b"hash"
    }
}

#[derive(Clone)]
struct Users;

impl AuthnBackend for Users {
    type User = User;
    type Credentials = u32;
    type Error = Infallible;

    async fn authenticate(&self, id: u32) -> Result<Option<User>, Infallible> {
        Ok(Some(User(id)))
    }

    async fn get_user(&self, id: &u32) -> Result<Option<User>, Infallible> {
        Ok(Some(User(*id)))
    }
}

/// A user who logs in again has another cookie, and the same scope. A replay of a login sets no cookie.
#[tokio::test]
async fn a_user_of_axum_login_is_a_scope_and_a_login_is_not_repeated() {
    #[idempotent(scope = global, fingerprint = body)]
    async fn log_in_once(mut auth: AuthSession<Users>, id: String) -> StatusCode {
        auth.login(&User(id.parse().unwrap())).await.unwrap();
        StatusCode::NO_CONTENT
    }
    async fn log_in(mut auth: AuthSession<Users>, id: String) {
        auth.login(&User(id.parse().unwrap())).await.unwrap();
    }
    #[idempotent(scope = auth.user.as_ref().map_or(0, User::id))]
    async fn pay(auth: AuthSession<Users>) -> String {
        format!("{:?}", auth.user)
    }
    let sessions = SessionManagerLayer::new(Sessions::default()).with_secure(false);
    let routes = Router::new()
        .route("/pay", post(pay))
        .route_layer(axum_login::login_required!(Users))
        .route("/log-in", post(log_in))
        .route("/log-in-once", post(log_in_once))
        .layer(AuthManagerLayerBuilder::new(Users, sessions).build());
    let app = app(&Idempotency::in_memory(), routes);
    let log_in = async |id: &'static str| {
        let response = send(&app, "/log-in", "", id).await;
        response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
    };
    let pay = async |cookie: &str| {
        let request = Request::post("/pay").header("idempotency-key", "a").header("cookie", cookie);
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let (one, two) = (log_in("1").await, log_in("2").await);
    assert_eq!(pay("").await.status(), 401);
    let first = pay(&one).await;
    assert!(!replayed(&first));
    assert_eq!(text(first).await, "Some(User(1))");
    let other = pay(&two).await;
    assert!(!replayed(&other));
    assert_eq!(text(other).await, "Some(User(2))");
    let again = log_in("1").await;
    assert_ne!(again, one);
    assert!(replayed(&pay(&again).await));

    let first = send(&app, "/log-in-once", "b", "1").await;
    assert!(first.status() == 204 && first.headers().contains_key("set-cookie"));
    let replay = send(&app, "/log-in-once", "b", "1").await;
    assert!(replayed(&replay) && !replay.headers().contains_key("set-cookie"));
}

#[tokio::test]
async fn a_session_is_saved_after_the_record_unless_the_handler_saves_it() {
    #[idempotent]
    async fn adds(session: Session, State(gate): State<Gate>) -> StatusCode {
        session.insert("order", 1).await.unwrap();
        gate.started.notify_one();
        gate.may_end.notified().await;
        StatusCode::CREATED
    }
    #[idempotent]
    async fn saves(session: Session, State(gate): State<Gate>) -> StatusCode {
        session.insert("order", 1).await.unwrap();
        session.save().await.unwrap();
        gate.started.notify_one();
        gate.may_end.notified().await;
        StatusCode::CREATED
    }
    async fn login(session: Session) {
        session.insert("user", 7).await.unwrap();
    }
    async fn reads(session: Session) -> String {
        format!("{:?}", session.get::<u32>("order").await.unwrap())
    }
    let (gate, idempotency) = (Gate::default(), Idempotency::in_memory());
    let routes = Router::new()
        .route("/adds", post(adds))
        .route("/saves", post(saves))
        .route("/login", post(login))
        .route("/reads", post(reads))
        .layer(SessionManagerLayer::new(Sessions::default()).with_secure(false))
        .with_state(gate.clone());
    let app = app(&idempotency, routes);
    for (path, kept) in [("/adds", "None"), ("/saves", "Some(1)")] {
        let login = send(&app, "/login", "", "").await;
        let cookie = login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let ask = |path: &str| {
            let request = Request::post(path).header("cookie", &cookie).header("idempotency-key", path);
            app.clone().oneshot(request.body(Body::empty()).unwrap())
        };
        let first = tokio::spawn(ask(path));
        gate.started.notified().await;
        // The client disconnects.
        first.abort();
        assert!(first.await.is_err());
        gate.may_end.notify_one();
        idempotency.drain().await;
        let retry = ask(path).await.unwrap();
        assert_eq!((retry.status(), replayed(&retry)), (StatusCode::CREATED, true), "{path}");
        assert_eq!(text(ask("/reads").await.unwrap()).await, kept, "{path}");
    }
}

#[tokio::test]
async fn a_cookie_of_the_handler_is_not_replayed_and_one_of_a_layer_is_set_again() {
    #[idempotent]
    async fn sets() -> ([(&'static str, &'static str); 1], StatusCode) {
        ([("set-cookie", "handler=1")], StatusCode::CREATED)
    }
    async fn with_cookie(request: Request, next: Next) -> Response {
        let mut response = next.run(request).await;
        response.headers_mut().append("set-cookie", "layer=1".parse().unwrap());
        response
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(sets)).layer(from_fn(with_cookie)));
    let cookies = |headers: &HeaderMap| headers.get_all("set-cookie").iter().cloned().collect::<Vec<_>>();
    assert_eq!(cookies(send(&app, "/", "a", "").await.headers()), ["handler=1", "layer=1"]);
    assert_eq!(cookies(send(&app, "/", "a", "").await.headers()), ["layer=1"]);
}

#[tokio::test]
async fn a_rate_limit_counts_replays_and_what_it_refuses_uses_up_no_key() {
    static FULL: AtomicBool = AtomicBool::new(true);
    async fn limit(request: Request, next: Next) -> Response {
        if FULL.load(Ordering::SeqCst) {
            StatusCode::TOO_MANY_REQUESTS.into_response()
        } else {
            next.run(request).await
        }
    }
    #[idempotent]
    async fn pay() {}
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(pay)).layer(from_fn(limit)));
    assert_eq!(send(&app, "/", "a", "").await.status(), 429);
    FULL.store(false, Ordering::SeqCst);
    assert!(!replayed(&send(&app, "/", "a", "").await));
    FULL.store(true, Ordering::SeqCst);
    assert_eq!(send(&app, "/", "a", "").await.status(), 429);
}

#[tokio::test]
async fn a_concurrency_limit_forgets_executions_whose_client_left_and_max_executions_does_not() {
    let gate = Gate::default();
    let idempotency = Idempotency::builder(idem_axum::MemoryStore::new()).max_executions(2).build();
    let routes =
        Router::new().route("/", post(waits)).layer(GlobalConcurrencyLimitLayer::new(1)).with_state(gate.clone());
    let app = app(&idempotency, routes);
    for key in ["a", "b"] {
        let app = app.clone();
        let request = tokio::spawn(async move { send(&app, "/", key, "").await });
        gate.started.notified().await;
        request.abort();
        assert!(request.await.is_err());
    }
    // Two run, over a limit of one.
    assert_eq!(idempotency.executions(), 2);
    let third = send(&app, "/", "c", "").await;
    assert!(third.status() == 503 && text(third).await.contains("idempotency_too_many_executions"));
    gate.may_end.notify_waiters();
    idempotency.drain().await;
}

#[tokio::test]
async fn a_transaction_that_a_layer_commits_is_not_part_of_the_record() {
    async fn commits(request: Request, next: Next) -> Response {
        let response = next.run(request).await;
        // The commit fails.
        if response.headers().contains_key("idempotent-replayed") {
            response
        } else {
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
    #[idempotent]
    async fn insert() -> StatusCode {
        StatusCode::CREATED
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(insert)).layer(from_fn(commits)));
    assert_eq!(send(&app, "/", "a", "").await.status(), 502);
    let retry = send(&app, "/", "a", "").await;
    assert!(retry.status() == 201 && replayed(&retry), "it says that the row was inserted");
}

#[tokio::test]
async fn authentication_in_a_layer_guards_the_record() {
    async fn authenticates(mut request: Request, next: Next) -> Response {
        let known = request.headers().get("authorization").is_some_and(|token| token == "good");
        if !known {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        request.extensions_mut().insert(7_u32);
        next.run(request).await
    }
    #[idempotent(scope = user)]
    async fn pay(Extension(user): Extension<u32>) -> String {
        user.to_string()
    }
    let app = Router::new()
        .route("/", post(pay))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()))
        .layer(from_fn(authenticates));
    let ask = async |token: &str| {
        let request = Request::post("/").header("idempotency-key", "a").header("authorization", token);
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    assert_eq!(ask("good").await.status(), 200);
    assert!(replayed(&ask("good").await));
    assert_eq!(ask("bad").await.status(), 401);
}

/// A layer that removes the header before the endpoint sees it hides the caller, unless the scope says who it is.
#[tokio::test]
async fn a_layer_that_removes_authorization_leaves_the_caller_to_the_scope() {
    #[derive(Clone)]
    struct Name(String);
    async fn authenticates(mut request: Request, next: Next) -> Response {
        let token = request.headers_mut().remove("authorization").unwrap();
        request.extensions_mut().insert(Name(token.to_str().unwrap().to_owned()));
        next.run(request).await
    }
    #[idempotent]
    async fn by_default(Extension(Name(name)): Extension<Name>) -> String {
        name
    }
    #[idempotent(scope = name)]
    async fn by_scope(Extension(Name(name)): Extension<Name>) -> String {
        name
    }
    let routes = Router::new().route("/default", post(by_default)).route("/scope", post(by_scope));
    let app = app(&Idempotency::in_memory(), routes.layer(from_fn(authenticates)));
    for (path, bobs) in [("/default", "ann"), ("/scope", "bob")] {
        for (token, response) in [("ann", "ann"), ("bob", bobs)] {
            let request = Request::post(path).header("idempotency-key", path).header("authorization", token);
            let sent = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(text(sent).await, response, "{path}");
        }
    }
}

/// The layers give each response the id of the request that it belongs to. What the handler sets in another header is replayed.
#[tokio::test]
async fn a_replay_has_the_id_of_the_retry() {
    #[idempotent]
    async fn echoes(headers: HeaderMap) -> [(&'static str, HeaderValue); 2] {
        [("x-request-id", headers["x-request-id"].clone()), ("x-own-id", headers["x-request-id"].clone())]
    }
    let routes = Router::new()
        .route("/", post(echoes))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid));
    let app = app(&Idempotency::in_memory(), routes);
    let (first, replay) = (send(&app, "/", "a", "").await, send(&app, "/", "a", "").await);
    assert!(!replayed(&first) && replayed(&replay));
    assert_eq!(replay.headers().get_all("x-request-id").iter().count(), 1);
    assert_ne!(first.headers()["x-request-id"], replay.headers()["x-request-id"]);
    assert_eq!(first.headers()["x-own-id"], first.headers()["x-request-id"]);
    assert_eq!(first.headers()["x-own-id"], replay.headers()["x-own-id"]);
}

/// A layer that logs headers logs the key, unless it is marked as sensitive.
#[tokio::test]
async fn a_trace_layer_that_logs_headers_logs_the_key_unless_it_is_sensitive() {
    #[idempotent]
    async fn pay() {}
    for is_sensitive in [false, true] {
        let seen = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&seen);
        let trace = TraceLayer::new_for_http().on_request(move |request: &Request, _: &tracing::Span| {
            log.lock().unwrap().push_str(&format!("{:?}", request.headers()));
        });
        let names = is_sensitive.then(|| HeaderName::from_static("idempotency-key"));
        let routes =
            Router::new().route("/", post(pay)).layer(trace).layer(SetSensitiveRequestHeadersLayer::new(names));
        let app = app(&Idempotency::in_memory(), routes);
        send(&app, "/", "raw-key", "").await;
        assert!(replayed(&send(&app, "/", "raw-key", "").await));
        assert_eq!(seen.lock().unwrap().contains("raw-key"), !is_sensitive);
    }
}
