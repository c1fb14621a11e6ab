//! The guide: a page for each question that comes up between the first endpoint and the first incident.
//!
//! | page | the question |
//! |---|---|
//! | [`states`] | Which states can a key have? One picture. |
//! | [`fingerprints`] | Which requests are the same operation? |
//! | [`scopes`] | Whose key is it, and what if tokens rotate? |
//! | [`layers`] | What do timeouts, sessions, transactions and limits around a handler do? |
//! | [`axum`] | Which extractors, routers and crates for axum does it work with? |
//! | [`recording`] | What does a retry get, and what is never kept? |
//! | [`crashes`] | What if a process dies half-way? |
//! | [`exactly_once`] | What if the effects are rows in a database, and what does `Tx` cover? |
//! | [`stores`] | Which store is right, what can it lose, and what must nginx or HAProxy be told? |
//! | [`deployments`] | What holds in my deployment, what must I set, and where is personal data stored? |
//! | [`operating`] | Which limits are there, how does the service stop, and what if a handler hangs? |
//! | [`testing`] | How are handlers tested, without waiting? |
//! | [`observing`] | What can be seen and counted while it runs? |
//! | [`jobs`] | How do I protect webhooks, queues and nightly jobs, and what is `run_in`? |
//! | [`apis`] | What do the rules of known APIs look like? |
//! | [`publishing`] | How do clients learn the rules, in JSON and in OpenAPI? |
//! | [`clients`] | What should a client do, and when may it retry? |
//! | [`migrating`] | How do I replace my own middleware? |
//!
//! For two more questions, see other parts of the documentation:
//!
//! | place | the question |
//! |---|---|
//! | the crate [`idem-admin`](https://docs.rs/idem-admin) | How does support look a key up, and settle, forget or revoke it? |
//! | [`Idempotency::inspect`](crate::Idempotency::inspect) | How does a program look a key up? |
//!
//! Each page ends with what does *not* hold. The tests compile and run its Rust code, except for a few excerpts.
//!
//! The modules contain only documentation, and exist only in rustdoc.

#[doc = include_str!("guide/states.md")]
pub mod states {}

#[doc = include_str!("guide/fingerprints.md")]
pub mod fingerprints {}

#[doc = include_str!("guide/scopes.md")]
pub mod scopes {}

#[doc = include_str!("guide/layers.md")]
pub mod layers {}

#[doc = include_str!("guide/axum.md")]
pub mod axum {}

#[doc = include_str!("guide/recording.md")]
pub mod recording {}

#[doc = include_str!("guide/crashes.md")]
pub mod crashes {}

#[doc = include_str!("guide/exactly_once.md")]
pub mod exactly_once {}

#[doc = include_str!("guide/stores.md")]
pub mod stores {}

#[doc = include_str!("guide/deployments.md")]
pub mod deployments {}

#[doc = include_str!("guide/operating.md")]
pub mod operating {}

#[doc = include_str!("guide/testing.md")]
pub mod testing {}

#[doc = include_str!("guide/jobs.md")]
pub mod jobs {}

#[doc = include_str!("guide/apis.md")]
pub mod apis {}

#[doc = include_str!("guide/publishing.md")]
pub mod publishing {}

#[doc = include_str!("guide/clients.md")]
pub mod clients {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("guide/observing.md")]
pub mod observing {}
