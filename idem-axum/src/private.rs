//! For generated code and for `idem-admin` only. Not a stable API: they and this crate are released together.

pub use axum::extract::{FromRequest, FromRequestParts};
pub use axum::response::Response;

pub use crate::call::{Call, OpenCall, ReadyCall};
pub use crate::policy::{AddedHeader, InFlight, Part, Policy, Replay, Scope, Statuses};
pub use crate::request::{KeyExpression, KeyOfOption, KeyOfText, KeyText, ScopePart, ScopeValue, scope};
pub use crate::response::{RecordedResponse, encode};
pub use idem_runtime::Abandoned;
pub use idem_runtime::private::{never, text};
