//! For generated code alone. Not a stable API: the macro and this crate are released together.

use std::future::Future;

pub use axum::extract::{FromRequest, FromRequestParts};
pub use axum::response::Response;

pub use crate::endpoint::Call;
pub use crate::policy::{AddedHeader, InFlight, Part, Policy, Replay, Scope};
pub use crate::request::{ScopeValue, scope};
pub use crate::statuses::Statuses;
pub use idem_runtime::Abandoned;

/// Pins the type a body returns, for `?` and `Into`.
pub fn returns<T, F: Future<Output = T>>(body: F) -> F {
    body
}
