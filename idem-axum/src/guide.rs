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
//! | [`observing`] | What can be seen and counted while it runs? |
//! | [`migrating`] | What about the middleware that is there? |
//!
//! And for those who run the service or call it, in the documentation of what they use:
//!
//! | place | the question |
//! |---|---|
//! | [`Policies`](crate::Policies) | How do clients learn the rules, in JSON and in OpenAPI? |
//! | `admin`, with the feature `admin` | How does support look a key up, and settle or forget it? |
//! | [`Idempotency::inspect`](crate::Idempotency::inspect) | How does a program? |
//!
//! Each page is short, its code is compiled and run with the tests, and it ends with what does *not* hold.
//!
//! The modules are documentation alone, and exist only for rustdoc.

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

#[doc = include_str!("guide/observing.md")]
pub mod observing {}
