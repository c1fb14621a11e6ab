//! Charges after Stripe's API, good enough for Stripe's own SDKs: they make a key for each POST, and retry with it.
//!
//! ```console
//! $ cargo run --example stripe_like
//! ```

use std::{env, net::Ipv4Addr, num::NonZeroU64, sync::Arc};

use axum::extract::{Form, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::TcpListener, signal, sync::Mutex};

#[idempotent(policy = Policy::STRIPE)]
async fn create_charge(State(bank): State<Bank>, Params(new): Params<NewCharge>) -> Response {
    let mut charges = bank.0.lock().await;
    let number = charges.len() + 1;
    let (status, result) = match new.source.as_deref() {
        Some("tok_chargeDeclined") => ("failed", Err(Error::declined())),
        Some("tok_bankLost") => ("pending", Err(Error::bank_lost())),
        _ => ("succeeded", Ok(())),
    };
    let charge = Charge {
        id: format!("ch_{number}"),
        object: "charge",
        amount: new.amount,
        currency: new.currency,
        status,
        description: new.description,
    };
    charges.push(charge.clone());
    ([("Request-Id", format!("req_{number}"))], result.map(|()| Json(charge))).into_response()
}

/// How many charges there are, and which.
async fn list_charges(State(bank): State<Bank>) -> Json<List> {
    let data = bank.0.lock().await.clone();
    Json(List { object: "list", url: "/v1/charges", has_more: false, total_count: data.len(), data })
}

pub(crate) fn app(idempotency: Idempotency, bank: Bank) -> Router {
    Router::new()
        .route("/v1/charges", post(create_charge).get(list_charges))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(bank)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}/v1/charges", listener.local_addr()?)));

    let idempotency = Idempotency::in_memory();
    let server = axum::serve(listener, app(idempotency.clone(), Bank::default()));
    server.with_graceful_shutdown(async { drop(signal::ctrl_c().await) }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let charge = "-d amount=2000 -d currency=eur";
    format!(
        "\
The charges are at {url}. Try this in another terminal; ctrl-c stops the service.

# A charge: 200.
curl -i {url} -H 'Idempotency-Key: charge-1' {charge}

# The same line again: the same charge, marked, and no second one.
curl -i {url} -H 'Idempotency-Key: charge-1' {charge}

# The same key with other parameters: 400, idempotency_error.
curl -i {url} -H 'Idempotency-Key: charge-1' {charge} -d description=tea

# A charge that is lost on its way to the bank: 500. Again: the same, and no retry is asked for.
curl -i {url} -H 'Idempotency-Key: charge-2' {charge} -d source=tok_bankLost
curl -i {url} -H 'Idempotency-Key: charge-2' {charge} -d source=tok_bankLost

# Wrong parameters, 400, do not use up the key: the corrected request is served, 200.
curl -i {url} -H 'Idempotency-Key: charge-3' -d amount=0 -d currency=eur
curl -i {url} -H 'Idempotency-Key: charge-3' {charge}

# How many charges there are, and which.
curl -i {url}
"
    )
}

/// Where the charges are kept.
#[derive(Clone, Default)]
pub(crate) struct Bank(pub(crate) Arc<Mutex<Vec<Charge>>>);

#[derive(Deserialize)]
struct NewCharge {
    amount: NonZeroU64,
    currency: String,
    description: Option<String>,
    source: Option<String>,
}

#[derive(Clone, Serialize)]
pub(crate) struct Charge {
    id: String,
    object: &'static str,
    amount: NonZeroU64,
    currency: String,
    status: &'static str,
    description: Option<String>,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    url: &'static str,
    has_more: bool,
    total_count: usize,
    data: Vec<Charge>,
}

/// Parameters, as an extractor: what it rejects is never recorded.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Params<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let Form(params) = Form::from_request(request, state).await.map_err(|rejection| Error {
            status: StatusCode::BAD_REQUEST,
            r#type: "invalid_request_error",
            code: None,
            message: rejection.body_text(),
        })?;
        Ok(Self(params))
    }
}

/// An error in Stripe's shape.
#[derive(Serialize)]
struct Error {
    #[serde(skip)]
    status: StatusCode,
    r#type: &'static str,
    code: Option<&'static str>,
    message: String,
}

impl Error {
    fn declined() -> Self {
        let message = "Your card was declined.".to_owned();
        Self { status: StatusCode::PAYMENT_REQUIRED, r#type: "card_error", code: Some("card_declined"), message }
    }

    fn bank_lost() -> Self {
        let message = "The bank was asked for the charge, and did not reply.".to_owned();
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, r#type: "api_error", code: None, message }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: Error,
        }
        (self.status, Json(Body { error: self })).into_response()
    }
}
