//! Which promises a subject breaks, tried out on it.

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Failure;
use crate::app::{Pace, Shop};
use crate::batch::send;
use crate::row::{Bodies, Kind, request};
use crate::subject::{KeyedBy, Subject};

/// How long the handler takes if something is to happen meanwhile.
const PAUSE: Duration = Duration::from_millis(150);
/// More than any subject records by default.
const LARGE: usize = 8 * 1024 * 1024;

/// What one subject did.
#[derive(Clone, Debug, Serialize)]
pub struct Promises {
    /// The name of the subject.
    pub subject: &'static str,
    /// How often the handler ran for 8 equal requests at once. Kept: 1.
    pub concurrent: u64,
    /// What the same key with another body got. Kept: a refusal.
    pub other_body: String,
    /// Whether the handler reached its end after its caller hung up. Kept: yes.
    pub hang_up: bool,
    /// What the caller of a large response got, and what its retry got. Kept: the response, and no second run.
    pub large: String,
    /// Whether the large response was sent and the handler did not run again.
    pub large_kept: bool,
    /// Whether another caller's request with the same key got this caller's response. Kept: no.
    pub leaks: bool,
}

/// Tries the promises on `subject`.
///
/// # Errors
/// If a request gets no response at all.
pub fn try_out(subject: &Subject) -> Result<Promises, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let kept = Promises {
        subject: subject.name,
        concurrent: runtime.block_on(concurrent(subject))?,
        other_body: runtime.block_on(other_body(subject))?,
        hang_up: runtime.block_on(hang_up(subject))?,
        large: String::new(),
        large_kept: false,
        leaks: runtime.block_on(leaks(subject))?,
    };
    let (large, large_kept) = runtime.block_on(large(subject))?;
    end(runtime);
    Ok(Promises { large, large_kept, ..kept })
}

/// Without waiting for what a subject may have left running.
fn end(runtime: Runtime) {
    runtime.shutdown_background();
}

fn routed(subject: &Subject, shop: &Shop) -> (Router, Bodies) {
    ((subject.router)(shop), Bodies::new(64))
}

async fn concurrent(subject: &Subject) -> Result<u64, Failure> {
    let shop = Shop::new(Pace::Slow(PAUSE));
    let (router, bodies) = routed(subject, &shop);
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        let (mut router, request) = (router.clone(), request(subject, Kind::Replay, 1, &bodies));
        requests.spawn(async move { send(&mut router, request).await.map(|_| ()) });
    }
    while let Some(done) = requests.join_next().await {
        done??;
    }
    Ok(shop.executions())
}

async fn other_body(subject: &Subject) -> Result<String, Failure> {
    if subject.keyed_by == KeyedBy::Body {
        return Ok("runs: there is no key".to_owned());
    }
    let shop = Shop::new(Pace::Prompt);
    let (mut router, bodies) = routed(subject, &shop);
    send(&mut router, request(subject, Kind::Replay, 1, &bodies)).await?;
    let response = send(&mut router, request(subject, Kind::Mismatch, 1, &bodies)).await?;
    Ok(match (shop.executions(), response.status()) {
        (1, StatusCode::CREATED) => "gets the first one's response".to_owned(),
        (1, status) => format!("refused with {}", status.as_u16()),
        _ => "runs".to_owned(),
    })
}

async fn hang_up(subject: &Subject) -> Result<bool, Failure> {
    let shop = Shop::new(Pace::Slow(PAUSE));
    let (mut router, bodies) = routed(subject, &shop);
    let request = request(subject, Kind::Replay, 1, &bodies);
    let caller = tokio::spawn(async move { send(&mut router, request).await.map(|_| ()) });
    while shop.executions() == 0 && !caller.is_finished() {
        sleep(Duration::from_millis(1)).await;
    }
    // What hyper does to a handler whose client hangs up: its future is dropped.
    caller.abort();
    for _ in 0..100 {
        if shop.ended() == 1 {
            return Ok(true);
        }
        sleep(PAUSE / 10).await;
    }
    Ok(false)
}

async fn large(subject: &Subject) -> Result<(String, bool), Failure> {
    let shop = Shop::new(Pace::Prompt).with_padding(LARGE);
    let (mut router, bodies) = routed(subject, &shop);
    let mut responses = Vec::new();
    for _ in 0..2 {
        let response = send(&mut router, request(subject, Kind::Replay, 1, &bodies)).await?;
        responses.push(response);
    }
    let sent = responses[0].status() == StatusCode::CREATED && *responses[0].body() > LARGE;
    let first = if sent { "sent".to_owned() } else { format!("lost, {}", responses[0].status().as_u16()) };
    let retry = match (shop.executions(), responses[1].status()) {
        (1, StatusCode::CREATED) => "replayed".to_owned(),
        (1, status) => format!("refused with {}", status.as_u16()),
        _ => "runs again".to_owned(),
    };
    Ok((format!("{first}; a retry is {retry}").replace("is runs", "runs"), sent && shop.executions() == 1))
}

async fn leaks(subject: &Subject) -> Result<bool, Failure> {
    let shop = Shop::new(Pace::Prompt);
    let (mut router, bodies) = routed(subject, &shop);
    for caller in ["Bearer one", "Bearer two"] {
        let mut request = request(subject, Kind::Replay, 1, &bodies);
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static(caller));
        let status = send(&mut router, request).await?.status();
        if caller == "Bearer two" {
            return Ok(shop.executions() == 1 && status == StatusCode::CREATED);
        }
    }
    Ok(false)
}
