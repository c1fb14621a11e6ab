//! The promises of `#[idempotent]`, one after the other, in one process and without a network:
//!
//! ```console
//! $ cargo run --example tour
//! ```

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::{BoxError, Router, extract::State, routing::post};
use idem_axum::{Idempotency, IdempotencyLayer, ManualClock, MemoryStore, Refusal, idempotent};
use tokio::sync::watch;
use tower::ServiceExt;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NANOSECOND: Duration = Duration::from_nanos(1);

#[idempotent(required, ttl = "24h")]
async fn pay(State(bank): State<Bank>, amount: String) -> (StatusCode, String) {
    let receipt = bank.charge().await;
    (StatusCode::CREATED, format!("{amount} paid, receipt {receipt}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    print!("{}", tour().await?);
    Ok(())
}

/// Tells what happens, and how often the handler has run by then. Each part has its own shop, and so its own count.
pub(crate) async fn tour() -> Result<String, BoxError> {
    let mut told = Transcript::default();
    first_run_and_replay(&mut told).await?;
    conflict_while_running(&mut told).await?;
    mismatch(&mut told).await?;
    missing_key(&mut told).await?;
    client_hangs_up(&mut told).await?;
    expiry(&mut told).await?;
    Ok(told.0)
}

async fn first_run_and_replay(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("First run and replay");
    told.line("A client pays.", shop.pay("a", "20 EUR").await?, &shop);
    told.line("It retries: the same response, and no second payment.", shop.pay("a", "20 EUR").await?, &shop);
    told.line("Another key is another payment.", shop.pay("b", "20 EUR").await?, &shop);
    Ok(())
}

async fn conflict_while_running(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("Conflict while running");
    shop.bank.open(false);
    let (first, ()) = tokio::try_join!(shop.pay("a", "20 EUR"), async {
        shop.bank.called().await;
        told.line("A client pays, and the bank takes its time.", "no response yet", &shop);
        told.line("It retries too early.", shop.pay("a", "20 EUR").await?, &shop);
        shop.bank.open(true);
        Ok(())
    })?;
    told.line("The bank replies, and so does the first request.", first, &shop);
    told.line("It retries again.", shop.pay("a", "20 EUR").await?, &shop);
    Ok(())
}

async fn mismatch(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("Mismatch");
    told.line("A client pays.", shop.pay("a", "20 EUR").await?, &shop);
    told.line("It sends another amount with the same key.", shop.pay("a", "90 EUR").await?, &shop);
    told.line("The record stays as it was.", shop.pay("a", "20 EUR").await?, &shop);
    Ok(())
}

async fn missing_key(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("Missing key");
    told.line("A client pays without a key, which is `required`.", shop.pay(None, "20 EUR").await?, &shop);
    Ok(())
}

async fn client_hangs_up(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("A client hangs up and retries");
    shop.bank.open(false);
    tokio::select! {
        _ = shop.pay("a", "20 EUR") => return Err("the bank is closed, yet there is a response".into()),
        // The request that loses is dropped, as a server drops it when the connection breaks.
        () = shop.bank.called() => told.line("A client pays, and hangs up while the handler runs.", "no client there", &shop),
    }
    told.line("It retries while the handler still runs.", shop.pay("a", "20 EUR").await?, &shop);
    shop.bank.open(true);
    shop.idempotency.drain().await;
    told.line("The handler still runs to its end.", "no client there", &shop);
    told.line("It retries again, and gets the response it missed.", shop.pay("a", "20 EUR").await?, &shop);
    Ok(())
}

async fn expiry(told: &mut Transcript) -> Result<(), BoxError> {
    let shop = Shop::new();
    told.part("Expiry");
    told.line("A client pays.", shop.pay("a", "20 EUR").await?, &shop);
    shop.clock.advance(DAY - NANOSECOND);
    told.line("It retries 24 hours later, but for a nanosecond.", shop.pay("a", "20 EUR").await?, &shop);
    shop.clock.advance(NANOSECOND);
    told.line("A nanosecond later the key is free: a new payment.", shop.pay("a", "20 EUR").await?, &shop);
    Ok(())
}

/// A shop with one endpoint, `POST /payments`, its clock and its bank.
struct Shop {
    app: Router,
    bank: Bank,
    clock: ManualClock,
    idempotency: Idempotency,
}

impl Shop {
    fn new() -> Self {
        let bank = Bank::default();
        let clock = ManualClock::new();
        let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
        let app = Router::new()
            .route("/payments", post(pay))
            .layer(IdempotencyLayer::new(idempotency.clone()))
            .with_state(bank.clone());
        bank.open(true);
        Self { app, bank, clock, idempotency }
    }

    /// What a client gets for a payment.
    async fn pay(&self, key: impl Into<Option<&str>>, amount: &'static str) -> Result<Received, BoxError> {
        let mut request = Request::post("/payments");
        if let Some(key) = key.into() {
            request = request.header("Idempotency-Key", key);
        }
        let Ok(response) = self.app.clone().oneshot(request.body(Body::from(amount))?).await;
        let (parts, body) = response.into_parts();
        Ok(Received {
            status: parts.status,
            replayed: parts.headers.contains_key("idempotent-replayed"),
            refusal: parts.extensions.get::<Refusal>().map(Refusal::code),
            body: String::from_utf8(to_bytes(body, usize::MAX).await?.into())?,
        })
    }
}

/// A bank that shows how often it was called, and replies while it is open.
#[derive(Clone, Default)]
struct Bank {
    calls: Arc<watch::Sender<usize>>,
    open: Arc<watch::Sender<bool>>,
}

impl Bank {
    async fn charge(&self) -> usize {
        self.calls.send_modify(|calls| *calls += 1);
        let receipt = self.calls();
        // Fails when the sender is gone, but here it is.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        receipt
    }

    fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Waits for the first call, and so for the handler to run.
    async fn called(&self) {
        let _ = self.calls.subscribe().wait_for(|calls| *calls > 0).await;
    }
}

/// What a client sees of a response.
struct Received {
    status: StatusCode,
    replayed: bool,
    refusal: Option<&'static str>,
    body: String,
}

impl Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, replayed, refusal, body } = self;
        let replayed = if *replayed { " (replay)" } else { "" };
        write!(f, "{} {}{replayed}", status.as_str(), refusal.unwrap_or(body))
    }
}

#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn part(&mut self, title: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0 += &format!("{gap}{title}\n");
    }

    fn line(&mut self, what: &str, response: impl Display, shop: &Shop) {
        let response = response.to_string();
        self.0 += &format!("  {what:<54} {response:<38} handler ran {}x\n", shop.bank.calls());
    }
}
