//! Every metric, as a recorder gets it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it expected by failing")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{Request, StatusCode, Uri};
use axum::routing::{any, post};
use futures_util::FutureExt;
use idem_axum::metrics::{ALL, Kind};
use idem_axum::{
    Begin, BeginOptions, Clock, Fingerprint, Idempotency, IdempotencyKey, IdempotencyLayer, Key, MemoryClaim,
    MemoryStore, Outcome, Policy, Record, RefusalReason, Scope, StorageKey, Store, StoreCapabilities, StoreError,
    StoredEntry, idempotent,
};
use idem_runtime::transaction::TransactionSlot;
use idem_testkit::intercept::{Hooks, Intercept};
use idem_testkit::wait::until;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// What this thread counts, in the text form of Prometheus.
struct Counted(PrometheusHandle);

impl Counted {
    /// Runs `test` on one thread with its own recorder.
    fn during<F: Future<Output = ()>>(test: impl FnOnce(Arc<Self>) -> F) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let counted = Arc::new(Self(recorder.handle()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        metrics::with_local_recorder(&recorder, || runtime.block_on(test(counted)));
    }

    /// Every line with a value: name and labels, and the value.
    fn lines(&self) -> BTreeMap<String, f64> {
        let text = self.0.render();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(of, value)| (of.to_owned(), value.parse().unwrap()))
            .collect()
    }

    #[track_caller]
    fn assert(&self, wanted: &[(&str, f64)]) {
        let lines = self.lines();
        for (of, value) in wanted {
            let of = format!("idempotency_{of}");
            assert_eq!(lines.get(&of), Some(value), "{of}, of {lines:#?}");
        }
    }
}

#[derive(Clone)]
struct Gate(Arc<Semaphore>);

const BODY: Duration = Duration::from_millis(250);

#[idempotent]
async fn order(State(gate): State<Gate>) {
    gate.0.acquire().await.unwrap().forget();
    tokio::time::sleep(BODY).await;
}

#[idempotent(required, in_flight = wait("5s"))]
async fn pay(State(gate): State<Gate>) {
    gate.0.acquire().await.unwrap().forget();
}

const BEACON: Policy = Policy::DEFAULT.dangerously_run_without_store();

#[idempotent(policy = BEACON)]
async fn beacon() {}

#[idempotent(shadow, required)]
async fn refund() {}

#[idempotent(shadow, required, key = uri.query())]
async fn refund_event(uri: Uri) {
    let _ = uri;
}

#[idempotent(scope = global)]
async fn greet() -> &'static str {
    "hello"
}

fn app(idempotency: &Idempotency, gate: &Gate) -> Router {
    Router::new()
        .route("/orders/{id}", any(order))
        .route("/pay", post(pay))
        .route("/beacon", post(beacon))
        .route("/refund", post(refund))
        .route("/refund-event", post(refund_event))
        .route("/greet", post(greet))
        .fallback(order)
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .with_state(gate.clone())
}

fn setup(idempotency: &Idempotency) -> Router {
    app(idempotency, &Gate(Arc::new(Semaphore::new(1000))))
}

async fn ask(app: &Router, method: &str, path: &str, key: Option<&str>) -> u16 {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
}

#[test]
fn executions_replays_refusals_and_unprotected_requests_are_counted_by_endpoint() {
    Counted::during(|counted| async move {
        let app = setup(&Idempotency::in_memory());
        for _ in 0..3 {
            assert_eq!(ask(&app, "POST", "/orders/1", Some("a")).await, 200);
        }
        assert_eq!(ask(&app, "POST", "/orders/2", Some("a")).await, 422);
        assert_eq!(ask(&app, "POST", "/orders/2", Some("a, b")).await, 400);
        assert_eq!(ask(&app, "POST", "/pay", None).await, 400);
        assert_eq!(ask(&app, "MADE-UP", "/orders/2", Some("b")).await, 200);
        assert_eq!(ask(&app, "POST", "/anything/at/all", Some("c")).await, 200);
        assert_eq!(ask(&app, "PUT", "/orders/3", None).await, 200);
        let endpoint = r#"endpoint="POST /orders/{id}""#;
        counted.assert(&[
            (&format!("executions_total{{{endpoint}}}"), 1.0),
            (&format!("replays_total{{{endpoint}}}"), 2.0),
            (&format!(r#"refusals_total{{{endpoint},code="idempotency_key_mismatch"}}"#), 1.0),
            (&format!(r#"refusals_total{{{endpoint},code="idempotency_key_invalid"}}"#), 1.0),
            (r#"refusals_total{endpoint="POST /pay",code="idempotency_key_missing"}"#, 1.0),
            (r#"executions_total{endpoint="OTHER /orders/{id}"}"#, 1.0),
            (r#"executions_total{endpoint="POST *"}"#, 1.0),
            (r#"unprotected_total{endpoint="PUT /orders/{id}",reason="key_missing"}"#, 1.0),
            (&format!("handler_seconds_sum{{{endpoint}}}"), BODY.as_secs_f64()),
            (&format!("handler_seconds_count{{{endpoint}}}"), 1.0),
            // Six requests asked for their key, and three of them ran.
            (r#"store_seconds_count{store="MemoryStore",operation="begin"}"#, 6.0),
            (r#"store_seconds_count{store="MemoryStore",operation="complete"}"#, 3.0),
        ]);
    });
}

#[test]
fn what_runs_and_what_waits_is_counted_while_it_does() {
    Counted::during(|counted| async move {
        let gate = Gate(Arc::new(Semaphore::new(0)));
        let idempotency = Idempotency::in_memory();
        let app = app(&idempotency, &gate);
        let pay = || {
            let app = app.clone();
            tokio::spawn(async move { ask(&app, "POST", "/pay", Some("a")).await })
        };
        let requests = [pay(), pay(), pay()];
        until("two wait", async || counted.lines().get("idempotency_waiters") == Some(&2.0)).await;
        counted.assert(&[("executions_in_flight", 1.0), ("waiters", 2.0)]);
        gate.0.add_permits(1);
        for request in requests {
            assert_eq!(request.await.unwrap(), 200);
        }
        counted.assert(&[("executions_in_flight", 0.0), ("waiters", 0.0)]);
        counted.assert(&[(r#"replays_total{endpoint="POST /pay"}"#, 2.0)]);
    });
}

#[test]
fn what_has_no_room_is_counted() {
    Counted::during(|counted| async move {
        let full = setup(&Idempotency::new(MemoryStore::builder().max_entries(0).build()));
        assert_eq!(ask(&full, "POST", "/greet", Some("a")).await, 503);
        let busy = setup(&Idempotency::builder(MemoryStore::new()).max_executions(0).build());
        assert_eq!(ask(&busy, "POST", "/greet", Some("a")).await, 503);
        counted.assert(&[
            (r#"admission_refusals_total{reason="store_full"}"#, 1.0),
            (r#"admission_refusals_total{reason="too_many_executions"}"#, 1.0),
            (r#"refusals_total{endpoint="POST /greet",code="idempotency_store_full"}"#, 1.0),
            (r#"refusals_total{endpoint="POST /greet",code="idempotency_too_many_executions"}"#, 1.0),
            // The claim for which there was no place.
            (r#"store_seconds_count{store="MemoryStore",operation="release"}"#, 1.0),
        ]);
    });
}

/// The store is down, or forgets how to complete.
#[derive(Default)]
struct Failing {
    down: AtomicBool,
    abandons: AtomicBool,
}

impl Hooks<MemoryStore> for Failing {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("down"));
        }
        if self.abandons.load(Ordering::SeqCst) {
            drop(store.begin(key, fingerprint, options).await?);
        }
        store.begin(key, fingerprint, options).await
    }

    /// As a store outside the process: its leases are renewed.
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = store.attach(clock);
        StoreCapabilities::default()
    }

    async fn complete(&self, _: MemoryClaim, _: Record, _: Duration) -> Result<(), StoreError> {
        Err(StoreError::unavailable("down"))
    }
}

#[test]
fn a_store_that_fails_is_counted_by_step() {
    Counted::during(|counted| async move {
        let store = Intercept::new(MemoryStore::new(), Failing::default());
        let idempotency = Idempotency::new(store.clone());
        let app = setup(&idempotency);
        assert_eq!(ask(&app, "POST", "/greet", Some("a")).await, 200);
        idempotency.drain().await;
        store.hooks.abandons.store(true, Ordering::SeqCst);
        assert_eq!(ask(&app, "POST", "/greet", Some("b")).await, 409);
        assert_eq!(ask(&app, "POST", "/refund", Some("d")).await, 200);
        idempotency.drain().await;
        store.hooks.down.store(true, Ordering::SeqCst);
        assert_eq!(ask(&app, "POST", "/greet", Some("c")).await, 503);
        assert_eq!(ask(&app, "POST", "/beacon", Some("c")).await, 200);
        counted.assert(&[
            (r#"store_errors_total{store="Intercept",operation="complete"}"#, 1.0),
            (r#"store_errors_total{store="Intercept",operation="begin"}"#, 2.0),
            ("failed_completions_total", 1.0),
            ("abandoned_claims_total", 2.0),
            (r#"refusals_total{endpoint="POST /greet",code="idempotency_outcome_unknown"}"#, 1.0),
            (r#"unprotected_total{endpoint="POST /beacon",reason="store_unavailable"}"#, 1.0),
        ]);
    });
}

/// The store panics in one step, and never replies to another.
#[derive(Default)]
struct Stuck {
    /// A claim can be completed again, which it is too late for.
    clones: bool,
    completions: AtomicUsize,
}

impl Hooks<MemoryStore> for Stuck {
    /// As a store outside the process: its leases are renewed.
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = store.attach(clock);
        StoreCapabilities::default()
    }

    async fn renew(&self, _: &mut MemoryClaim, _: Duration) -> Result<(), StoreError> {
        std::future::pending().await
    }

    async fn complete(&self, _: MemoryClaim, _: Record, _: Duration) -> Result<(), StoreError> {
        match self.completions.fetch_add(1, Ordering::SeqCst) {
            0 => std::future::pending().await,
            _ => Err(StoreError::Lost),
        }
    }

    fn try_clone(&self, _: &MemoryClaim) -> Option<MemoryClaim> {
        // Any claim will do.
        let (key, fingerprint) = (StorageKey::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
        let (store, options) = (MemoryStore::new(), BeginOptions::new(Duration::ZERO, Duration::MAX));
        let begun = store.begin(&key, &fingerprint, &options).now_or_never()?;
        let Ok(Begin::Claimed(claim)) = begun else { return None };
        self.clones.then_some(claim)
    }

    async fn inspect(&self, _: &MemoryStore, _: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        panic!("the store panics")
    }
}

#[test]
fn a_step_that_gets_no_reply_or_panics_has_failed() {
    for clones in [false, true] {
        Counted::during(|counted| async move {
            let store = Intercept::new(MemoryStore::new(), Stuck { clones, ..Stuck::default() });
            let idempotency = Idempotency::builder(store).lease(Duration::from_millis(240)).build();
            let app = setup(&idempotency);
            assert_eq!(ask(&app, "POST", "/orders/1", Some("a")).await, 200);
            idempotency.drain().await;
            let failed = |operation| format!(r#"store_errors_total{{store="Intercept",operation="{operation}"}}"#);
            // The handler ended while the second renewal was still awaited. If the completion is repeated, one comes between.
            counted.assert(&[
                (&failed("renew"), if clones { 2.0 } else { 1.0 }),
                (&failed("complete"), 1.0),
                (&failed("inspect"), 1.0),
                ("failed_completions_total", 1.0),
            ]);
            let key = Key::parse(b"b").unwrap();
            assert!(idempotency.inspect(&Scope::GLOBAL, &key).await.is_err());
            counted.assert(&[(&failed("inspect"), 2.0)]);
        });
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Parcel {
    number: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Label {
    text: String,
}

#[test]
fn a_value_that_no_longer_decodes_is_no_replay() {
    Counted::during(|counted| async move {
        let idempotency = Idempotency::in_memory();
        let once = || idempotency.once("ship", "order-17");
        let shipped = async || Ok::<_, RefusalReason>(Parcel { number: 7 });
        for _ in 0..2 {
            assert_eq!(once().run(shipped).await.unwrap(), Parcel { number: 7 });
        }
        let labelled = async || Ok::<_, RefusalReason>(Label { text: "7".to_owned() });
        let refused = once().run(labelled).await.unwrap_err();
        assert!(matches!(refused, RefusalReason::StoreUnavailable(StoreError::Unreadable(_))), "{refused:?}");
        counted.assert(&[
            (r#"executions_total{endpoint="once ship"}"#, 1.0),
            (r#"replays_total{endpoint="once ship"}"#, 1.0),
            (r#"refusals_total{endpoint="once ship",code="idempotency_store_unavailable"}"#, 1.0),
        ]);
    });
}

#[test]
fn an_operator_is_no_request() {
    Counted::during(|counted| async move {
        let store = MemoryStore::new();
        let idempotency = Idempotency::new(store.clone());
        let key = Key::parse(b"a").unwrap();
        let at = idempotency.storage_key(&Scope::GLOBAL, &key);
        let options = BeginOptions::new(Duration::ZERO, Duration::MAX);
        drop(store.begin(&at, &Fingerprint::from_bytes([7; 32]), &options).await.unwrap());
        idempotency.settle(&Scope::GLOBAL, &key, Outcome::NotReplayable).await.unwrap();
        counted.assert(&[("abandoned_claims_total", 0.0)]);
    });
}

#[test]
fn in_shadow_mode_only_what_would_have_happened_is_counted() {
    Counted::during(|counted| async move {
        let app = setup(&Idempotency::in_memory());
        for key in [None, Some("a"), Some("a"), Some("a, b")] {
            assert_eq!(ask(&app, "POST", "/refund", key).await, 200);
        }
        let of = |would| format!(r#"shadow_total{{endpoint="POST /refund",would="{would}"}}"#);
        let large = Request::post("/refund").header("idempotency-key", "large").body(Body::from(vec![0; 4 << 20]));
        assert_eq!(app.clone().oneshot(large.unwrap()).await.unwrap().status(), 200);
        let seen = ["execute", "replay", "idempotency_key_missing", "idempotency_key_invalid", "reject"].map(of);
        counted.assert(&seen.each_ref().map(|line| (line.as_str(), 1.0)));
        let of_endpoint = counted.lines().keys().filter(|line| line.contains("/refund")).count();
        assert_eq!(of_endpoint, seen.len(), "{:#?}", counted.lines());
        assert_eq!(ask(&app, "POST", "/refund-event", None).await, 200);
        let missing = r#"shadow_total{endpoint="POST /refund-event",would="idempotency_key_missing"}"#;
        counted.assert(&[(missing, 1.0), ("executions_in_flight", 0.0)]);
        assert_eq!(counted.lines().keys().filter(|line| line.contains("/refund-event")).count(), 1);
    });
}

/// An argument that wants a transaction, as the `Tx` of `idem-sqlx` does.
struct Tx;

struct Transaction;

impl<S: Sync> FromRequestParts<S> for Tx {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        assert!(parts.extensions.get::<TransactionSlot>().unwrap().want::<Transaction>());
        Ok(Self)
    }
}

/// The store opens transactions.
struct Opens;

impl Hooks<MemoryStore> for Opens {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        if let Some(slot) = &options.transaction {
            slot.put(Transaction);
        }
        store.begin(key, fingerprint, options).await
    }
}

#[idempotent]
async fn transfer(_tx: Tx) {}

#[idempotent(shadow)]
async fn rehearse(_tx: Tx) {}

#[test]
fn a_transaction_without_a_key_or_in_shadow_mode_is_no_execution_and_takes_no_place_of_one() {
    Counted::during(|counted| async move {
        let memory = MemoryStore::new();
        let store = Intercept::new(memory.clone(), Opens);
        let app = Router::new()
            .route("/transfer", post(transfer))
            .route("/rehearse", post(rehearse))
            .layer(IdempotencyLayer::new(Idempotency::builder(store).max_executions(0).build()));
        assert_eq!(ask(&app, "POST", "/transfer", Some("a")).await, 503);
        assert_eq!(ask(&app, "POST", "/transfer", None).await, 200);
        assert_eq!(ask(&app, "POST", "/rehearse", Some("b")).await, 200);
        let wanted = [
            (r#"refusals_total{endpoint="POST /transfer",code="idempotency_too_many_executions"}"#, 1.0),
            (r#"unprotected_total{endpoint="POST /transfer",reason="key_missing"}"#, 1.0),
            (r#"shadow_total{endpoint="POST /rehearse",would="idempotency_too_many_executions"}"#, 1.0),
        ];
        counted.assert(&wanted);
        let lines = counted.lines();
        let of_endpoints = lines.keys().filter(|line| line.contains("endpoint=")).count();
        assert_eq!(of_endpoints, wanted.len(), "{lines:#?}");
        assert_eq!(memory.usage().entries, 0, "without a key nothing is recorded");
    });
}

/// The store opens no transaction.
struct Down;

impl Hooks<MemoryStore> for Down {
    async fn begin(
        &self,
        _: &MemoryStore,
        _: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        Err(StoreError::unavailable("down"))
    }
}

/// An argument that no request has.
struct User;

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        Err(StatusCode::UNAUTHORIZED)
    }
}

#[idempotent]
async fn guarded(_user: User) {}

#[idempotent]
async fn first_named(_key: IdempotencyKey, _body: String) {}

#[idempotent]
async fn last_named(_key: IdempotencyKey) {}

#[idempotent(timeout = "1s")]
async fn endless() {
    std::future::pending().await
}

#[idempotent(key = uri.query(), timeout = "1s")]
async fn endless_event(uri: Uri) {
    let _ = uri;
    std::future::pending().await
}

#[idempotent(timeout = "1s")]
async fn endless_transfer(_tx: Tx) {
    std::future::pending().await
}

#[test]
fn a_request_without_a_key_is_counted_by_what_becomes_of_it() {
    Counted::during(|counted| async move {
        let idempotency = Idempotency::builder(Intercept::new(MemoryStore::new(), Opens)).build();
        let down = Idempotency::builder(Intercept::new(MemoryStore::new(), Down)).build();
        let app = Router::new()
            .route("/guarded", post(guarded))
            .route("/first-named", post(first_named))
            .route("/last-named", post(last_named))
            .route("/endless", post(endless))
            .route("/endless-event", post(endless_event))
            .route("/endless-transfer", post(endless_transfer))
            .layer(IdempotencyLayer::new(idempotency));
        let app = app.merge(Router::new().route("/transfer", post(transfer)).layer(IdempotencyLayer::new(down)));
        for (path, status) in [
            ("/guarded", 401),
            ("/first-named", 400),
            ("/last-named", 400),
            ("/endless", 504),
            ("/endless-event", 504),
            ("/endless-transfer", 504),
            ("/transfer", 503),
        ] {
            assert_eq!(ask(&app, "POST", path, None).await, status, "{path}");
        }
        let refused =
            |path: &str, code: &str| format!(r#"refusals_total{{endpoint="POST {path}",code="idempotency_{code}"}}"#);
        let unprotected = |path: &str| format!(r#"unprotected_total{{endpoint="POST {path}",reason="key_missing"}}"#);
        let wanted = [
            refused("/first-named", "key_missing"),
            refused("/last-named", "key_missing"),
            unprotected("/endless"),
            refused("/endless", "handler_timed_out"),
            unprotected("/endless-event"),
            refused("/endless-event", "handler_timed_out"),
            unprotected("/endless-transfer"),
            refused("/endless-transfer", "handler_timed_out"),
            refused("/transfer", "store_unavailable"),
        ];
        let lines = counted.lines();
        let of_endpoints: Vec<_> = lines.keys().filter(|line| line.contains("endpoint=")).collect();
        assert_eq!(of_endpoints.len(), wanted.len(), "{of_endpoints:#?}");
        counted.assert(&wanted.each_ref().map(|line| (line.as_str(), 1.0)));
    });
}

#[test]
fn what_the_guide_says_to_watch_begins_at_zero() {
    Counted::during(|counted| async move {
        drop(Idempotency::in_memory());
        let failed = |operation| format!(r#"store_errors_total{{store="MemoryStore",operation="{operation}"}}"#);
        let failed = ["begin", "renew", "complete", "release", "forget", "inspect", "revoke"].map(failed);
        counted.assert(&failed.each_ref().map(|line| (line.as_str(), 0.0)));
        counted.assert(&[
            ("abandoned_claims_total", 0.0),
            ("failed_completions_total", 0.0),
            (r#"admission_refusals_total{reason="store_full"}"#, 0.0),
            (r#"admission_refusals_total{reason="too_many_executions"}"#, 0.0),
        ]);
    });
}

#[test]
fn a_lease_that_is_renewed_is_counted() {
    Counted::during(|counted| async move {
        let idempotency = Idempotency::builder(Intercept::new(MemoryStore::new(), Failing::default()))
            .lease(Duration::from_millis(300))
            .build();
        assert_eq!(ask(&setup(&idempotency), "POST", "/orders/1", Some("a")).await, 200);
        counted.assert(&[(r#"store_seconds_count{store="Intercept",operation="renew"}"#, 2.0)]);
    });
}

#[test]
fn every_metric_is_described_and_in_the_documentation() {
    let page = include_str!("../../idem-runtime/src/telemetry/metrics.rs");
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, idem_axum::metrics::describe);
    // A description shows as soon as there is a value.
    metrics::with_local_recorder(&recorder, || {
        for metric in ALL {
            match metric.kind {
                Kind::Counter => metrics::counter!(metric.name).absolute(1),
                Kind::Gauge => metrics::gauge!(metric.name).set(1.0),
                Kind::Histogram => metrics::histogram!(metric.name).record(1.0),
                other => panic!("a kind that is not tested: {other:?}"),
            }
        }
    });
    let text = recorder.handle().render();
    for metric in ALL {
        assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.description)), "{}: {text}", metric.name);
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let row = format!("//! | `{}` | {kind} | {} |", metric.name, labels.join(", ")).replace("|  |", "| |");
        assert!(page.contains(&row), "no row `{row}`");
    }
    assert_eq!(page.matches("//! | `idempotency_").count(), ALL.len());
}
