//! A response that is recorded in passing, without anything being done to it: for shadow mode.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::{Outcome, Shadow};

use super::capture::{Tape, start};
use crate::policy::Policy;

/// Gives the response back as it is. Its body is recorded as the caller reads it, and no frame is asked for before.
pub(crate) fn taped(policy: &Policy, response: Response, shadow: Shadow) -> Response {
    let (mut parts, body) = response.into_parts();
    let tape = match start(policy, &mut parts, &body) {
        Ok(tape) => tape,
        Err(outcome) => {
            shadow.ended(outcome);
            return Response::from_parts(parts, body);
        }
    };
    let remaining = length(&parts, &body);
    if remaining == Some(0) || body.is_end_stream() {
        // Nobody asks for a frame of it.
        shadow.ended(tape.finish());
        return Response::from_parts(parts, body);
    }
    Response::from_parts(parts, Body::new(Taped { body, remaining, recording: Some((tape, shadow)) }))
}

/// How many bytes the caller gets, where that is known before: the header counts, as it does for the server.
fn length(parts: &Parts, body: &Body) -> Option<u64> {
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    declared.or_else(|| body.size_hint().exact())
}

/// The handler's body on its way to the caller, who alone drives it. Dropped before its end, it drops the shadow, which
/// gives the claim back.
struct Taped {
    body: Body,
    /// The bytes still to come, where the length is known: a server does not ask for more.
    remaining: Option<u64>,
    recording: Option<(Tape, Shadow)>,
}

impl Taped {
    fn end(&mut self, outcome: impl FnOnce(Tape) -> Outcome) {
        if let Some((tape, shadow)) = self.recording.take() {
            shadow.ended(outcome(tape));
        }
    }

    fn record(&mut self, frame: &Frame<Bytes>) {
        let Some((tape, _)) = &mut self.recording else { return };
        if !tape.add(frame) {
            return self.end(|_| Outcome::NotReplayable);
        }
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(length));
        if self.remaining == Some(0) || self.body.is_end_stream() {
            self.end(Tape::finish);
        }
    }
}

impl HttpBody for Taped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.end(Tape::finish),
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
