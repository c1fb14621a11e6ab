//! Any handler that axum takes, the attribute takes, mounted in any way.

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRef, Json, MatchedPath, OriginalUri, Path, Query, RawQuery, Request, State};
use axum::handler::Handler;
use axum::http::{Extensions, HeaderMap, Method, StatusCode, Uri, Version};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router, debug_handler};
use idem_axum::{Idempotency, IdempotencyKey, IdempotencyLayer, idempotent};
use idem_tests::{Ask, Probe, Setup, post as send};
use serde_json::{Value, json};
use tower::util::MapResponseLayer;

/// Runs once and replays once.
async fn works(route: MethodRouter<Probe>, ask: Ask, status: u16, text: &str) {
    let setup = Setup::of(Router::new().route("/{*path}", route));
    let ask = ask.key("k");
    let first = ask.to(&setup.app).await;
    assert_eq!((first.status, first.text()), (status, text));
    first.assert_ran(status);
    ask.to(&setup.app).await.assert_replay_of(&first);
    assert!(setup.probe.runs() <= 1);
}

fn ask() -> Ask {
    send("/a?q=1").body("body")
}

#[idempotent]
async fn nothing() {}

#[idempotent]
async fn sixteen(
    method: Method,
    uri: Uri,
    version: Version,
    _: HeaderMap,
    _: Extensions,
    Path(path): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    RawQuery(raw): RawQuery,
    matched: MatchedPath,
    OriginalUri(original): OriginalUri,
    key: IdempotencyKey,
    optional: Option<Extension<u8>>,
    rejected: Result<Path<u32>, axum::extract::rejection::PathRejection>,
    (State(one), State(two)): (State<Probe>, State<Probe>),
    State(probe): State<Probe>,
    body: String,
) -> String {
    let _both: (Probe, Probe) = (one, two);
    probe.run().await;
    assert!(version == Version::HTTP_11 && optional.is_none() && rejected.is_err() && query.len() == 1);
    format!("{method} {uri} {path} {raw:?} {} {original} {} {body}", matched.as_str(), key.as_str())
}

#[tokio::test]
async fn no_arguments_and_sixteen() {
    works(post(nothing), ask(), 200, "").await;
    works(post(sixteen), ask(), 200, "POST /a?q=1 a Some(\"q=1\") /{*path} /a?q=1 k body").await;
}

struct AppError(String);

impl From<std::num::ParseIntError> for AppError {
    fn from(error: std::num::ParseIntError) -> Self {
        Self(error.to_string())
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0).into_response()
    }
}

#[idempotent]
async fn fallible(State(probe): State<Probe>, body: String) -> Result<(StatusCode, Json<u32>), AppError> {
    probe.run().await;
    let number: u32 = body.parse()?;
    if number == 0 {
        return Err(AppError("zero".into()));
    }
    Ok((StatusCode::CREATED, Json(number)))
}

#[idempotent]
async fn opaque(State(probe): State<Probe>) -> impl IntoResponse {
    probe.run().await;
    (StatusCode::ACCEPTED, Html("<p>"))
}

#[idempotent]
async fn opaque_result(body: String) -> Result<impl IntoResponse, impl IntoResponse> {
    if body == "x" { Ok(Html("<p>")) } else { Err((StatusCode::CONFLICT, "no")) }
}

#[tokio::test]
async fn results_with_question_marks_and_opaque_types() {
    works(post(fallible), ask().body("7"), 201, "7").await;
    works(post(fallible), ask().body("seven"), 400, "invalid digit found in string").await;
    works(post(fallible), ask().body("0"), 400, "zero").await;
    works(post(opaque), ask(), 202, "<p>").await;
    works(post(opaque_result), ask().body("x"), 200, "<p>").await;
    works(post(opaque_result), ask(), 409, "no").await;
}

trait Repository: Clone + Send + Sync + 'static {
    fn name(&self) -> impl Future<Output = String> + Send;
}

#[derive(Clone)]
struct Memory<const N: usize>;

impl<const N: usize> Repository for Memory<N> {
    async fn name(&self) -> String {
        format!("memory {N}")
    }
}

#[idempotent]
async fn create<R: Repository>(Extension(repository): Extension<R>, Json(new): Json<Value>) -> String {
    format!("{}: {new}", repository.name().await)
}

#[idempotent]
async fn constant<R, const N: usize>(Extension(repository): Extension<R>, State(probe): State<Probe>) -> String
where
    R: Repository,
{
    probe.run().await;
    format!("{} {N}", repository.name().await)
}

struct Orders;

impl Orders {
    /// An associated function, with documentation.
    #[idempotent]
    async fn create(State(probe): State<Probe>, mut body: String) -> String {
        probe.run().await;
        body.push('!');
        body
    }
}

#[tokio::test]
async fn generics_constants_and_associated_functions() {
    let json = ask().json(r#"{"a":1}"#);
    works(post(create::<Memory<3>, _, _>).layer(Extension(Memory::<3>)), json, 200, "memory 3: {\"a\":1}").await;
    works(post(constant::<Memory<4>, 5, _, _>).layer(Extension(Memory::<4>)), ask(), 200, "memory 4 5").await;
    works(post(Orders::create), ask(), 200, "body!").await;
}

#[tokio::test]
async fn a_layer_around_the_handler_sees_replays_too() {
    let stamp = MapResponseLayer::new(|mut response: Response| {
        response.headers_mut().insert("x-layer", "1".parse().unwrap());
        response
    });
    let setup = Setup::of(Router::new().route("/", post(Orders::create.layer(stamp))));
    for replayed in [false, true] {
        let reply = send("/").key("k").to(&setup.app).await;
        assert_eq!((reply.is_replay(), reply.header("x-layer")), (replayed, Some("1")));
    }
    assert_eq!(setup.probe.runs(), 1);
}

#[derive(Clone)]
struct AppState {
    repository: Arc<str>,
}

impl FromRef<AppState> for Arc<str> {
    fn from_ref(state: &AppState) -> Self {
        state.repository.clone()
    }
}

#[idempotent]
async fn substate(State(repository): State<Arc<str>>, State(state): State<AppState>) -> String {
    format!("{repository} {}", state.repository)
}

#[tokio::test]
async fn substates_and_handlers_with_a_state_of_their_own() {
    let state = || AppState { repository: "orders".into() };
    let layer = || IdempotencyLayer::new(Idempotency::in_memory());
    let apps = [
        Router::new().route("/", post(substate)).layer(layer()).with_state(state()),
        Router::new().route_service("/", substate.with_state(state())).layer(layer()),
        Router::new().fallback_service(substate.with_state(state())).layer(layer()),
    ];
    for app in apps {
        let ask = send("/").key("k");
        let first = ask.to(&app).await;
        assert_eq!(first.text(), "orders orders");
        ask.to(&app).await.assert_replay_of(&first);
    }
}

#[tokio::test]
async fn nested_merged_as_a_fallback_and_beside_other_methods() {
    let orders = || Router::new().route("/orders", post(Orders::create).get(nothing).delete(fallible));
    let routes = Router::new().nest("/v1", orders()).merge(orders()).fallback(opaque);
    let setup = Setup::of(routes);
    for (key, ask) in [
        send("/v1/orders"),
        send("/orders"),
        Ask::new("DELETE", "/orders").body("1"),
        send("/else"),
        Ask::new("GET", "/orders"),
    ]
    .into_iter()
    .enumerate()
    {
        let ask = ask.key(&key.to_string());
        let first = ask.to(&setup.app).await;
        assert!(first.status < 300, "{first:?}");
        ask.to(&setup.app).await.assert_replay_of(&first);
    }
}

/// Documented, traced, and described.
#[utoipa::path(post, path = "/described", responses((status = 201)))]
#[tracing::instrument(skip_all)]
#[idempotent(ttl = "1h")]
async fn described(State(probe): State<Probe>, _request: Request) -> (StatusCode, Body) {
    probe.run().await;
    (StatusCode::CREATED, Body::from("described"))
}

/// The same below it, which is the only place for `debug_handler`: above, it calls the generated function with the arguments
/// of the written one.
#[idempotent(ttl = "1h")]
#[tracing::instrument(skip_all)]
#[debug_handler(state = Probe)]
async fn described_below(State(probe): State<Probe>) -> &'static str {
    probe.run().await;
    "below"
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(described))]
struct Api;

#[tokio::test]
async fn other_attributes_above_and_below() {
    use utoipa::OpenApi;
    works(post(described), ask(), 201, "described").await;
    works(post(described_below), ask(), 200, "below").await;
    assert_eq!(json!(Api::openapi())["paths"]["/described"]["post"]["summary"], "Documented, traced, and described.");
}

#[tokio::test]
async fn a_key_on_a_get_is_protected_too_and_one_on_a_bare_handler_is_nothing() {
    let routes = Router::new().route("/a", get(Orders::create)).route("/bare", get(|| async { "bare" }));
    let setup = Setup::of(routes);
    let ask = Ask::new("GET", "/a").key("k");
    ask.to(&setup.app).await.assert_ran(200);
    assert!(ask.to(&setup.app).await.is_replay());
    Ask::new("GET", "/bare").key("k2").to(&setup.app).await.assert_ran(200);
    assert_eq!(setup.store.usage().entries, 1);
}

#[idempotent]
async fn guarded(State(probe): State<Probe>, Extension(held): Extension<Arc<()>>) -> &'static str {
    let _ = held;
    probe.run().await;
    "held"
}

#[tokio::test]
async fn arguments_live_as_long_as_the_handler() {
    let held = Arc::new(());
    let setup = Setup::of(Router::new().route("/", post(guarded)).layer(Extension(held.clone())));
    let before = Arc::strong_count(&held);
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { send("/").key("k").to(&app).await });
    setup.probe.started(1).await;
    request.abort();
    setup.probe.left(1).await;
    assert!(Arc::strong_count(&held) > before, "a lock taken by an extractor is held to the end of the body");
    setup.probe.open();
    setup.settled().await;
    assert_eq!(Arc::strong_count(&held), before);
}
