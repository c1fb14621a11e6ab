//! Generic handlers and associated functions.

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use idem_axum::{Refusal, idempotent};
use serde::{Serialize, de::DeserializeOwned};

trait Repo: Clone + Send + Sync + 'static {
    type Order: DeserializeOwned + Serialize + Send;

    fn create(&self, order: Self::Order) -> impl Future<Output = Self::Order> + Send;
}

#[derive(Clone)]
struct Memory;

impl Repo for Memory {
    type Order = u64;

    async fn create(&self, order: u64) -> u64 {
        order
    }
}

#[idempotent]
async fn create<R>(State(repo): State<R>, Json(order): Json<R::Order>) -> Json<R::Order>
where
    R: Repo,
{
    Json(repo.create(order).await)
}

#[idempotent]
async fn limited<const LIMIT: usize, R: Repo>(State(_): State<R>, mut body: String) -> String {
    body.truncate(LIMIT);
    body
}

#[idempotent]
async fn no_arguments<const NUMBER: u8>() -> String {
    NUMBER.to_string()
}

#[idempotent]
async fn lifetime<'a>(body: String) -> Result<impl IntoResponse, &'a str> {
    if body.is_empty() { Err("empty") } else { Ok(body) }
}

#[idempotent]
async fn any_extractor<T: ToString + Send + 'static, U>(first: T, _: U) -> String
where
    U: FromRequestParts<Memory> + Send + 'static,
{
    first.to_string()
}

#[derive(Clone)]
struct Orders<R>(R);

impl<R: Repo> Orders<R> {
    #[idempotent(errors = Self::render)]
    async fn create(State(Self(repo)): State<Self>, Json(order): Json<R::Order>) -> Json<R::Order> {
        Json(repo.create(order).await)
    }

    fn render(refusal: &Refusal) -> Response {
        refusal.status().into_response()
    }
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/create", post(create::<Memory, _, _>))
        .route("/limited", post(limited::<8, Memory, _, _>))
        .route("/no_arguments", get(no_arguments::<42, _>))
        .route("/lifetime", post(lifetime))
        .route("/any_extractor", post(any_extractor::<axum::http::Method, axum::http::Uri, _, _>))
        .with_state(Memory);
    let _: Router = Router::new().route("/orders", post(Orders::<Memory>::create)).with_state(Orders(Memory));
}
