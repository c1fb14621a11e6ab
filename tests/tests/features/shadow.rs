//! Shadow mode: everything is computed, nothing is enforced.

use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::stream;
use idem_axum::{
    Begin, BeginOptions, Fingerprint, Idempotency, IdempotencyKey, MemoryClaim, MemoryStore, Policy, StorageKey,
    StoreError, idempotent,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Ask, Faults, Probe, Reply, Setup, Spans, feed, once, post as send, responding, within};

#[idempotent(required, min_key = 3, shadow)]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}: {body}", probe.run().await))
}

const PATIENT: Policy = Policy::DEFAULT.in_flight(idem_axum::InFlight::wait(Duration::from_secs(5))).shadow();

#[idempotent(policy = PATIENT)]
async fn patient(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

const ENFORCED: Policy = PATIENT.enforced();

#[idempotent(policy = ENFORCED)]
async fn enforced(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

/// Takes whatever comes, as it comes.
#[idempotent(shadow)]
async fn count(request: Request) -> String {
    match to_bytes(request.into_body(), usize::MAX).await {
        Ok(bytes) => bytes.len().to_string(),
        Err(_) => "broken".to_owned(),
    }
}

#[idempotent(shadow)]
async fn echo(key: Option<IdempotencyKey>) -> &'static str {
    if key.is_some() { "a key" } else { "none" }
}

fn routes() -> Router<Probe> {
    Router::new()
        .route("/", post(order))
        .route("/patient", post(patient))
        .route("/enforced", post(enforced))
        .route("/count", post(count))
        .route("/echo", post(echo))
}

fn ask() -> Ask {
    send("/").key("key").body("a book")
}

/// What would have happened to each request, oldest first.
fn would(spans: &Spans) -> Vec<String> {
    let spans = spans.named("idempotency");
    let would = |field: Option<&str>| field.unwrap_or("nothing said").to_owned();
    assert!(spans.iter().all(|span| span.get("outcome") == Some("shadow")), "{spans:?}");
    spans.iter().map(|span| would(span.get("would"))).collect()
}

#[track_caller]
fn assert_own_response(reply: &Reply, text: &str) {
    assert_eq!((reply.status, reply.text()), (201, text), "{reply:?}");
    assert!(!reply.is_replay(), "{reply:?}");
}

#[tokio::test]
async fn every_request_runs_and_what_would_have_happened_is_told() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    assert_own_response(&ask().to(&setup.app).await, "run 1: a book");
    assert_own_response(&ask().to(&setup.app).await, "run 2: a book");
    assert_own_response(&ask().body("tea").to(&setup.app).await, "run 3: tea");
    assert_own_response(&send("/").body("tea").to(&setup.app).await, "run 4: tea");
    for malformed in ["a, b", "\"open", "no"] {
        assert_eq!(send("/").key(malformed).to(&setup.app).await.status, 201);
    }
    let wanted = ["execute", "replay", "idempotency_key_mismatch", "idempotency_key_missing"];
    let invalid = ["idempotency_key_invalid"; 3];
    assert_eq!(would(&spans), [&wanted[..], &invalid].concat());
    let said = spans.events("idem_axum");
    let said: Vec<_> = said.iter().filter(|event| event.level == tracing::Level::INFO).collect();
    assert_eq!(said.len(), 6, "one for each that would not have run: {said:?}");
}

#[tokio::test]
async fn duplicates_in_flight_both_run_and_the_first_is_recorded() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    setup.probe.close();
    let run = |ask: Ask| {
        let app = setup.app.clone();
        tokio::spawn(async move { ask.to(&app).await })
    };
    let mut requests = Vec::new();
    for (nth, ask) in
        [ask(), ask(), ask().body("tea"), send("/patient").key("p"), send("/patient").key("p")].iter().enumerate()
    {
        requests.push(run(ask.clone()));
        setup.probe.started(nth + 1).await;
    }
    setup.probe.open();
    for request in requests {
        assert!(!request.await.unwrap().is_replay());
    }
    assert_eq!(setup.probe.runs(), 5);
    let locked = ["execute", "idempotency_key_locked", "idempotency_key_mismatch", "execute", "wait"];
    assert_eq!(would(&spans), locked);
    let enforced = send("/enforced").key("e");
    enforced.to(&setup.app).await.assert_ran(200);
    assert!(enforced.to(&setup.app).await.is_replay(), "`shadow = false` takes the policy's word back");
}

#[tokio::test]
async fn what_was_recorded_in_shadow_mode_is_replayed_when_the_rules_are_enforced() {
    let shadow = responding!([shadow], || (StatusCode::ACCEPTED, "1"));
    let first = send("/").key("a").to(&shadow.app).await;
    assert_eq!((first.status, first.text()), (202, "1"));
    let enforced = responding!(@routes [], || (StatusCode::ACCEPTED, "2"));
    let (app, probe) = Setup::mount(&shadow.idempotency, enforced);
    let replay = send("/").key("a").to(&app).await;
    assert!(replay.is_replay() && replay.text() == "1", "{replay:?}");
    assert_eq!(probe.runs(), 0);
}

#[tokio::test]
async fn a_client_that_hangs_up_cuts_the_handler_off_and_releases_the_claim() {
    let (spans, _guard) = Spans::capture();
    let setup = Setup::of(routes());
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    request.abort();
    setup.probe.cut(1).await;
    setup.probe.open();
    setup.settled().await;
    setup.assert_nothing_stored();
    assert_own_response(&ask().to(&setup.app).await, "run 2: a book");
    assert_eq!(would(&spans), ["execute", "execute"]);
    assert_eq!(setup.idempotency.executions(), 0);
}

#[tokio::test]
async fn a_stream_is_recorded_as_its_client_reads_it_and_not_without_it() {
    let (spans, _guard) = Spans::capture();
    let (feeder, body) = feed();
    let setup = responding!([shadow], once(body));
    let response = send("/").key("a").response(&setup.app).await;
    feeder.send("one ");
    feeder.send("two");
    drop(feeder);
    assert_eq!(within("the stream", to_bytes(response.into_body(), 100)).await.unwrap(), "one two");
    let (app, _probe) = Setup::mount(&setup.idempotency, responding!(@routes [], || "another"));
    assert_eq!(send("/").key("a").to(&app).await.text(), "one two");

    let (feeder, body) = feed();
    let left = responding!([shadow], once(body));
    let response = send("/").key("a").response(&left.app).await;
    feeder.send("one ");
    drop(response);
    left.settled().await;
    left.assert_nothing_stored();
    let outcomes = spans.named("idempotency");
    let outcomes: Vec<_> = outcomes.iter().map(|span| span.get("outcome")).collect();
    assert_eq!(outcomes, [Some("shadow"), Some("replayed"), Some("shadow")]);
}

#[tokio::test]
async fn no_body_is_too_large_and_none_breaks_off_because_of_the_fingerprint() {
    let (spans, _guard) = Spans::capture();
    let routes = routes().layer(DefaultBodyLimit::max(10));
    let setup = Setup::of(routes);
    for (length, wanted) in [(10, "execute"), (11, "reject"), (100_000, "reject")] {
        let reply = send("/count").key(&format!("l{length}")).body(vec![b'x'; length]).to(&setup.app).await;
        assert_eq!((reply.status, reply.text()), (200, length.to_string().as_str()));
        assert_eq!(would(&spans).pop().as_deref(), Some(wanted), "{length}");
    }
    let chunks = [Ok(Bytes::from_static(b"abc")), Err(std::io::Error::other("broken"))];
    let request = send("/count").key("broken").request("/count", Body::from_stream(stream::iter(chunks)));
    let reply: Response = tower::ServiceExt::oneshot(setup.app.clone(), request).await.unwrap();
    assert_eq!(to_bytes(reply.into_body(), 100).await.unwrap(), "broken");
    assert_eq!(would(&spans).pop().as_deref(), Some("reject"));
    // What an extractor rejects is the extractor's own affair.
    assert_eq!(ask().body("more than ten bytes").to(&setup.app).await.status, 413);
}

#[tokio::test]
async fn a_handler_that_asks_for_the_key_gets_a_good_one_or_none() {
    let setup = Setup::of(routes());
    assert_eq!(send("/echo").key("good").to(&setup.app).await.text(), "a key");
    assert_eq!(send("/echo").key("a, b").to(&setup.app).await.text(), "none");
}

/// The store never replies.
struct Silent;

impl Hooks<MemoryStore> for Silent {
    async fn begin(
        &self,
        _: &MemoryStore,
        _: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_full_or_silent_costs_a_request_nothing() {
    let (spans, _guard) = Spans::capture();
    let down = Idempotency::new(Faults { down: true.into(), ..Faults::default() }.over_a_shelf());
    let full = Idempotency::new(MemoryStore::builder().max_entries(0).build());
    let busy = Idempotency::builder(MemoryStore::new()).max_executions(0).build();
    let silent = Idempotency::builder(Intercept::new(MemoryStore::new(), Silent)).lease(Duration::from_secs(1)).build();
    for idempotency in [&down, &full, &busy, &silent] {
        let (app, _probe) = Setup::mount(idempotency, routes());
        let before = tokio::time::Instant::now();
        assert_own_response(&ask().to(&app).await, "run 1: a book");
        assert_eq!(before.elapsed(), Duration::ZERO, "the clock moves only while everybody waits");
        let minute = Duration::from_secs(60);
        tokio::time::timeout(minute, idempotency.drain()).await.expect("the store's task ends");
        assert_eq!(idempotency.executions(), 0);
    }
    let [unavailable, full, many] = ["store_unavailable", "store_full", "too_many_executions"];
    assert_eq!(would(&spans), [unavailable, full, many, unavailable].map(|code| format!("idempotency_{code}")));
}

#[tokio::test]
async fn a_handler_in_shadow_mode_takes_no_place_of_an_enforced_one() {
    let (spans, _guard) = Spans::capture();
    let idempotency = Idempotency::builder(MemoryStore::new()).max_executions(1).build();
    let (app, probe) = Setup::mount(&idempotency, routes());
    ask().to(&app).await;
    probe.close();
    let run = |ask: Ask, app: Router| tokio::spawn(async move { ask.to(&app).await });
    let first = run(send("/").key("first"), app.clone());
    probe.started(2).await;
    assert_eq!(idempotency.executions(), 0);
    let enforced = run(send("/enforced").key("enforced"), app.clone());
    probe.started(3).await;
    assert_eq!(idempotency.executions(), 1);
    let (recorded, second) = (run(ask(), app.clone()), run(send("/").key("second"), app.clone()));
    probe.started(5).await;
    probe.open();
    for request in [first, enforced, recorded, second] {
        assert!(!request.await.unwrap().is_replay());
    }
    let mut would: Vec<_> =
        spans.named("idempotency").iter().filter_map(|span| Some(span.get("would")?.to_owned())).collect();
    would.sort();
    assert_eq!(would, ["execute", "execute", "idempotency_too_many_executions", "replay"]);
    idempotency.drain().await;
    assert_own_response(&send("/").key("second").to(&app).await, "run 6: ");
}

#[tokio::test]
async fn over_a_store_that_takes_its_time_the_first_is_recorded_too() {
    let (spans, _guard) = Spans::capture();
    let idempotency = Idempotency::new(Faults { pending: 3, ..Faults::default() }.over_a_shelf());
    let (app, _probe) = Setup::mount(&idempotency, routes());
    assert_own_response(&ask().to(&app).await, "run 1: a book");
    within("the record", idempotency.drain()).await;
    assert_own_response(&ask().to(&app).await, "run 2: a book");
    within("the record", idempotency.drain()).await;
    assert_eq!(would(&spans), ["execute", "replay"]);
}

#[tokio::test]
async fn without_the_layer_it_is_an_error_in_shadow_mode_too() {
    let (app, _probe) = Setup::bare(routes());
    ask().to(&app).await.assert_refused(500, "idempotency_layer_missing");
}
