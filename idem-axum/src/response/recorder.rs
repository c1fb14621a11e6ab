//! Records a response on its way to the first caller.
//!
//! Recording never delays a response, and turns it into an error only if its body panics at once. What is ready is recorded at once, up to
//! 64 KiB if its length is unknown. What is not ready, or longer, goes to the caller live, frame by frame, and is recorded as it flows.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{HeaderMap, Method, StatusCode, Version, request};
use http_body::{Body as _, Frame};
use idem_runtime::panics::{discard, drop_quietly};
use idem_runtime::{Executed, Outcome, RecordBuilder, Recording};

use super::body::{self, BufferedFrames};
use super::codec::{self, Trailers};
use super::{Unrecorded, headers, vary};
use crate::policy::{Policy, Refusal, Statuses};
use crate::warnings::Warnings;

/// How many bytes of a body of unknown length are read before the caller gets the first of them. Otherwise both the frames and the record
/// of a response that nothing reads would stay in memory.
pub(crate) const MAX_READY: usize = 64 * 1024;

/// A recording in progress: the head of the response, and the body as far as it has come.
pub(crate) struct BodyRecorder {
    record: RecordBuilder,
    /// Where the body starts.
    start: usize,
    /// How many more bytes of the body are recorded.
    room: usize,
    /// How many more bytes the client gets, if that is known.
    remaining: Option<u64>,
    /// Whether the client waits for the end of the stream after them.
    has_streams: bool,
    /// Whether the replay has a length. A stream under 204 or 304 has none: a 204 must not have one, and that of a 304 is not that of its
    /// body.
    replays_length: bool,
    trailers: Trailers,
    keeps_trailers: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is recorded.
    Recorded,
    /// Its data is beyond the known length. The client does not get it, and what it gets is recorded.
    Beyond,
    /// The response is larger than what is recorded.
    TooLarge,
}

impl BodyRecorder {
    /// Adds a frame.
    pub(crate) fn add(&mut self, frame: &Frame<Bytes>) -> Added {
        if let Some(trailers) = frame.trailers_ref() {
            return self.add_trailers(trailers);
        }
        let Some(data) = frame.data_ref() else { return Added::Recorded };
        let known = self.remaining.and_then(|remaining| usize::try_from(remaining).ok()).unwrap_or(usize::MAX);
        let sent = &data[..data.len().min(known)];
        let Some(room) = self.room.checked_sub(sent.len()) else { return Added::TooLarge };
        self.room = room;
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(sent.len() as u64));
        self.record.put(sent);
        if sent.len() < data.len() { Added::Beyond } else { Added::Recorded }
    }

    fn add_trailers(&mut self, trailers: &HeaderMap) -> Added {
        if self.keeps_trailers {
            let size = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            let Some(room) = self.room.checked_sub(size) else { return Added::TooLarge };
            self.room = room;
            self.trailers.fields.extend(trailers.clone());
        }
        Added::Recorded
    }

    /// Returns whether the client has all data, and so does not wait for the end of the stream.
    pub(crate) fn is_complete(&self) -> bool {
        self.remaining == Some(0) && !self.has_streams
    }

    /// Returns whether the client waits for more data than has come.
    pub(super) fn is_short(&self) -> bool {
        self.remaining.is_some_and(|remaining| remaining > 0)
    }

    /// Returns the body as far as it is recorded.
    pub(super) fn body(&self) -> &[u8] {
        &self.record.as_slice()[self.start..]
    }

    /// Returns where the body starts in the content of the record.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// Ends the recording. A body that is shorter than its known length broke off.
    pub(crate) fn finish(mut self) -> Outcome {
        if self.is_short() {
            return Outcome::NotReplayable;
        }
        match codec::foot(&mut self.record, &self.trailers, self.replays_length.then_some(0)) {
            Some(()) => Outcome::Record(self.record),
            None => Outcome::NotReplayable,
        }
    }
}

/// How a server sends the response to a request. By default as the one to a `POST` over HTTP/1.1.
#[derive(Clone, Copy, Default)]
pub(crate) struct Framing {
    /// The response is sent without its body.
    pub(crate) is_head: bool,
    /// A successful response opens a tunnel, as an upgrade over HTTP/2 does.
    pub(crate) is_connect: bool,
    /// A client waits for the end of the body, even if it has as much of it as the response declares.
    pub(crate) has_streams: bool,
}

impl Framing {
    pub(crate) fn of(parts: &request::Parts) -> Self {
        Self {
            is_head: parts.method == Method::HEAD,
            is_connect: parts.method == Method::CONNECT,
            has_streams: parts.version >= Version::HTTP_2,
        }
    }
}

/// What the recording of a response needs to know of its request.
pub(crate) struct RecordedRequest<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) framing: Framing,
    /// Whether the handler has a `Tx`.
    pub(crate) has_transaction: bool,
    /// Whether an extractor saw the body break off, and the handler ran nevertheless. The client will send the whole body under the
    /// same key, so nothing is recorded.
    pub(crate) body_failed: bool,
    pub(crate) warnings: Warnings,
}

/// Starts the recording of a response. `Err` is the outcome if no body is to be recorded.
pub(crate) fn start(request: &RecordedRequest<'_>, parts: &Parts, body: &Body) -> Result<BodyRecorder, Outcome> {
    let &RecordedRequest { policy, framing: Framing { is_head, is_connect, has_streams }, .. } = request;
    // It stays in the response: an annotated handler that passes it on is not recorded either.
    let unrecorded = parts.extensions.get::<Unrecorded>().is_some();
    // A refusal of another call says that nothing was done there, or that a retry may succeed.
    let refused = parts.extensions.get::<Refusal>().is_some();
    // The tunnel is that of one connection: a retry needs its own.
    let is_tunnel = is_connect && parts.status.is_success();
    // 1xx, the 101 of an upgrade among them, are in no set of statuses.
    let is_recorded = policy.recorded(request.has_transaction).contains(parts.status.as_u16()) && !is_tunnel;
    if unrecorded || refused || request.body_failed || !is_recorded {
        return Err(Outcome::Release);
    }
    vary::check(policy, &parts.headers, &request.warnings);
    let hint = body.size_hint();
    // The body of a response to `HEAD` is not sent, so it is not read either.
    let keeps_body = policy.replay.body && !is_head;
    let room = if keeps_body { policy.max_response } else { 0 };
    let expected = usize::try_from(hint.exact().unwrap_or(0)).unwrap_or(usize::MAX).min(room);
    let Some(mut record) = codec::head(policy, parts, expected) else {
        return Err(Outcome::NotReplayable);
    };
    let replays_length = !is_cut(parts) || hint.exact().is_some();
    if !keeps_body {
        let length = match (is_head, policy.replay.headers, policy.replay.body) {
            (true, _, true) => declared_length(parts).or(hint.exact()),
            (true, true, false) => Some(declared_length(parts).unwrap_or(0)),
            _ => replays_length.then_some(0),
        };
        return Err(match codec::foot(&mut record, &Trailers::default(), length) {
            Some(()) => Outcome::Record(record),
            None => Outcome::NotReplayable,
        });
    }
    let remaining = known_length(parts, body);
    if hint.lower().max(remaining.unwrap_or(0)) > policy.max_response as u64 {
        return Err(Outcome::NotReplayable);
    }
    let trailers = Trailers { fields: HeaderMap::new(), announced: headers::announced(&parts.headers) };
    let keeps_trailers = policy.replay.headers;
    Ok(BodyRecorder {
        start: record.len(),
        record,
        room,
        remaining,
        has_streams,
        replays_length,
        trailers,
        keeps_trailers,
    })
}

/// Returns the length that the response declares.
fn declared_length(parts: &Parts) -> Option<u64> {
    parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Returns how many bytes of the body a client gets, if that is known. It does not wait for the end of the stream after them.
fn known_length(parts: &Parts, body: &Body) -> Option<u64> {
    // The length of a body that is not sent says nothing about its stream.
    if is_cut(parts) { None } else { body.size_hint().exact().or_else(|| declared_length(parts)) }
}

/// Returns whether the body is not sent.
fn is_cut(parts: &Parts) -> bool {
    Statuses::CUT.contains(parts.status.as_u16())
}

/// Waits for the body of a response, as far as a client waits for it and it is recorded. Returns the same response, and whether its body
/// has failed.
///
/// # Errors
/// What a panic of the body left.
pub(crate) async fn buffer(request: &RecordedRequest<'_>, response: Response) -> Result<(Response, bool), Panic> {
    if request.framing.is_head {
        return Ok((response, false));
    }
    let (parts, mut body) = response.into_parts();
    let max = request.policy.max_response;
    let known_length = known_length(&parts, &body).filter(|_| !request.framing.has_streams);
    let mut frames = BufferedFrames::default();
    let mut size = 0_usize;
    // A body that is longer than what is recorded is not waited for.
    let hint = body.size_hint();
    let mut is_larger = hint.lower() > max as u64;
    let (body, has_failed) = loop {
        if is_larger {
            break (frames.then(body, hint.exact()), false);
        }
        let is_complete = known_length.is_some_and(|length| size as u64 >= length);
        let polled = poll_fn(|cx| match poll_body(&mut body, || is_complete, cx) {
            Ok(Poll::Pending) if !is_complete => Poll::Pending,
            polled => Poll::Ready(polled),
        });
        match polled.await {
            Ok(Poll::Pending) => break (frames.then(body, hint.exact()), false),
            Ok(Poll::Ready(None)) => {
                drop_quietly(body);
                break (frames.ended(&hint), false);
            }
            Ok(Poll::Ready(Some(Ok(frame)))) => {
                // Trailers do not count: after them the body ends.
                size = size.saturating_add(frame.data_ref().map_or(0, Bytes::len));
                frames.push(frame);
                is_larger = size > max;
            }
            Ok(Poll::Ready(Some(Err(error)))) => {
                drop_quietly(body);
                break (frames.failed(error), true);
            }
            Err(panic) => {
                drop_quietly(body);
                return Err(panic);
            }
        }
    };
    Ok((Response::from_parts(parts, body), has_failed))
}

/// What a panic left.
type Panic = Box<dyn Any + Send>;

/// Splits a response into what goes to the caller and what is recorded. Nothing is awaited: a body that is not ready, or is longer than
/// `max_ready` without saying so, is recorded live.
///
/// # Errors
/// What a panic of the body left.
pub(crate) fn record(
    request: &RecordedRequest<'_>,
    response: Response,
    max_ready: usize,
) -> impl Future<Output = Result<Executed<Response>, Panic>> {
    // An async function would hold the response twice.
    let mut response = Some(response);
    poll_fn(move |cx| {
        let response = response.take().unwrap_or_default();
        let split = catch_unwind(AssertUnwindSafe(|| split(request, response, max_ready, cx)));
        Poll::Ready(split.and_then(|split| split))
    })
}

/// As [`record`], for a refusal of this call, which is recorded as any response of the handler. Its body is the user's, if the policy has
/// a function `errors`.
pub(crate) async fn record_refusal(request: &RecordedRequest<'_>, mut response: Response) -> Executed<Response> {
    let refusal = response.extensions_mut().remove::<Refusal>();
    let recorded = match record(request, response, usize::MAX).await {
        Err(panic) => {
            discard(panic);
            tracing::error!(
                "the body of a refusal panicked, which `errors` of a policy made; the response is 500 without a body"
            );
            record(request, StatusCode::INTERNAL_SERVER_ERROR.into_response(), usize::MAX).await
        }
        recorded => recorded,
    };
    let mut executed =
        recorded.unwrap_or_else(|_| done(StatusCode::INTERNAL_SERVER_ERROR.into_response(), Outcome::NotReplayable));
    if let Some(refusal) = refusal {
        executed.response.extensions_mut().insert(refusal);
    }
    executed
}

fn split(
    request: &RecordedRequest<'_>,
    response: Response,
    max_ready: usize,
    cx: &mut Context<'_>,
) -> Result<Executed<Response>, Panic> {
    let (parts, mut body) = response.into_parts();
    let mut recorder = match start(request, &parts, &body) {
        Ok(recorder) => recorder,
        Err(outcome) => return Ok(done(Response::from_parts(parts, body), outcome)),
    };
    let hint = body.size_hint();
    // A server does not read a body that it does not send.
    let max_ready = if recorder.remaining.is_some() || is_cut(&parts) { usize::MAX } else { max_ready };
    let mut frames = BufferedFrames::default();
    let (mut is_first, mut trailers) = (true, None::<HeaderMap>);
    let (body, outcome) = loop {
        let polled = poll_body(&mut body, || recorder.is_complete(), cx);
        match polled {
            Ok(Poll::Ready(None)) => {
                drop_quietly(body);
                break (frames.ended(&hint), recorder.finish());
            }
            Ok(Poll::Ready(Some(Ok(frame)))) => {
                let added = recorder.add(&frame);
                if let Some(fields) = frame.trailers_ref() {
                    trailers.get_or_insert_default().extend(fields.clone());
                }
                frames.push(frame);
                let is_ready = is_first || recorder.is_complete() || recorder.body().len() <= max_ready;
                is_first = false;
                match added {
                    Added::Recorded if is_ready => {}
                    Added::Recorded => return Ok(live(parts, body, hint.exact(), recorder, trailers)),
                    Added::Beyond => break (frames.then(body, hint.exact()), recorder.finish()),
                    Added::TooLarge => break (frames.then(body, hint.exact()), Outcome::NotReplayable),
                }
            }
            Ok(Poll::Ready(Some(Err(error)))) => {
                drop_quietly(body);
                break (frames.failed(error), Outcome::NotReplayable);
            }
            Ok(Poll::Pending) if recorder.is_complete() => break (frames.then(body, hint.exact()), recorder.finish()),
            Ok(Poll::Pending) => return Ok(live(parts, body, hint.exact(), recorder, trailers)),
            Err(panic) => {
                drop_quietly(body);
                return Err(panic);
            }
        }
    };
    Ok(done(Response::from_parts(parts, body), outcome))
}

/// Returns a response that goes to the caller while it is recorded. What `recorder` has of the body has been read, and so have `trailers`.
/// `length` is the one that the body gave at first.
fn live(
    parts: Parts,
    body: Body,
    length: Option<u64>,
    recorder: BodyRecorder,
    trailers: Option<HeaderMap>,
) -> Executed<Response> {
    let (forwarded, recorded) = body::record_live(body, length, recorder, trailers);
    let response = Response::from_parts(parts, forwarded);
    Executed { response, recording: Recording::Live(Box::pin(recorded)) }
}

/// A polled body.
pub(super) type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

/// Polls a body of the user's. A panic is caught here, since the body is dropped while it unwinds otherwise, and may panic again.
///
/// A body that fails although its client has all data has ended: the client does not wait for more, and so has a whole response.
pub(super) fn poll_body(
    body: &mut Body,
    is_complete: impl FnOnce() -> bool,
    cx: &mut Context<'_>,
) -> Result<Polled, Panic> {
    match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
        Ok(Poll::Ready(Some(Err(_)))) if is_complete() => Ok(Poll::Ready(None)),
        polled => polled,
    }
}

/// A response whose outcome is known.
pub(crate) fn done(response: Response, outcome: Outcome) -> Executed<Response> {
    Executed { response, recording: Recording::Done(outcome) }
}
