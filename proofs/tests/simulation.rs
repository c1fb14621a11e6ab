//! Clients that retry over a network that fails, and the invariants over what happened.
//!
//! `SEEDS=10000 cargo test -p idem-proofs --test simulation` is the long form; `SEED=17` repeats one seed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use idem_proofs::history::{Event, SERVER, from_json, keep, to_json};
use idem_proofs::invariants::{Violation, check};
use idem_proofs::model::Protocol;
use idem_proofs::network::{BOUNDS, Outcome, Protection, run};
use idem_proofs::trace::{Event as Reported, by_process, validate};

/// Simulates seeds on all cores.
fn simulate(seeds: impl IntoIterator<Item = u64>, protection: Protection) -> Vec<Outcome> {
    let seeds: Vec<_> = seeds.into_iter().collect();
    let (next, outcomes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap()) {
                    let outcome = run(seed, protection);
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

/// What may go wrong with a claim that dies with its process.
const IN_PROCESS: Protocol = Protocol { release: true, ..Protocol::CALM };

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

fn violations(outcome: &Outcome) -> Vec<Violation> {
    // What is read is what a reader of the file would see.
    check(&from_json(&to_json(&outcome.lines)).expect("a history"), BOUNDS)
}

#[test]
fn the_invariants_hold_whatever_goes_wrong() {
    let seeds = number("SEED").map_or(0..number("SEEDS").unwrap_or(100), |seed| seed..seed + 1);
    let swarm = seeds.end - seeds.start >= 100;
    let mut failed = String::new();
    let mut seen = BTreeMap::<String, usize>::new();
    for outcome in simulate(seeds, Protection::Idempotent) {
        tally(&outcome, &mut seen);
        let violations = violations(&outcome);
        let lives = by_process(&outcome.trace);
        let unexplained: Vec<_> = lives.iter().flat_map(|life| validate(&IN_PROCESS, life)).collect();
        if !violations.is_empty() || !unexplained.is_empty() {
            let seed = outcome.plan.seed;
            let path = keep(&format!("seed-{seed}"), &outcome.lines).expect("the history is kept");
            failed += &format!("SEED={seed}, its history in {}\n{:#?}\n", path.display(), outcome.plan);
            violations.iter().for_each(|violation| failed += &format!("  {violation}\n"));
            unexplained.iter().for_each(|unexplained| failed += &format!("  {unexplained}"));
        }
    }
    assert!(failed.is_empty(), "{failed}");
    println!("{seen:#?}");
    // A swarm in which nothing goes wrong proves nothing.
    let kinds = [
        "quiet seeds",
        "body",
        "handler continued without its client",
        "crash of a client",
        "crash of the server",
        "lost",
        "replay",
        "idempotency_key_locked",
        "idempotency_key_mismatch",
        "idempotency_store_full",
        "first response",
        "body cut by a crash",
        "step of the model",
    ];
    for kind in kinds {
        assert!(!swarm || seen.get(kind).is_some_and(|&times| times >= 5), "hardly any: {kind}: {seen:#?}");
    }
}

/// Counts what happened.
fn tally(outcome: &Outcome, seen: &mut BTreeMap<String, usize>) {
    let mut count = |kind: &str| *seen.entry(kind.to_owned()).or_default() += 1;
    if outcome.plan.is_quiet() {
        count("quiet seeds");
    }
    let is_step = |line: &&idem_proofs::trace::Line| line.event != Reported::Asked;
    outcome.trace.iter().filter(is_step).for_each(|_| count("step of the model"));
    let mut running = BTreeMap::new();
    for line in &outcome.lines {
        match &line.event {
            Event::Start { exec, req, .. } => {
                running.insert(*req, (*exec, false));
                count("body");
            }
            Event::Lost { id, .. } => {
                running.entry(*id).and_modify(|(_, lost)| *lost = true);
                count("lost");
            }
            Event::End { exec, .. } => {
                running.retain(|_, (running, lost)| {
                    if running == exec && *lost {
                        count("handler continued without its client");
                    }
                    running != exec
                });
            }
            Event::Resp { code: Some(code), .. } => count(code),
            Event::Resp { replayed, .. } => count(if *replayed { "replay" } else { "first response" }),
            Event::Crash { node } if node == SERVER => {
                running.values().for_each(|_| count("body cut by a crash"));
                running.clear();
                count("crash of the server");
            }
            Event::Crash { .. } => count("crash of a client"),
            _ => {}
        }
    }
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Protection::Idempotent).lines, run(seed, Protection::Idempotent).lines, "seed {seed}");
    }
}

/// Which invariants these seeds violate, and how many seeds.
fn violated(protection: Protection) -> BTreeMap<&'static str, usize> {
    let mut violated = BTreeMap::new();
    for outcome in simulate(0..12, protection) {
        let mut invariants: Vec<_> = violations(&outcome).iter().map(|violation| violation.invariant).collect();
        invariants.dedup();
        invariants.into_iter().for_each(|invariant| *violated.entry(invariant).or_default() += 1);
    }
    println!("{protection:?}: {violated:#?}");
    violated
}

#[test]
fn control_a_bare_handler_violates_them() {
    let violated = violated(Protection::Bare);
    for invariant in ["I1 at most one at a time", "I2 at most once", "I4 effect bound", "I9 single source"] {
        assert!(violated.contains_key(invariant), "{invariant}: {violated:#?}");
    }
    assert!(violated.contains_key("I10 mismatch") && violated.contains_key("I17 recorded"), "{violated:#?}");
}

#[test]
fn control_a_handler_inside_the_future_of_the_request_does_not_run_to_the_end() {
    let violated = violated(Protection::Inline);
    assert!(violated.contains_key("I17 to the end"), "{violated:#?}");
    assert!(
        violated.contains_key("I2 at most once"),
        "the retry of a handler that was cut starts it again: {violated:#?}"
    );
    // All the rest it does right, so it is the future that breaks the promise.
    assert!(!violated.contains_key("I7 replay identity") && !violated.contains_key("I11 isolation"), "{violated:#?}");
}
