//! The guide: a page for each question that comes up between the first endpoint and the first incident.
//!
//! | page | the question |
//! |---|---|
//! | [`states`] | What can become of a key? One picture. |
//! | [`fingerprints`] | Which requests are the same operation? |
//! | [`scopes`] | Whose key is it, and what if tokens rotate? |
//! | [`recording`] | What does a retry get, and what is never kept? |
//! | [`crashes`] | What if a process dies half-way? |
//! | [`stores`] | Which store, behind a load balancer? |
//! | [`testing`] | How are handlers tested, without waiting? |
//! | [`migrating`] | What about the middleware that is there? |
//!
//! Each page is short, its code is compiled and run with the tests, and it ends with what does *not* hold.
//!
//! The modules are documentation alone, and exist only for rustdoc.

// Pages for operators go here, beside the others, each a file in `guide/` and a row of the table above.

#[doc = include_str!("guide/states.md")]
pub mod states {}

#[doc = include_str!("guide/fingerprints.md")]
pub mod fingerprints {}

#[doc = include_str!("guide/scopes.md")]
pub mod scopes {}

#[doc = include_str!("guide/recording.md")]
pub mod recording {}

#[doc = include_str!("guide/crashes.md")]
pub mod crashes {}

#[doc = include_str!("guide/stores.md")]
pub mod stores {}

#[doc = include_str!("guide/testing.md")]
pub mod testing {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}
