//! Reading the body for the fingerprint, and handing it on to the extractor as it came.

use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, RequestExt};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::StatusCode;
use http::request::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::LengthLimitError;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::policy::{Part, Policy};
use crate::response::BufferedFrames;

/// In shadow mode: how many bytes of a body are read, and for how long.
const SHADOW_BYTES: u64 = 2 << 20;
const SHADOW_TIME: Duration = Duration::from_secs(1);

/// A body as long as this is hashed with the other parts of the fingerprint. A longer one is hashed while it arrives, so that a large
/// upload does not keep a thread busy at its end.
const SHORT_BODY: u64 = 4 * 1024;

/// A body that was read for the fingerprint, as far as it could be.
pub(crate) struct ReadBody {
    frames: BufferedFrames,
    end: ReadEnd,
    hash: BodyHash,
}

enum ReadEnd {
    Whole,
    /// It is larger than an extractor may read, which is this many bytes. The rest follows.
    TooLarge {
        limit: u64,
        rest: Body,
    },
    Failed(axum::Error),
    /// In shadow mode: it is larger, or takes longer, than a request may be delayed. The rest follows.
    Skipped(Body),
}

/// A body that was not read to its end.
pub(crate) enum PartialBody {
    /// An extractor that reads it decides what happens.
    Unreadable(UnreadableBody),
    /// In shadow mode: it is larger, or takes longer, than a request may be delayed.
    Skipped,
}

/// A body that is larger than an extractor may read, or that failed.
#[derive(Clone, Debug)]
pub(crate) struct UnreadableBody {
    /// Whether the extractor has read so far that it knows.
    noticed: Arc<AtomicBool>,
    too_large: bool,
    /// `None` of a body that failed.
    beyond: Option<Arc<Mutex<Beyond>>>,
}

/// What an extractor without a limit reads of a body above the limit.
#[derive(Clone, Debug, Default)]
struct Beyond {
    sha: Sha256,
    /// Whether it has asked for more than what was buffered.
    asked: bool,
    ended: bool,
}

fn lock(beyond: &Mutex<Beyond>) -> MutexGuard<'_, Beyond> {
    beyond.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReadBody {
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.end, ReadEnd::Whole)
    }

    /// Returns the bytes that were read, and of a body over the limit those within it, so that its frames do not count.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        let bytes = self.frames.bytes();
        let ReadEnd::TooLarge { limit, .. } = self.end else { return bytes };
        match bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(within(bytes, limit)),
            Cow::Owned(mut bytes) => {
                bytes.truncate(within(&bytes, limit).len());
                Cow::Owned(bytes)
            }
        }
    }

    /// Returns the SHA-256 of [`bytes`](Self::bytes), if the body is long and its policy wants it.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        self.hash.sha.clone().map(|sha| (*sha).finalize().into())
    }

    /// Returns a body that has arrived.
    #[cfg(feature = "__fuzzing")]
    pub(crate) fn of(bytes: Bytes, policy: &Policy) -> Self {
        let (mut frames, mut hash) = (BufferedFrames::default(), BodyHash::new(u64::MAX, policy));
        hash.add(Frame::data(bytes), &mut frames);
        Self { frames, end: ReadEnd::Whole, hash }
    }

    /// Returns the body for the extractor: the same frames, with the same end.
    pub(crate) fn into_body(self) -> (Body, Option<PartialBody>) {
        let Self { frames, end, .. } = self;
        let unreadable = |too_large, beyond| {
            let noticed = Arc::<AtomicBool>::default();
            (Arc::clone(&noticed), Some(PartialBody::Unreadable(UnreadableBody { noticed, too_large, beyond })))
        };
        match end {
            ReadEnd::Whole => (frames.whole(), None),
            ReadEnd::Skipped(rest) => (frames.then(rest, None), Some(PartialBody::Skipped)),
            ReadEnd::TooLarge { rest, limit } => {
                let mut beyond = Beyond::default();
                let mut left = limit;
                for data in frames.data() {
                    beyond.sha.update(&data[within(data, left).len()..]);
                    left = left.saturating_sub(data.len() as u64);
                }
                let beyond = Arc::new(Mutex::new(beyond));
                let rest = Body::new(BodyBeyond { body: rest, beyond: Arc::clone(&beyond) });
                let (noticed, state) = unreadable(true, Some(beyond));
                (frames.then_notify(noticed).then(rest, None), state)
            }
            ReadEnd::Failed(error) => {
                let (noticed, state) = unreadable(exceeds_limit(&error), None);
                (frames.then_notify(noticed).failed(error), state)
            }
        }
    }
}

impl UnreadableBody {
    /// Returns whether the extractor has read so far that it knows. Then what it returned is its decision.
    pub(crate) fn is_noticed(&self) -> bool {
        self.noticed.load(Ordering::Acquire)
    }

    /// Returns whether there may be more than what its reader has read.
    pub(crate) fn goes_on(&self) -> bool {
        self.beyond.as_ref().is_some_and(|beyond| !lock(beyond).ended)
    }

    /// Returns the SHA-256 of what the extractor read above the limit, if it read on.
    pub(crate) fn digest_beyond(&self) -> Option<[u8; 32]> {
        let beyond = lock(self.beyond.as_ref()?);
        beyond.asked.then(|| beyond.sha.clone().finalize().into())
    }

    /// Returns axum's own rejection: 413 for a body that is too large, 400 for one that failed.
    pub(crate) fn rejection(&self) -> Response {
        let body = if self.too_large {
            Body::from(vec![0])
        } else {
            Body::from_stream(stream::iter([Err::<Bytes, _>("the request body broke off")]))
        };
        let mut request = Request::new(body);
        DefaultBodyLimit::max(0).apply(&mut request);
        // The body is ready, and so is the rejection.
        match Bytes::from_request(request, &()).now_or_never() {
            Some(Err(rejection)) => rejection.into_response(),
            _ => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        }
    }
}

/// The rest of a body that is too large. It is hashed while an extractor reads it.
struct BodyBeyond {
    body: Body,
    beyond: Arc<Mutex<Beyond>>,
}

impl HttpBody for BodyBeyond {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { body, beyond } = &mut *self;
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let mut beyond = lock(beyond);
        beyond.asked = true;
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            beyond.sha.update(data);
        }
        beyond.ended |= matches!(polled, Poll::Ready(None | Some(Err(_)))) || body.is_end_stream();
        // `Body::new` wraps the error again.
        polled.map_err(axum::Error::into_inner)
    }

    /// True only after the end was read. Otherwise a reader would not ask for more, and it would look as if it had stopped before.
    fn is_end_stream(&self) -> bool {
        lock(&self.beyond).ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The hash of a body up to the limit for extractors. It depends on the bytes alone, and not on the frames in which they came.
struct BodyHash {
    /// `None` until the body is long, and if the fingerprint has no use for it.
    sha: Option<Box<Sha256>>,
    is_wanted: bool,
    limit: u64,
    /// How many bytes have arrived.
    length: u64,
}

impl BodyHash {
    fn new(limit: u64, policy: &Policy) -> Self {
        Self { sha: None, is_wanted: policy.declares(Part::Body), limit, length: 0 }
    }

    /// Adds a frame, also to `frames`, which has those before. Returns whether the body exceeds the limit.
    fn add(&mut self, frame: Frame<Bytes>, frames: &mut BufferedFrames) -> bool {
        let data = frame.data_ref().map_or(&[][..], |data| data);
        let left = self.limit.saturating_sub(self.length);
        self.length += data.len() as u64;
        if let Some(sha) = &mut self.sha {
            sha.update(within(data, left));
        }
        frames.push(frame);
        if self.sha.is_none() && self.is_wanted && self.length.min(self.limit) > SHORT_BODY {
            let (mut sha, mut left) = (Sha256::new(), self.limit);
            for data in frames.data() {
                sha.update(within(data, left));
                left = left.saturating_sub(data.len() as u64);
            }
            self.sha = Some(Box::new(sha));
        }
        self.length > self.limit
    }
}

/// Returns at most the first `limit` bytes.
fn within(data: &[u8], limit: u64) -> &[u8] {
    &data[..usize::try_from(limit).map_or(data.len(), |limit| limit.min(data.len()))]
}

/// Reads the body within the limit that holds for extractors.
pub(crate) async fn read(parts: &mut Parts, mut body: Body, policy: &Policy) -> ReadBody {
    let limit = limit(parts);
    let (mut frames, mut hash) = (BufferedFrames::default(), BodyHash::new(limit, policy));
    let read = read_frames(&mut body, &mut frames, &mut hash).await;
    let end = match read {
        Read::Whole => ReadEnd::Whole,
        Read::TooLarge => ReadEnd::TooLarge { limit, rest: body },
        Read::Failed(error) => ReadEnd::Failed(error),
    };
    ReadBody { frames, end, hash }
}

/// Reads the body as far as that delays a request in shadow mode little.
pub(crate) async fn read_in_shadow(parts: &mut Parts, mut body: Body, policy: &Policy) -> ReadBody {
    let limit = limit(parts);
    let (mut frames, mut hash) = (BufferedFrames::default(), BodyHash::new(limit.min(SHADOW_BYTES), policy));
    if limit > SHADOW_BYTES && body.size_hint().lower() > SHADOW_BYTES {
        return ReadBody { frames, end: ReadEnd::Skipped(body), hash };
    }
    let read = {
        let mut read = pin!(read_frames(&mut body, &mut frames, &mut hash));
        // A body that has arrived needs no timer.
        match read.as_mut().now_or_never() {
            Some(read) => Ok(read),
            None => timeout(SHADOW_TIME, read).await,
        }
    };
    let end = match read {
        Ok(Read::Whole) => ReadEnd::Whole,
        Ok(Read::TooLarge) if limit <= SHADOW_BYTES => ReadEnd::TooLarge { limit, rest: body },
        Ok(Read::Failed(error)) => ReadEnd::Failed(error),
        Ok(Read::TooLarge) | Err(_) => ReadEnd::Skipped(body),
    };
    ReadBody { frames, end, hash }
}

enum Read {
    Whole,
    TooLarge,
    Failed(axum::Error),
}

/// Buffers the frames within the limit of `hash`, and the one that exceeds it. If the future is dropped, no frame is lost.
async fn read_frames(body: &mut Body, frames: &mut BufferedFrames, hash: &mut BodyHash) -> Read {
    if body.is_end_stream() {
        return Read::Whole;
    }
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Read::Whole,
            Some(Ok(frame)) => {
                if hash.add(frame, frames) {
                    return Read::TooLarge;
                }
                if body.is_end_stream() {
                    return Read::Whole;
                }
            }
            Some(Err(error)) => return Read::Failed(error),
        }
    }
}

/// Returns whether a body failed because it exceeds the limit that a layer has put on it, such as `RequestBodyLimitLayer` of
/// tower-http.
fn exceeds_limit(error: &axum::Error) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
    causes.any(<dyn Error>::is::<LengthLimitError>)
}

/// Returns the limit that holds for extractors of this request. axum does not tell it, but a body of unknown length that axum
/// limits has the limit as the upper end of its size hint.
fn limit(parts: &mut Parts) -> u64 {
    let mut carrier = Request::new(Body::new(UnknownLength));
    mem::swap(carrier.extensions_mut(), &mut parts.extensions);
    let mut carrier = carrier.with_limited_body();
    mem::swap(carrier.extensions_mut(), &mut parts.extensions);
    carrier.into_body().size_hint().upper().unwrap_or(u64::MAX)
}

/// A body of which no length is known.
struct UnknownLength;

impl HttpBody for UnknownLength {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fingerprint::FingerprintInput;
    use super::*;

    #[test]
    fn only_a_body_that_a_layer_has_limited_exceeds_the_limit() {
        assert!(!exceeds_limit(&axum::Error::new(std::io::Error::other("reset"))));
        let limited = http_body_util::Limited::new(Body::from("four"), 3);
        let error = axum::body::to_bytes(Body::new(limited), usize::MAX).now_or_never().unwrap().unwrap_err();
        assert!(exceeds_limit(&error));
    }

    /// How shadow mode reads a body of `bytes` bytes, whose length is known, under a limit for extractors.
    fn read_in_shadow_mode(bytes: u64, limit: Option<u64>) -> ReadBody {
        let mut request = Request::new(());
        match limit {
            Some(limit) => DefaultBodyLimit::max(usize::try_from(limit).unwrap()).apply(&mut request),
            None => DefaultBodyLimit::disable().apply(&mut request),
        }
        let (mut parts, ()) = request.into_parts();
        let body = Body::from(vec![0; usize::try_from(bytes).unwrap()]);
        read_in_shadow(&mut parts, body, &Policy::DEFAULT).now_or_never().unwrap()
    }

    #[test]
    fn a_body_above_the_limit_ends_for_its_reader_when_all_of_it_was_read() {
        let mut request = Request::new(());
        DefaultBodyLimit::max(4).apply(&mut request);
        let (mut parts, ()) = request.into_parts();
        let frames = ["12345", "678"].map(|data| Ok::<_, Infallible>(Bytes::from_static(data.as_bytes())));
        let body = Body::from_stream(stream::iter(frames));
        let read = read(&mut parts, body, &Policy::DEFAULT).now_or_never().unwrap();
        let (mut body, Some(PartialBody::Unreadable(state))) = read.into_body() else { panic!("above the limit") };
        for frame in [Some("12345"), Some("678"), None] {
            assert!(state.goes_on() && !body.is_end_stream(), "before {frame:?}");
            let read = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never().unwrap();
            let data = read.map(|frame| frame.unwrap().into_data().unwrap());
            assert_eq!(data.as_deref(), frame.map(str::as_bytes));
        }
        assert!(!state.goes_on() && body.is_end_stream());
        let rest = BodyBeyond { body: Body::from("678"), beyond: Arc::default() };
        assert_eq!(rest.size_hint().exact(), Some(3));
    }

    #[test]
    fn a_body_that_was_cut_at_the_limit_is_not_one_of_that_length() {
        let policy = &Policy::DEFAULT;
        let fingerprint = |bytes| {
            let mut input = FingerprintInput::new(&Request::new(()).into_parts().0, policy, None);
            input.body(&read_in_shadow_mode(bytes, Some(4)), policy);
            input.finish()
        };
        assert_eq!(fingerprint(4), fingerprint(4));
        assert_ne!(fingerprint(5), fingerprint(4));
        assert_ne!(fingerprint(5), fingerprint(3));
    }

    #[test]
    fn shadow_mode_reads_up_to_the_limit_and_not_what_takes_long() {
        let (most, more) = (SHADOW_BYTES, SHADOW_BYTES + 1);
        // A body that no extractor may read is read as far as the limit, so that the fingerprint has its length.
        for limit in [4, most] {
            assert!(matches!(read_in_shadow_mode(limit, Some(limit)).end, ReadEnd::Whole), "{limit}");
            assert!(matches!(read_in_shadow_mode(more, Some(limit)).end, ReadEnd::TooLarge { .. }), "{limit}");
        }
        for limit in [Some(more), None] {
            assert!(matches!(read_in_shadow_mode(most, limit).end, ReadEnd::Whole), "{limit:?}");
            let skipped = read_in_shadow_mode(more, limit);
            assert!(matches!(skipped.end, ReadEnd::Skipped(_)), "{limit:?}");
            assert_eq!(skipped.frames.data().count(), 0, "nothing was read of it");
        }
    }
}
