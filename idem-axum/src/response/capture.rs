//! Captures a response on its way to the first caller.
//!
//! Recording never turns an answer into an error and never delays it: what is ready is recorded at once, and what is not
//! ready goes to the caller live, frame by frame, and is recorded as it flows.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::response::Parts;
use http_body::{Body as _, Frame};
use idem_runtime::{Draft, Ended, Outcome, Recording};

use super::live::{self, Given};
use super::{Unrecorded, answer};
use crate::policy::Policy;

/// A recording in progress: the head of the answer, and the body as far as it has come.
pub(super) struct Tape {
    draft: Draft,
    /// How many more bytes of body are recorded.
    room: usize,
}

impl Tape {
    /// Adds a frame; `false` when the response is larger than what is recorded. Trailers are not: they are never replayed.
    pub(super) fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref() else { return true };
        let Some(room) = self.room.checked_sub(data.len()) else { return false };
        self.room = room;
        self.draft.put(data);
        true
    }

    pub(super) fn finish(self) -> Outcome {
        Outcome::Answer(self.draft)
    }
}

/// Starts the recording of a response, or says what is remembered where no body is to be recorded.
pub(super) fn start(policy: &Policy, parts: &mut Parts, body: &Body) -> Result<Tape, Outcome> {
    let unrecorded = parts.extensions.remove::<Unrecorded>().is_some();
    // 1xx, the 101 of an upgrade among them, are in no set of statuses.
    if unrecorded || !policy.record.contains(parts.status.as_u16()) {
        return Err(Outcome::Release);
    }
    let size = body.size_hint();
    let room = if policy.replay.body { policy.max_response } else { 0 };
    let expected = usize::try_from(size.exact().unwrap_or(0)).unwrap_or(usize::MAX).min(room);
    let Some(draft) = answer::head(policy, parts, expected) else {
        return Err(Outcome::NotReplayable);
    };
    if !policy.replay.body {
        return Err(Outcome::Answer(draft));
    }
    if size.lower() > policy.max_response as u64 {
        return Err(Outcome::NotReplayable);
    }
    Ok(Tape { draft, room })
}

/// Splits a response into what goes to the caller and what is remembered.
pub(crate) async fn capture(policy: &Policy, response: Response) -> Ended<Response> {
    let (mut parts, mut body) = response.into_parts();
    let mut tape = match start(policy, &mut parts, &body) {
        Ok(tape) => tape,
        Err(outcome) => return done(Response::from_parts(parts, body), outcome),
    };
    let mut given = Given::default();
    let (body, outcome) = loop {
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await {
            Poll::Ready(None) => break (given.whole(), tape.finish()),
            Poll::Ready(Some(Ok(frame))) => {
                let fits = tape.add(&frame);
                given.push(frame);
                if !fits {
                    break (given.then(body), Outcome::NotReplayable);
                }
            }
            Poll::Ready(Some(Err(error))) => break (given.failed(error), Outcome::NotReplayable),
            Poll::Pending => {
                let (shown, recorded) = live::record(given, body, tape);
                let response = Response::from_parts(parts, shown);
                return Ended { response, recording: Recording::Live(Box::pin(recorded)) };
            }
        }
    };
    done(Response::from_parts(parts, body), outcome)
}

fn done(response: Response, outcome: Outcome) -> Ended<Response> {
    Ended { response, recording: Recording::Done(outcome) }
}
