//! A payment service that an operator can watch: a page for Prometheus, a dashboard for Grafana beside this file, and logs.
//!
//! ```console
//! $ cargo run --example observed
//! $ RUST_LOG=idem=debug cargo run --example observed
//! ```
//!
//! To see the dashboard, let a Prometheus scrape `127.0.0.1:3000/metrics` and import `examples/observed/dashboard.json`.

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, time};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

#[idempotent]
async fn pay(Json(payment): Json<Payment>) -> Json<Receipt> {
    // The span of the request is around this line: its endpoint and the hash of its key are shown with it.
    tracing::info!(cents = payment.cents, "paying");
    time::sleep(Duration::from_millis(payment.takes_ms)).await;
    Json(Receipt { paid: payment.cents })
}

/// Clients have been using this one for long. Before its rules are enforced, it is watched what they would do.
#[idempotent(shadow, required)]
async fn refund(Json(payment): Json<Payment>) -> Json<Receipt> {
    Json(Receipt { paid: payment.cents })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The spans of `idem` are shown when they close, with what became of each request.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::CLOSE).with_ansi(false).init();

    // Before the engine is built, so that every counter is there from the start. The buckets suit a store in memory as
    // well as one beyond a network, in seconds.
    let buckets = [0.00001, 0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let prometheus = PrometheusBuilder::new().set_buckets(&buckets)?.install_recorder()?;

    let idempotency = Idempotency::in_memory();
    let page = prometheus.clone();
    let app = Router::new()
        .route("/payments", post(pay))
        .route("/refunds", post(refund))
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .route("/metrics", get(async move || page.render()));

    // What the recorder has gathered is sorted in even when nothing scrapes it.
    tokio::spawn(async move {
        loop {
            time::sleep(Duration::from_secs(5)).await;
            prometheus.run_upkeep();
        }
    });

    let port = std::env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("{}", welcome(&url));
    axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let json = "-H 'Content-Type: application/json'";
    format!(
        "\
Try this in another terminal; ctrl-c stops the service.

# A first request, and a retry: `outcome=executed`, then `outcome=replayed`.
curl {url}/payments -H 'Idempotency-Key: a' {json} -d '{{\"cents\":700}}'
curl {url}/payments -H 'Idempotency-Key: a' {json} -d '{{\"cents\":700}}'

# The same key for another payment: refused, and a line in the log.
curl {url}/payments -H 'Idempotency-Key: a' {json} -d '{{\"cents\":800}}'

# Without a key nothing protects a payment.
curl {url}/payments {json} -d '{{\"cents\":700}}'

# Refunds are in shadow mode: this one is paid out, and `would=\"idempotency_key_missing\"` is counted and logged.
curl {url}/refunds {json} -d '{{\"cents\":700}}'

# What Prometheus gets.
curl {url}/metrics
"
    )
}

#[derive(Deserialize)]
struct Payment {
    cents: u32,
    /// How long the payment takes.
    #[serde(default)]
    takes_ms: u64,
}

#[derive(Serialize)]
struct Receipt {
    paid: u32,
}
