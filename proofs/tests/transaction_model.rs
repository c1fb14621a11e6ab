//! The protocol of `Tx`: what holds in all interleavings, and that the model finds each mistake.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use idem_proofs::model::transaction::property::{
    ATOMIC, DURABLE, NOTHING_HAPPENED, ONE_SOURCE, PROMISES, REPLAYED, TRUE_MISMATCH,
};
use idem_proofs::model::transaction::{Action, Fault, TransactionProtocol};
use stateright::{Checker, Model};

/// Three requests are the same, and one is another.
fn protocol(crash: bool, lost_acks: bool, fault: Option<Fault>) -> TransactionProtocol {
    TransactionProtocol { fingerprints: vec![0, 0, 0, 1], crash, lost_acks, fault }
}

/// Goes through every interleaving: of the promises exactly `violated` are broken. Gives a shortest counterexample of each.
fn check<const N: usize>(protocol: TransactionProtocol, violated: [&'static str; N]) -> [Vec<Action>; N] {
    let checker = protocol.clone().checker().spawn_bfs().join();
    println!("{:>8} states, depth {:>2}: {violated:?}", checker.unique_state_count(), checker.max_depth());
    for promise in PROMISES {
        let found = checker.discovery(promise).map(|path| path.into_actions());
        assert_eq!(found.is_some(), violated.contains(&promise), "{promise}: {protocol:?}\n{found:?}");
    }
    checker.assert_any_discovery(REPLAYED);
    let shortest = |promise| {
        let up_to = |depth| protocol.clone().checker().target_max_depth(depth).spawn_bfs().join().discovery(promise);
        (1..).find_map(up_to).unwrap().into_actions()
    };
    violated.map(shortest)
}

#[test]
fn an_effect_and_its_record_are_one_commit_under_any_fault() {
    for crash in [false, true] {
        for lost_acks in [false, true] {
            check(protocol(crash, lost_acks, None), []);
        }
    }
}

#[test]
fn a_record_before_its_commit_is_replayed_without_its_effect() {
    let fault = Some(Fault::RecordBeforeCommit);
    // Until the COMMIT arrives, and for good if the process dies.
    let [durable, atomic] = check(protocol(false, false, fault), [DURABLE, ATOMIC]);
    assert!(matches!(durable.last(), Some(Action::LookAtRow(_))), "{durable:?}");
    assert!(matches!(atomic.last(), Some(Action::SendCommit(_))), "{atomic:?}");
    check(protocol(true, false, fault), [DURABLE, ATOMIC]);
}

#[test]
fn a_response_before_the_commit_may_be_undone() {
    let fault = Some(Fault::ReplyBeforeCommit);
    let [durable] = check(protocol(false, false, fault), [DURABLE]);
    assert!(matches!(durable.last(), Some(Action::SendCommit(_))), "{durable:?}");
    // A retry runs again, and its client is told something else.
    let [_, sources] = check(protocol(false, true, fault), [DURABLE, ONE_SOURCE]);
    assert!(sources.iter().any(|action| matches!(action, Action::SessionEnds(_))), "{sources:?}");
}

#[test]
fn two_locks_that_are_tried_one_after_the_other_see_a_mismatch_where_there_is_none() {
    let [mismatch] = check(protocol(false, false, Some(Fault::RacingLocks)), [TRUE_MISMATCH]);
    let between: Vec<_> = mismatch.iter().rev().take(2).collect();
    assert!(matches!(between[..], [Action::TryFingerprint(_), Action::Unlock(_)]), "{mismatch:?}");
}

#[test]
fn a_lock_of_another_fingerprint_may_be_that_of_a_retry_that_has_yet_to_see_the_record() {
    let [mismatch] = check(protocol(false, false, Some(Fault::UnconfirmedMismatch)), [TRUE_MISMATCH]);
    let commits = mismatch.iter().any(|action| matches!(action, Action::CommitArrives(_)));
    assert!(commits && matches!(mismatch.last(), Some(Action::LookAtLocks(_))), "{mismatch:?}");
}

#[test]
fn an_owner_that_has_given_a_part_of_its_locks_back_looks_like_another_one() {
    let [mismatch] = check(protocol(false, false, Some(Fault::PartsAsMismatch)), [TRUE_MISMATCH]);
    let between: Vec<_> = mismatch.iter().rev().take(2).collect();
    assert!(matches!(between[..], [Action::LookAtRowAgain(_), Action::LookAtLocks(_)]), "{mismatch:?}");
}

#[test]
fn a_look_that_does_not_wait_for_the_session_says_that_nothing_happened_before_it_commits() {
    let [nothing] = check(protocol(false, true, Some(Fault::ImpatientLook)), [NOTHING_HAPPENED]);
    assert!(matches!(nothing.last(), Some(Action::CommitArrives(_))), "{nothing:?}");
}
