//! What compiles without the attribute, under the strictest lints, compiles with it.

#![forbid(unreachable_code, dead_code, unused, clippy::used_underscore_binding, clippy::unwrap_used)]
#![deny(warnings, clippy::pedantic, clippy::nursery)]

use axum::{
    Router,
    extract::{FromRequestParts, State},
    http::{Method, request::Parts},
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::post,
};
use futures_util::{Stream, StreamExt, stream};
use idem_axum::idempotent;
use std::{convert::Infallible, marker::PhantomData};

struct App;

type AppState = &'static App;

#[idempotent]
async fn alias(State(_app): State<AppState>, method: Method) -> String {
    method.to_string()
}

struct Guard<'a>(PhantomData<&'a ()>);

impl<S: Sync> FromRequestParts<S> for Guard<'_> {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(PhantomData))
    }
}

#[idempotent]
async fn elided(_guard: Guard<'_>, body: String) -> String {
    body
}

#[idempotent]
async fn named<'a>(guard: Guard<'a>, body: String) -> Result<String, &'a str> {
    let Guard(PhantomData) = guard;
    if body.is_empty() { Err("empty") } else { Ok(body) }
}

#[idempotent]
async fn two_named<'a, 'b: 'a>(first: Guard<'a>, second: Guard<'b>, third: Guard<'_>) -> Result<String, &'a str> {
    let named: [Guard<'a>; 2] = [first, second];
    let Guard(PhantomData) = third;
    if named.is_empty() { Err("empty") } else { Ok(String::new()) }
}

#[idempotent(scope = body.len())]
async fn unused_beside_a_scope(_guard: Guard<'_>, _: Method, (_one, two): (Method, Method), body: String) -> String {
    format!("{body}{two}")
}

struct AppError;

impl From<std::num::ParseIntError> for AppError {
    fn from(_: std::num::ParseIntError) -> Self {
        Self
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        "error".into_response()
    }
}

#[idempotent]
async fn events(body: String) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::iter([Event::default().data(body)]).map(Ok))
}

#[idempotent]
async fn events_or_error(body: String) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>, AppError> {
    let count: usize = body.parse()?;
    Ok(Sse::new(stream::iter([Event::default()]).take(count).map(Ok)))
}

trait Named {
    const NAME: &'static str;
    type Error: IntoResponse + Send + 'static;
}

struct Orders<Kind>(PhantomData<Kind>);

impl<Kind: Named + Send + Sync + 'static> Orders<Kind> {
    /// A function in a function cannot name `Kind`.
    #[idempotent]
    async fn events(_: Method) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + Send>, Kind::Error> {
        Ok(Sse::new(stream::iter([Event::default().data(Kind::NAME)]).map(Ok)))
    }
}

struct Small;

impl Named for Small {
    const NAME: &'static str = "small";
    type Error = AppError;
}

/// The name of a type parameter of the generated function.
#[derive(Clone)]
struct RouterState;

#[idempotent]
async fn same_name(State(RouterState): State<RouterState>, body: String) -> String {
    body
}

macro_rules! endpoint {
    ($name:ident, $argument:pat, $ty:ty, $output:ty, $scope:expr, $block:block) => {
        #[idempotent(scope = $scope)]
        async fn $name($argument: $ty) -> $output $block
    };
    ($item:item) => {
        #[idempotent]
        $item
    };
}

endpoint!(by_parts, method, Method, String, method, { method.to_string() });
endpoint! {
    async fn whole(method: Method) -> String {
        method.to_string()
    }
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/alias", post(alias))
        .route("/elided", post(elided))
        .route("/named", post(named))
        .route("/two-named", post(two_named))
        .route("/unused_beside_a_scope", post(unused_beside_a_scope))
        .route("/events", post(events))
        .route("/events_or_error", post(events_or_error))
        .route("/orders", post(Orders::<Small>::events))
        .route("/by_parts", post(by_parts))
        .route("/whole", post(whole))
        .with_state(&App);
    let _: Router = Router::new().route("/same_name", post(same_name)).with_state(RouterState);
}
