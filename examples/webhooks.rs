//! A receiver of webhooks. For each kind of sender an extractor verifies the signature of the raw body and yields the event, so a
//! delivery that was forged is rejected before its key counts.
//!
//! ```console
//! $ cargo run --example webhooks
//! ```

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, net::Ipv4Addr, sync::Arc};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{BoxError, Json, RequestExt, Router};
use hmac::{Hmac, KeyInit, Mac};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::Sha256;
use standardwebhooks::Webhook;
use tokio::{net::TcpListener, signal, sync::Mutex};

/// Stripe: the id is in the body. A duplicate waits for the execution in flight, and then gets its response.
#[idempotent(key = event.id, required, policy = Policy::WEBHOOK, in_flight = wait("5s"))]
async fn stripe(State(app): State<App>, event: StripeEvent) -> Result<StatusCode, NotYet> {
    let mut shop = app.shop.lock().await;
    let StripeObject { id, customer } = event.data.object;
    match (event.r#type.as_str(), customer) {
        ("customer.created", _) => shop.add_customer(id),
        // Events may come in any order. A 500 is not recorded, so the redelivery runs the handler again.
        ("invoice.paid", Some(customer)) => shop.pay(&id, &customer)?,
        // Events that this service has no use for are acknowledged.
        _ => {}
    }
    Ok(StatusCode::OK)
}

/// GitHub: the id is in a header, and the signature does not cover it.
#[idempotent(key = delivery.id, required, policy = Policy::WEBHOOK)]
async fn github(State(app): State<App>, delivery: GithubDelivery) -> StatusCode {
    if let Some(Push { after, repository }) = delivery.push {
        app.shop.lock().await.done.push(format!("deployed {after} of {}", repository.full_name));
    }
    StatusCode::OK
}

/// Standard Webhooks, which many senders use: the id is in a header that the signature covers. The scope is the sender whose secret
/// verified it, so two senders may use the same id. Its name in the path can be spelled in more than one way.
#[idempotent(header = "webhook-id", required, policy = Policy::WEBHOOK, scope = message.sender)]
async fn standard(State(app): State<App>, message: StandardMessage) -> StatusCode {
    let StandardMessage { sender, event } = message;
    app.shop.lock().await.done.push(format!("{} {} of {sender}", event.r#type, event.data.id));
    StatusCode::OK
}

/// What was done, in order.
async fn done(State(app): State<App>) -> Json<Vec<String>> {
    Json(app.shop.lock().await.done.clone())
}

pub(crate) fn app(idempotency: Idempotency, app: App) -> Router {
    Router::new()
        .route("/webhooks/stripe", post(stripe))
        .route("/webhooks/github", post(github))
        .route("/webhooks/standard/{sender}", post(standard))
        .route("/done", get(done))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(app)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}", listener.local_addr()?))?);

    let idempotency = Idempotency::in_memory();
    let server = axum::serve(listener, app(idempotency.clone(), App::demo()?));
    server.with_graceful_shutdown(async { drop(signal::ctrl_c().await) }).await?;
    idempotency.drain().await;
    Ok(())
}

#[derive(Clone)]
pub(crate) struct App {
    secrets: Arc<Secrets>,
    pub(crate) shop: Arc<Mutex<Shop>>,
}

struct Secrets {
    stripe: &'static str,
    github: &'static str,
    standard: HashMap<&'static str, Webhook>,
}

// A real service reads its secrets from its configuration.
pub(crate) const STRIPE: &str = "whsec_of_stripe";
pub(crate) const GITHUB: &str = "It's a Secret to Everybody";
pub(crate) const ACME: &str = "whsec_YWNtZSBzaGlwcyBwYXJjZWxzIGV2ZXJ5d2hlcmU=";
pub(crate) const GLOBEX: &str = "whsec_Z2xvYmV4IHNoaXBzIHRoZW0gYSBiaXQgZmFzdGVy";

impl App {
    pub(crate) fn demo() -> Result<Self, BoxError> {
        let standard = [("acme", Webhook::new(ACME)?), ("globex", Webhook::new(GLOBEX)?)].into();
        Ok(Self { secrets: Arc::new(Secrets { stripe: STRIPE, github: GITHUB, standard }), shop: Arc::default() })
    }
}

#[derive(Default)]
pub(crate) struct Shop {
    customers: HashSet<String>,
    pub(crate) done: Vec<String>,
}

impl Shop {
    fn add_customer(&mut self, id: String) {
        self.done.push(format!("welcomed {id}"));
        self.customers.insert(id);
    }

    fn pay(&mut self, invoice: &str, customer: &str) -> Result<(), NotYet> {
        if !self.customers.contains(customer) {
            return Err(NotYet);
        }
        self.done.push(format!("{invoice} paid by {customer}"));
        Ok(())
    }
}

/// The customer is not known yet: the sender should deliver the event again.
pub(crate) struct NotYet;

impl IntoResponse for NotYet {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, "the customer is not known yet").into_response()
    }
}

/// An event of Stripe. Its signature was verified.
#[derive(Deserialize)]
pub(crate) struct StripeEvent {
    id: String,
    r#type: String,
    data: StripeData,
}

#[derive(Deserialize)]
struct StripeData {
    object: StripeObject,
}

#[derive(Deserialize)]
struct StripeObject {
    id: String,
    customer: Option<String>,
}

impl FromRequest<App> for StripeEvent {
    type Rejection = Rejected;

    async fn from_request(request: Request, app: &App) -> Result<Self, Rejected> {
        let (headers, body) = raw(request).await?;
        let signature = text(&headers, "stripe-signature").ok_or(Rejected::Forged)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        verify_stripe(app.secrets.stripe, signature, &body, now)?;
        json(&body)
    }
}

/// How old a delivery of Stripe may be. Shorter than the TTL of the policy, so an intercepted delivery never runs again: it is too
/// old long before its record expires.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Checks `t=<seconds>,v1=<hex>`. While a secret is being replaced there is a `v1` for each secret.
pub(crate) fn verify_stripe(secret: &str, signature: &str, body: &[u8], now: Duration) -> Result<(), Rejected> {
    let fields = || signature.split(',').filter_map(|field| field.trim().split_once('='));
    let (_, time) = fields().find(|(name, _)| *name == "t").ok_or(Rejected::Forged)?;
    let message = [time.as_bytes(), b".", body];
    if !fields().any(|(name, value)| name == "v1" && is_signed(secret, &message, value)) {
        return Err(Rejected::Forged);
    }
    // The signature covers the time.
    let time = time.parse().map(Duration::from_secs).map_err(|_| Rejected::Forged)?;
    if now.abs_diff(time) > TOLERANCE { Err(Rejected::Stale) } else { Ok(()) }
}

/// A delivery of GitHub. Its signature was verified.
pub(crate) struct GithubDelivery {
    id: String,
    push: Option<Push>,
}

#[derive(Deserialize)]
struct Push {
    after: String,
    repository: Repository,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

impl FromRequest<App> for GithubDelivery {
    type Rejection = Rejected;

    async fn from_request(request: Request, app: &App) -> Result<Self, Rejected> {
        let (headers, body) = raw(request).await?;
        let signature = text(&headers, "x-hub-signature-256").ok_or(Rejected::Forged)?;
        verify_github(app.secrets.github, signature, &body)?;
        let id = text(&headers, "x-github-delivery").ok_or(Rejected::Malformed)?.to_owned();
        let push = (text(&headers, "x-github-event") == Some("push")).then(|| json(&body)).transpose()?;
        Ok(Self { id, push })
    }
}

/// Checks `sha256=<hex>`.
pub(crate) fn verify_github(secret: &str, signature: &str, body: &[u8]) -> Result<(), Rejected> {
    let value = signature.strip_prefix("sha256=").ok_or(Rejected::Forged)?;
    if is_signed(secret, &[body], value) { Ok(()) } else { Err(Rejected::Forged) }
}

/// A message of Standard Webhooks, and who sent it. Its signature was verified.
pub(crate) struct StandardMessage {
    sender: String,
    event: StandardEvent,
}

#[derive(Deserialize)]
struct StandardEvent {
    r#type: String,
    data: StandardData,
}

#[derive(Deserialize)]
struct StandardData {
    id: String,
}

impl FromRequest<App> for StandardMessage {
    type Rejection = Rejected;

    async fn from_request(mut request: Request, app: &App) -> Result<Self, Rejected> {
        let sender: Result<Path<String>, PathRejection> = request.extract_parts().await;
        let Path(sender) = sender.map_err(|_| Rejected::Malformed)?;
        let (headers, body) = raw(request).await?;
        let webhook = app.secrets.standard.get(sender.as_str()).ok_or(Rejected::Forged)?;
        // Compares in constant time, and knows how old a message may be.
        webhook.verify(&body, &headers).map_err(|_| Rejected::Forged)?;
        Ok(Self { sender, event: json(&body)? })
    }
}

/// What an extractor says of a delivery that it does not take. Nothing of it is recorded, and its key stays free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    Forged,
    Stale,
    Malformed,
    /// The body could not be read, or is too large.
    Unread(StatusCode),
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        match self {
            Self::Forged => (StatusCode::UNAUTHORIZED, "no signature of this sender"),
            Self::Stale => (StatusCode::UNAUTHORIZED, "the delivery is too old, or a clock is wrong"),
            Self::Malformed => (StatusCode::BAD_REQUEST, "this is no event"),
            Self::Unread(status) => (status, "the body was not read"),
        }
        .into_response()
    }
}

/// Takes the bytes of the body as they came, which are what is signed.
async fn raw(request: Request) -> Result<(HeaderMap, Bytes), Rejected> {
    let headers = request.headers().clone();
    let body = request.extract().await.map_err(|rejection: BytesRejection| Rejected::Unread(rejection.status()))?;
    Ok((headers, body))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rejected> {
    serde_json::from_slice(body).map_err(|_| Rejected::Malformed)
}

fn mac(secret: &str, message: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::new_from_slice(secret.as_bytes()).ok()?;
    message.iter().for_each(|part| mac.update(part));
    Some(mac)
}

/// Whether this is the HMAC of the message, in hexadecimal. The comparison takes the same time wherever they differ.
fn is_signed(secret: &str, message: &[&[u8]], signature: &str) -> bool {
    let (Some(mac), Ok(signature)) = (mac(secret, message), hex::decode(signature)) else { return false };
    mac.verify_slice(&signature).is_ok()
}

fn welcome(url: &str) -> Result<String, BoxError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let sign = |secret, message: &[&[u8]]| mac(secret, message).map(|mac| hex::encode(mac.finalize().into_bytes()));
    let stripe = |body: &str| {
        let signature = sign(STRIPE, &[now.to_string().as_bytes(), b".", body.as_bytes()]).unwrap_or_default();
        format!("curl -i {url}/webhooks/stripe -H 'Stripe-Signature: t={now},v1={signature}' -d '{body}'")
    };
    let paid = stripe(r#"{"id":"evt_1","type":"invoice.paid","data":{"object":{"id":"in_1","customer":"cus_1"}}}"#);
    let created = stripe(r#"{"id":"evt_2","type":"customer.created","data":{"object":{"id":"cus_1"}}}"#);
    let forged =
        format!("curl -i {url}/webhooks/stripe -H 'Stripe-Signature: t={now},v1=00' -d '{{\"id\":\"evt_3\"}}'");

    let push = r#"{"after":"6113728f","repository":{"full_name":"acme/shop"}}"#;
    let signature = sign(GITHUB, &[push.as_bytes()]).unwrap_or_default();
    let github = format!(
        "curl -i {url}/webhooks/github -H 'X-GitHub-Event: push' -H 'X-GitHub-Delivery: 72d3162e' \
         -H 'X-Hub-Signature-256: sha256={signature}' -d '{push}'"
    );

    let delivered = r#"{"type":"parcel.delivered","data":{"id":"parcel-1"}}"#;
    let standard = |sender: &str, secret: &str| -> Result<String, BoxError> {
        let signature = Webhook::new(secret)?.sign("msg_1", now.try_into()?, delivered.as_bytes())?;
        Ok(format!(
            "curl -i {url}/webhooks/standard/{sender} -H 'webhook-id: msg_1' -H 'webhook-timestamp: {now}' \
             -H 'webhook-signature: {signature}' -d '{delivered}'"
        ))
    };
    let (acme, globex) = (standard("acme", ACME)?, standard("globex", GLOBEX)?);
    Ok(format!(
        "\
Webhooks are received at {url}/webhooks/. Try this in another terminal, within five minutes; ctrl-c stops the service.

# Stripe says that an invoice was paid, by a customer who is not known yet: 500. The key stays free.
{paid}

# The customer: 200.
{created}

# Stripe delivers the first event again: now it is 200. And once more: the same, marked, and nothing is done.
{paid}
{paid}

# No signature of Stripe's: 401.
{forged}

# GitHub, twice: one deployment.
{github}
{github}

# Two senders with the same id: both are processed, and a duplicate is not.
{acme}
{globex}
{acme}

# What was done.
curl -i {url}/done
"
    ))
}
