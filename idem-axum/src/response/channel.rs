//! From the recording to the caller, without the one ever waiting for the other.
//!
//! A caller that does not read must not hold up the recording, and must not cost more memory than the record does. So there is
//! no queue of frames: the caller reads what was recorded, first from the recording and then from the record, whose bytes it
//! shares with the store. Both are limited by the policy's `max_response`. After that the caller reads the handler's body itself.

use std::future::{poll_fn, ready};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use idem_runtime::panics::drop_quietly;
use idem_runtime::{Delivery, Outcome, RecordedStream};

use super::recorder::{Added, BodyRecorder};

/// The largest frame that is copied from a recording.
const MAX_FRAME: usize = 64 * 1024;

/// How the recording ends for the caller.
pub(super) enum End {
    /// The caller has all of it.
    Whole,
    /// The handler's body failed.
    Failed(axum::Error),
    /// The caller reads the rest itself.
    Rest(Body),
}

struct Shared {
    source: Source,
    /// How many bytes of the body the caller has.
    read: usize,
    /// For the caller, after all data.
    trailers: Option<HeaderMap>,
    /// Set when the caller gets no more from here.
    end: Option<End>,
    /// The caller has the end, or is gone.
    done: bool,
    caller: Option<Waker>,
    delivery: Option<Waker>,
}

/// Where the caller reads.
enum Source {
    Recording(BodyRecorder),
    /// The body as the store has it.
    Record(Bytes),
    /// The recording has ended, and the claim has not: the caller reads the last of the body when a retry would find the record.
    Ending,
}

impl Shared {
    fn next(&mut self) -> Option<Bytes> {
        let next = match &self.source {
            // What makes the body complete is read when a retry would find the record.
            Source::Recording(recording) if recording.is_complete() && self.end.is_none() => return None,
            Source::Recording(recording) => {
                let unread = recording.body().get(self.read..)?;
                Bytes::copy_from_slice(&unread[..unread.len().min(MAX_FRAME)])
            }
            Source::Record(body) if self.read <= body.len() => body.slice(self.read..),
            Source::Record(_) | Source::Ending => return None,
        };
        self.read += next.len();
        Some(next).filter(|next| !next.is_empty())
    }

    /// The caller needs nothing more. Returns what is to be dropped without the lock.
    fn close(&mut self) -> impl Sized + use<> {
        self.done = true;
        let source = match self.source {
            // The recording continues.
            Source::Recording(_) if self.end.is_none() => None,
            _ => Some(std::mem::replace(&mut self.source, Source::Ending)),
        };
        (source, self.trailers.take(), self.end.take())
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Changed in single steps that cannot panic half-way.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The recording's side. Dropped without an end, the recording was torn down, and what the caller has is not the whole.
pub(super) struct Writer {
    shared: Arc<Mutex<Shared>>,
    /// Where the body is in the content of the record.
    body: Range<usize>,
    /// What the caller gets at the end of a recording that has a record.
    end: Option<End>,
}

/// The caller's side.
pub(super) struct Reader(Arc<Mutex<Shared>>);

pub(super) fn new(recorder: BodyRecorder, trailers: Option<HeaderMap>) -> (Writer, Reader) {
    let body = recorder.start()..recorder.start();
    let shared = Arc::new(Mutex::new(Shared {
        source: Source::Recording(recorder),
        read: 0,
        trailers,
        end: None,
        done: false,
        caller: None,
        delivery: None,
    }));
    (Writer { shared: Arc::clone(&shared), body, end: None }, Reader(shared))
}

impl Writer {
    /// Records a frame, and passes it on; never waits. A caller that is gone changes nothing.
    pub(super) fn write(&mut self, frame: &Frame<Bytes>) -> Added {
        let mut shared = lock(&self.shared);
        let Source::Recording(recording) = &mut shared.source else { return Added::TooLarge };
        let added = recording.add(frame);
        // What is not recorded reaches the caller with the rest of the body.
        if let Some(trailers) = frame.trailers_ref()
            && added == Added::Recorded
            && !shared.done
        {
            shared.trailers.get_or_insert_default().extend(trailers.clone());
        }
        let caller = shared.caller.take();
        drop(shared);
        wake(caller);
        added
    }

    /// Returns whether the client has all data.
    pub(super) fn is_complete(&self) -> bool {
        matches!(&lock(&self.shared).source, Source::Recording(recording) if recording.is_complete())
    }

    /// Ends the recording. The caller gets the last of the body and `end` when the claim has ended.
    pub(super) fn finish(mut self, end: End) -> RecordedStream {
        let mut shared = lock(&self.shared);
        let outcome = match std::mem::replace(&mut shared.source, Source::Ending) {
            Source::Recording(recording) if recording.is_short() => {
                shared.source = Source::Recording(recording);
                drop(shared);
                return self.abandon(end);
            }
            Source::Recording(recording) => {
                self.body.end = self.body.start + recording.body().len();
                recording.finish()
            }
            _ => Outcome::NotReplayable,
        };
        drop(shared);
        self.end = Some(end);
        RecordedStream { outcome, delivery: Some(Box::new(self)) }
    }

    /// Ends the recording without a record. The caller gets what it has not read, and `end`.
    pub(super) fn abandon(self, end: End) -> RecordedStream {
        self.send(end);
        RecordedStream { outcome: Outcome::NotReplayable, delivery: Some(Box::new(self)) }
    }

    /// Sends the end, unless the caller has one.
    fn send(&self, end: End) {
        let mut shared = lock(&self.shared);
        if shared.end.is_some() {
            return;
        }
        let unread = if shared.done { Some(end) } else { shared.end.replace(end) };
        let closed = shared.done.then(|| shared.close());
        let caller = shared.caller.take();
        drop(shared);
        // These are the user's, and the claim may not have ended.
        drop_quietly((unread, closed));
        wake(caller);
    }
}

impl Delivery for Writer {
    fn recorded(mut self: Box<Self>, content: Option<Bytes>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        if let Some(end) = self.end.take() {
            let Some(content) = content.filter(|content| self.body.end <= content.len()) else {
                // Without a record the rest of the body is lost, which dropping this tells the caller.
                return Box::pin(ready(()));
            };
            let mut shared = lock(&self.shared);
            if !shared.done {
                shared.source = Source::Record(content.slice(self.body.clone()));
            }
            drop(shared);
            self.send(end);
        }
        Box::pin(poll_fn(move |cx| {
            let mut shared = lock(&self.shared);
            if shared.done {
                return Poll::Ready(());
            }
            shared.delivery = Some(cx.waker().clone());
            Poll::Pending
        }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.send(End::Failed(axum::Error::new("the response broke off")));
    }
}

impl Reader {
    /// The next frame, or the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, End>> {
        let mut shared = lock(&self.0);
        if let Some(data) = shared.next() {
            return Poll::Ready(Ok(Frame::data(data)));
        }
        // With them the client has the whole response, so they come when a retry would find the record, as the last of the body does.
        let may_end = shared.end.is_some() && !matches!(shared.source, Source::Ending);
        if may_end && let Some(trailers) = shared.trailers.take() {
            return Poll::Ready(Ok(Frame::trailers(trailers)));
        }
        if let Some(end) = shared.end.take() {
            let closed = shared.close();
            let delivery = shared.delivery.take();
            drop(shared);
            drop(closed);
            wake(delivery);
            return Poll::Ready(Err(end));
        }
        shared.caller = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        let closed = shared.close();
        let delivery = shared.delivery.take();
        drop(shared);
        drop(closed);
        wake(delivery);
    }
}

#[cfg(test)]
mod tests {
    use axum::response::{IntoResponse, Response};
    use futures_util::FutureExt;

    use super::super::recorder::{Framing, RecordedRequest, start};
    use super::*;
    use crate::policy::Policy;
    use crate::warnings::Warnings;

    fn recording(response: Response) -> (Writer, Reader) {
        let (parts, body) = response.into_parts();
        let policy = &Policy::DEFAULT;
        let (framing, warnings) = (Framing::default(), Warnings::default());
        let request = RecordedRequest { policy, framing, has_transaction: false, body_failed: false, warnings };
        new(start(&request, &parts, &body).unwrap(), None)
    }

    fn stream() -> Response {
        Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>()).into_response()
    }

    fn frame(data: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(data.as_bytes()))
    }

    fn read(reader: &mut Reader) -> Poll<Result<Frame<Bytes>, End>> {
        reader.poll_read(&mut Context::from_waker(Waker::noop()))
    }

    fn data(reader: &mut Reader) -> Option<Bytes> {
        match read(reader) {
            Poll::Ready(Ok(frame)) => frame.into_data().ok(),
            _ => None,
        }
    }

    fn content(outcome: Outcome) -> Option<Bytes> {
        if let Outcome::Record(record) = outcome { Some(Bytes::copy_from_slice(record.as_slice())) } else { None }
    }

    #[test]
    fn the_caller_reads_what_was_recorded_and_then_the_record() {
        let (mut writer, mut reader) = recording(stream());
        writer.write(&frame("one"));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"one"[..]));
        assert!(read(&mut reader).is_pending());
        writer.write(&frame("two"));
        writer.write(&frame("three"));
        writer.write(&Frame::trailers(HeaderMap::new()));
        let RecordedStream { outcome, delivery } = writer.finish(End::Whole);
        assert!(read(&mut reader).is_pending(), "the claim has not ended");
        let mut delivered = delivery.unwrap().recorded(content(outcome));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"twothree"[..]));
        assert!(matches!(read(&mut reader), Poll::Ready(Ok(frame)) if frame.is_trailers()));
        assert!((&mut delivered).now_or_never().is_none());
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Whole))));
        assert!(delivered.now_or_never().is_some());
    }

    #[test]
    fn the_last_bytes_of_a_known_length_are_held_until_the_claim_has_ended() {
        let (mut writer, mut reader) = recording(([("content-length", "6")], stream()).into_response());
        writer.write(&frame("one"));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"one"[..]));
        writer.write(&frame("two"));
        assert!(writer.is_complete() && read(&mut reader).is_pending(), "a retry would not find the record");
        let RecordedStream { outcome, delivery } = writer.finish(End::Whole);
        let delivered = delivery.unwrap().recorded(content(outcome));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"two"[..]));
        drop(delivered);
    }

    #[test]
    fn trailers_are_held_until_the_claim_has_ended() {
        let (mut writer, mut reader) = recording(stream());
        writer.write(&frame("one"));
        writer.write(&Frame::trailers(HeaderMap::new()));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"one"[..]));
        assert!(read(&mut reader).is_pending(), "with them the client would have the whole response");
        let RecordedStream { outcome, delivery } = writer.finish(End::Whole);
        let delivered = delivery.unwrap().recorded(content(outcome));
        assert!(matches!(read(&mut reader), Poll::Ready(Ok(frame)) if frame.is_trailers()));
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Whole))));
        drop(delivered);
    }

    #[test]
    fn a_recording_that_is_torn_down_breaks_the_body_off() {
        let (mut writer, mut reader) = recording(stream());
        writer.write(&frame("one"));
        drop(writer);
        assert_eq!(data(&mut reader).as_deref(), Some(&b"one"[..]));
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Failed(_)))));

        let (mut writer, mut reader) = recording(stream());
        writer.write(&frame("one"));
        drop(writer.finish(End::Whole));
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Failed(_)))));
    }

    #[test]
    fn a_whole_body_whose_record_is_missing_breaks_off() {
        let (mut writer, mut reader) = recording(stream());
        writer.write(&frame("one"));
        let RecordedStream { delivery, .. } = writer.finish(End::Whole);
        assert!(delivery.unwrap().recorded(None).now_or_never().is_some());
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Failed(_)))));
    }

    #[test]
    fn a_caller_that_is_gone_changes_nothing() {
        let (mut writer, reader) = recording(stream());
        drop(reader);
        writer.write(&frame("one"));
        let RecordedStream { outcome, delivery } = writer.finish(End::Whole);
        let content = content(outcome);
        assert!(content.as_ref().is_some_and(|content| content.windows(3).any(|window| window == b"one")));
        assert!(delivery.unwrap().recorded(content).now_or_never().is_some());
    }

    #[test]
    fn a_body_whose_drop_panics_ends_the_recording_of_a_caller_that_is_gone() {
        struct Fragile;

        impl Drop for Fragile {
            fn drop(&mut self) {
                panic!("on purpose")
            }
        }

        let fragile = Fragile;
        let rest = futures_util::stream::poll_fn(move |_| {
            let _ = &fragile;
            Poll::<Option<Result<Bytes, axum::Error>>>::Pending
        });
        let (writer, reader) = recording(stream());
        drop(reader);
        let RecordedStream { outcome, .. } = writer.abandon(End::Rest(Body::from_stream(rest)));
        assert!(matches!(outcome, Outcome::NotReplayable));
    }

    #[test]
    fn a_recording_without_a_record_leaves_the_caller_what_there_is() {
        let (mut writer, mut reader) = recording(([("content-length", "9")], stream()).into_response());
        writer.write(&frame("short"));
        let RecordedStream { outcome, .. } = writer.finish(End::Whole);
        assert!(matches!(outcome, Outcome::NotReplayable));
        assert_eq!(data(&mut reader).as_deref(), Some(&b"short"[..]));
        assert!(matches!(read(&mut reader), Poll::Ready(Err(End::Whole))));
    }
}
