//! An answer as bytes, and the replay made from it.
//!
//! Format, version 1, numbers little-endian: version `u8`, status `u16`, number of headers `u16`; for each header the
//! length of its name `u16`, the length of its value `u32` (its highest bit set where the value is sensitive), name, value;
//! then the body to the end.

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, response};
use idem_runtime::{Draft, Undecodable};

use super::headers::{self, Kept};
use crate::policy::Policy;

const VERSION: u8 = 1;
/// Of the length of a value: it must not be logged, nor indexed by HPACK.
const SENSITIVE: u32 = 1 << 31;

/// A header map holds 24,576 names and panics beyond; a replay adds a few of its own.
const MAX_HEADERS: usize = 24_000;
const TOO_MANY: Undecodable = Undecodable("with too many headers");

/// Starts an answer: all but its body, for which there is room. `None` for headers that the format cannot hold.
pub(super) fn head(policy: &Policy, parts: &response::Parts, room: usize) -> Option<Draft> {
    let kept = match policy.replay {
        replay if replay.headers => Kept::All,
        replay if replay.body => Kept::OfTheBody,
        _ => Kept::None,
    };
    let mut count = 0_usize;
    let mut size = 5;
    for (name, value) in headers::recorded(&parts.headers, kept) {
        count += 1;
        size += 6 + name.as_str().len() + value.len();
    }
    if count > MAX_HEADERS {
        return None;
    }
    let mut draft = Draft::with_capacity(size + room);
    draft.put(&[VERSION]);
    draft.put(&parts.status.as_u16().to_le_bytes());
    draft.put(&u16::try_from(count).ok()?.to_le_bytes());
    for (name, value) in headers::recorded(&parts.headers, kept) {
        draft.put(&u16::try_from(name.as_str().len()).ok()?.to_le_bytes());
        let length = u32::try_from(value.len()).ok().filter(|length| length & SENSITIVE == 0)?;
        draft.put(&(if value.is_sensitive() { length | SENSITIVE } else { length }).to_le_bytes());
        draft.put(name.as_str().as_bytes());
        draft.put(value.as_bytes());
    }
    Some(draft)
}

/// A recorded answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Takes a record apart, and checks everything: a store may give back anything.
    pub(crate) fn decode(record: &Bytes) -> Result<Self, Undecodable> {
        const SHORT: Undecodable = Undecodable("shorter than it says");
        let mut rest = record.clone();
        if rest.try_get_u8().map_err(|_| SHORT)? != VERSION {
            return Err(Undecodable("of an unknown version"));
        }
        let status = StatusCode::from_u16(rest.try_get_u16_le().map_err(|_| SHORT)?)
            .ok()
            .filter(|status| !status.is_informational())
            .ok_or(Undecodable("without a final status"))?;
        let count = rest.try_get_u16_le().map_err(|_| SHORT)?;
        let mut headers = HeaderMap::new();
        for _ in 0..count {
            let name = usize::from(rest.try_get_u16_le().map_err(|_| SHORT)?);
            let value = rest.try_get_u32_le().map_err(|_| SHORT)?;
            let (sensitive, value) = (value & SENSITIVE != 0, (value & !SENSITIVE) as usize);
            if rest.len() < name || rest.len() - name < value {
                return Err(SHORT);
            }
            let name =
                HeaderName::from_bytes(&rest.split_to(name)).map_err(|_| Undecodable("with a malformed header"))?;
            let mut value = HeaderValue::from_maybe_shared(rest.split_to(value))
                .map_err(|_| Undecodable("with a malformed header"))?;
            value.set_sensitive(sensitive);
            // Once more on the way out: whatever a record says, no framing header comes from it.
            if !headers::never(&name) {
                headers.try_append(name, value).map_err(|_| TOO_MANY)?;
            }
        }
        Ok(Self { status, headers, body: rest })
    }
}

/// Writes an answer down that no handler gave. `None` for headers that the format cannot hold.
#[cfg(feature = "admin")]
pub(crate) fn write(answer: Answer) -> Option<Draft> {
    let mut response = Response::new(());
    (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
    let mut draft = head(&Policy::DEFAULT, &response.into_parts().0, answer.body.len())?;
    draft.put(&answer.body);
    Some(draft)
}

/// Makes the replay.
///
/// # Errors
/// The record cannot be read. The body ran once, and does not run now.
pub(crate) fn replay(policy: &Policy, record: &Bytes) -> Result<Response, Undecodable> {
    let Answer { status: recorded, mut headers, body } = Answer::decode(record)?;
    // The policy let only 200 to 599 in.
    let declared = policy.replay_status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = declared.unwrap_or(if policy.replay.status { recorded } else { StatusCode::OK });
    if !headers.contains_key(CACHE_CONTROL) {
        headers.try_insert(CACHE_CONTROL, HeaderValue::from_static("no-store")).map_err(|_| TOO_MANY)?;
    }
    if let Some(name) = policy.replay_header.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
        headers.try_insert(name, HeaderValue::from_static("true")).map_err(|_| TOO_MANY)?;
    }
    for added in policy.replay_with.iter().filter(|added| added.on.contains(recorded.as_u16())) {
        if let Ok(name) = HeaderName::from_bytes(added.name.as_bytes()) {
            headers.try_insert(name, HeaderValue::from_static(added.value)).map_err(|_| TOO_MANY)?;
        }
    }
    // A body after one of these would be read as the start of the next response.
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if bodiless || !policy.replay.body { Body::empty() } else { Body::from(body) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests;
