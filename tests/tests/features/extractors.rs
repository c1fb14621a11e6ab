//! Extractors, routers and safe methods, as the guide's page for users of axum says.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use aide::axum::ApiRouter;
use aide::openapi::OpenApi;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRef, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_extra::TypedHeader;
use axum_extra::extract::cookie::{Cookie, CookieJar};
use axum_extra::headers::UserAgent;
use axum_extra::routing::TypedPath;
use idem_axum::{Idempotency, Policies, Unrecorded, idempotent};
use idem_tests::support::{app, post as send, text};
use tower::ServiceExt;
use utoipa::openapi::HttpMethod;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

async fn ask(app: &Router, request: axum::http::request::Builder, body: &'static str) -> Response {
    let request = request.header("idempotency-key", "a").body(Body::from(body)).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

fn is_replay(response: &Response) -> bool {
    response.headers().contains_key("idempotent-replayed")
}

#[derive(serde::Deserialize, TypedPath)]
#[typed_path("/orders/{id}/pay")]
struct Pay {
    id: u32,
}

#[tokio::test]
async fn typed_paths_and_typed_headers_are_extractors_as_any() {
    #[idempotent]
    async fn pay(Pay { id }: Pay, TypedHeader(agent): TypedHeader<UserAgent>) -> String {
        format!("{agent} paid {id}")
    }
    let app = app(&Idempotency::in_memory(), Router::new().route(Pay::PATH, post(pay)));
    assert_eq!(ask(&app, Request::post("/orders/7/pay"), "").await.status(), 400, "the header is missing");
    let good = || Request::post("/orders/7/pay").header("user-agent", "alice");
    let (first, retry) = (ask(&app, good(), "").await, ask(&app, good(), "").await);
    assert!(!is_replay(&first) && is_replay(&retry));
    assert_eq!((text(first).await.as_str(), text(retry).await.as_str()), ("alice paid 7", "alice paid 7"));
}

#[tokio::test]
async fn a_router_of_utoipa_axum_serves_and_describes_the_endpoint() {
    #[utoipa::path(post, path = "/{id}", request_body = u32, responses((status = 200, body = String)))]
    #[idempotent(required)]
    async fn pay(Path(id): Path<u32>, Json(amount): Json<u32>) -> String {
        format!("{amount} for {id}")
    }
    let policies = Policies::<()>::at("/.well-known/idempotency").endpoint(Method::POST, "/orders/{id}", pay);
    let orders = OpenApiRouter::new().routes(routes!(pay));
    let (routes, mut document) = OpenApiRouter::<()>::new().nest("/orders", orders).split_for_parts();
    policies.describe(&mut document).unwrap();
    let operation = document.paths.get_path_operation("/orders/{id}", HttpMethod::Post).unwrap();
    assert!(operation.request_body.is_some() && operation.responses.responses.contains_key("409"));

    let app = app(&Idempotency::in_memory(), routes);
    let paid = || Request::post("/orders/7").header("content-type", "application/json");
    assert_eq!(text(ask(&app, paid(), "5").await).await, "5 for 7");
    assert!(is_replay(&ask(&app, paid(), "5").await));
}

#[tokio::test]
async fn a_jar_of_cookies_is_an_argument_and_a_response_whose_cookies_are_not_replayed() {
    #[idempotent]
    async fn visit(jar: CookieJar) -> (CookieJar, String) {
        let seen = jar.get("seen").map(|cookie| cookie.value().to_owned());
        (jar.add(Cookie::new("seen", "2")).add(Cookie::new("last", "now")), format!("{seen:?}"))
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(visit)));
    let request = || Request::post("/").header("cookie", "seen=1");
    let (first, retry) = (ask(&app, request(), "").await, ask(&app, request(), "").await);
    assert_eq!(first.headers().get_all("set-cookie").iter().count(), 2);
    assert!(is_replay(&retry) && !retry.headers().contains_key("set-cookie"));
    assert_eq!((text(first).await.as_str(), text(retry).await.as_str()), ("Some(\"1\")", "Some(\"1\")"));
    // With the new cookies the client is another caller.
    assert_eq!(ask(&app, Request::post("/").header("cookie", "seen=2; last=now"), "").await.status(), 422);
}

#[tokio::test]
async fn a_router_of_aide_serves_the_endpoint_and_does_not_describe_it() {
    async fn described() -> Json<&'static str> {
        Json("described")
    }
    #[idempotent]
    async fn pay(Path(id): Path<u32>, Json(amount): Json<u32>) -> String {
        format!("{amount} for {id}")
    }
    let mut document = OpenApi::default();
    let router = ApiRouter::new()
        .api_route("/described", aide::axum::routing::get(described))
        .route("/orders/{id}", post(pay))
        .finish_api(&mut document);
    let described: Vec<_> = document.paths.unwrap().paths.into_keys().collect();
    assert_eq!(described, ["/described"]);

    let app = app(&Idempotency::in_memory(), router);
    let order = || Request::post("/orders/7").header("content-type", "application/json");
    let (first, retry) = (ask(&app, order(), "5").await, ask(&app, order(), "5").await);
    assert!(!is_replay(&first) && is_replay(&retry));
    assert_eq!((text(first).await.as_str(), text(retry).await.as_str()), ("5 for 7", "5 for 7"));
    assert_eq!(ask(&app, order(), "6").await.status(), 422);
}

#[tokio::test]
async fn a_handler_that_takes_the_rejection_decides() {
    #[derive(serde::Deserialize)]
    struct NewOrder {
        item: String,
    }
    #[idempotent]
    async fn order(new: Result<Json<NewOrder>, JsonRejection>) -> Response {
        match new {
            Ok(Json(NewOrder { item })) => (StatusCode::CREATED, item).into_response(),
            Err(rejection) => (Unrecorded, rejection.status()).into_response(),
        }
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(order)));
    let json = || Request::post("/").header("content-type", "application/json");
    assert_eq!(ask(&app, json(), "{}").await.status(), 422);
    assert_eq!(ask(&app, json(), r#"{"item": "tea"}"#).await.status(), 201);
}

#[tokio::test]
async fn get_and_head_are_two_requests_and_a_redirect_leads_to_a_mismatch() {
    #[idempotent]
    async fn create() -> Redirect {
        Redirect::to("/orders/1")
    }
    #[idempotent]
    async fn read() -> &'static str {
        "order 1"
    }
    let routes = || Router::new().route("/orders", post(create)).route("/orders/{id}", get(read));
    let redirected = app(&Idempotency::in_memory(), routes());
    assert_eq!(ask(&redirected, Request::post("/orders"), "").await.status(), 303);
    assert_eq!(ask(&redirected, Request::get("/orders/1"), "").await.status(), 422);
    let safe = app(&Idempotency::in_memory(), routes());
    assert_eq!(ask(&safe, Request::get("/orders/1"), "").await.status(), 200);
    assert_eq!(ask(&safe, Request::head("/orders/1"), "").await.status(), 422);
}

tokio::task_local! {
    static USER: u32;
}

#[tokio::test]
async fn task_locals_of_the_request_reach_extractors_and_not_the_handler() {
    struct User(u32);
    impl<S: Sync> FromRequestParts<S> for User {
        type Rejection = StatusCode;
        async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, StatusCode> {
            USER.try_with(|user| Self(*user)).map_err(|_| StatusCode::UNAUTHORIZED)
        }
    }
    #[idempotent(scope = user)]
    async fn pay(User(user): User) -> String {
        format!("{user} {}", USER.try_with(|user| *user).is_ok())
    }
    let app = app(&Idempotency::in_memory(), Router::new().route("/", post(pay)));
    assert_eq!(ask(&app, Request::post("/"), "").await.status(), 401);
    let first = USER.scope(7, ask(&app, Request::post("/"), "")).await;
    assert_eq!(text(first).await, "7 false");
    assert!(is_replay(&USER.scope(7, ask(&app, Request::post("/"), "")).await));
}

#[tokio::test]
async fn handlers_go_wherever_handlers_go() {
    trait Repository: Clone + Send + Sync + 'static {
        fn name(&self) -> &'static str;
    }
    #[derive(Clone)]
    struct Memory;
    impl Repository for Memory {
        fn name(&self) -> &'static str {
            "memory"
        }
    }
    #[derive(Clone, FromRef)]
    struct App {
        number: u32,
    }
    #[idempotent]
    async fn generic<R: Repository>(State(repository): State<R>) -> &'static str {
        repository.name()
    }
    #[idempotent]
    async fn of_state(State(number): State<u32>) -> String {
        number.to_string()
    }
    #[idempotent]
    async fn of_parts(Path(id): Path<u32>, headers: HeaderMap, body: String) -> String {
        format!("{id} {} {body}", headers.len())
    }
    #[idempotent]
    async fn fallback() -> &'static str {
        "fallback"
    }
    let nested = Router::new().route("/state", post(of_state)).route("/parts/{id}", post(of_parts));
    let routes = Router::new()
        .nest("/v1", nested)
        .route("/generic", post(generic::<Memory, _, _>).with_state(Memory))
        .fallback(post(fallback))
        .with_state(App { number: 3 });
    let app = app(&Idempotency::in_memory(), routes);
    for (path, key, expected) in [
        ("/v1/state", "a", "3"),
        ("/v1/parts/7", "b", "7 1 x"),
        ("/generic", "c", "memory"),
        ("/none", "d", "fallback"),
    ] {
        let (first, retry) = (send(&app, path, key, "x").await, send(&app, path, key, "x").await);
        assert!(!is_replay(&first) && is_replay(&retry), "{path}");
        assert_eq!(text(retry).await, expected, "{path}");
    }
}
