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

/// Splits a response into what goes to the caller and what is remembered.
pub(crate) async fn capture(policy: &Policy, response: Response) -> Ended<Response> {
    match look(policy, response).await {
        Captured::Done(response, outcome) => Ended { response, recording: Recording::Done(outcome) },
        Captured::Live { parts, given, body, tape } => {
            let (shown, recorded) = live::record(given, body, tape);
            let response = Response::from_parts(parts, shown);
            Ended { response, recording: Recording::Live(Box::pin(recorded)) }
        }
    }
}

/// What is ready of a response.
pub(super) enum Captured {
    /// All that is remembered.
    Done(Response, Outcome),
    /// The start: these frames, and the rest of the body is not ready.
    Live { parts: Parts, given: Given, body: Body, tape: Tape },
}

/// Takes as much of a response as is ready.
pub(super) async fn look(policy: &Policy, mut response: Response) -> Captured {
    let unrecorded = response.extensions_mut().remove::<Unrecorded>().is_some();
    // 1xx, the 101 of an upgrade among them, are in no set of statuses.
    if unrecorded || !policy.record.contains(response.status().as_u16()) {
        return done(response, Outcome::Release);
    }
    let size = response.body().size_hint();
    let room = if policy.replay.body { policy.max_response } else { 0 };
    let expected = usize::try_from(size.exact().unwrap_or(0)).unwrap_or(usize::MAX).min(room);
    let (parts, mut body) = response.into_parts();
    let Some(draft) = answer::head(policy, &parts, expected) else {
        return done(Response::from_parts(parts, body), Outcome::NotReplayable);
    };
    if !policy.replay.body {
        return done(Response::from_parts(parts, body), Outcome::Answer(draft));
    }
    if size.lower() > policy.max_response as u64 {
        return done(Response::from_parts(parts, body), Outcome::NotReplayable);
    }
    let mut tape = Tape { draft, room };
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
                return Captured::Live { parts, given, body, tape };
            }
        }
    };
    done(Response::from_parts(parts, body), outcome)
}

fn done(response: Response, outcome: Outcome) -> Captured {
    Captured::Done(response, outcome)
}
