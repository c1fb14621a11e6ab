//! Bodies that have been read in part: their frames and their rest, for the next reader; and live recording.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::RecordedStream;
use idem_runtime::panics::{discard, drop_quietly};

use super::channel::{self, End, Reader, Writer};
use super::recorder::{Added, BodyRecorder, poll_body};

/// After this many frames the data of further ones is put together: a caller that lags no longer sees where a frame
/// ended, and many small frames take no more memory than their bytes.
const FRAMES: usize = 1024;

/// Frames in order, and no more memory than their bytes need.
#[derive(Default)]
struct Frames {
    /// The first of all: most bodies have one, and need no queue.
    first: Option<Frame<Bytes>>,
    frames: VecDeque<Frame<Bytes>>,
    /// The data that came when there were [`FRAMES`] frames.
    tail: BytesMut,
}

impl Frames {
    fn push(&mut self, frame: Frame<Bytes>) {
        if self.is_empty() {
            self.first = Some(frame);
            return;
        }
        let merge = !self.tail.is_empty() || self.frames.len() >= FRAMES;
        match frame.data_ref() {
            Some(data) if merge => self.tail.extend_from_slice(data),
            _ => {
                // Trailers come after all data.
                let tail = self.take_tail();
                self.frames.extend(tail);
                self.frames.push_back(frame);
            }
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        self.first.take().or_else(|| self.frames.pop_front()).or_else(|| self.take_tail())
    }

    fn take_tail(&mut self) -> Option<Frame<Bytes>> {
        (!self.tail.is_empty()).then(|| Frame::data(self.tail.split().freeze()))
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.frames.is_empty() && self.tail.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = &Frame<Bytes>> {
        self.first.iter().chain(&self.frames)
    }

    /// Whether there is at most one frame, and that of data.
    fn is_one_of_data(&self) -> bool {
        self.iter().nth(1).is_none() && self.tail.is_empty() && self.has_only_data()
    }

    fn has_only_data(&self) -> bool {
        self.iter().all(Frame::is_data)
    }

    /// Returns the data, piece by piece.
    fn data(&self) -> impl Iterator<Item = &[u8]> {
        let frames = self.iter().filter_map(Frame::data_ref).map(|data| &data[..]);
        frames.chain([&self.tail[..]]).filter(|data| !data.is_empty())
    }

    /// Returns the bytes of data.
    fn bytes(&self) -> Cow<'_, [u8]> {
        let mut data = self.data();
        match (data.next(), data.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => Cow::Borrowed(only),
            _ => Cow::Owned(self.data().collect::<Vec<_>>().concat()),
        }
    }

    /// Returns how many bytes of data there are.
    fn size(&self) -> u64 {
        self.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum::<u64>() + self.tail.len() as u64
    }
}

/// The frames of a body that have been read, for the next reader.
#[derive(Default)]
pub(crate) struct BufferedFrames {
    frames: Frames,
    /// Set when these frames have been read.
    notify: Option<Arc<AtomicBool>>,
}

impl BufferedFrames {
    pub(crate) fn push(&mut self, frame: Frame<Bytes>) {
        self.frames.push(frame);
    }

    /// Returns the bytes of data.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        self.frames.bytes()
    }

    /// Returns the data, piece by piece.
    pub(crate) fn data(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.data()
    }

    /// Sets `notify` when these frames have been read.
    pub(crate) fn then_notify(self, notify: Arc<AtomicBool>) -> Self {
        Self { notify: Some(notify), ..self }
    }

    /// Returns a body of these frames.
    pub(crate) fn whole(mut self) -> Body {
        if self.frames.is_one_of_data() {
            let only = self.frames.pop().and_then(|frame| frame.into_data().ok());
            return only.map_or_else(Body::empty, Body::from);
        }
        self.body(Rest::Nothing, None)
    }

    /// Returns a body of these frames, which were all of it, and which says no more of its length than its `hint` did: what layers and the
    /// server make of a stream must not depend on how soon its frames came.
    pub(super) fn ended(self, hint: &SizeHint) -> Body {
        if hint.exact() == Some(self.frames.size()) || !self.frames.has_only_data() {
            return self.whole();
        }
        let missing = self.missing(hint.exact());
        self.body(Rest::End, missing)
    }

    /// Returns a body of these frames and the rest of `body`. `length` is the one that it gave at first, which it may no longer know.
    pub(crate) fn then(self, body: Body, length: Option<u64>) -> Body {
        let missing = self.missing(length);
        self.body(Rest::Handed(body), missing)
    }

    /// Returns how many bytes come after these frames, in a body of this length.
    fn missing(&self, length: Option<u64>) -> Option<u64> {
        length.map(|length| length.saturating_sub(self.frames.size()))
    }

    /// Returns a body of these frames that fails after them.
    pub(crate) fn failed(self, error: axum::Error) -> Body {
        self.body(Rest::Failed(Some(error.into_inner())), None)
    }

    fn body(self, rest: Rest, remaining: Option<u64>) -> Body {
        Body::new(ForwardedBody { frames: self.frames, notify: self.notify, rest, remaining })
    }
}

/// The body that the next reader gets.
struct ForwardedBody {
    frames: Frames,
    notify: Option<Arc<AtomicBool>>,
    rest: Rest,
    /// How many bytes come after the buffered frames, as far as a body of known length says.
    remaining: Option<u64>,
}

/// What comes after the buffered frames.
enum Rest {
    Nothing,
    /// Nothing, which the reader learns when it asks.
    End,
    /// Without its wrapping, since `Body::new` wraps it again, and axum looks for the reason within a few.
    Failed(Option<BoxError>),
    /// The reader reads the original body itself.
    Handed(Body),
    Recorded(Reader),
}

impl ForwardedBody {
    fn notify(&self) {
        if let Some(notify) = &self.notify {
            notify.store(true, Ordering::Release);
        }
    }

    /// Counts a frame of the rest.
    fn sent(&mut self, frame: &Frame<Bytes>) {
        let sent = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(sent));
    }
}

impl HttpBody for ForwardedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.frames.pop() {
            // Whether a body has failed is known after its frames.
            if self.frames.is_empty() && !matches!(self.rest, Rest::Failed(_)) {
                self.notify();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        self.notify();
        loop {
            match &mut self.rest {
                Rest::Nothing => return Poll::Ready(None),
                Rest::End => self.rest = Rest::Nothing,
                Rest::Failed(error) => return Poll::Ready(error.take().map(Err)),
                Rest::Handed(body) => {
                    let read = ready!(Pin::new(body).poll_frame(cx).map_err(axum::Error::into_inner));
                    if let Some(Ok(frame)) = &read {
                        self.sent(frame);
                    }
                    return Poll::Ready(read);
                }
                Rest::Recorded(reader) => match ready!(reader.poll_read(cx)) {
                    Ok(frame) => {
                        self.sent(&frame);
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
        self.frames.is_empty()
            && match &self.rest {
                Rest::Nothing => true,
                Rest::Failed(error) => error.is_none(),
                Rest::Handed(body) => body.is_end_stream(),
                Rest::End | Rest::Recorded(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let buffered = self.frames.size();
        let mut hint = match (&self.rest, self.remaining) {
            // Trailers can only be sent with a body of unknown length.
            (Rest::Nothing, _) if self.frames.has_only_data() => SizeHint::with_exact(0),
            (Rest::Handed(body), None) => body.size_hint(),
            (Rest::End | Rest::Handed(_) | Rest::Recorded(_), Some(remaining)) => SizeHint::with_exact(remaining),
            _ => SizeHint::default(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(buffered));
        }
        hint.set_lower(hint.lower().saturating_add(buffered));
        hint
    }
}

/// Splits a body that has not ended: what the caller gets, and its recording, which continues when the caller is gone. `length` is the one
/// that the body gave at first, `recorder` has the data that has been read, and `trailers` are those that have been read.
pub(super) fn record_live(
    body: Body,
    length: Option<u64>,
    recorder: BodyRecorder,
    trailers: Option<HeaderMap>,
) -> (Body, impl Future<Output = RecordedStream> + Send) {
    let (writer, reader) = channel::new(recorder, trailers);
    let forwarded = BufferedFrames::default().body(Rest::Recorded(reader), length);
    (forwarded, pump(body, writer))
}

async fn pump(mut body: Body, mut caller: Writer) -> RecordedStream {
    loop {
        match poll_fn(|cx| pump_step(&mut body, &mut caller, cx)).await {
            Pumped::More => {}
            Pumped::Whole => {
                drop_quietly(body);
                return caller.finish(End::Whole);
            }
            Pumped::Complete => return caller.finish(End::Rest(body)),
            Pumped::Beyond(frame) => {
                let mut frames = BufferedFrames::default();
                frames.push(frame);
                return caller.abandon(End::Rest(frames.then(body, None)));
            }
            Pumped::Failed(error) => {
                drop_quietly(body);
                return caller.abandon(End::Failed(error));
            }
        }
    }
}

/// One step of a recording.
enum Pumped {
    More,
    /// The stream has ended.
    Whole,
    /// The client has all data, and the stream has not ended.
    Complete,
    /// The response is larger than what is recorded, by this frame.
    Beyond(Frame<Bytes>),
    Failed(axum::Error),
}

fn pump_step(body: &mut Body, caller: &mut Writer, cx: &mut Context<'_>) -> Poll<Pumped> {
    let frame = match poll_body(body, || caller.is_complete(), cx) {
        Ok(Poll::Ready(frame)) => frame,
        // The client has all data, so nothing waits for the end of the stream.
        Ok(Poll::Pending) if caller.is_complete() => return Poll::Ready(Pumped::Complete),
        Ok(Poll::Pending) => return Poll::Pending,
        // A stream that panics is a stream that fails.
        Err(panic) => {
            discard(panic);
            return Poll::Ready(Pumped::Failed(axum::Error::new("the response broke off")));
        }
    };
    Poll::Ready(match frame {
        Some(Ok(frame)) => match caller.write(&frame) {
            Added::Recorded => Pumped::More,
            Added::Beyond => Pumped::Complete,
            Added::TooLarge => Pumped::Beyond(frame),
        },
        Some(Err(error)) => Pumped::Failed(error),
        None => Pumped::Whole,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn data(bytes: &'static [u8]) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(bytes))
    }

    #[test]
    fn many_frames_take_the_memory_of_their_bytes_and_lose_none() {
        let mut frames = Frames::default();
        for number in 0..FRAMES + 100 {
            frames.push(data(if number % 2 == 0 { b"a" } else { b"b" }));
        }
        assert_eq!((frames.frames.len(), frames.tail.len()), (FRAMES, 99));
        assert_eq!(frames.size(), (FRAMES + 100) as u64);
        assert_eq!(frames.bytes(), "ab".repeat(FRAMES / 2 + 50).as_bytes());
        frames.push(Frame::trailers(HeaderMap::new()));
        let mut seen = (0, 0, false);
        while let Some(frame) = frames.pop() {
            seen = (seen.0 + 1, seen.1 + frame.data_ref().map_or(0, Bytes::len), frame.is_trailers());
        }
        assert_eq!(seen, (FRAMES + 3, FRAMES + 100, true), "the rest is one frame, and the trailers are the last");
    }

    #[test]
    fn a_body_of_frames_says_how_long_it_is_and_when_it_ends() {
        let frames = |last: Frame<Bytes>| {
            let mut frames = BufferedFrames::default();
            frames.push(data(b"one"));
            frames.push(last);
            frames
        };
        let length = |body: &Body| (body.size_hint().lower(), body.size_hint().upper());
        let mut body = frames(data(b"two")).whole();
        assert_eq!((length(&body), body.is_end_stream()), ((6, Some(6)), false));
        for left in [3, 0] {
            assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never().is_some());
            assert_eq!((length(&body), body.is_end_stream()), ((left, Some(left)), left == 0));
        }
        // Trailers can only be sent with a body of unknown length.
        assert_eq!(length(&frames(Frame::trailers(HeaderMap::new())).whole()), (3, None));
        assert_eq!(length(&frames(data(b"two")).then(Body::from("three"), None)), (11, Some(11)));
    }
}
