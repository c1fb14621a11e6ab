//! Shadow mode: the rules are applied to every request and enforced on none.

use std::future::poll_fn;
use std::pin::Pin;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::request::Parts;
use http_body::Body as _;
use idem_runtime::{Attempt, Idempotency, Observation, Would};

use crate::observing::observe;
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::response::{self, Given};

/// Runs the body in the request's own future, as without the attribute, and has what it answers recorded if the key was free.
pub(crate) async fn run<F>(
    idempotency: &Idempotency,
    policy: &'static Policy,
    attempt: Attempt,
    observation: Observation,
    body: F,
) -> Response
where
    F: Future<Output: IntoResponse>,
{
    let report = move |would| report(&observation, name(would, policy));
    let shadow = idempotency.shadow(attempt, report).await;
    let response = body.await.into_response();
    response::taped(policy, response, shadow).await
}

/// A request that would have been refused for its key, and runs unprotected.
pub(crate) fn unprotected(parts: &Parts, refusal: &Refusal) {
    report(&observe(parts), refusal.code());
}

/// A request whose body could not be read for the fingerprint: it would have been rejected.
pub(crate) fn rejected(observation: &Observation) {
    report(observation, "reject");
}

fn name(would: Would, policy: &'static Policy) -> &'static str {
    match would {
        Would::Execute => "execute",
        Would::Replay => "replay",
        Would::Wait => "wait",
        Would::Refuse(refused) => Refusal::of(refused, policy).code(),
        // What this version does not know.
        _ => "other",
    }
}

fn report(observation: &Observation, would: &'static str) {
    observation.would(would);
    observation.in_scope(|| match would {
        "execute" => tracing::debug!(would, "in shadow mode the request runs, as it would"),
        _ => tracing::info!(would, "in shadow mode the request runs, and would not have"),
    });
}

/// Reads the body where it is not larger than an extractor may read; otherwise it is given back as it came, and so is one
/// that breaks off.
pub(crate) async fn buffer(parts: &Parts, mut body: Body) -> (Body, Option<Bytes>) {
    let limit = limit(parts);
    let (mut given, mut bytes) = (Given::default(), BytesMut::new());
    loop {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => return (given.whole(), Some(bytes.freeze())),
            Some(Ok(frame)) => {
                let fits = frame.data_ref().is_none_or(|data| {
                    bytes.extend_from_slice(data);
                    bytes.len() as u64 <= limit
                });
                given.push(frame);
                if !fits {
                    return (given.then(body), None);
                }
            }
            Some(Err(error)) => return (given.failed(error), None),
        }
    }
}

/// The limit that holds for this request: axum does not tell it, but a body of unknown length that is limited says what it
/// may have at most.
fn limit(parts: &Parts) -> u64 {
    let mut carrier = Request::new(Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>()));
    carrier.extensions_mut().clone_from(&parts.extensions);
    carrier.with_limited_body().into_body().size_hint().upper().unwrap_or(u64::MAX)
}
