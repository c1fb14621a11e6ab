//! Shadow mode: the rules are applied to every request and enforced on none.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::time::Duration;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use http::request::Parts;
use http_body::Body as _;
use idem_runtime::{Attempt, Idempotency, Observation, Would};
use tokio::time::timeout;

use crate::observing::observe;
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::response::{self, Given};

/// How many bytes of a body are read for the fingerprint.
const MOST: u64 = 2 << 20;
/// How long a request waits for them.
const LONGEST: Duration = Duration::from_secs(1);

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
    response::taped(policy, response, shadow)
}

/// A request that would have been refused for its key, and runs unprotected.
pub(crate) fn unprotected(parts: &Parts, refusal: &Refusal) {
    report(&observe(parts), refusal.code());
}

/// A request without a fingerprint, which runs unprotected.
pub(crate) fn unfinished(observation: &Observation, reason: Unread) {
    report(
        observation,
        match reason {
            Unread::Rejected => "reject",
            Unread::Costly => "unread",
        },
    );
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
        "unread" => {
            tracing::info!(would, "in shadow mode the request runs, and its body is too large or too slow to judge it")
        }
        "execute" => tracing::debug!(would, "in shadow mode the request runs, as it would"),
        _ => tracing::info!(would, "in shadow mode the request runs, and would not have"),
    });
}

/// Why a body was not read for the fingerprint.
pub(crate) enum Unread {
    /// It is larger than an extractor may read, or breaks off: enforced, the request would have been rejected.
    Rejected,
    /// It is larger, or takes longer, than a request may be held up for in shadow mode. What would have happened is not known.
    Costly,
}

/// Reads the body for the fingerprint, as far as that is cheap. Whatever comes of it, the body is given back as it came.
pub(crate) async fn buffer(parts: &Parts, mut body: Body) -> (Body, Result<Bytes, Unread>) {
    let limit = limit(parts);
    let most = limit.min(MOST);
    let over = || if limit <= MOST { Unread::Rejected } else { Unread::Costly };
    if body.size_hint().lower() > most {
        return (body, Err(over()));
    }
    let mut given = Given::default();
    let read = {
        let mut read = pin!(read(&mut body, &mut given, most));
        // A body that is there costs no timer.
        match read.as_mut().now_or_never() {
            Some(read) => Ok(read),
            None => timeout(LONGEST, read).await,
        }
    };
    match read {
        Ok(Read::Whole(bytes)) => (given.whole(), Ok(bytes)),
        Ok(Read::Over) => (given.then(body), Err(over())),
        Ok(Read::Failed(error)) => (given.failed(error), Err(Unread::Rejected)),
        Err(_) => (given.then(body), Err(Unread::Costly)),
    }
}

enum Read {
    Whole(Bytes),
    Over,
    Failed(axum::Error),
}

/// Puts the frames of at most so many bytes aside. Where this is dropped, none is lost.
async fn read(body: &mut Body, given: &mut Given, most: u64) -> Read {
    let mut bytes = BytesMut::new();
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Read::Whole(bytes.freeze()),
            Some(Ok(frame)) => {
                let fits = frame.data_ref().is_none_or(|data| {
                    let fits = (bytes.len() + data.len()) as u64 <= most;
                    if fits {
                        bytes.extend_from_slice(data);
                    }
                    fits
                });
                given.push(frame);
                if !fits {
                    return Read::Over;
                }
            }
            Some(Err(error)) => return Read::Failed(error),
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
