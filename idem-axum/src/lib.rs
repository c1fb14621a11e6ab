//! `#[idempotent]` makes an axum handler safe to retry: it runs once for a key, and every retry gets the same response.
//!
//! ```
//! use axum::{Json, Router, body::Body, extract::State, http::{Request, StatusCode}, routing::post};
//! use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
//! use tower::ServiceExt;
//!
//! #[idempotent(required, ttl = "24h")]
//! async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
//!     (StatusCode::CREATED, Json(orders.create(new)))
//! }
//!
//! # #[derive(Clone, Default)]
//! # struct Orders(std::sync::Arc<std::sync::atomic::AtomicUsize>);
//! # impl Orders {
//! #     fn create(&self, NewOrder { item }: NewOrder) -> Order {
//! #         Order { id: 1 + self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst), item }
//! #     }
//! # }
//! # #[derive(serde::Deserialize)]
//! # struct NewOrder { item: String }
//! # #[derive(serde::Serialize)]
//! # struct Order { id: usize, item: String }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let idempotency = Idempotency::in_memory();
//! let app = Router::new()
//!     .route("/orders", post(create_order))
//!     .layer(IdempotencyLayer::new(idempotency.clone()))
//!     .with_state(Orders::default());
//!
//! let order = || {
//!     let request = Request::post("/orders").header("Idempotency-Key", "order-1").header("Content-Type", "application/json");
//!     app.clone().oneshot(request.body(Body::from(r#"{"item":"tea"}"#)).unwrap())
//! };
//! let first = order().await.unwrap();
//! let retry = order().await.unwrap();
//! assert_eq!((first.status(), retry.status()), (StatusCode::CREATED, StatusCode::CREATED));
//! assert_eq!(retry.headers()["idempotent-replayed"], "true");
//!
//! // When the server has stopped: handlers whose client has left may still run.
//! idempotency.drain().await;
//! # }
//! ```
//!
//! # Guarantees
//!
//! The *scope* says whose key it is, by default the caller's. The *fingerprint* is what must be equal on a retry. The *record* is
//! the response as it was kept, and a *replay* is a response made from it. For one scope and key, while the record lives:
//!
//! - **Once.** The handler starts at most once, unless its policy explicitly allows more.
//! - **To the end.** A client that disconnects does not stop the handler.
//! - **The same bytes.** A replay has the recorded status, headers, body and trailers.
//! - **Never another caller's.** Another fingerprint, caller or endpoint is refused, also while the first request runs.
//! - **Extractors first.** Every extractor runs on every request, replays included.
//! - **Refuse rather than guess.** If this cannot be kept, the handler does not run, and the client gets a clear error.
//!
//! A handler whose effects are rows in PostgreSQL or SQLite takes effect [exactly once](guide::exactly_once) with `Tx` of `idem-sqlx`,
//! and a function without HTTP with `run_in`. Without them a process that dies may leave an effect without its record.
//!
//! # Where to read on
//!
//! | | |
//! |---|---|
//! | [`#[idempotent]`](macro@idempotent) | every option, and which handlers it takes |
//! | [`Policy`] | the same as a `const`, and the presets |
//! | [`Refusal`] | every response that the runtime makes itself |
//! | [`IdempotencyLayer`], [`Idempotency`] | what is mounted, and what it does: `drain`, `inspect`, `settle`, `once` |
//! | [`IdempotencyKey`], [`Unrecorded`] | what a handler takes and returns |
//! | [`Policies`] | what clients are told |
//! | [`Store`] | the contract of stores |
//!
//! The [`guide`] has a page for each question that comes up later: [fingerprints](guide::fingerprints),
//! [scopes and rotating tokens](guide::scopes), [layers and sessions](guide::layers), [what is recorded](guide::recording),
//! [crashes](guide::crashes), [exactly once](guide::exactly_once), [stores behind a load balancer](guide::stores),
//! [deployments](guide::deployments), [webhooks and jobs](guide::jobs), [tests](guide::testing),
//! [running it](guide::operating), [observing](guide::observing), [known APIs](guide::apis), and
//! [what client authors must know](guide::clients).

mod call;
mod context;
mod execution;
mod extract;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(doc)]
pub mod guide;
mod key;
mod layer;
mod link_header;
mod panics;
mod policies;
mod policy;
#[doc(hidden)]
pub mod private;
mod request;
mod response;
mod shadow;
mod telemetry;
mod warnings;

pub use idem_macros::idempotent;
#[cfg(feature = "conformance")]
pub use idem_runtime::conformance;
#[cfg(feature = "metrics")]
pub use idem_runtime::metrics;
pub use idem_runtime::{
    Abandoned, Begin, BeginOptions, Claim, Clock, DrainTimeout, ExecutionId, ExecutionInfo, Fingerprint, Idempotency,
    IdempotencyBuilder, InvalidKey, Key, KeyPage, KeyReport, KeyState, KeyStatus, Lease, ManualClock, MemoryClaim,
    MemoryStore, MemoryStoreBuilder, Outcome, Record, RecordBuilder, RefusalReason, Scope as KeyScope, SettleError,
    Settled, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry, SystemClock, Timestamp, TraceParent, Usage,
};
#[cfg(feature = "cached")]
pub use idem_runtime::{CachedClaim, CachedStore, CachedStoreBuilder};
pub use idem_runtime::{Once, WhenInFlight};
pub use key::IdempotencyKey;
pub use layer::{IdempotencyLayer, IdempotencyService};
#[cfg(feature = "utoipa")]
pub use policies::Undescribed;
pub use policies::{IdempotentHandler, Policies};
pub use policy::{AddedHeader, InFlight, Part, Policy, Refusal, Replay, Scope, Statuses};
pub use response::Unrecorded;
