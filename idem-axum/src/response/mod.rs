//! Responses: captured on their way out, and replayed from a record.

use std::any::Any;
use std::convert::Infallible;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::response::{IntoResponseParts, ResponseParts};

mod answer;
mod capture;
mod headers;
mod live;
mod queue;
mod taped;

pub(crate) use answer::replay;
#[cfg(feature = "admin")]
pub(crate) use answer::{Answer, write};
pub(crate) use capture::capture;
pub(crate) use headers::NEVER;
pub(crate) use live::Given;
pub(crate) use taped::taped;

/// Marks a response that is not to be recorded: it is sent, the claim is released, and a retry runs the body again.
///
/// Return it where nothing has happened that a retry must not repeat:
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

/// Drops what a panic left, which may panic as well.
pub(crate) fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(again);
    }
}
