//! From the recording to the caller, without the one ever waiting for the other.
//!
//! A caller that does not read must not hold up the recording, so the queue has no limit of its own: what is recorded is
//! limited by the policy's `max_response`, and after that the caller reads the handler's body itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Frame;

/// After so many frames the data of further ones is put together: a caller that lags no longer sees where a frame
/// ended, and many small frames take no more memory than their bytes.
const FRAMES: usize = 1024;

/// How the recording ends for the caller.
pub(super) enum End {
    /// The caller has all of it.
    Whole,
    /// The handler's body failed.
    Failed(axum::Error),
    /// The caller reads the rest itself.
    Rest(Body),
}

/// Frames in order, and no more memory than their bytes need.
#[derive(Default)]
pub(super) struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    /// The data that came when there were [`FRAMES`] frames.
    tail: BytesMut,
}

impl Frames {
    pub(super) fn push(&mut self, frame: Frame<Bytes>) {
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

    pub(super) fn pop(&mut self) -> Option<Frame<Bytes>> {
        self.frames.pop_front().or_else(|| self.take_tail())
    }

    fn take_tail(&mut self) -> Option<Frame<Bytes>> {
        (!self.tail.is_empty()).then(|| Frame::data(self.tail.split().freeze()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.tail.is_empty()
    }

    /// Whether there is at most one frame, and that of data.
    pub(super) fn is_one_of_data(&self) -> bool {
        self.frames.len() <= 1 && self.tail.is_empty() && self.has_only_data()
    }

    pub(super) fn has_only_data(&self) -> bool {
        self.frames.iter().all(Frame::is_data)
    }

    /// The bytes of data.
    pub(super) fn size(&self) -> u64 {
        let frames = self.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64);
        frames.sum::<u64>() + self.tail.len() as u64
    }
}

#[derive(Default)]
struct Queue {
    frames: Frames,
    end: Option<End>,
    waiting: Option<Waker>,
    reader_gone: bool,
}

type Shared = Arc<Mutex<Queue>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Queue> {
    // Changed in single steps that cannot panic half-way.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The recording's side. Dropped without an end, the recording was torn down, and what the caller has is not the whole.
pub(super) struct Writer {
    shared: Shared,
    on_drop: Option<End>,
}

/// The caller's side.
pub(super) struct Reader(Shared);

pub(super) fn new() -> (Writer, Reader) {
    let shared = Shared::default();
    let broken = End::Failed(axum::Error::new("the response broke off"));
    (Writer { shared: Arc::clone(&shared), on_drop: Some(broken) }, Reader(shared))
}

impl Writer {
    /// Passes a frame on; never waits. A caller that is gone changes nothing.
    pub(super) fn write(&mut self, frame: Frame<Bytes>) {
        let mut queue = lock(&self.shared);
        if queue.reader_gone {
            return;
        }
        queue.frames.push(frame);
        let waiting = queue.waiting.take();
        drop(queue);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Ends the caller's body.
    pub(super) fn end(mut self, end: End) {
        self.on_drop(end);
    }

    /// Ends the caller's body when this is dropped.
    pub(super) fn on_drop(&mut self, end: End) {
        self.on_drop = Some(end);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared);
        let end = self.on_drop.take();
        let waiting = queue.waiting.take();
        // What nobody reads is dropped here, without the lock: it is the user's.
        let unread = if queue.reader_gone { end } else { std::mem::replace(&mut queue.end, end) };
        drop(queue);
        drop(unread);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Reader {
    /// The next frame, or the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, End>> {
        let mut queue = lock(&self.0);
        if let Some(frame) = queue.frames.pop() {
            return Poll::Ready(Ok(frame));
        }
        if let Some(end) = queue.end.take() {
            return Poll::Ready(Err(end));
        }
        queue.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.reader_gone = true;
        let unread = (std::mem::take(&mut queue.frames), queue.end.take());
        drop(queue);
        drop(unread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(reader: &mut Reader) -> Option<Bytes> {
        match reader.poll_read(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(frame)) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[test]
    fn frames_stay_frames_until_the_caller_lags() {
        let (mut writer, mut reader) = new();
        for _ in 0..FRAMES + 3 {
            writer.write(Frame::data(Bytes::from_static(b"x")));
        }
        writer.write(Frame::trailers(http::HeaderMap::new()));
        for _ in 0..FRAMES {
            assert_eq!(data(&mut reader).as_deref(), Some(&b"x"[..]));
        }
        assert_eq!(data(&mut reader).as_deref(), Some(&b"xxx"[..]));
        let next = reader.poll_read(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(next, Poll::Ready(Ok(frame)) if frame.is_trailers()));
    }

    #[test]
    fn a_writer_that_is_torn_down_breaks_the_body_off() {
        let (writer, mut reader) = new();
        drop(writer);
        let end = reader.poll_read(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(end, Poll::Ready(Err(End::Failed(_)))));
    }

    #[test]
    fn nothing_is_kept_for_a_caller_that_is_gone() {
        let (mut writer, reader) = new();
        drop(reader);
        writer.write(Frame::data(Bytes::from_static(b"x")));
        assert!(lock(&writer.shared).frames.is_empty());
    }
}
