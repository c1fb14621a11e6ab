//! A replay, made from a record.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Frame, SizeHint};
use idem_runtime::DecodeError;

use super::BufferedFrames;
use super::codec::{RecordedResponse, TOO_MANY, Trailers};
use super::headers::{self, RecordedHeaders};
use crate::policy::{Policy, Statuses};

/// Makes the replay.
///
/// # Errors
/// The record cannot be read. The handler ran once, and does not run now.
pub(crate) fn replay(policy: &Policy, is_head: bool, content: &Bytes) -> Result<Response, DecodeError> {
    let RecordedResponse { status: recorded, mut headers, body, mut trailers, declared_length } =
        RecordedResponse::decode(content)?;
    // The record may be of an earlier version of the policy, which replayed more, or of an operator.
    if !policy.replay.headers {
        let replayed = headers::recorded(&headers, RecordedHeaders::of(policy.replay));
        headers = replayed.map(|(name, value)| (name.clone(), value.clone())).collect();
    }
    if !(policy.replay.headers && policy.replay.body) {
        trailers = Trailers::default();
    }
    // The policy accepts only 200 to 599.
    let declared = policy.replay_status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = declared.unwrap_or(if policy.replay.status { recorded } else { StatusCode::OK });
    headers.try_entry(CACHE_CONTROL).map_err(|_| TOO_MANY)?.or_insert(HeaderValue::from_static("no-store"));
    if let Some(name) = policy.replay_header.and_then(marker) {
        headers.try_insert(name, HeaderValue::from_static("true")).map_err(|_| TOO_MANY)?;
    }
    for added in policy.replay_with.iter().filter(|added| added.on.contains(recorded.as_u16())) {
        if let Ok(name) = HeaderName::from_bytes(added.name.as_bytes()) {
            headers.try_insert(name, HeaderValue::from_static(added.value)).map_err(|_| TOO_MANY)?;
        }
    }
    // Over HTTP/1.1 only announced trailers are sent.
    for name in trailers.announced {
        headers.try_append(TRAILER, HeaderValue::from(name)).map_err(|_| TOO_MANY)?;
    }
    // Another status than the recorded one may allow no body, and then a client would read it as the next response.
    let allows_body = status == recorded || !Statuses::BODILESS.contains(status.as_u16());
    let body = match declared_length {
        _ if !allows_body => Body::empty(),
        None if is_head || !policy.replay.body => Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()),
        Some(length) if is_head && length > 0 => {
            headers.try_insert(CONTENT_LENGTH, HeaderValue::from(length)).map_err(|_| TOO_MANY)?;
            Body::empty()
        }
        None => frames(body, trailers.fields).ended(&SizeHint::default()),
        _ if policy.replay.body => with_trailers(body, trailers.fields),
        _ => Body::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Returns the name of the header that marks a replay. The usual one is not parsed.
fn marker(name: &str) -> Option<HeaderName> {
    match name {
        "idempotent-replayed" => Some(const { HeaderName::from_static("idempotent-replayed") }),
        other => HeaderName::from_bytes(other.as_bytes()).ok(),
    }
}

/// Makes the body. With trailers its length is unknown, since a response of known length cannot have them in HTTP/1.1.
fn with_trailers(body: Bytes, trailers: HeaderMap) -> Body {
    if trailers.is_empty() { Body::from(body) } else { frames(body, trailers).whole() }
}

fn frames(body: Bytes, trailers: HeaderMap) -> BufferedFrames {
    let mut frames = BufferedFrames::default();
    if !body.is_empty() {
        frames.push(Frame::data(body));
    }
    if !trailers.is_empty() {
        frames.push(Frame::trailers(trailers));
    }
    frames
}
