//! A body that goes to the caller live while it is recorded.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::{Outcome, Recorded};
use tokio::sync::{mpsc, oneshot};

use super::capture::Tape;

/// How many frames the caller may lag behind the recording. The recording does not depend on how fast the caller reads,
/// as long as it lags less than that.
const LAG: usize = 1024;

/// The frames that were ready at once, for the caller.
#[derive(Default)]
pub(super) struct Given(VecDeque<Frame<Bytes>>);

impl Given {
    pub(super) fn push(&mut self, frame: Frame<Bytes>) {
        self.0.push_back(frame);
    }

    /// They were all.
    pub(super) fn whole(mut self) -> Body {
        if self.0.len() <= 1 && self.0.iter().all(Frame::is_data) {
            let only = self.0.pop_front().and_then(|frame| frame.into_data().ok());
            return only.map_or_else(Body::empty, Body::from);
        }
        self.body(Rest::Nothing)
    }

    /// The caller gets the rest straight from the handler's body.
    pub(super) fn then(self, body: Body) -> Body {
        self.body(Rest::Handed(body))
    }

    /// The handler's body failed after them.
    pub(super) fn failed(self, error: axum::Error) -> Body {
        self.body(Rest::Failed(Some(error)))
    }

    fn body(self, rest: Rest) -> Body {
        Body::new(Shown { given: self.0, rest })
    }
}

/// What the recording sends to the caller.
enum Sent {
    Frame(Frame<Bytes>),
    /// The recording is over, and the caller reads the rest itself.
    Rest(Body),
    Failed(axum::Error),
}

/// The caller's body.
struct Shown {
    given: VecDeque<Frame<Bytes>>,
    rest: Rest,
}

enum Rest {
    Nothing,
    Handed(Body),
    Failed(Option<axum::Error>),
    Recorded { sent: mpsc::Receiver<Sent>, end: oneshot::Receiver<()> },
}

impl HttpBody for Shown {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(frame) = self.given.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            match &mut self.rest {
                Rest::Nothing => return Poll::Ready(None),
                Rest::Handed(body) => return Pin::new(body).poll_frame(cx),
                Rest::Failed(error) => return Poll::Ready(error.take().map(Err)),
                Rest::Recorded { sent, end } => match ready!(sent.poll_recv(cx)) {
                    Some(Sent::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                    Some(Sent::Rest(body)) => self.rest = Rest::Handed(body),
                    Some(Sent::Failed(error)) => self.rest = Rest::Failed(Some(error)),
                    // The end comes when the record is in place. Without it the recording was torn down, and what
                    // the caller has is not the whole.
                    None => {
                        self.rest = match ready!(Pin::new(end).poll(cx)) {
                            Ok(()) => Rest::Nothing,
                            Err(_) => Rest::Failed(Some(axum::Error::new("the response broke off"))),
                        }
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.given.is_empty()
            && match &self.rest {
                Rest::Nothing => true,
                Rest::Handed(body) => body.is_end_stream(),
                Rest::Failed(error) => error.is_none(),
                Rest::Recorded { .. } => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let given = self.given.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let mut hint = match &self.rest {
            // Trailers can only be sent with a body of unknown length.
            Rest::Nothing if self.given.iter().all(Frame::is_data) => SizeHint::with_exact(0),
            Rest::Handed(body) => body.size_hint(),
            _ => SizeHint::default(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(given));
        }
        hint.set_lower(hint.lower().saturating_add(given));
        hint
    }
}

/// Lets the caller's body end, once the record is in place.
struct End(Option<oneshot::Sender<()>>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            // Nobody may be listening.
            let _ = end.send(());
        }
    }
}

/// Splits a body: what the caller gets, and the recording of it, which goes on when the caller is gone.
pub(super) fn record(given: Given, body: Body, tape: Tape) -> (Body, impl Future<Output = Recorded> + Send) {
    let (sender, sent) = mpsc::channel(LAG);
    let (end_sender, end) = oneshot::channel();
    let shown = given.body(Rest::Recorded { sent, end });
    let pumped = AssertUnwindSafe(pump(body, tape, sender, end_sender)).catch_unwind();
    // A stream that panics is a stream that fails: the caller's body breaks off, as its sender is gone without an end.
    let recorded = pumped.map(|pumped| pumped.unwrap_or_else(|_panic| not_replayable()));
    (shown, recorded)
}

fn not_replayable() -> Recorded {
    Recorded { outcome: Outcome::NotReplayable, hold: None }
}

async fn pump(mut body: Body, mut tape: Tape, caller: mpsc::Sender<Sent>, end: oneshot::Sender<()>) -> Recorded {
    loop {
        // A caller that is gone changes nothing: the sending fails, and the recording goes on.
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => {
                let fits = tape.add(&frame);
                let _ = caller.send(Sent::Frame(frame)).await;
                if !fits {
                    let _ = caller.send(Sent::Rest(body)).await;
                    return not_replayable();
                }
            }
            Some(Err(error)) => {
                let _ = caller.send(Sent::Failed(error)).await;
                return not_replayable();
            }
            None => {
                drop(caller);
                return Recorded { outcome: tape.finish(), hold: Some(Box::new(End(Some(end)))) };
            }
        }
    }
}
