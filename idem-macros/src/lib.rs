//! The attribute of `idem`. Use it through `idem-axum`, which re-exports it.
//!
//! No logic is in here: the options are read (`args`), their values checked (`value`, `sum`, `scope`) and resolved to a
//! constant policy (`policy`), the function is taken apart (`item`), and both become one function (`expand`) that calls
//! the adapter crate.

mod args;
mod errors;
mod expand;
mod item;
mod policy;
mod scope;
mod sum;
mod value;

use proc_macro::TokenStream;

/// Makes an axum handler safe to retry.
///
/// ```ignore
/// use axum::{Json, extract::State, http::StatusCode};
/// use idem_axum::idempotent;
///
/// #[idempotent(header = "Idempotency-Key", ttl = "24h", fingerprint = body + path)]
/// async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
///     (StatusCode::CREATED, Json(orders.create(new).await))
/// }
/// ```
///
/// A request that brings a key runs the body at most once; a retry with the same key gets the recorded response again.
/// Arguments are extracted for every request, retries too: what an extractor rejects is never recorded and never uses
/// up the key. The router needs an `IdempotencyLayer`; without one the handler answers 500 and logs what to add.
///
/// # Options
///
/// Each at most once, in any order. The method is the one of `Policy` that does the same in a `const`.
///
/// | option | value | default | method |
/// |---|---|---|---|
/// | `policy` | path of a `const Policy` to start from; the other options override it | `Policy::DEFAULT` | the start of the chain |
/// | `header` | header that carries the key, string | `"Idempotency-Key"` | `.header("idempotency-key")` |
/// | `required` | flag: a request without the key is refused (400); without the flag it runs unprotected | off | `.required()`, `.optional()` |
/// | `min_key` | shortest key accepted, in characters, 1 to 255 | `1` | `.min_key(8)` |
/// | `ttl` | how long a record lives, from completion: `"90s"`, `"24h"`, `"1h 30m"`, `"7d"` | `"24h"` | `.ttl(Duration::from_secs(86_400))` |
/// | `fingerprint` | what must be equal on a retry: sum of `method`, `path`, `query`, `body`, `json`, `json("/a", "/b/0")`, `header("Name")` | `method + path + query + body` | `.fingerprint(&[Part::Path, Part::Body])` |
/// | `scope` | whose key it is: `global`, `header("Name")`, or an expression (a tuple for several) over the handler's arguments, each `Display` | the caller is bound through the fingerprint, by `Authorization` | `.scope(Scope::Global)`; an expression has none |
/// | `in_flight` | what a retry gets while the first still runs: `reject`, `reject(423)`, `wait("5s")` (then reject) | `reject` (409) | `.in_flight(InFlight::reject(409))` |
/// | `mismatch` | status for a key that comes with another request, 400 to 599 | `422` | `.mismatch(422)` |
/// | `record` | which responses are recorded: sum and difference of `all`, `success`, `redirect`, `client_error`, `server_error` and single statuses | `all` | `.record(Statuses::ALL.minus(Statuses::of(400)))` |
/// | `replay` | what is given back: sum of `status`, `headers`, `body` | all three | `.replay(Replay::STATUS.and(Replay::BODY))` |
/// | `replay_status` | status a replay is sent with, 200 to 599 | the recorded one | `.replay_status(200)` |
/// | `replay_header` | name of the header that marks a replay (value `true`), or `none` | `"Idempotent-Replayed"` | `.replay_header("idempotent-replayed")`, `.no_replay_header()` |
/// | `replay_with` | headers that a replay carries and the first answer did not: sum of `header("Name", "value")` and, by recorded status, `header("Name", "value", server_error - 503)` | none but the marker | `.replay_with(&[AddedHeader::new("x-name", "value").on(Statuses::SERVER_ERROR)])` |
/// | `abandoned` | what a retry gets when the owner of the claim is gone and its outcome unknown: `refuse` or `rerun` | `refuse` | `.abandoned(Abandoned::Refuse)` |
/// | `max_response` | largest response recorded: `"512B"`, `"64KiB"`, `"10MB"`; a larger one is sent, but not replayable | `"1MiB"` | `.max_response(1 << 20)` |
/// | `errors` | path of a `fn(&Refusal) -> Response` that renders refusals | problem details | `.errors(render)` |
/// | `shadow` | flag: the rules are applied to every request and enforced on none; what would have happened is counted | off | `.shadow()`, `.enforced()` |
/// | `crate` | path of the adapter crate, where it is renamed or re-exported | `::idem_axum` | |
///
/// Sums are read left to right, and the order of the terms of `fingerprint` and `replay` never matters:
///
/// - `fingerprint = method + json("/order", "/lines/0")`: only these parts of a JSON body, by JSON pointer. `json` alone
///   is the whole body, but blind to white space and to the order of members; `body` is every byte. Method and matched
///   route are part of it whatever is declared: a key used on one endpoint is refused on another.
/// - `record = all - 400 - 422`: a response that is not recorded releases the key, and a retry runs the body again.
///
/// Without `scope` a caller is known by the `Authorization` header and by nothing else: one with a new token is refused,
/// and those who are known by a cookie are not told apart, so declare a scope there.
///
/// `scope` sees the arguments as the body does, and is evaluated before the body runs, so it can neither `.await` nor
/// `?`: let an extractor do that. `global` and `header(..)` are keywords, also where an argument has that name.
///
/// ```ignore
/// #[idempotent(required, scope = (user.tenant, user.id), in_flight = wait("5s"), record = success + client_error)]
/// async fn pay(user: User, Json(payment): Json<Payment>) -> Result<Json<Receipt>, PayError> {
///     Ok(Json(charge(user, payment).await?))
/// }
/// ```
///
/// # Handlers
///
/// Any `async fn` that axum takes as a handler: up to 16 extractors, the last of which may take the request's body, in any
/// pattern (where `scope` is an expression, without `ref`, and a part that is not bound, as in `(user, _)`, goes with the
/// request and not with the body); any response, also `impl IntoResponse` and `Result<_, E>` with `?`; generic functions; associated functions
/// without `self`.
///
/// - What is left is a handler, no longer a function to call with the arguments. Code that is to be called from elsewhere
///   goes into a function of its own.
/// - The body runs in a task of its own, to its end even if the client hangs up; so it must be `Send`, and task-locals do
///   not reach it.
/// - A generic function gets two more type parameters at the end (one, if it has no arguments), which are inferred:
///   mount `create::<Repo>` as `post(create::<Repo, _, _>)`.
///
/// Doc comments and other attributes are kept. `#[utoipa::path]` goes above `#[idempotent]`, `#[tracing::instrument]`
/// above too if it is to see the arguments, and `#[axum::debug_handler]` below.
#[proc_macro_attribute]
pub fn idempotent(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(options.into(), item.into()).into()
}
