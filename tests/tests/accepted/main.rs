//! What the attribute takes: each module compiles, and some run.

// These apply to whole crates only; `lints` has the others.
#![deny(future_incompatible, rust_2021_compatibility, rust_2024_compatibility)]
#![allow(dead_code, reason = "most handlers are only compiled")]
#![allow(
    clippy::multiple_bound_locations,
    clippy::needless_return,
    clippy::toplevel_ref_arg,
    reason = "unusual code must be taken, too"
)]

mod arguments;
mod as_without_it;
mod borrowed_for_ever;
mod crate_path;
mod debug_handler;
mod function;
mod generics;
mod imports;
mod instrument;
mod keys;
pub mod lints;
mod names;
mod options;
mod ownership;
mod ref_patterns;
mod responses;
mod routing;
mod scopes;
mod utoipa;
