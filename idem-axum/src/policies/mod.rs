//! The policies of a service, listed and published. Beside the path of a request, never on it.

mod check;
mod document;
mod index;
#[cfg(feature = "utoipa")]
mod openapi;
mod refusal_examples;
#[cfg(feature = "utoipa")]
mod undescribed;

pub use index::{IdempotentHandler, Policies};
#[cfg(feature = "utoipa")]
pub use undescribed::Undescribed;
