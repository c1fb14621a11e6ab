//! For generated code alone. Not a stable API: the macro and this crate are released together.

pub use axum::extract::{FromRequest, FromRequestParts};
pub use axum::response::Response;

pub use crate::endpoint::Call;
pub use crate::policy::{AddedHeader, InFlight, Part, Policy, Replay, Scope};
pub use crate::request::{ScopeValue, scope};
pub use crate::statuses::Statuses;
pub use idem_runtime::Abandoned;
