//! What the engine reports is a run of the model, over a store that outlives its server; and what is none is found.
//!
//! The simulation of a store in the server's memory is in `simulation.rs`, and that of real servers in `idem-cluster`.
//! `SEEDS=2000 cargo test -p idem-proofs --test traces` is the long form.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::time::Duration;

use futures_util::future::join;
use idem_proofs::faulty::Fault;
use idem_proofs::invariants::{SETTLED, check};
use idem_proofs::map_store::MapStore;
use idem_proofs::model::Protocol;
use idem_proofs::network::{BOUNDS, Keeps, Outcome, Protection, RemoteFault, run_over};
use idem_proofs::trace::Event::{self, Asked, Completed, Granted, Lost, Released, TakenOver, Unconfirmed};
use idem_proofs::trace::{Line, Observer, Trace, validate};
use idem_runtime::{
    Abandoned, Attempt, Endpoint, Executed, Fingerprint, Idempotency, ManualClock, Outcome as Recorded, Recording,
    RequestSpan, Rules, StorageKey, codes,
};
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// So long that nothing is renewed meanwhile: time is the clock's.
const LEASE: Duration = Duration::from_secs(3600);

/// The server dies, and its claims outlive it.
const REMOTE: Protocol = Protocol { crash: true, release: true, ..Protocol::CALM };

fn simulate(seed: u64, fault: Option<RemoteFault>) -> Outcome {
    run_over(seed, Protection::Idempotent, Keeps::Remote(fault))
}

/// Keys that are in flight for good.
fn unsettled(outcome: &Outcome) -> Vec<String> {
    let violations = check(&outcome.lines, BOUNDS).into_iter();
    violations.filter(|violation| violation.invariant == SETTLED).map(|violation| violation.to_string()).collect()
}

#[test]
fn over_a_sound_store_each_step_is_one_of_the_model_and_each_key_settles() {
    let seeds = std::env::var("SEEDS").map_or(8, |seeds| seeds.parse().unwrap());
    let mut unknown = 0;
    for outcome in (0..seeds).map(|seed| simulate(seed, None)) {
        let seed = outcome.plan.seed;
        let unexplained = validate(&REMOTE, &outcome.trace);
        unexplained.iter().for_each(|unexplained| println!("seed {seed}: {unexplained}"));
        assert!(unexplained.is_empty(), "seed {seed}");
        assert!(unsettled(&outcome).is_empty(), "seed {seed}: {:?}", unsettled(&outcome));
        unknown += outcome.trace.iter().filter(|line| line.event == refused(codes::OUTCOME_UNKNOWN)).count();
    }
    assert!(unknown > 0, "no crash hit a handler");
}

/// The first seed whose trace is none of the model.
fn traces_find(fault: RemoteFault) {
    let found = (0..64).find_map(|seed| validate(&REMOTE, &simulate(seed, Some(fault)).trace).into_iter().next());
    println!("{fault:?}: {}", found.unwrap_or_else(|| panic!("{fault:?} is not found")));
}

#[test]
fn traces_find_eviction() {
    traces_find(RemoteFault::OfStore(Fault::EvictsTheOldest));
}

#[test]
fn traces_find_a_lease_that_is_the_ttl() {
    traces_find(RemoteFault::OfStore(Fault::ClaimVanishesWithLease));
    traces_find(RemoteFault::OfStore(Fault::RecordDiesWithLease));
}

#[test]
fn traces_find_a_claim_released_on_drop() {
    traces_find(RemoteFault::ReleasesOnDrop);
}

/// A request to the engine, with the span that an adapter opens for it.
async fn ask(engine: &Idempotency, ready: impl Future<Output = ()> + Send + 'static) {
    let rules = Rules { abandoned: Abandoned::Rerun, ..Rules::DEFAULT };
    let attempt = Attempt::new(StorageKey::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]), rules);
    let span = RequestSpan::new(|| Endpoint::new("POST", "/"));
    let recording = Recording::Done(Recorded::NotReplayable);
    let handler = async move {
        ready.await;
        Executed { response: (), recording }
    };
    let work = async {
        span.set_key(&attempt.key);
        let _ = engine.run(attempt, |_| handler).await;
    };
    span.instrument(work).await;
}

/// The trace of `work` with an engine over a store with this fault, and its own clock.
fn traced<F: Future<Output = ()>>(fault: Option<Fault>, work: impl FnOnce(Idempotency, ManualClock) -> F) -> Vec<Line> {
    let trace = Trace::in_memory();
    let clock = ManualClock::new();
    let engine = Idempotency::builder(MapStore::new(10, fault)).clock(clock.clone()).lease(LEASE).build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _observed = idem_testkit::subscriber::set_default(Observer::of(trace.clone()));
    runtime.block_on(work(engine, clock));
    trace.lines()
}

async fn at_once(engine: Idempotency, _: ManualClock) {
    join(ask(&engine, yield_now()), ask(&engine, yield_now())).await;
}

#[test]
fn traces_find_check_then_act() {
    assert_eq!(validate(&REMOTE, &traced(None, at_once)), []);
    let unexplained = validate(&REMOTE, &traced(Some(Fault::CheckThenAct), at_once));
    assert!(!unexplained.is_empty());
    let text = unexplained[0].to_string();
    for part in ["key 01010101", "no step for line 4, Granted of request 0/1", "claimed by 0/0, live", "Asked"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The claim of an owner that is slow is taken over, and the new owner completes it first.
async fn taken_over(engine: Idempotency, clock: ManualClock) {
    let (done, ready) = oneshot::channel::<()>();
    let slow = ask(&engine, async move { ready.await.unwrap() });
    let fast = async {
        // The slow one has its claim by now.
        clock.advance(LEASE * 2);
        ask(&engine, yield_now()).await;
        done.send(()).unwrap();
    };
    join(slow, fast).await;
}

#[test]
fn traces_find_a_missing_owner_token() {
    assert_eq!(validate(&RERUN, &traced(None, taken_over)), []);
    let unexplained = validate(&RERUN, &traced(Some(Fault::NoOwnerToken), taken_over));
    assert_eq!(unexplained[0].line.1.event, Completed, "{}", unexplained[0]);
}

#[test]
fn a_claim_that_outlives_its_lease_is_found_since_its_key_does_not_settle() {
    let fault = Some(RemoteFault::OfStore(Fault::ClaimOutlivesLease));
    let found = (0..64).map(|seed| simulate(seed, fault)).find_map(|outcome| unsettled(&outcome).pop());
    println!("{}", found.expect("a key that is in flight for good"));
}

fn refused(code: &str) -> Event {
    Event::Refused(code.to_owned())
}

fn started(execution: &str) -> Event {
    Event::Started(execution.to_owned())
}

fn replayed(execution: &str) -> Event {
    Event::Replayed(execution.to_owned())
}

/// A trace by hand: the process, which has one request, and what was reported of it.
fn told(lines: &[(u64, Event)]) -> Vec<Line> {
    lines.iter().cloned().map(|(process, event)| Line { process, request: 1, key: "k".into(), event }).collect()
}

#[track_caller]
fn is_run(protocol: &Protocol, lines: &[(u64, Event)]) {
    assert_eq!(validate(protocol, &told(lines)), []);
}

/// No order explains each line.
#[track_caller]
fn is_no_run(protocol: &Protocol, lines: &[(u64, Event)]) {
    let [unexplained] = &validate(protocol, &told(lines))[..] else { panic!("it is a run of the model") };
    let line = &lines[unexplained.line.0];
    assert_eq!((line.0, &line.1), (unexplained.line.1.process, &unexplained.line.1.event));
}

const CALM: Protocol = REMOTE;
const SLOW: Protocol = Protocol { pause: true, lost_acks: true, ..REMOTE };
const RERUN: Protocol = Protocol { crash: true, pause: true, lost_acks: true, release: true, ..Protocol::RERUN };

#[test]
fn a_second_execution_is_no_run_of_the_model() {
    let first = [(1, Asked), (1, Granted), (1, started("a")), (1, Completed)];
    is_run(&CALM, &[&first[..], &[(2, Asked), (2, replayed("a"))]].concat());
    is_no_run(&CALM, &[&first[..], &[(2, Asked), (2, Granted)]].concat());
    is_no_run(&SLOW, &[&first[..3], &[(2, Asked), (2, Granted)]].concat());
    is_no_run(&SLOW, &[&first[..3], &[(2, Asked), (2, TakenOver)]].concat());
    is_run(&RERUN, &[&first[..3], &[(2, Asked), (2, TakenOver)]].concat());
    is_no_run(&CALM, &[(1, Asked), (1, started("a"))]);
    is_no_run(&CALM, &[(1, Asked), (1, Granted), (1, started("a")), (1, started("b"))]);
}

#[test]
fn a_process_that_reports_later_has_not_died() {
    let unknown = [(1, Asked), (1, Granted), (1, started("a")), (2, Asked), (2, refused(codes::OUTCOME_UNKNOWN))];
    let mut lines = told(&unknown);
    assert_eq!(validate(&CALM, &lines), []);
    lines.push(Line { process: 1, request: 2, key: "another".into(), event: Asked });
    assert_ne!(validate(&CALM, &lines), []);
}

#[test]
fn a_replay_of_what_is_not_recorded_is_no_run_of_the_model() {
    let first = [(1, Asked), (1, Granted), (1, started("a"))];
    is_no_run(&CALM, &[&first[..], &[(2, Asked), (2, replayed("a"))]].concat());
    is_no_run(&CALM, &[&first[..], &[(1, Completed), (2, Asked), (2, replayed("b"))]].concat());
    // The record was there before its owner got the reply.
    is_run(&CALM, &[&first[..], &[(2, Asked), (2, replayed("a")), (1, Completed)]].concat());
    // Its owner died before it could.
    is_run(&SLOW, &[&first[..], &[(2, Asked), (2, replayed("a"))]].concat());
}

#[test]
fn a_refusal_that_is_not_true_is_no_run_of_the_model() {
    let first = [(1, Asked), (1, Granted), (1, started("a"))];
    let recorded = [&first[..], &[(1, Completed), (2, Asked)]].concat();
    let but = |lines: &[(u64, Event)], code| [lines, &[(2, refused(code))]].concat();
    for code in [codes::KEY_LOCKED, codes::OUTCOME_UNKNOWN, codes::STORE_FULL, "made_up"] {
        is_no_run(&CALM, &but(&recorded, code));
    }
    for code in [codes::KEY_MISMATCH, codes::POLICY_CHANGED, codes::NOT_REPLAYABLE, codes::STORE_UNAVAILABLE] {
        is_run(&CALM, &but(&recorded, code));
    }
    let free = [(2, Asked)];
    for code in [codes::KEY_LOCKED, codes::KEY_MISMATCH, codes::NOT_REPLAYABLE, codes::OUTCOME_UNKNOWN] {
        is_no_run(&CALM, &but(&free, code));
    }
    is_run(&CALM, &but(&free, codes::STORE_FULL));
    let running = [&first[..], &[(2, Asked)]].concat();
    is_run(&CALM, &but(&running, codes::KEY_LOCKED));
    // Its owner may be dead, but not if it reports something later.
    is_run(&CALM, &but(&running, codes::OUTCOME_UNKNOWN));
    is_no_run(&CALM, &[&but(&running, codes::OUTCOME_UNKNOWN)[..], &[(1, Completed)]].concat());
    is_run(&SLOW, &[&but(&running, codes::OUTCOME_UNKNOWN)[..], &[(1, Completed)]].concat());
}

#[test]
fn an_end_of_another_ones_claim_is_no_run_of_the_model() {
    let late = [(1, Asked), (1, Granted), (1, started("a")), (2, Asked), (2, TakenOver), (2, started("b"))];
    is_run(&RERUN, &[&late[..], &[(2, Completed), (1, Lost)]].concat());
    is_run(&RERUN, &[&late[..], &[(1, Lost), (1, refused(codes::OUTCOME_UNKNOWN)), (2, Completed)]].concat());
    is_no_run(&RERUN, &[&late[..], &[(2, Completed), (1, Completed)]].concat());
    is_no_run(&RERUN, &[&late[..], &[(1, Released)]].concat());
    is_no_run(&CALM, &[(1, Asked), (1, Granted), (1, started("a")), (1, Lost)]);
    is_no_run(&CALM, &[(1, Asked), (1, Granted), (1, started("a")), (1, Released)]);
    is_run(&CALM, &[(1, Asked), (1, Granted), (1, Released), (1, refused(codes::TOO_MANY_EXECUTIONS))]);
}

#[test]
fn a_claim_that_is_granted_too_late_is_seen_until_it_is_released() {
    let released = [(1, Released), (1, refused(codes::STORE_UNAVAILABLE)), (3, Asked), (3, Granted)];
    for code in [codes::KEY_LOCKED, codes::OUTCOME_UNKNOWN] {
        let seen = [(1, Asked), (2, Asked), (2, refused(code))];
        is_run(&SLOW, &[&seen[..], &released[..]].concat());
        // What is reported later may have been so earlier.
        is_run(&SLOW, &[&seen[..2], &[(1, Released), (2, refused(code))], &released[1..]].concat());
    }
    // Another request has taken it over before it is released.
    let lost = [(1, Lost), (1, refused(codes::STORE_UNAVAILABLE))];
    let taken_over = [(1, Asked), (2, Asked), (2, TakenOver), (2, started("b"))];
    is_run(&RERUN, &[&taken_over[..], &lost[..], &[(2, Completed)]].concat());
    is_no_run(&RERUN, &[&[(1, Asked)], &lost[..]].concat());
    // Its process dies before it can report the release, and perhaps before it can report the refusal.
    let dead = [(1, Asked), (2, Asked), (2, refused(codes::KEY_LOCKED)), (3, Asked), (3, Granted)];
    is_run(&SLOW, &dead);
    is_no_run(&SLOW, &[&dead[..], &[(1, Granted)]].concat());
    // One that was told something else has no claim.
    is_no_run(&SLOW, &[&dead[..1], &[(1, refused(codes::STORE_FULL))], &dead[1..]].concat());
    let gave_up =
        [(1, Asked), (1, refused(codes::STORE_UNAVAILABLE)), (2, Asked), (2, refused(codes::OUTCOME_UNKNOWN))];
    is_run(&SLOW, &[&gave_up[..], &[(3, Asked), (3, Granted)]].concat());
    let ran = [(1, Asked), (1, Granted), (1, started("a")), (2, Asked), (2, refused(codes::OUTCOME_UNKNOWN))];
    is_no_run(&SLOW, &[&ran[..], &[(3, Asked), (3, Granted)]].concat());
}

#[test]
fn what_a_request_did_not_hear_of_may_have_happened() {
    let lost = [(1, Asked), (1, refused(codes::STORE_UNAVAILABLE))];
    is_run(
        &SLOW,
        &[&lost[..], &[(2, Asked), (2, refused(codes::KEY_LOCKED)), (1, Released), (3, Asked), (3, Granted)]].concat(),
    );
    is_no_run(&CALM, &[&lost[..], &[(2, Asked), (2, refused(codes::KEY_LOCKED))]].concat());
    let unconfirmed = [(1, Asked), (1, Granted), (1, started("a")), (1, Unconfirmed)];
    is_run(&SLOW, &[&unconfirmed[..], &[(2, Asked), (2, replayed("a"))]].concat());
    is_run(&SLOW, &[&unconfirmed[..], &[(2, Asked), (2, refused(codes::OUTCOME_UNKNOWN))]].concat());
}
