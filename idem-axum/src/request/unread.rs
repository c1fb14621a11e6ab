//! The body of a request that may get its response before it was read.
//!
//! A server closes the connection if a response is sent before the body was read, and many clients then report a broken pipe
//! instead of the response. So a replay or a refusal is sent after the rest of the body was read and discarded.

use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use idem_runtime::panics::drop_quietly;
use tokio::time::timeout;

use crate::policy::Refusal;
use crate::response::BufferedFrames;

/// How many bytes of a body are discarded, and for how long. They are more than most limits of a body, since a client that is
/// cut off after a part of its upload does not read the response either.
const MAX_BYTES: u64 = 64 << 20;
const MAX_TIME: Duration = Duration::from_secs(30);

/// The body of a request, shared with the extractor that got it, as long as the response may be sent without it.
#[derive(Clone)]
pub(crate) struct UnreadBody {
    /// `None` if nothing is left to read.
    shared: Option<Arc<Mutex<SharedBody>>>,
    http1: bool,
    expects_continue: bool,
}

struct SharedBody {
    body: Option<Body>,
    /// Whether the extractor has asked for it, and so the server for the client's bytes.
    polled: bool,
    /// Whether it broke off while it was read.
    failed: bool,
    /// Whether the extractor, or the handler, still has it.
    handed: bool,
    /// Whether nothing else will read it.
    released: bool,
    /// Who waits for the next frame.
    reader: Option<Waker>,
}

fn lock(shared: &Mutex<SharedBody>) -> MutexGuard<'_, SharedBody> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UnreadBody {
    /// A body of which nothing is left.
    pub(crate) fn nothing() -> Self {
        Self { shared: None, http1: false, expects_continue: false }
    }

    /// Shares `body`, which stays the same for its reader. `polled` says whether a part of it was read before.
    pub(crate) fn share(parts: &Parts, body: &mut Body, polled: bool) -> Self {
        if body.is_end_stream() {
            return Self::nothing();
        }
        let shared = Arc::new(Mutex::new(SharedBody {
            body: Some(std::mem::take(body)),
            polled,
            failed: false,
            handed: true,
            released: false,
            reader: None,
        }));
        *body = Body::new(HandedBody(Arc::clone(&shared)));
        Self {
            shared: Some(shared),
            http1: parts.version <= Version::HTTP_11,
            expects_continue: expects_continue(&parts.headers),
        }
    }

    /// Returns whether nothing is left to discard.
    pub(crate) fn is_nothing(&self) -> bool {
        self.shared.is_none()
    }

    /// Returns whether its reader has seen it break off.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| lock(shared).failed)
    }

    /// Returns whether the extractor has kept it, for the handler.
    pub(crate) fn is_handed(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| lock(shared).handed)
    }

    /// Leaves the body to its reader alone, and drops it if there is none: the handler starts.
    pub(crate) fn release(&self) {
        let Some(shared) = &self.shared else { return };
        let mut shared = lock(shared);
        shared.released = true;
        let unread = if shared.handed { None } else { shared.body.take() };
        drop(shared);
        drop_quietly(unread);
    }

    /// Keeps the body if its reader drops it from now on: the handler is stopped.
    pub(crate) fn keep(&self) {
        if let Some(shared) = &self.shared {
            lock(shared).released = false;
        }
    }

    /// As [`discard`](Self::discard), if the response is a refusal, of a handler that was stopped or did not run. If a task of the handler
    /// still reads the body, the response is not delayed.
    pub(crate) fn discard_if_refused(self, response: Response) -> BoxFuture<'static, Response> {
        if response.extensions().get::<Refusal>().is_none() || self.is_handed() {
            return Box::pin(ready(response));
        }
        self.discard(response)
    }

    /// Reads the rest of the body, discards it, and returns the response. If not all of it can be read, the response says that
    /// the connection is closed. A client that waits for `100 Continue` sends nothing until the body is asked for, so it gets the
    /// response at once.
    ///
    /// Cancel safe: dropping the future leaves the rest unread.
    pub(crate) fn discard(self, mut response: Response) -> BoxFuture<'static, Response> {
        Box::pin(async move {
            let Some(shared) = self.shared else { return response };
            let (body, polled, reader) = {
                let mut shared = lock(&shared);
                let body = shared.body.take();
                if body.is_some() {
                    // A reader that an extractor left behind must not take this for the end of the body.
                    let error = axum::Error::new("the rest of the body was discarded");
                    shared.body = Some(BufferedFrames::default().failed(error));
                }
                (body, shared.polled, shared.reader.take())
            };
            let Some(body) = body else { return response };
            if let Some(reader) = reader {
                reader.wake();
            }
            let waits = self.expects_continue && !polled;
            if (waits || !read_to_end(body).await) && self.http1 {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        })
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads and discards a body. Returns `false` if it is larger or slower than what is discarded, or fails: the client may have gone, or a
/// layer have cut it off.
async fn read_to_end(mut body: Body) -> bool {
    if body.size_hint().lower() > MAX_BYTES {
        return false;
    }
    let mut read = Box::pin(async move {
        let mut left = MAX_BYTES;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(frame) = frame else { return false };
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(length) else { return false };
            left = rest;
        }
        true
    });
    // A body that has arrived needs no timer.
    match (&mut read).now_or_never() {
        Some(whole) => whole,
        None => timeout(MAX_TIME, read).await.unwrap_or(false),
    }
}

/// What the extractor gets: the body, which the call can still take back.
struct HandedBody(Arc<Mutex<SharedBody>>);

impl HttpBody for HandedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = lock(&self.0);
        shared.polled = true;
        let Some(body) = &mut shared.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        shared.reader = polled.is_pending().then(|| cx.waker().clone());
        shared.failed |= matches!(polled, Poll::Ready(Some(Err(_))));
        // A stream may panic if it is asked again after its end.
        let ended = if matches!(polled, Poll::Ready(None)) { shared.body.take() } else { None };
        drop(shared);
        drop_quietly(ended);
        // `Body::new` wraps the error again.
        polled.map_err(axum::Error::into_inner)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for HandedBody {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.handed = false;
        // If the handler panics, the response may still be sent without it.
        let unread = if shared.released && !thread::panicking() { shared.body.take() } else { None };
        drop(shared);
        drop_quietly(unread);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::to_bytes;
    use futures_util::{StreamExt, stream};
    use http::Request;
    use http_body_util::{BodyExt, Limited};

    use super::*;

    fn parts(version: Version, expect: Option<&str>) -> Parts {
        let mut request = Request::builder().version(version);
        if let Some(expect) = expect {
            request = request.header(EXPECT, expect);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// A body that sends a byte and then nothing more, and never ends.
    fn slow() -> Body {
        let byte = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"x"))]);
        Body::from_stream(byte.chain(stream::pending()))
    }

    async fn closes(parts: &Parts, mut body: Body) -> bool {
        let unread = UnreadBody::share(parts, &mut body, false);
        drop(body);
        unread.discard(Response::default()).await.headers().get(CONNECTION).is_some_and(|value| value == "close")
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_cut_off_after_the_time() {
        let started = tokio::time::Instant::now();
        assert!(closes(&parts(Version::HTTP_11, None), slow()).await);
        assert_eq!(started.elapsed().as_secs(), MAX_TIME.as_secs());
        assert!(!closes(&parts(Version::HTTP_2, None), slow()).await, "HTTP/2 has no such header");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_is_not_asked_and_one_that_was_asked_is_read() {
        let started = tokio::time::Instant::now();
        let waits = parts(Version::HTTP_11, Some("100-Continue"));
        assert!(closes(&waits, slow()).await);
        assert!(started.elapsed().is_zero());

        let mut body = Body::from("x");
        let unread = UnreadBody::share(&waits, &mut body, false);
        assert_eq!(body.size_hint().exact(), Some(1));
        assert_eq!(&to_bytes(body, 9).await.unwrap()[..], b"x");
        assert!(unread.discard(Response::default()).await.headers().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_was_left_behind_learns_that_the_rest_is_discarded() {
        let mut body = slow();
        let unread = UnreadBody::share(&parts(Version::HTTP_11, None), &mut body, false);
        let reader = tokio::spawn(to_bytes(body, 9));
        // It has the byte, and waits for more.
        tokio::task::yield_now().await;
        unread.discard(Response::default()).await;
        assert!(reader.await.unwrap().unwrap_err().to_string().contains("discarded"));
    }

    #[tokio::test]
    async fn a_body_ends_for_its_reader_when_it_ends() {
        let mut body = Body::from("x");
        let unread = UnreadBody::share(&parts(Version::HTTP_11, None), &mut body, false);
        assert!(!body.is_end_stream());
        assert!(body.frame().await.is_some());
        assert!(body.is_end_stream());
        drop(unread);
    }

    #[tokio::test]
    async fn a_body_of_the_largest_size_is_discarded_and_a_larger_one_is_not() {
        /// Says how long it is, and has ended.
        struct Sized(u64);

        impl HttpBody for Sized {
            type Data = Bytes;
            type Error = Infallible;

            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Ready(None)
            }

            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(self.0)
            }
        }

        assert!(read_to_end(Body::new(Sized(MAX_BYTES))).await);
        assert!(!read_to_end(Body::new(Sized(MAX_BYTES + 1))).await);
    }

    #[tokio::test]
    async fn the_connection_is_closed_after_a_body_that_a_layer_cuts_off() {
        let cut = Limited::new(Body::from_stream(stream::iter([Ok::<_, Infallible>("four"), Ok("more")])), 4);
        assert!(closes(&parts(Version::HTTP_11, None), Body::new(cut)).await);
    }

    #[tokio::test]
    async fn a_released_body_goes_with_its_reader() {
        let (guard, alive) = (Arc::new(()), |guard: &Arc<()>| Arc::strong_count(guard) > 1);
        for reader_first in [true, false] {
            let held = Arc::clone(&guard);
            let mut body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>().map(move |item| {
                let _ = &held;
                item
            }));
            let unread = UnreadBody::share(&parts(Version::HTTP_11, None), &mut body, false);
            if reader_first {
                drop(body);
                assert!(alive(&guard), "the call may have to read it");
                unread.release();
            } else {
                unread.release();
                assert!(alive(&guard));
                drop(body);
            }
            assert!(!alive(&guard), "{reader_first}");
        }
    }
}
