//! A response that is recorded in passing, without anything being done to it: for shadow mode.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::{Outcome, Shadow};

use super::capture::{Captured, Tape, look};
use crate::policy::Policy;

/// Gives the response back as it is. What of it is ready is recorded now, and a stream as the caller reads it.
pub(crate) async fn taped(policy: &Policy, response: Response, shadow: Shadow) -> Response {
    match look(policy, response).await {
        Captured::Done(response, outcome) => {
            shadow.ended(outcome);
            response
        }
        Captured::Live { parts, given, body, tape } => {
            let body = Body::new(Taped { body, recording: Some((tape, shadow)) });
            Response::from_parts(parts, given.then(body))
        }
    }
}

/// The handler's body on its way to the caller, who alone drives it. Dropped before its end, it drops the shadow, which
/// gives the claim back.
struct Taped {
    body: Body,
    recording: Option<(Tape, Shadow)>,
}

impl Taped {
    fn end(&mut self, outcome: impl FnOnce(Tape) -> Outcome) {
        if let Some((tape, shadow)) = self.recording.take() {
            shadow.ended(outcome(tape));
        }
    }
}

impl HttpBody for Taped {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.end(Tape::finish),
            Some(Err(_)) => self.end(|_| Outcome::NotReplayable),
            Some(Ok(frame)) => {
                if self.recording.as_mut().is_some_and(|(tape, _)| !tape.add(frame)) {
                    self.end(|_| Outcome::NotReplayable);
                } else if self.body.is_end_stream() {
                    // Nobody need ask for more.
                    self.end(Tape::finish);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
