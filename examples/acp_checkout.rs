//! The checkout of the Agentic Commerce Protocol, version 2026-04-17: every POST needs a key, and a server error is not recorded. The
//! key of the payment is derived, so a retry after a lost response of the payment provider does not pay twice.
//!
//! ```console
//! $ cargo run --example acp_checkout
//! ```

use std::collections::{BTreeMap, HashMap};
use std::{env, net::Ipv4Addr, sync::Arc};

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header::AUTHORIZATION};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyKey, IdempotencyLayer, Policy, idempotent};
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

/// The version of the protocol.
const VERSION: &str = "2026-04-17";

// A key belongs to an agent and a path. With the preset alone, the key of another agent would be a conflict.

#[idempotent(policy = Policy::ACP, scope = (agent.id, path))]
async fn create_session(
    agent: Agent,
    State(shop): State<Shop>,
    Body(new): Body<NewSession>,
) -> (StatusCode, Json<Session>) {
    let mut shop = shop.0.lock().await;
    let id = format!("cs_{}", shop.sessions.len() + 1);
    let session = Session::new(id.clone(), agent.id, new.items);
    shop.sessions.insert(id, session.clone());
    (StatusCode::CREATED, Json(session))
}

#[idempotent(policy = Policy::ACP, scope = (agent.id, path))]
async fn update_session(
    agent: Agent,
    State(shop): State<Shop>,
    Path(id): Path<String>,
    Body(update): Body<NewSession>,
) -> Result<Json<Session>, Error> {
    let mut shop = shop.0.lock().await;
    let session = shop.session(agent, &id)?;
    session.must_be_open(StatusCode::BAD_REQUEST)?;
    *session = Session::new(id, agent.id, update.items);
    Ok(Json(session.clone()))
}

#[idempotent(policy = Policy::ACP, scope = (agent.id, path))]
async fn complete_session(
    agent: Agent,
    key: IdempotencyKey,
    State(shop): State<Shop>,
    Path(id): Path<String>,
    Body(completion): Body<Completion>,
) -> Result<Json<Session>, Error> {
    let mut shop = shop.0.lock().await;
    let session = shop.session(agent, &id)?;
    session.must_be_open(StatusCode::BAD_REQUEST)?;
    let amount = session.amount();
    // Each run for the same request derives the same key. It is the recovery point of the protocol's section 6.8.
    let Completion { payment_data: Payment { instrument: Instrument { credential } } } = completion;
    shop.provider.capture(key.derive("capture").as_str(), &credential.token, amount)?;
    let session = shop.session(agent, &id)?;
    session.complete();
    Ok(Json(session.clone()))
}

#[idempotent(policy = Policy::ACP, scope = (agent.id, path))]
async fn cancel_session(
    agent: Agent,
    State(shop): State<Shop>,
    Path(id): Path<String>,
) -> Result<Json<Session>, Error> {
    let mut shop = shop.0.lock().await;
    let session = shop.session(agent, &id)?;
    session.must_be_open(StatusCode::METHOD_NOT_ALLOWED)?;
    session.status = "canceled";
    Ok(Json(session.clone()))
}

async fn get_session(agent: Agent, State(shop): State<Shop>, Path(id): Path<String>) -> Result<Json<Session>, Error> {
    Ok(Json(shop.0.lock().await.session(agent, &id)?.clone()))
}

pub(crate) fn app(idempotency: Idempotency, shop: Shop) -> Router {
    Router::new()
        .route("/checkout_sessions", post(create_session))
        .route("/checkout_sessions/{id}", post(update_session).get(get_session))
        .route("/checkout_sessions/{id}/complete", post(complete_session))
        .route("/checkout_sessions/{id}/cancel", post(cancel_session))
        .layer(IdempotencyLayer::new(idempotency))
        .layer(from_fn(echo))
        .with_state(shop)
}

/// Every response has the `Idempotency-Key` and the `Request-Id` of its request, replays and refusals too.
async fn echo(request: Request, next: Next) -> Response {
    let echoed = ["idempotency-key", "request-id"].map(|name| (name, request.headers().get(name).cloned()));
    let mut response = next.run(request).await;
    for (name, value) in echoed {
        value.and_then(|value| response.headers_mut().insert(name, value));
    }
    response
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}/checkout_sessions", listener.local_addr()?)));

    let idempotency = Idempotency::in_memory();
    let server = axum::serve(listener, app(idempotency.clone(), Shop::default()));
    server.with_graceful_shutdown(async { drop(signal::ctrl_c().await) }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let agent = "-H 'Authorization: Bearer token-of-agent-1' -H 'API-Version: 2026-04-17'";
    let tea = r#"-d '{"items":[{"id":"tea","quantity":2}]}'"#;
    let same = r#"-d '{"items":[{"quantity":2.0,"id":"tea"}]}'"#;
    let other = r#"-d '{"items":[{"id":"tea","quantity":3}]}'"#;
    let pay = r#"-d '{"payment_data":{"instrument":{"credential":{"token":"spt_lost"}}}}'"#;
    format!(
        "\
The checkout is at {url}. Try this in another terminal; ctrl-c stops the service.

# No key: 400, idempotency_key_required.
curl -i {url} {agent} {tea}

# A session: 201.
curl -i {url} {agent} -H 'Idempotency-Key: key-1' {tea}

# The same JSON, written in another way: the same session, marked.
curl -i {url} {agent} -H 'Idempotency-Key: key-1' {same}

# Other JSON with the same key: 422, idempotency_conflict.
curl -i {url} {agent} -H 'Idempotency-Key: key-1' {other}

# A payment that is made, and whose response is lost: 503. It is not recorded, so the same line again completes the session: 200.
curl -i {url}/cs_1/complete {agent} -H 'Idempotency-Key: key-1' {pay}
curl -i {url}/cs_1/complete {agent} -H 'Idempotency-Key: key-1' {pay}

# The session is completed, and cannot be canceled: 405, which is recorded.
curl -i {url}/cs_1/cancel -X POST {agent} -H 'Idempotency-Key: key-1'

# The session.
curl -i {url}/cs_1 {agent}
"
    )
}

/// Who sent the request, and that its version is known. A real service looks the token up.
#[derive(Clone, Copy)]
struct Agent {
    id: &'static str,
}

impl<S: Sync> FromRequestParts<S> for Agent {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let text = |name| parts.headers.get(name)?.to_str().ok();
        let id = match text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer ")) {
            Some("token-of-agent-1") => "agent-1",
            Some("token-of-agent-2") => "agent-2",
            _ => return Err(Error::new(StatusCode::UNAUTHORIZED, "unauthorized", "The token is not known.")),
        };
        if text("api-version") != Some(VERSION) {
            let error = Error::new(StatusCode::BAD_REQUEST, "unsupported_api_version", "Send a supported API-Version.");
            return Err(Error { supported_versions: Some([VERSION]), ..error });
        }
        Ok(Self { id })
    }
}

/// A JSON body. What this extractor rejects is not recorded.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let invalid = |status, message: &str| Error::new(status, "invalid", message);
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|rejection| invalid(rejection.status(), &rejection.body_text()))?;
        serde_json::from_slice(&body).map(Self).map_err(|error| invalid(StatusCode::BAD_REQUEST, &error.to_string()))
    }
}

/// Where sessions are kept, and who takes the money.
#[derive(Clone, Default)]
pub(crate) struct Shop(pub(crate) Arc<Mutex<Checkout>>);

#[derive(Default)]
pub(crate) struct Checkout {
    sessions: BTreeMap<String, Session>,
    pub(crate) provider: Provider,
}

impl Checkout {
    /// Returns a session of this agent. The session of another one does not exist for it.
    fn session(&mut self, agent: Agent, id: &str) -> Result<&mut Session, Error> {
        let session = self.sessions.get_mut(id).filter(|session| session.agent == agent.id);
        session.ok_or_else(|| Error::new(StatusCode::NOT_FOUND, "not_found", "There is no such session."))
    }
}

/// A payment provider, which takes a key for each payment as well.
#[derive(Default)]
pub(crate) struct Provider {
    /// What was captured under each key.
    pub(crate) captured: HashMap<String, u64>,
}

impl Provider {
    fn capture(&mut self, key: &str, token: &str, amount: u64) -> Result<(), Error> {
        match (self.captured.insert(key.to_owned(), amount), token) {
            // The money is captured, and the response is lost on its way.
            (None, "spt_lost") => Err(Error::provider_lost()),
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct NewSession {
    items: Vec<Item>,
}

#[derive(Clone, Deserialize, Serialize)]
struct Item {
    id: String,
    #[serde(deserialize_with = "whole")]
    quantity: u32,
}

/// Takes 2.0 for 2, as the protocol does. Extractors see each retry, so one that took only 2 would reject a retry that says 2.0.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = f64::deserialize(deserializer)?;
    let whole = (1..=100).find(|whole| f64::from(*whole) == number);
    whole.ok_or_else(|| de::Error::custom("a quantity is a whole number from 1 to 100"))
}

#[derive(Deserialize)]
struct Completion {
    payment_data: Payment,
}

#[derive(Deserialize)]
struct Payment {
    instrument: Instrument,
}

#[derive(Deserialize)]
struct Instrument {
    credential: Credential,
}

#[derive(Deserialize)]
struct Credential {
    token: String,
}

/// A part of the protocol's session: what this shop has need of.
#[derive(Clone, Serialize)]
struct Session {
    id: String,
    #[serde(skip)]
    agent: &'static str,
    status: &'static str,
    currency: &'static str,
    line_items: Vec<Item>,
    totals: [Total; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Order>,
}

#[derive(Clone, Serialize)]
struct Total {
    r#type: &'static str,
    /// In minor units.
    amount: u64,
}

#[derive(Clone, Serialize)]
struct Order {
    id: String,
    checkout_session_id: String,
    permalink_url: String,
}

impl Session {
    fn new(id: String, agent: &'static str, line_items: Vec<Item>) -> Self {
        let quantity: u32 = line_items.iter().map(|item| item.quantity).sum();
        let totals = [Total { r#type: "total", amount: 500 * u64::from(quantity) }];
        let status = "ready_for_payment";
        Self { id, agent, status, currency: "usd", line_items, totals, order: None }
    }

    fn amount(&self) -> u64 {
        self.totals.iter().map(|total| total.amount).sum()
    }

    fn must_be_open(&self, or: StatusCode) -> Result<(), Error> {
        if self.status == "ready_for_payment" {
            return Ok(());
        }
        Err(Error::new(or, "invalid", &format!("The session is {}.", self.status)))
    }

    fn complete(&mut self) {
        self.status = "completed";
        self.order = Some(Order {
            id: self.id.replace("cs_", "order_"),
            checkout_session_id: self.id.clone(),
            permalink_url: format!("https://shop.example/orders/{}", self.id),
        });
    }
}

/// The flat error of the protocol. `Policy::ACP` makes those of idempotency.
#[derive(Serialize)]
struct Error {
    #[serde(skip)]
    status: StatusCode,
    r#type: &'static str,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    supported_versions: Option<[&'static str; 1]>,
}

impl Error {
    fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Self { status, r#type: "invalid_request", code, message: message.to_owned(), supported_versions: None }
    }

    fn provider_lost() -> Self {
        let message = "The payment provider does not respond. Send the same request again.";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "provider_unavailable", message);
        Self { r#type: "service_unavailable", ..error }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}
