//! What an operator sees: one span for each protected request, and events at the level that fits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{any, post};
use axum::{Json, Router};
use idem_axum::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Idempotency, IdempotencyBuilder, MemoryClaim, MemoryStore, Policy,
    Record, StorageKey, Store, StoreCapabilities, StoreError, idempotent,
};
use idem_runtime::transaction::TransactionSlot;
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Ask, CapturedSpan, Faults, Probe, Setup, Spans, post as send};
use tracing::Level;

#[idempotent]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    tracing::info!(target: "the_body", "running");
    let run = probe.run().await;
    tokio::time::sleep(BODY).await;
    (StatusCode::CREATED, format!("run {run}: {body}"))
}

#[idempotent(required, in_flight = wait("5s"))]
async fn pay(State(probe): State<Probe>, Json(amount): Json<u32>) -> String {
    format!("run {}: {amount}", probe.run().await)
}

const BODY: Duration = Duration::from_millis(250);

fn routes() -> Router<Probe> {
    Router::new().route("/orders/{id}", any(order)).nest("/api", Router::new().route("/pay", post(pay))).fallback(order)
}

fn ask() -> Ask {
    send("/orders/7").key("k").body("a book")
}

#[track_caller]
fn only(spans: &Spans) -> CapturedSpan {
    let seen = spans.named("idempotency");
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen[0].clone()
}

fn outcomes(spans: &Spans) -> Vec<(String, Option<String>)> {
    let spans = spans.named("idempotency");
    let text = |span: &CapturedSpan, field| span.get(field).map(str::to_owned);
    spans.iter().map(|span| (text(span, "outcome").unwrap_or_default(), text(span, "code"))).collect()
}

const BEGIN: Duration = Duration::from_millis(30);
const COMPLETE: Duration = Duration::from_millis(12);

/// The store takes its time.
struct Slow;

impl Hooks<MemoryStore> for Slow {
    /// As a store outside the process: its leases are renewed.
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = store.attach(clock);
        StoreCapabilities::default()
    }

    /// The request does not wait for it.
    async fn renew(&self, claim: &mut MemoryClaim, lease: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(BEGIN).await;
        claim.renew(lease).await
    }

    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        tokio::time::sleep(BEGIN).await;
        store.begin(key, fingerprint, options).await
    }

    async fn complete(&self, claim: MemoryClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(COMPLETE).await;
        claim.complete(record, ttl).await
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_span_says_what_happened_to_which_key_and_what_it_took() {
    let (spans, _guard) = Spans::capture();
    // The handler outlives a renewal.
    let idempotency = Idempotency::builder(Intercept::new(MemoryStore::new(), Slow)).lease(BODY).build();
    let (app, _probe) = Setup::mount(&idempotency, routes());
    ask().to(&app).await.assert_ran(201);
    assert!(ask().to(&app).await.is_replay());
    ask().body("another").to(&app).await.assert_refused(422, "idempotency_key_mismatch");
    let [first, replay, refusal] = &spans.named("idempotency")[..] else { panic!("one for each request") };

    assert_eq!((first.level, first.target.starts_with("idem_runtime"), first.closed), (Level::INFO, true, true));
    assert_eq!(first.get("endpoint"), Some("POST /orders/{id}"));
    let key = first.get("key").unwrap();
    assert!(key.len() == 8 && key.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    assert_eq!(first.get("outcome"), Some("executed"));
    assert_eq!(first.number("handler_us"), micros(BODY));
    assert_eq!(first.number("store_us"), micros(BEGIN + COMPLETE));
    assert_eq!(first.get("code"), None);

    assert_eq!(replay.get("outcome"), Some("replayed"));
    assert_eq!(refusal.get("outcome"), Some("refused"));
    assert_eq!(refusal.get("code"), Some("idempotency_key_mismatch"));
    for later in [replay, refusal] {
        assert_eq!((later.get("key"), later.get("endpoint")), (Some(key), Some("POST /orders/{id}")));
        assert_eq!((later.number("store_us"), later.get("handler_us")), (micros(BEGIN), None));
        assert!(later.closed, "{later:?}");
    }
}

#[tokio::test]
async fn a_replay_leads_to_the_execution_that_made_the_record() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    let traced = |key| send("/orders/7").key(key).header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    for ask in [traced("a"), send("/orders/7").key("a"), send("/orders/7").key("b"), traced("b")] {
        assert_eq!(ask.to(&setup.app).await.status, 201);
    }
    let [traced, replay, untraced, another] = &spans.named("idempotency")[..] else { panic!("one for each request") };
    let (first, second) = (traced.get("execution").unwrap(), untraced.get("execution").unwrap());
    assert!(first.len() == 16 && first != second, "{first} {second}");
    assert_eq!((replay.get("replay_of"), replay.get("replay_of_trace")), (Some(first), Some(TRACE)));
    assert_eq!((another.get("replay_of"), another.get("replay_of_trace")), (Some(second), None));
    assert_eq!((replay.get("execution"), traced.get("replay_of")), (None, None));
}

#[tokio::test]
async fn an_endpoint_has_as_many_names_as_it_has_routes() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    let asked = [
        ("POST", "/orders/1?secret=1", "POST /orders/{id}"),
        ("DELETE", "/orders/2", "DELETE /orders/{id}"),
        ("MADE-UP", "/orders/3", "OTHER /orders/{id}"),
        ("POST", "/api/pay", "POST /api/pay"),
        ("POST", "/no/such/route", "POST *"),
        ("MADE-UP", "/nor/this", "OTHER *"),
    ];
    for (method, target, _) in asked {
        Ask::new(method, target)
            .key(&format!("{method}{target}").replace([',', ';'], ""))
            .json("1")
            .to(&setup.app)
            .await;
    }
    let seen = spans.named("idempotency");
    let endpoints: Vec<_> = seen.iter().map(|span| span.get("endpoint").unwrap()).collect();
    assert_eq!(endpoints, asked.map(|(_, _, endpoint)| endpoint));
}

#[tokio::test]
async fn a_request_without_a_key_that_needs_none_has_no_span() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    send("/orders/7").to(&setup.app).await.assert_ran(201);
    assert!(spans.named("idempotency").is_empty());
}

#[tokio::test]
async fn what_a_handler_says_is_within_the_span_also_when_no_client_waits_any_more() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    ask().to(&setup.app).await.assert_ran(201);
    let said = spans.events("the_body");
    assert_eq!(said[0].within, ["idempotency"]);

    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { send("/orders/7").key("left").to(&app).await });
    setup.probe.started(2).await;
    request.abort();
    setup.probe.left(1).await;
    let left = spans.named("idempotency")[1].clone();
    assert!(!left.closed && left.get("outcome").is_none(), "its execution continues: {left:?}");
    setup.probe.open();
    setup.settled().await;
    let left = spans.named("idempotency")[1].clone();
    assert_eq!((left.closed, left.get("outcome")), (true, Some("executed")), "{left:?}");
    assert!(left.number("handler_us") >= micros(BODY), "{left:?}");
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_has_left() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    setup.probe.close();
    let pay = || {
        let app = setup.app.clone();
        tokio::spawn(async move { send("/api/pay").key("k").json("1").to(&app).await })
    };
    let first = pay();
    setup.probe.started(1).await;
    let second = pay();
    setup.probe.entered(2).await;
    second.abort();
    setup.probe.left(1).await;
    setup.probe.open();
    first.await.unwrap().assert_ran(200);
    assert_eq!(outcomes(&spans), [("executed".into(), None), ("left".into(), None)]);
}

#[tokio::test]
async fn an_extractor_that_responds_is_a_rejection() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    assert_eq!(send("/api/pay").key("k").json("not a number").to(&setup.app).await.status, 400);
    let span = only(&spans);
    assert_eq!((span.get("outcome"), span.get("key"), span.closed), (Some("rejected"), None, true), "{span:?}");
}

/// Asks, and gives back the level and the code of the event, which must be within the span, and the span's outcome.
async fn refused(app: &Router, ask: Ask) -> (Level, String) {
    let (spans, _guard) = Spans::capture();
    let reply = ask.to(app).await;
    let span = only(&spans);
    let code = reply.code().expect("a refusal");
    assert_eq!((span.get("outcome"), span.get("code")), (Some("refused"), Some(code.as_str())), "{span:?}");
    let events = spans.events("idem_axum");
    let [event] = &events[..] else { panic!("one event: {events:?}") };
    assert_eq!((event.get("code"), &event.within[..]), (Some(code.as_str()), &["idempotency"][..]), "{event:?}");
    (event.level, code)
}

fn full(build: impl FnOnce(IdempotencyBuilder) -> IdempotencyBuilder, entries: usize) -> Setup {
    Setup::with(MemoryStore::builder().max_entries(entries).build(), build, routes())
}

#[idempotent(max_response = "1B")]
async fn large() -> &'static str {
    "large"
}

/// Two versions of an endpoint.
#[idempotent]
async fn old() {}

#[idempotent(fingerprint = path)]
async fn new() {}

#[tokio::test]
async fn each_refusal_has_the_level_that_an_operator_expects() {
    let setup = Setup::of(routes());
    let mut seen = Vec::new();
    seen.push(refused(&setup.app, send("/api/pay").json("1")).await);
    seen.push(refused(&setup.app, send("/orders/7").key("a, b")).await);
    setup.probe.close();
    let app = setup.app.clone();
    let first = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    seen.push(refused(&setup.app, ask()).await);
    seen.push(refused(&setup.app, ask().body("another")).await);
    setup.probe.open();
    first.await.unwrap().assert_ran(201);
    seen.push(refused(&full(|builder| builder, 0).app, ask()).await);
    seen.push(refused(&full(|builder| builder.max_executions(0), 9).app, ask()).await);
    let down = Faults { down: true.into(), ..Faults::default() }.over_a_shelf();
    seen.push(refused(&Setup::mount(&Idempotency::new(down), routes()).0, ask()).await);
    seen.push(refused(&Setup::bare(routes()).0, ask()).await);
    let large = Setup::of(Router::new().route("/", post(large)));
    send("/").key("k").to(&large.app).await.assert_ran(200);
    seen.push(refused(&large.app, send("/").key("k")).await);
    let idempotency = Idempotency::in_memory();
    let [old, new] = [post(old), post(new)].map(|of| Setup::mount(&idempotency, Router::new().route("/", of)).0);
    send("/").key("k").to(&old).await.assert_ran(200);
    seen.push(refused(&new, send("/").key("k")).await);
    let wanted = [
        (Level::INFO, "key_missing"),
        (Level::INFO, "key_invalid"),
        (Level::INFO, "key_locked"),
        (Level::INFO, "key_mismatch"),
        (Level::WARN, "store_full"),
        (Level::WARN, "too_many_executions"),
        (Level::ERROR, "store_unavailable"),
        (Level::ERROR, "layer_missing"),
        (Level::INFO, "not_replayable"),
        (Level::WARN, "policy_changed"),
    ];
    assert_eq!(seen, wanted.map(|(level, code)| (level, format!("idempotency_{code}"))));
}

#[idempotent]
async fn panics() {
    panic!("a secret");
}

#[idempotent(timeout = "1s")]
async fn hangs() {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_or_hangs_is_an_execution_with_an_error() {
    for (path, code) in [("/panics", "idempotency_handler_panicked"), ("/hangs", "idempotency_handler_timed_out")] {
        let (spans, _guard) = Spans::capture();
        let setup = Setup::of(Router::new().route("/panics", post(panics)).route("/hangs", post(hangs)));
        assert_eq!(send(path).key("k").to(&setup.app).await.code().as_deref(), Some(code));
        assert_eq!(outcomes(&spans), [("executed".into(), Some(code.into()))]);
        let events = spans.events("idem_");
        let loud: Vec<_> = events.iter().filter(|event| event.level <= Level::INFO).collect();
        let [event] = &loud[..] else { panic!("one event: {loud:?}") };
        assert_eq!((event.level, event.get("code")), (Level::ERROR, Some(code)));
        assert!(!format!("{events:?}").contains("a secret"), "{events:?}");
    }
}

/// An argument that wants a transaction, as the `Tx` of `idem-sqlx` does.
struct Tx;

impl<S: Sync> FromRequestParts<S> for Tx {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        assert!(parts.extensions.get::<TransactionSlot>().unwrap().want::<()>());
        Ok(Self)
    }
}

#[idempotent]
async fn transfers(_tx: Tx) {}

#[tokio::test]
async fn a_transaction_that_its_store_does_not_open_is_a_rejection_with_an_error() {
    let setup = Setup::of(Router::new().route("/", post(transfers)));
    for ask in [send("/").key("k"), send("/")] {
        let (spans, _guard) = Spans::capture();
        assert_eq!(ask.to(&setup.app).await.status, 500);
        let span = only(&spans);
        assert_eq!((span.get("endpoint"), span.get("outcome")), (Some("POST /"), Some("rejected")), "{span:?}");
        let events = spans.events("idem_axum");
        let [event] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!((event.level, &event.within[..]), (Level::ERROR, &["idempotency"][..]), "{event:?}");
    }
}

#[idempotent(key = event, timeout = "1s")]
async fn hangs_without_key(event: String) {
    drop(event);
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_in_the_span_of_its_request_although_the_arguments_say_no_key() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(Router::new().route("/", post(hangs_without_key)));
    let code = "idempotency_handler_timed_out";
    assert_eq!(send("/").to(&setup.app).await.code().as_deref(), Some(code));
    assert_eq!(outcomes(&spans), [("unprotected".into(), Some(code.into()))]);
}

#[tokio::test]
async fn an_unknown_outcome_is_an_error() {
    // The owner of the claim is gone.
    struct Abandoned;
    impl Hooks<MemoryStore> for Abandoned {
        async fn begin(
            &self,
            store: &MemoryStore,
            key: &StorageKey,
            fingerprint: &Fingerprint,
            options: &BeginOptions,
        ) -> Result<Begin<MemoryClaim>, StoreError> {
            drop(store.begin(key, fingerprint, options).await?);
            store.begin(key, fingerprint, options).await
        }
    }
    let (app, _probe) = Setup::mount(&Idempotency::new(Intercept::new(MemoryStore::new(), Abandoned)), routes());
    assert_eq!(refused(&app, ask()).await, (Level::ERROR, "idempotency_outcome_unknown".into()));
}

const BEACON: Policy = Policy::DEFAULT.dangerously_run_without_store();

#[idempotent(policy = BEACON)]
async fn beacon() {}

#[tokio::test]
async fn a_handler_that_ran_without_a_store_was_unprotected() {
    let (spans, _guard) = Spans::capture();
    let down = Faults { down: true.into(), ..Faults::default() }.over_a_shelf();
    let (app, _probe) = Setup::mount(&Idempotency::new(down), Router::new().route("/", post(beacon)));
    send("/").key("k").to(&app).await.assert_ran(200);
    assert_eq!(outcomes(&spans), [("unprotected".into(), None)]);
    let events = spans.events("idem_runtime");
    assert_eq!((events.len(), events[0].level), (1, Level::ERROR), "{events:?}");
    assert_eq!(events[0].get("cause"), Some("the connection was refused"), "{events:?}");
}

#[tokio::test]
async fn replays_and_executions_are_not_worth_a_line_of_a_log() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    ask().to(&setup.app).await.assert_ran(201);
    assert!(ask().to(&setup.app).await.is_replay());
    let loud: Vec<_> = spans.events("idem_").into_iter().filter(|event| event.level <= Level::INFO).collect();
    assert!(loud.is_empty(), "{loud:?}");
}

#[tokio::test]
async fn each_step_of_a_claim_is_an_event_within_the_span() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    ask().to(&setup.app).await.assert_ran(201);
    assert!(ask().to(&setup.app).await.is_replay());
    let events = spans.events("idem_runtime");
    let steps: Vec<_> = events.iter().filter_map(|event| Some((event.level, event.get("claim")?))).collect();
    assert_eq!(steps, [(Level::DEBUG, "granted"), (Level::DEBUG, "completed")]);
    let span = &spans.named("idempotency")[0];
    assert!(
        events.iter().all(|event| event.within == ["idempotency"] && event.get("key") == span.get("key")),
        "{events:?}"
    );
}

/// A store that other processes may use as well.
struct Shared;

impl Hooks<MemoryStore> for Shared {
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { claims_live_with_owner: false, ..store.attach(clock) }
    }
}

fn warnings(build: impl FnOnce() -> Idempotency) -> Vec<String> {
    let (spans, _guard) = Spans::capture();
    let idempotency = build();
    drop(idempotency.clone());
    let events = spans.events("idem_runtime").into_iter().filter(|event| event.level == Level::WARN);
    events.map(|event| event.get("message").unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn an_engine_over_a_shared_store_without_a_namespace_warns_once() {
    let shared = || Idempotency::builder(Intercept::new(MemoryStore::new(), Shared));
    let warned = warnings(|| shared().build());
    assert!(matches!(&warned[..], [warning] if warning.contains("no namespace is set")), "{warned:?}");
    let quiet = [warnings(|| shared().namespace("orders").build()), warnings(Idempotency::in_memory)];
    assert_eq!(quiet, [const { Vec::<String>::new() }; 2]);
}
