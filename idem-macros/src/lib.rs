//! The attribute of `idem`. Use it through `idem-axum`, which re-exports it.
//!
//! This crate has no logic. It reads the options (`options`), checks their values (`value`, `terms`, `scope`, `expression`), and resolves
//! them to a constant policy (`resolve`). It checks the function (`handler`), and makes one function of both (`expand`), which calls the
//! adapter crate. A plain function, without a request, has its own options (`function`).

mod errors;
mod expand;
mod expression;
mod function;
mod handler;
mod options;
mod resolve;
mod scope;
mod spans;
mod terms;
mod value;

use proc_macro::TokenStream;

/// Makes an axum handler safe to retry.
///
/// ```
/// use axum::{Json, extract::State, http::StatusCode};
/// use idem_axum::idempotent;
/// # #[derive(serde::Deserialize)]
/// # struct NewOrder;
/// # #[derive(serde::Serialize)]
/// # struct Order;
/// # #[derive(Clone)]
/// # struct Orders;
/// # impl Orders {
/// #     async fn create(&self, _: NewOrder) -> Order {
/// #         Order
/// #     }
/// # }
///
/// #[idempotent(header = "Idempotency-Key", ttl = "24h", fingerprint = body + path)]
/// async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
///     (StatusCode::CREATED, Json(orders.create(new).await))
/// }
/// # let _: axum::routing::MethodRouter<Orders> = axum::routing::post(create_order);
/// ```
///
/// For each key the handler runs at most once, unless its policy allows more. A retry with the same key receives the recorded response.
/// Arguments are extracted for every request, retries included: a request that an extractor rejects is never recorded and never uses up the
/// key. Before that, a request is refused only if its header has a malformed key, or lacks a `required` one. The router needs an
/// `IdempotencyLayer`. Without one the response is 500, and a log line says what to add.
///
/// # Options
///
/// Write each option at most once, in any order. The last column is the method of `Policy` that does the same in a `const`.
///
/// | option | value | default | method |
/// |---|---|---|---|
/// | `policy` | path of a `const Policy` to start from; the other options override it; presets are `Policy::STRIPE`, `Policy::WEBHOOK` and `Policy::ACP` | `Policy::DEFAULT` | first in the chain |
/// | `header` | name of the header that carries the key | `"Idempotency-Key"` | `.header("idempotency-key")` |
/// | `key` | instead of `header`: an expression over the handler's arguments, whose type is `Display` or an `Option` of such a type | none | none |
/// | `required` | flag: refuse a request without a key (400). Without the flag such a request runs unprotected | off | `.required()`, `.optional()` |
/// | `min_key` | shortest key accepted, in characters, 1 to 255 | `1` | `.min_key(8)` |
/// | `ttl` | how long a record is replayed, from completion: `"90s"`, `"24h"`, `"1h 30m"`, `"7d"`; no months and no years | `"24h"` | `.ttl(Duration::from_secs(86_400))` |
/// | `fingerprint` | the parts of the request that a retry must repeat, joined by `+`: `method`, `path`, `query`, `body`, `json`, `json("/a", "/b/0")`, `header("Name")`; or `none` | `method + path + query + body` | `.fingerprint(&[Part::Path, Part::Body])`, `.no_fingerprint()` |
/// | `scope` | whose key it is: `global`, `path`, `header("Name")`, or an expression over the handler's arguments that is `Display`; a tuple for several | the caller, through the fingerprint | `.scope(Scope::Global)`; none for an expression |
/// | `in_flight` | what a retry gets while the first request still runs: `reject`, `reject(423)`, `reject(202)` to acknowledge an event, `wait("5s")`, which rejects after five seconds | `reject` (409) | `.in_flight(InFlight::reject(409))` |
/// | `mismatch` | status for a key that is sent with a different request, 400 to 599 | `422` | `.mismatch(422)` |
/// | `record` | which responses are recorded: `all`, `success`, `redirect`, `client_error`, `server_error` and single statuses, joined by `+` and `-` | `all`; with an argument `Tx`, `all - server_error` | `.record(Statuses::ALL.minus(Statuses::of(400)))` |
/// | `replay` | what a replay sends of the record: `status`, `headers` and `body`, joined by `+` | all three | `.replay(Replay::STATUS.and(Replay::BODY))` |
/// | `replay_status` | status of replays, 200 to 599 | the recorded one | `.replay_status(200)` |
/// | `replay_header` | name of the header that marks a replay (value `true`), or `none` | `"Idempotent-Replayed"` | `.replay_header("idempotent-replayed")`, `.no_replay_header()` |
/// | `replay_with` | headers that are added to replays, joined by `+`: `header("Name", "value")`, or `header("Name", "value", server_error - 503)` for some recorded statuses only | none | `.replay_with(&[AddedHeader::new("x-name", "value").on(Statuses::SERVER_ERROR)])` |
/// | `abandoned` | what a retry gets if the owner of the claim disappeared and the outcome is unknown: `refuse` or `rerun` | `refuse` | `.abandoned(Abandoned::Refuse)` |
/// | `max_response` | largest response recorded: `"512B"`, `"64KiB"`, `"10MB"`; a larger one is sent, but cannot be replayed | `"1MiB"` | `.max_response(1 << 20)` |
/// | `timeout` | longest execution: `"30s"`; after that time the handler's future is dropped, and the response is 504 | none | `.timeout(Duration::from_secs(30))` |
/// | `errors` | path of a `fn(&Refusal) -> Response` that renders refusals | problem details | `.errors(render)` |
/// | `shadow` | flag: compute everything, enforce nothing, count what would have happened | off | `.shadow()`, `.enforced()` |
/// | `crate` | path of the adapter crate, if it is renamed or re-exported | `::idem_axum` | |
/// | `engine` | expression for an `Idempotency`: makes this a [plain function](#plain-functions) instead of a handler | none | none |
///
/// Terms that are joined by `+` and `-` are read left to right. The order of the terms of `fingerprint` and `replay` never matters.
///
/// - `fingerprint = method + json("/order", "/lines/0")`: only these parts of a JSON body, by JSON pointer. `json` alone is the whole
///   document, without regard to white space and to the order of members; `body` is every byte. The method and the matched route are always
///   part of the fingerprint, so `method` adds nothing. A key used on one endpoint is refused on another of the same scope.
/// - `record = all - 400 - 422`: a response that is not recorded releases the key, and the handler runs again on a retry.
///
/// A flag is off unless it is written or the `policy` has it. To turn it off, write `.optional()` or `.enforced()` in the `const` policy.
///
/// Do not annotate `GET` and `HEAD`: the guide's page for axum users says why.
///
/// Acknowledge with `in_flight = reject(202)` only if losing the event is acceptable: the execution in flight may still fail. `wait`
/// is the safe choice. A request that waits holds what its extractors took, such as a pooled connection.
///
/// # Scopes and keys
///
/// A key in a header is one line with 1 to 255 visible ASCII characters. `order-1` and `"order-1"`, with quotes, are the same key. A key
/// without quotes cannot have a comma, a semicolon or a quote. Any other key is refused (400), and so are a list of keys and the header
/// sent twice.
///
/// Without `scope` the caller is part of the fingerprint: by the `Authorization` header, or by `Cookie` if there is no `Authorization`. A
/// retry with a new token, or with a new cookie, is then refused (422). If tokens rotate, declare a scope.
///
/// With `scope = path`, the same key on another path is another key, and callers are told apart as by default. `(global, path)` does not
/// tell callers apart. `path` may be combined with one header, as in `(header("X-Tenant"), path)`, or with expressions, as in
/// `(user.id, path)`.
///
/// An expression in `scope` or `key` sees the arguments as the handler does, and must use at least one of them. It is evaluated after the
/// extractors and before the handler. It cannot use `.await`, `?` or `return`; let an extractor do that. `global`, `path` and `header(..)`
/// are keywords in `scope`, even if an argument has that name.
///
/// With `key = event.id` any text of one byte or more is a key, and no header is read. An empty text or `None` is no key. The handler
/// cannot take an `IdempotencyKey` argument then. Make one in the handler with `IdempotencyKey::from_text(&event.id)`.
///
/// ```
/// # use axum::{extract::FromRequest, http::StatusCode};
/// # use idem_axum::{Policy, idempotent};
/// # #[derive(FromRequest, serde::Deserialize)]
/// # #[from_request(via(axum::Json))]
/// # struct StripeEvent {
/// #     id: String,
/// # }
/// # async fn process(_: StripeEvent) -> StatusCode {
/// #     StatusCode::OK
/// # }
/// // For webhooks: the extractor of `event` has verified the signature.
/// #[idempotent(key = event.id, policy = Policy::WEBHOOK, required)]
/// async fn receive(event: StripeEvent) -> StatusCode {
///     process(event).await
/// }
/// # let _: axum::routing::MethodRouter = axum::routing::post(receive);
/// ```
///
/// A scope of several values:
///
/// ```
/// # use axum::{Json, extract::FromRequestParts, http::StatusCode};
/// # use idem_axum::idempotent;
/// # #[derive(FromRequestParts, serde::Deserialize)]
/// # #[from_request(via(axum::extract::Path))]
/// # struct User {
/// #     tenant: String,
/// #     id: u64,
/// # }
/// # #[derive(serde::Deserialize)]
/// # struct Payment;
/// # #[derive(serde::Serialize)]
/// # struct Receipt;
/// # type PayError = StatusCode;
/// # async fn charge(_: User, _: Payment) -> Result<Receipt, PayError> {
/// #     Ok(Receipt)
/// # }
/// #[idempotent(required, scope = (user.tenant, user.id), in_flight = wait("5s"), record = success + client_error)]
/// async fn pay(user: User, Json(payment): Json<Payment>) -> Result<Json<Receipt>, PayError> {
///     Ok(Json(charge(user, payment).await?))
/// }
/// # let _: axum::routing::MethodRouter = axum::routing::post(pay);
/// ```
///
/// # Plain functions
///
/// With `engine` the attribute makes a plain async function succeed at most once for its key. The function keeps its arguments, its `Ok`
/// value is recorded, and a refusal is returned as its error. After an `Err` or a panic the next call runs the function again:
///
/// ```
/// # use idem_axum::{Idempotency, RefusalReason, idempotent};
/// # struct App {
/// #     idempotency: Idempotency,
/// # }
/// # struct OrderPaid {
/// #     id: u64,
/// # }
/// # impl App {
/// #     async fn send(&self, order: OrderPaid) -> Result<u64, ShipError> {
/// #         Ok(order.id)
/// #     }
/// # }
/// # type ShipError = RefusalReason;
/// #[idempotent(engine = app.idempotency, scope = "ship", key = order.id, ttl = "7d")]
/// async fn ship(app: App, order: OrderPaid) -> Result<u64, ShipError> {
///     app.send(order).await
/// }
/// ```
///
/// `engine`, `scope` and `key` must be written. `ttl`, `in_flight = wait("5s")`, `abandoned` and `crate` mean what they mean for a handler.
/// `fingerprint` is an argument that is `Serialize`. Any other option is a compile error. The rules for values and errors are those of
/// `Idempotency::once`.
///
/// # Handlers
///
/// The attribute takes any `async fn` that axum takes as a handler:
///
/// - up to 16 extractors in any pattern, the last of which may consume the request's body;
/// - any response, `impl IntoResponse` and `Result<_, E>` with `?` included;
/// - generic functions, and associated functions without `self`.
///
/// What is different from a handler without the attribute:
///
/// - The function can be mounted on a router, but no longer called with its arguments. Move code that is also called from
///   elsewhere into another function.
/// - If the request has a key, the handler runs in its own task, to its end even if the client disconnects. It must be `Send`, and
///   task-locals of the request's task are not visible in it. Without a key it runs as it would without the attribute, except
///   that a `timeout` ends it, too.
/// - If `key` or `scope` is an expression, do not keep a guard in `_`. In `(user, _)` the second value is dropped before the handler ends.
///   Give it a name, such as `_guard`.
///
/// ## Generic functions
///
/// The generated function has more type parameters, after those of the handler: `RouterState`, and `BodyVia` if the
/// handler has arguments. Both are inferred, so write `_` for them:
///
/// ```
/// # use axum::{Json, Router, extract::State, routing::post};
/// # use idem_axum::idempotent;
/// # trait Repository: Send + 'static {
/// #     fn create(&self, new: u64) -> u64;
/// # }
/// # #[derive(Clone)]
/// # struct Memory;
/// # impl Repository for Memory {
/// #     fn create(&self, new: u64) -> u64 {
/// #         new
/// #     }
/// # }
/// # type NewOrder = u64;
/// # type Order = u64;
/// #[idempotent]
/// async fn create<R: Repository>(State(repo): State<R>, Json(new): Json<NewOrder>) -> Json<Order> {
///     Json(repo.create(new))
/// }
///
/// # let _: Router<Memory> =
/// Router::new().route("/orders", post(create::<Memory, _, _>))
/// # ;
/// ```
///
/// If you leave them out, rustc suggests `create::<Memory, RouterState, BodyVia>`. Do not write that: these are names of parameters, not
/// types.
///
/// ## Other attributes
///
/// Doc comments and other attributes are kept.
///
/// | attribute | place |
/// |---|---|
/// | `#[utoipa::path]` | above `#[idempotent]`; below, it is a compile error |
/// | `#[tracing::instrument]` | above; its span covers one execution, and sees the arguments. Below, with `skip_all` and no argument in `fields`, its span covers extractors and replays too |
/// | `#[axum::debug_handler]` | below; above, it reports "unexpected argument" or "type annotations needed" at the handler's name |
#[proc_macro_attribute]
pub fn idempotent(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(options.into(), item.into()).into()
}

/// Runs a plain async function at most once for its key: for queue consumers, cron jobs and whatever has no request.
///
/// ```
/// use idem_runtime::{Idempotency, RefusalReason, idempotent};
/// # struct App {
/// #     idempotency: Idempotency,
/// # }
/// # struct OrderPaid {
/// #     id: u64,
/// # }
/// # impl App {
/// #     async fn send(&self, order: OrderPaid) -> Result<u64, ShipError> {
/// #         Ok(order.id)
/// #     }
/// # }
/// # type ShipError = RefusalReason;
///
/// #[idempotent(engine = app.idempotency, scope = "ship", key = order.id, ttl = "7d")]
/// async fn ship(app: App, order: OrderPaid) -> Result<u64, ShipError> {
///     app.send(order).await
/// }
/// ```
///
/// The function keeps its arguments and its return type, and calls [`Idempotency::once`]: its `Ok` is recorded and returned by later calls
/// with the key, and its `Err` and its panic release the key. So the value must be `Serialize` and `DeserializeOwned`, and the error must
/// implement `From<RefusalReason>`. The function runs in its own task, to its end even if the caller is dropped. So the arguments must be
/// `Send`, and none may be a reference.
///
/// | option | value | default |
/// |---|---|---|
/// | `engine` | expression for the [`Idempotency`] | must be written |
/// | `scope` | name of the function or of its queue: a text, or an expression that is `Display` | must be written |
/// | `key` | expression over the arguments that is `Display`: what identifies one message, event or date | must be written |
/// | `ttl` | how long the value is kept, from the end of the function: `"90s"`, `"24h"`, `"7d"` | `"24h"` |
/// | `fingerprint` | what must be equal in every call with the key: an expression that is `Serialize`, a tuple for several, or `none` | `none` |
/// | `in_flight` | what a call gets while another runs: `reject`, `wait("5s")` | `reject` |
/// | `abandoned` | what a call gets if the process of an earlier call disappeared: `refuse` or `rerun` | `refuse` |
/// | `crate` | path of this crate, if it is renamed or re-exported | `::idem_runtime` |
///
/// The expressions are evaluated before the function runs, and cannot use `.await`, `?` or `return`.
///
/// [`Idempotency`]: struct.Idempotency.html
/// [`Idempotency::once`]: struct.Idempotency.html#method.once
#[proc_macro_attribute]
pub fn idempotent_function(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand_function(options.into(), item.into()).into()
}
