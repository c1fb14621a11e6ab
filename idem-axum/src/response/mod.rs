//! Responses: recorded on their way out, and replayed from a record.
//!
//! `recorder` records a response up to `max_response`, and passes it on by `body` and `channel`. `headers` says which headers are recorded,
//! `codec` turns a response into the bytes of a record, and `replay` makes a response of them, as `replay`, `replay_status`, `replay_header`
//! and `replay_with` say.

use std::convert::Infallible;

use axum::response::{IntoResponseParts, ResponseParts};

mod body;
mod channel;
mod codec;
mod headers;
mod recorder;
mod replay;
#[cfg(test)]
mod tests;
mod vary;

pub(crate) use body::BufferedFrames;
pub use codec::{RecordedResponse, encode};
pub(crate) use recorder::{
    Added, BodyRecorder, Framing, MAX_READY, RecordedRequest, buffer, done, record, record_refusal, start,
};
pub(crate) use replay::replay;

/// Marks a response that is not recorded: it is sent, the claim is released, and a retry runs the handler again.
///
/// Return it if nothing has happened that a retry must not repeat:
///
/// ```
/// use axum::{http::StatusCode, response::{IntoResponse, Response}};
/// use idem_axum::{Unrecorded, idempotent};
///
/// #[idempotent]
/// async fn order() -> Response {
///     let sold_out = true;
///     if sold_out {
///         return (Unrecorded, (StatusCode::CONFLICT, "sold out for now")).into_response();
///     }
///     StatusCode::CREATED.into_response()
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unrecorded;

impl IntoResponseParts for Unrecorded {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}
