//! A service that says what it promises: the policy document, and an OpenAPI document that has the same. Run it, and try the
//! `curl` lines that it prints:
//!
//! ```console
//! $ cargo run --example described --features openapi
//! ```

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Policies, Policy, Undescribed, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};
use utoipa::{OpenApi, ToSchema};

/// A key that was used for another request is 409, since the extractors say 422 of a body they do not understand.
const WRITE: Policy = Policy::DEFAULT.required().mismatch(409);

/// Creates an order.
#[utoipa::path(post, path = "/orders", request_body = NewOrder, responses(
    (status = 201, description = "The order.", body = Order, links(
        ("pay" = (operation_id = "pay", parameters(("id" = "$response.body#/id")))),
    )),
    (status = 400, description = "The body is not JSON.", body = String, content_type = "text/plain"),
    (status = 415, description = "The body is not said to be JSON.", body = String, content_type = "text/plain"),
    (status = 422, description = "The body is not an order.", body = String, content_type = "text/plain"),
))]
#[idempotent(policy = WRITE, fingerprint = json + path)]
async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    (StatusCode::CREATED, Json(orders.create(new).await))
}

/// Pays an order. One that is paid already is paid only once.
#[utoipa::path(post, path = "/orders/{id}/payment", params(("id" = u32, Path, description = "Of the order.")), responses(
    (status = 200, description = "The order.", body = Order),
    (status = 400, description = "The id is no number.", body = String, content_type = "text/plain"),
    (status = 404, description = "There is no such order."),
))]
#[idempotent(policy = WRITE, ttl = "7d", in_flight = wait("2s"), record = all - 404)]
async fn pay(State(orders): State<Orders>, Path(id): Path<u32>) -> Result<Json<Order>, StatusCode> {
    orders.pay(id).await.map(Json).ok_or(StatusCode::NOT_FOUND)
}

/// All orders.
#[utoipa::path(get, path = "/orders", responses((status = 200, description = "The orders.", body = Vec<Order>)))]
async fn list_orders(State(orders): State<Orders>) -> Json<Vec<Order>> {
    Json(orders.0.lock().await.clone())
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Orders", description = "Orders whose clients may retry."),
    paths(create_order, pay, list_orders)
)]
struct Api;

/// The service, with `/.well-known/idempotency` and `/openapi.json`.
pub(crate) fn app(idempotency: Idempotency) -> Result<Router, Undescribed> {
    // Each line lists an endpoint where it is routed.
    let policies = Policies::at("/.well-known/idempotency").mount(Method::POST, "/orders", create_order).mount(
        Method::POST,
        "/orders/{id}/payment",
        pay,
    );
    let routes = policies.routes().route("/orders", get(list_orders));
    let mut api = Api::openapi();
    policies.describe(&mut api)?;
    Ok(routes
        .layer(IdempotencyLayer::new(idempotency).described_by(&policies))
        .merge(policies.router())
        .route("/openapi.json", get(async move || Json(api)))
        .with_state(Orders::default()))
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), String> {
    let idempotency = Idempotency::in_memory();
    let app = app(idempotency.clone()).map_err(|undescribed| undescribed.to_string())?;
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let port: u16 = port.parse().map_err(|_| format!("PORT is `{port}`, which is not a port. Try PORT=3001."))?;
    let cannot_listen = |error| format!("Cannot listen on 127.0.0.1:{port}: {error}. Choose another port: PORT=3001.");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(cannot_listen)?;
    println!("{}", welcome(listener.local_addr().map_err(cannot_listen)?));
    let server = axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await });
    server.await.map_err(|error| format!("The server failed: {error}."))?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(at: SocketAddr) -> String {
    format!(
        "\
Try this in another terminal; ctrl-c stops the service.

# The rules of each endpoint, for programs and people.
curl http://{at}/.well-known/idempotency

# OpenAPI 3.1, with the header, the refusals and the replay header, for generators of clients and for test tools:
# uvx schemathesis run http://{at}/openapi.json
curl http://{at}/openapi.json

# A refusal says where the rules are: Link: </.well-known/idempotency>; rel=\"describedby\"
curl -i -X POST http://{at}/orders/1/payment
"
    )
}

/// Where the orders are kept.
#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<Order>>>);

impl Orders {
    async fn create(&self, NewOrder { item, express }: NewOrder) -> Order {
        let mut orders = self.0.lock().await;
        let order = Order { id: orders.len() + 1, item, express, paid: false };
        orders.push(order.clone());
        order
    }

    async fn pay(&self, id: u32) -> Option<Order> {
        let mut orders = self.0.lock().await;
        let order = orders.iter_mut().find(|order| u32::try_from(order.id) == Ok(id))?;
        order.paid = true;
        Some(order.clone())
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    item: String,
    express: bool,
}

#[derive(Clone, Serialize, ToSchema)]
struct Order {
    id: usize,
    item: String,
    express: bool,
    paid: bool,
}
