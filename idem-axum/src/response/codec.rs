//! A response as the bytes of a record.
//!
//! Format, version 1, numbers little-endian: version `u8`, status `u16`, number of headers `u16`; the headers; the body; the
//! trailers; the length of the trailers `u32`; of a response to `HEAD` the length of the body that is not sent `u64`, which is
//! [`UNKNOWN`] if the response does not say it. It is [`UNKNOWN`] as well of a stream under 204 or 304, and of any other response 0.
//!
//! A header or trailer is the length of its name `u16`, the length of its value `u32`, name and value. The highest bit of the
//! length of the value says that the value is sensitive, and the next one that the header `Trailer` has named this trailer.

use axum::response::Response;
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, response};
use idem_runtime::{DecodeError, RecordBuilder};

use super::headers::{self, RecordedHeaders};
use crate::policy::Policy;

const VERSION: u8 = 1;
/// Of the length of a value: it must not be logged, nor indexed by HPACK.
const SENSITIVE: u32 = 1 << 31;
/// Of the length of a trailer's value: the response had its name in the header `Trailer`.
const ANNOUNCED: u32 = 1 << 30;
const FLAGS: u32 = SENSITIVE | ANNOUNCED;
/// The length of a body that is not sent and of which no length is known.
const UNKNOWN: u64 = u64::MAX;
/// The two lengths at the end.
const FOOT: usize = 4 + 8;

/// A header map holds 24,576 names and panics beyond; a replay adds a few.
const MAX_HEADERS: usize = 24_000;
pub(super) const TOO_MANY: DecodeError = DecodeError("with too many headers");

/// Writes a response without its body, for which there is room. `None` if the format cannot hold the headers.
pub(super) fn head(policy: &Policy, parts: &response::Parts, room: usize) -> Option<RecordBuilder> {
    let recorded: Vec<_> = headers::recorded(&parts.headers, RecordedHeaders::of(policy.replay)).collect();
    if recorded.len() > MAX_HEADERS {
        return None;
    }
    let fields: usize = recorded.iter().map(|(name, value)| 6 + name.as_str().len() + value.len()).sum();
    let size = 5 + fields + FOOT;
    let mut record = RecordBuilder::with_capacity(size + room);
    record.put(&[VERSION]);
    record.put(&parts.status.as_u16().to_le_bytes());
    record.put(&u16::try_from(recorded.len()).ok()?.to_le_bytes());
    for (name, value) in recorded {
        put(&mut record, name, value, 0)?;
    }
    Some(record)
}

/// Writes what comes after the body, with the [length](RecordedResponse::declared_length) of a body that is not sent. `None` if the
/// format cannot hold the trailers.
pub(super) fn foot(record: &mut RecordBuilder, trailers: &Trailers, declared: Option<u64>) -> Option<()> {
    let start = record.len();
    for (name, value) in headers::recorded(&trailers.fields, RecordedHeaders::All) {
        put(record, name, value, if trailers.announced.contains(name) { ANNOUNCED } else { 0 })?;
    }
    record.put(&u32::try_from(record.len() - start).ok()?.to_le_bytes());
    record.put(&declared.unwrap_or(UNKNOWN).to_le_bytes());
    Some(())
}

fn put(record: &mut RecordBuilder, name: &HeaderName, value: &HeaderValue, flags: u32) -> Option<()> {
    let name = name.as_str().as_bytes();
    let flags = if value.is_sensitive() { flags | SENSITIVE } else { flags };
    let length = u32::try_from(value.len()).ok().filter(|length| length & FLAGS == 0)?;
    record.put(&u16::try_from(name.len()).ok()?.to_le_bytes());
    record.put(&(length | flags).to_le_bytes());
    record.put(name);
    record.put(value.as_bytes());
    Some(())
}

const SHORT: DecodeError = DecodeError("shorter than it says");
const MALFORMED: DecodeError = DecodeError("with a malformed header");

/// Reads a header or trailer, and its flags.
fn field(rest: &mut Bytes) -> Result<(HeaderName, HeaderValue, u32), DecodeError> {
    let length = usize::from(rest.try_get_u16_le().map_err(|_| SHORT)?);
    let value = rest.try_get_u32_le().map_err(|_| SHORT)?;
    let (flags, value) = (value & FLAGS, (value & !FLAGS) as usize);
    if rest.len() < length || rest.len() - length < value {
        return Err(SHORT);
    }
    let name = HeaderName::from_bytes(&rest[..length]).map_err(|_| MALFORMED)?;
    rest.advance(length);
    let mut value = HeaderValue::from_maybe_shared(rest.split_to(value)).map_err(|_| MALFORMED)?;
    value.set_sensitive(flags & SENSITIVE != 0);
    Ok((name, value, flags))
}

/// The trailers of a response.
#[derive(Debug, Default)]
pub struct Trailers {
    pub(super) fields: HeaderMap,
    /// The names that the header `Trailer` has. Over HTTP/1.1 a server sends no others.
    pub(super) announced: Vec<HeaderName>,
}

/// A decoded response.
#[derive(Debug, Default)]
pub struct RecordedResponse {
    /// The status, as the handler sent it.
    pub status: StatusCode,
    /// The headers that are recorded.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// What was sent after the body.
    pub trailers: Trailers,
    /// The length of a body that is not sent, since the request was `HEAD`. 0 if it is sent, and `None` if the response has no length: in
    /// reply to `HEAD`, or under a status that servers send without body.
    pub declared_length: Option<u64>,
}

impl RecordedResponse {
    /// Decodes a response, and checks everything: a store may return anything.
    ///
    /// # Errors
    /// If `content` is not a response in this format.
    pub fn decode(content: &Bytes) -> Result<Self, DecodeError> {
        let mut rest = content.clone();
        if rest.try_get_u8().map_err(|_| SHORT)? != VERSION {
            return Err(DecodeError("of an unknown version"));
        }
        let status = StatusCode::from_u16(rest.try_get_u16_le().map_err(|_| SHORT)?)
            .ok()
            .filter(|status| !status.is_informational())
            .ok_or(DecodeError("without a final status"))?;
        let count = rest.try_get_u16_le().map_err(|_| SHORT)?;
        let mut headers = HeaderMap::new();
        for _ in 0..count {
            let (name, value, _) = field(&mut rest)?;
            // Once more on the way out: whatever a record says, no framing header comes from it.
            if !headers::is_never_replayed(&name) {
                headers.try_append(name, value).map_err(|_| TOO_MANY)?;
            }
        }
        let mut foot = rest.split_off(rest.len().checked_sub(FOOT).ok_or(SHORT)?);
        let length = foot.try_get_u32_le().map_err(|_| SHORT)? as usize;
        let declared_length = Some(foot.try_get_u64_le().map_err(|_| SHORT)?).filter(|&length| length != UNKNOWN);
        let mut fields = rest.split_off(rest.len().checked_sub(length).ok_or(SHORT)?);
        let mut trailers = Trailers::default();
        while !fields.is_empty() {
            let (name, value, flags) = field(&mut fields)?;
            if !headers::is_never_replayed(&name) {
                if flags & ANNOUNCED != 0 && !trailers.announced.contains(&name) {
                    trailers.announced.push(name.clone());
                }
                trailers.fields.try_append(name, value).map_err(|_| TOO_MANY)?;
            }
        }
        Ok(Self { status, headers, body: rest, trailers, declared_length })
    }
}

/// Writes a response that no handler made. `None` if the format cannot hold the headers.
pub fn encode(recorded: RecordedResponse) -> Option<RecordBuilder> {
    let mut response = Response::new(());
    (*response.status_mut(), *response.headers_mut()) = (recorded.status, recorded.headers);
    let mut record = head(&Policy::DEFAULT, &response.into_parts().0, recorded.body.len())?;
    record.put(&recorded.body);
    foot(&mut record, &Trailers::default(), Some(0))?;
    Some(record)
}
