//! Names that generated code uses are the user's here: of types, generics, modules, methods and variables.

#![deny(warnings)]

use axum::{
    Router,
    extract::State,
    http::{Method, Uri},
    response::IntoResponse,
    routing::post,
};
use idem_axum::{Policy, idempotent};

/// Methods of every type, by the names of those that generated code calls.
#[allow(dead_code)]
trait Everything: Sized {
    fn open(self) {}
    fn part(self) {}
    fn last(self) {}
    fn ready(self) {}
    fn with_key(self) {}
    fn run(self) {}
    fn once(self) {}
    fn ttl(self) {}
    fn to_string(self) {}
    fn key(&self) {}
}

impl<T> Everything for T {}

#[allow(dead_code)]
mod types {
    pub(crate) struct Option;
    pub(crate) struct Result;
    pub(crate) struct Response;
    pub(crate) struct ToString;
    pub(crate) struct KeyExpression;
    pub(crate) enum Variants {
        Some,
        None,
        Ok,
        Err,
    }
}

use types::{KeyExpression, Option, Response, Result, ToString, Variants::*};

mod core {}
mod std {}
mod private {}

#[derive(Clone)]
struct RouterState(u64);

#[derive(Clone)]
struct BodyVia(u64);

#[derive(Clone)]
struct Call(u64);

#[idempotent(scope = state.0, key = text, policy = Policy::WEBHOOK)]
async fn types_of_the_module(State(state): State<Call>, ref text: String) -> String {
    let _ = (Option, Result, Response, ToString, KeyExpression, Some, None, Ok, Err);
    text.clone()
}

#[idempotent(key = _method.as_str())]
async fn as_a_state(State(RouterState(state)): State<RouterState>, (_method, uri): (Method, Uri)) -> String {
    format!("{state} {uri}")
}

#[idempotent]
async fn as_another_state(State(BodyVia(state)): State<BodyVia>, text: String) -> String {
    format!("{state} {text}")
}

#[idempotent(scope = body.len())]
async fn generics<Call, Response: Send + Sync + Clone + 'static, RouterState, Option>(
    _: State<Response>,
    body: String,
) -> impl IntoResponse
where
    Call: Default + Send,
    RouterState: Default + Send,
    Option: Default + Send,
{
    let (_, _, _) = (Call::default(), RouterState::default(), Option::default());
    body
}

#[idempotent(scope = (__call, __scope, __key))]
#[allow(clippy::used_underscore_binding)]
async fn variables(
    __call: Method,
    __a1: Method,
    __a0: Method,
    __scope: Method,
    __key: Method,
    __value: String,
) -> String {
    format!("{__call}{}{}{__scope}{__key}{__value}", __a1, __a0)
}

#[test]
fn compiles() {
    let _: Router<Call> = Router::new().route("/", post(types_of_the_module));
    let _: Router<RouterState> = Router::new().route("/", post(as_a_state));
    let _: Router<BodyVia> = Router::new().route("/", post(as_another_state));
    let _: Router<u8> = Router::new().route("/", post(generics::<u8, u8, u8, u8, _, _>));
    let _: Router = Router::new().route("/", post(variables));
}
