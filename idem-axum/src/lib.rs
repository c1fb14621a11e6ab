//! `#[idempotent]` makes an axum handler safe to retry: it runs once for each idempotency key, and every retry gets the same response.
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
//! // After the server has stopped, wait for handlers whose client has disconnected.
//! idempotency.drain().await;
//! # }
//! ```
//!
//! # Guarantees
//!
//! The *key* is what the client sends in the header. The *scope* says whose key it is, by default the caller's. The *fingerprint* covers
//! the parts of the request that a retry must repeat. The *record* is the stored response, and a *replay* is a response made from the
//! record. These guarantees hold for one scope and key, until the record expires:
//!
//! - **Once.** The handler starts at most once, unless its policy, the handler itself or an operator allows more, the request's body did
//!   not arrive whole, or `Tx` undid everything.
//! - **To the end.** A client that disconnects does not stop the handler.
//! - **The same bytes.** A replay has the recorded status, headers, body and trailers.
//! - **Never another caller's.** No caller gets another's record, if callers differ by the declared [scope](guide::scopes), or else by
//!   `Authorization` or `Cookie`. A request with another fingerprint or to another endpoint is refused, even while the first one runs.
//! - **Extractors first.** Every extractor runs on every request, replays included.
//! - **Refuse rather than guess.** If these promises cannot be kept, the handler does not run, and the client gets a clear error.
//!
//! A handler whose effects are rows in PostgreSQL or SQLite takes effect [exactly once](guide::exactly_once) if it takes the argument `Tx`
//! of `idem-sqlx`. A function without HTTP uses `run_in` instead. Without them, a process may die after an effect and before its record is
//! written.
//!
//! # What to read next
//!
//! | | |
//! |---|---|
//! | [`#[idempotent]`](macro@idempotent) | every option, and which handlers it takes |
//! | [`Policy`] | the same options as a `const`, and the presets |
//! | [`Refusal`] | every error response that `idem` itself sends |
//! | [`IdempotencyLayer`], [`Idempotency`] | the layer to mount, and the engine that it hands to handlers: `drain`, `inspect`, `settle`, `once` |
//! | [`IdempotencyKey`], [`Unrecorded`] | the key as an argument, and the mark for a response that is not recorded |
//! | [`Policies`] | publishing the rules for clients |
//! | [`Store`] | the trait to implement for your own store |
//!
//! The [`guide`] has a page for each question that comes up later: [fingerprints](guide::fingerprints), [scopes and rotating
//! tokens](guide::scopes), [layers and sessions](guide::layers), [what is recorded](guide::recording), [the states of a
//! key](guide::states), [crashes](guide::crashes), [exactly once](guide::exactly_once), [stores behind a load balancer](guide::stores),
//! [deployments](guide::deployments), [webhooks and jobs](guide::jobs), [tests](guide::testing), [running it](guide::operating),
//! [observing and rolling out](guide::observing), [axum](guide::axum), [publishing the rules](guide::publishing),
//! [migrating](guide::migrating), [known APIs](guide::apis), and [what client authors must know](guide::clients).

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
    MemoryStore, MemoryStoreBuilder, Once, Outcome, Record, RecordBuilder, RefusalReason, Scope as KeyScope,
    SettleError, Settled, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry, SystemClock, Timestamp,
    TraceParent, Usage, WhenInFlight,
};
#[cfg(feature = "cached")]
pub use idem_runtime::{CachedClaim, CachedStore, CachedStoreBuilder};
pub use key::IdempotencyKey;
pub use layer::{IdempotencyLayer, IdempotencyService};
#[cfg(feature = "utoipa")]
pub use policies::Undescribed;
pub use policies::{IdempotentHandler, Policies};
pub use policy::{AddedHeader, InFlight, Part, Policy, Refusal, Replay, Scope, Statuses};
pub use response::Unrecorded;
