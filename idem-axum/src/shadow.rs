//! Shadow mode: the rules are applied to every request and enforced on none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use axum::BoxError;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::panics::discard;
use idem_runtime::{Attempt, Idempotency, Outcome, RequestSpan, Shadow, ShadowOutcome};

use crate::policy::{Policy, Refusal};
use crate::response::{self, Added, BodyRecorder, RecordedRequest};
use crate::telemetry;

/// Runs the handler in the request's own future, as without the attribute, and records its response if the key was free.
pub(crate) async fn run(
    idempotency: Idempotency,
    request: RecordedRequest<'static>,
    attempt: Attempt,
    span: RequestSpan,
    handler: BoxFuture<'static, Response>,
) -> Response {
    let policy = request.policy;
    let report = move |outcome| report(&span, name(outcome, policy));
    let shadow = idempotency.shadow(attempt, report).await;
    let response = handler.await;
    record(&request, response, shadow)
}

/// Reports a request that would have been refused for its key, and runs unprotected.
pub(crate) fn unprotected(parts: &request::Parts, refusal: &Refusal) {
    report(&telemetry::span(parts), refusal.code());
}

fn name(outcome: ShadowOutcome, policy: &'static Policy) -> &'static str {
    match outcome {
        ShadowOutcome::Execute => "execute",
        ShadowOutcome::Replay => "replay",
        ShadowOutcome::Wait => "wait",
        ShadowOutcome::Refuse(reason) => Refusal::new(reason, policy).code(),
        // An outcome that this version does not know.
        _ => "other",
    }
}

/// Reports what would have happened.
pub(crate) fn report(span: &RequestSpan, would: &'static str) {
    span.would(would);
    span.in_scope(|| match would {
        "unread" => {
            tracing::info!(would, "in shadow mode the request runs, and its body is too large or too slow to judge it")
        }
        "execute" => tracing::debug!(would, "in shadow mode the request runs, as it would"),
        _ => tracing::info!(would, "in shadow mode the request runs, and would not have"),
    });
}

/// Returns the response unchanged. Its body is recorded as the caller reads it, and no frame is requested before.
fn record(request: &RecordedRequest<'_>, response: Response, shadow: Shadow) -> Response {
    let (parts, body) = response.into_parts();
    let recorder = match response::start(request, &parts, &body) {
        Ok(recorder) => recorder,
        Err(outcome) => {
            shadow.ended(outcome);
            return Response::from_parts(parts, body);
        }
    };
    if recorder.is_complete() || body.is_end_stream() {
        // No frame of it will be requested.
        shadow.ended(recorder.finish());
        return Response::from_parts(parts, body);
    }
    Response::from_parts(parts, Body::new(PassivelyRecordedBody { body, recording: Some((recorder, shadow)) }))
}

/// A response body on its way to the caller, who alone drives it. If a stream is dropped before its end, the shadow is dropped, which
/// releases the claim.
struct PassivelyRecordedBody {
    body: Body,
    recording: Option<(BodyRecorder, Shadow)>,
}

impl PassivelyRecordedBody {
    fn end(&mut self, outcome: impl FnOnce(BodyRecorder) -> Outcome) {
        if let Some((recorder, shadow)) = self.recording.take() {
            shadow.ended(outcome(recorder));
        }
    }

    fn record(&mut self, frame: &Frame<Bytes>) {
        let Some((recorder, _)) = &mut self.recording else { return };
        let added = recorder.add(frame);
        // A server does not request more than the known length.
        let complete = recorder.is_complete();
        if added == Added::TooLarge {
            self.end(|_| Outcome::NotReplayable);
        } else if complete || self.body.is_end_stream() {
            self.end(BodyRecorder::finish);
        }
    }
}

impl Drop for PassivelyRecordedBody {
    /// A body that is there is recorded, although no caller reads it to its end: a server drops one that the status allows none. The
    /// handler was not cut off.
    fn drop(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.recording.is_some() && self.body.size_hint().exact().is_some() {
            match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *self).poll_frame(&mut cx))) {
                Ok(Poll::Ready(Some(Ok(frame)))) if frame.data_ref().is_some_and(|data| !data.is_empty()) => {}
                Ok(_) => return,
                Err(panic) => return discard(panic),
            }
        }
    }
}

impl HttpBody for PassivelyRecordedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.end(BodyRecorder::finish),
            Some(Err(_)) => self.end(|_| Outcome::NotReplayable),
            Some(Ok(frame)) => self.record(frame),
        }
        // `Body::new` wraps the error again.
        Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::into_inner)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
