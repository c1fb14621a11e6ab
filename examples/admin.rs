//! A service with the page for support: look a key up, settle an outcome that is unknown, forget a record. Run it, and open
//! the address that it prints:
//!
//! ```console
//! $ cargo run --example admin
//! ```

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{StatusCode, request::Parts};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use idem_admin::{Admin, Audit};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, runtime, signal, sync::Mutex, task};
use tower::ServiceExt;

#[idempotent]
async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    (StatusCode::CREATED, Json(orders.create(new.item).await))
}

#[idempotent(scope = header("X-Shop"))]
async fn close_shop() -> &'static str {
    "closed"
}

fn routes(idempotency: &Idempotency, orders: Orders) -> Router {
    let shop = Router::new()
        .route("/orders", post(create_order))
        .route("/closings", post(close_shop))
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .with_state(orders);
    let admin = Admin::new(idempotency.clone(), employee).title("Shop: idempotency keys").audit(write_down);
    shop.nest("/support/keys", admin.router().layer(from_fn(stand_in_for_your_authentication)))
}

/// The person, as the page is to know them. Only those whom the middleware let through see the page.
fn employee(parts: &Parts) -> Option<String> {
    Some(parts.extensions.get::<Employee>()?.name.to_owned())
}

/// What your authentication finds out.
#[derive(Clone)]
struct Employee {
    name: &'static str,
}

/// **A STAND-IN: put your session or your single sign-on here.** A password in the source protects nothing.
async fn stand_in_for_your_authentication(mut request: Request, next: Next) -> Response {
    // `support` with the password `tea`, as `Authorization: Basic` has them.
    if request.headers().get(AUTHORIZATION).is_none_or(|sent| sent != "Basic c3VwcG9ydDp0ZWE=") {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"support\"")]).into_response();
    }
    request.extensions_mut().insert(Employee { name: "support" });
    next.run(request).await
}

/// Where look-ups and changes are written down: here, on the screen. They are `tracing` events as well.
fn write_down(audit: &Audit) {
    let Audit { actor, action, key, endpoint, result, .. } = audit;
    let key = key.map_or_else(|| "-".to_owned(), |key| key.to_string());
    println!("audit: {actor} {action} key {key} {}: {result}", endpoint.as_deref().unwrap_or("-"));
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
    let (idempotency, orders) = (Idempotency::in_memory(), Orders::default());
    let app = routes(&idempotency, orders.clone());
    something_to_look_at(&app, &idempotency, &orders).await;

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let port = port.parse().map_err(|_| format!("PORT is `{port}`, which is not a port. Try PORT=3001."))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|error| format!("Cannot listen on 127.0.0.1:{port}: {error}. Choose another port: PORT=3001"))?;
    let address = listener.local_addr().map_err(|error| format!("The listener has no address: {error}."))?;
    println!(
        "\
The page for support is at http://{address}/support/keys. Sign in as support, with the password tea. There is something
under these keys; ctrl-c stops the service.

order-1     recorded: a retry gets its response
order-2     recorded, with a response that tries to run a script on the page
order-3     its outcome is unknown, as after a crash
closing-1   recorded, in the scope of the header X-Shop: berlin
"
    );
    let server = axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await });
    server.await.map_err(|error| format!("The server failed: {error}."))?;
    idempotency.drain().await;
    Ok(())
}

/// A key for each thing that the page can show.
async fn something_to_look_at(app: &Router, idempotency: &Idempotency, orders: &Orders) {
    send(app, order("order-1", "tea")).await;
    send(app, order("order-2", "<script>document.title = 'taken over'</script>")).await;
    let closing = Request::post("/closings").header("Idempotency-Key", "closing-1").header("X-Shop", "berlin");
    send(app, closing.body(Body::empty())).await;

    // What a crash leaves behind: a handler that is dropped half-way, with its runtime. It waits for the orders.
    let _busy = orders.0.lock().await;
    let (app, engine) = (app.clone(), idempotency.clone());
    let crash = task::spawn_blocking(move || {
        let Ok(crashing) = runtime::Builder::new_current_thread().build() else { return };
        crashing.block_on(async {
            task::spawn(async move { send(&app, order("order-3", "coffee")).await });
            while engine.executions() == 0 {
                task::yield_now().await;
            }
        });
    });
    if crash.await.is_err() {
        eprintln!("There is nothing under order-3, since no runtime could be started that crashes.");
    }
}

fn order(key: &str, item: &str) -> Result<Request, axum::http::Error> {
    let body = serde_json::json!({ "item": item }).to_string();
    let request = Request::post("/orders").header("Idempotency-Key", key).header(CONTENT_TYPE, "application/json");
    request.body(Body::from(body))
}

async fn send(app: &Router, request: Result<Request, axum::http::Error>) {
    if let Ok(request) = request {
        let response = app.clone().oneshot(request).await.into_response();
        if !response.status().is_success() {
            eprintln!("A request that was to leave something to look at got {}.", response.status());
        }
    }
}

/// Where the orders are kept.
#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<Order>>>);

impl Orders {
    async fn create(&self, item: String) -> Order {
        let mut orders = self.0.lock().await;
        let order = Order { id: orders.len() + 1, item };
        orders.push(order.clone());
        order
    }
}

#[derive(Deserialize)]
struct NewOrder {
    item: String,
}

#[derive(Clone, Serialize)]
struct Order {
    id: usize,
    item: String,
}
