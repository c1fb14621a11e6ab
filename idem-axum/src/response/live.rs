//! A body that goes to the caller live while it is recorded.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::{Outcome, Recorded};

use super::capture::Tape;
use super::discard;
use super::queue::{self, End, Frames, Reader, Writer};

/// The frames that have come so far, for whoever reads them next.
#[derive(Default)]
pub(crate) struct Given(Frames);

impl Given {
    pub(crate) fn push(&mut self, frame: Frame<Bytes>) {
        self.0.push(frame);
    }

    /// They were all.
    pub(crate) fn whole(mut self) -> Body {
        if self.0.is_one_of_data() {
            let only = self.0.pop().and_then(|frame| frame.into_data().ok());
            return only.map_or_else(Body::empty, Body::from);
        }
        self.body(Rest::Nothing, None)
    }

    /// The caller gets the rest straight from the handler's body.
    pub(crate) fn then(self, body: Body) -> Body {
        self.body(Rest::Handed(body), None)
    }

    /// The handler's body failed after them.
    pub(crate) fn failed(self, error: axum::Error) -> Body {
        self.body(Rest::Failed(Some(error.into_inner())), None)
    }

    fn body(self, rest: Rest, remaining: Option<u64>) -> Body {
        Body::new(Shown { given: self.0, rest, remaining })
    }
}

/// The caller's body.
struct Shown {
    given: Frames,
    rest: Rest,
    /// What is still to come of a recorded body whose length the handler knew.
    remaining: Option<u64>,
}

/// What comes after the frames that were ready at once.
enum Rest {
    Nothing,
    /// Without its wrapping, since `Body::new` wraps it again, and axum looks for the reason within so many.
    Failed(Option<BoxError>),
    /// The caller reads the handler's body itself.
    Handed(Body),
    Recorded(Reader),
}

impl HttpBody for Shown {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.given.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            match &mut self.rest {
                Rest::Nothing => return Poll::Ready(None),
                Rest::Failed(error) => return Poll::Ready(error.take().map(Err)),
                Rest::Handed(body) => return Pin::new(body).poll_frame(cx).map_err(axum::Error::into_inner),
                Rest::Recorded(reader) => match ready!(reader.poll_read(cx)) {
                    Ok(frame) => {
                        let sent = frame.data_ref().map_or(0, |data| data.len() as u64);
                        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(sent));
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Err(End::Whole) => self.rest = Rest::Nothing,
                    Err(End::Failed(error)) => self.rest = Rest::Failed(Some(error.into_inner())),
                    Err(End::Rest(body)) => self.rest = Rest::Handed(body),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.given.is_empty()
            && match &self.rest {
                Rest::Nothing => true,
                Rest::Failed(error) => error.is_none(),
                Rest::Handed(body) => body.is_end_stream(),
                Rest::Recorded(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let given = self.given.size();
        let mut hint = match (&self.rest, self.remaining) {
            // Trailers can only be sent with a body of unknown length.
            (Rest::Nothing, _) if self.given.has_only_data() => SizeHint::with_exact(0),
            (Rest::Handed(body), _) => body.size_hint(),
            (Rest::Recorded(_), Some(remaining)) => SizeHint::with_exact(remaining),
            _ => SizeHint::default(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(given));
        }
        hint.set_lower(hint.lower().saturating_add(given));
        hint
    }
}

/// Splits a body: what the caller gets, and the recording of it, which goes on when the caller is gone.
pub(super) fn record(given: Given, body: Body, tape: Tape) -> (Body, impl Future<Output = Recorded> + Send) {
    let (writer, reader) = queue::new();
    let shown = given.body(Rest::Recorded(reader), body.size_hint().exact());
    let pumped = AssertUnwindSafe(pump(body, tape, writer)).catch_unwind();
    // A stream that panics is a stream that fails: the caller's body breaks off, as its writer is gone without an end.
    let recorded = pumped.map(|pumped| {
        pumped.unwrap_or_else(|panic| {
            discard(panic);
            not_replayable()
        })
    });
    (shown, recorded)
}

async fn pump(mut body: Body, mut tape: Tape, mut caller: Writer) -> Recorded {
    loop {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => {
                let fits = tape.add(&frame);
                caller.write(frame);
                if !fits {
                    caller.end(End::Rest(body));
                    return not_replayable();
                }
            }
            Some(Err(error)) => {
                caller.end(End::Failed(error));
                return not_replayable();
            }
            // The caller's body ends when the record is in place, so that a retry finds it.
            None => {
                caller.on_drop(End::Whole);
                return Recorded { outcome: tape.finish(), hold: Some(Box::new(caller)) };
            }
        }
    }
}

fn not_replayable() -> Recorded {
    Recorded { outcome: Outcome::NotReplayable, hold: None }
}
