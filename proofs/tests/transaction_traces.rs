//! What the engine may report of handlers with `Tx`, and what no run of the model explains. The traces of real servers are in
//! `cluster/transactions.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use idem_proofs::model::transaction::TransactionProtocol;
use idem_proofs::trace::Event::{self, Asked, Completed, Granted, Lost, Released, TakenOver};
use idem_proofs::trace::{Line, validate};
use idem_runtime::codes;

const fn protocol(crash: bool, lost_acks: bool) -> TransactionProtocol {
    TransactionProtocol { fingerprints: Vec::new(), crash, lost_acks, fault: None }
}

const CALM: TransactionProtocol = protocol(false, false);
const CRASHES: TransactionProtocol = protocol(true, false);
const BREAKS: TransactionProtocol = protocol(false, true);

fn started(execution: &str) -> Event {
    Event::Started(execution.to_owned())
}

fn replayed(execution: &str) -> Event {
    Event::Replayed(execution.to_owned())
}

fn refused(code: &str) -> Event {
    Event::Refused(code.to_owned())
}

/// A trace by hand: the request, each with its process, and what was reported of it.
fn told(lines: &[&[(u64, Event)]]) -> Vec<Line> {
    let lines = lines.concat().into_iter();
    lines.map(|(number, event)| Line { process: number / 10, request: number, key: "k".into(), event }).collect()
}

#[track_caller]
fn is_run(protocol: &TransactionProtocol, lines: &[&[(u64, Event)]]) {
    assert_eq!(validate(protocol, &told(lines)), []);
}

/// No order explains each line.
#[track_caller]
fn is_no_run(protocol: &TransactionProtocol, lines: &[&[(u64, Event)]]) {
    assert_ne!(validate(protocol, &told(lines)), []);
}

/// A request whose handler runs.
fn running() -> [(u64, Event); 3] {
    [(10, Asked), (10, Granted), (10, started("a"))]
}

#[test]
fn a_second_execution_is_no_run_of_the_model() {
    let second = [(20, Asked), (20, Granted)];
    is_no_run(&BREAKS, &[&running(), &[(10, Completed)], &second]);
    is_no_run(&CALM, &[&running(), &second]);
    is_run(&CALM, &[&running(), &[(10, Released)], &second]);
    // Its process died.
    is_run(&CRASHES, &[&running(), &second]);
    is_no_run(&CRASHES, &[&running(), &second, &[(11, Asked)]]);
    // The database ended its session.
    is_run(&BREAKS, &[&running(), &second, &[(10, refused(codes::STORE_UNAVAILABLE))]]);
}

#[test]
fn a_replay_of_what_was_not_committed_is_no_run_of_the_model() {
    let replay = [(20, Asked), (20, replayed("a"))];
    // Its commit took effect before it was confirmed.
    is_run(&CALM, &[&running(), &replay, &[(10, Completed)]]);
    is_no_run(&CALM, &[&running(), &replay, &[(10, Released)]]);
    is_no_run(&BREAKS, &[&running(), &[(10, Released)], &replay]);
}

#[test]
fn an_unconfirmed_commit_took_effect_or_did_not() {
    let unconfirmed = [&running()[..], &[(10, refused(codes::STORE_UNAVAILABLE))]].concat();
    let replay = [(30, Asked), (30, replayed("a"))];
    let another = [(20, Asked), (20, Granted), (20, started("b")), (20, Completed)];
    is_run(&BREAKS, &[&unconfirmed, &replay]);
    is_run(&BREAKS, &[&unconfirmed, &another]);
    is_no_run(&BREAKS, &[&unconfirmed, &another, &replay]);
    is_no_run(&BREAKS, &[&unconfirmed, &replay, &another[..2]]);
    is_no_run(&CALM, &[&unconfirmed]);
}

#[test]
fn a_refusal_that_is_not_true_is_no_run_of_the_model() {
    let locked = [(20, Asked), (20, refused(codes::KEY_LOCKED))];
    is_run(&CALM, &[&running(), &locked]);
    is_no_run(&CALM, &[&locked]);
    is_no_run(&BREAKS, &[&running(), &[(10, Completed)], &locked]);
    // Another request of the process asks first, and is refused itself, by one that asks after both.
    let refused_by_another = |number| [(10, Asked), (10, Granted), (number, refused(codes::KEY_LOCKED))];
    is_run(&CALM, &[&[(21, Asked)], &locked, &refused_by_another(21)]);
    is_no_run(&CALM, &[&[(31, Asked)], &locked, &refused_by_another(31)]);
    is_no_run(&BREAKS, &[&running(), &[(10, Completed), (21, Asked)], &locked]);
    for code in [codes::KEY_MISMATCH, codes::OUTCOME_UNKNOWN, codes::STORE_FULL] {
        is_no_run(&BREAKS, &[&[(20, Asked), (20, refused(code))]]);
    }
    is_no_run(&BREAKS, &[&running(), &[(20, Asked), (20, refused(codes::OUTCOME_UNKNOWN))]]);
}

#[test]
fn a_transaction_has_no_lease() {
    is_no_run(&BREAKS, &[&running(), &[(20, Asked), (20, TakenOver)]]);
    is_no_run(&BREAKS, &[&running(), &[(10, Lost)]]);
}
