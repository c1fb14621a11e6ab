//! Every configuration of the protocol: what holds in all interleavings, and what does not, with the counterexample.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use idem_proofs::model::property::{
    NO_OVERWRITE, NOT_LOCKED_OUT, ONE_EFFECT, ONE_SOURCE, OWNER_ONLY, PROMISES, RECORDED, REPLAYED,
};
use idem_proofs::model::{Action, HangUp, Protocol};
use stateright::{Checker, Model};

const CALM: Protocol = Protocol::CALM;
const REFUSE: Protocol = Protocol { crash: true, pause: true, ..CALM };
const RERUN: Protocol = Protocol::RERUN;
/// As a stream does, whose response is out before its owner can know of the loss.
const RERUN_AND_REPLY: Protocol = Protocol { lost_owner_replies: true, ..RERUN };

/// Goes through every interleaving: of the promises exactly `violated` are broken. Gives a shortest counterexample of
/// each, in that order.
fn check<const N: usize>(protocol: Protocol, violated: [&'static str; N]) -> [Vec<Action>; N] {
    let checker = protocol.clone().checker().spawn_bfs().join();
    println!("{:>8} states, depth {:>2}: {violated:?}", checker.unique_state_count(), checker.max_depth());
    for promise in PROMISES {
        let found = checker.discovery(promise).map(|path| path.into_actions());
        assert_eq!(found.is_some(), violated.contains(&promise), "{promise}: {protocol:?}\n{found:?}");
    }
    checker.assert_any_discovery(REPLAYED);
    violated.map(|promise| shortest(&protocol, promise))
}

fn shortest(protocol: &Protocol, promise: &'static str) -> Vec<Action> {
    let up_to = |depth| protocol.clone().checker().target_max_depth(depth).spawn_bfs().join().discovery(promise);
    (1..).find_map(up_to).unwrap().into_actions()
}

#[test]
fn with_nothing_going_wrong_all_holds() {
    check(CALM, []);
    check(Protocol { release: true, ..CALM }, []);
    check(RERUN, []);
}

#[test]
fn refusing_after_a_crash_keeps_every_promise() {
    check(Protocol { crash: true, ..CALM }, []);
}

#[test]
fn refusing_after_a_pause_keeps_every_promise() {
    check(Protocol { pause: true, ..CALM }, []);
    check(REFUSE, []);
}

#[test]
fn rerunning_after_a_crash_can_run_twice() {
    let [twice] = check(Protocol { crash: true, ..RERUN }, [ONE_EFFECT]);
    let [Action::Begin(a), Action::Effect(b), Action::Crash(c), Action::LeaseEnds, Action::Begin(d), Action::Effect(e)] =
        twice[..]
    else {
        panic!("another counterexample: {twice:?}")
    };
    assert!(a == b && b == c && d == e && a != d);
}

#[test]
fn rerunning_while_an_owner_that_responds_anyway_is_only_slow_can_respond_twice() {
    let [_, sources] = check(Protocol { pause: true, ..RERUN_AND_REPLY }, [ONE_EFFECT, ONE_SOURCE]);
    assert!(sources.contains(&Action::LeaseEnds), "{sources:?}");
    assert_eq!(sources.iter().filter(|action| matches!(action, Action::Effect(_))).count(), 2, "{sources:?}");
}

#[test]
fn an_owner_that_withholds_its_response_after_a_loss_keeps_to_one_response_source() {
    check(Protocol { pause: true, ..RERUN }, [ONE_EFFECT]);
    check(Protocol { attempts: 3, pause: true, crash: true, hang_up: HangUp::GoesOn, ..RERUN }, [ONE_EFFECT]);
}

/// A caller that takes a claim over and then does not run takes from a slow owner the record that it would have left; the next
/// retry runs, as the policy says. All clients still get the response of one execution.
#[test]
fn a_claim_that_is_taken_over_and_released_or_given_up_costs_a_record_and_not_the_one_source() {
    let slow = Protocol { attempts: 3, pause: true, ..RERUN };
    check(Protocol { release: true, ..slow.clone() }, [ONE_EFFECT, RECORDED]);
    check(Protocol { lost_acks: true, ..slow }, [ONE_EFFECT, RECORDED]);
}

/// Without a token the owner does not learn of its loss, so that there is nothing to withhold.
#[test]
fn an_owner_without_a_token_cannot_withhold_its_response() {
    check(
        Protocol { attempts: 2, pause: true, token: false, ..RERUN },
        [ONE_EFFECT, ONE_SOURCE, NO_OVERWRITE, OWNER_ONLY],
    );
}

#[test]
fn refusing_needs_no_owner_that_withholds_its_response() {
    check(Protocol { lost_owner_replies: false, ..REFUSE }, []);
}

#[test]
fn without_an_owner_token_a_late_owner_overwrites() {
    let slow = Protocol { attempts: 3, pause: true, token: false, ..RERUN };
    let [_, _, overwritten, _] = check(slow, [ONE_EFFECT, ONE_SOURCE, NO_OVERWRITE, OWNER_ONLY]);
    let completions = overwritten.iter().filter(|action| matches!(action, Action::Complete(_))).count();
    assert_eq!(completions, 2, "{overwritten:?}");
}

#[test]
fn without_an_owner_token_a_late_owner_gives_away_what_is_not_its_own() {
    let deletes = Protocol { attempts: 3, pause: true, release: true, token: false, ..RERUN };
    check(deletes, [OWNER_ONLY, ONE_EFFECT, ONE_SOURCE, NO_OVERWRITE, RECORDED]);
}

#[test]
fn a_client_that_hangs_up_changes_nothing_when_the_handler_has_its_own_task() {
    check(Protocol { hang_up: HangUp::GoesOn, ..CALM }, []);
    check(Protocol { attempts: 3, hang_up: HangUp::GoesOn, lost_acks: true, ..REFUSE }, []);
}

#[test]
fn cutting_the_handler_off_loses_its_record() {
    let [lost] = check(Protocol { attempts: 3, hang_up: HangUp::CutsOff, ..CALM }, [RECORDED]);
    assert!(lost.iter().any(|action| matches!(action, Action::HangUp(_))), "{lost:?}");
}

#[test]
fn releasing_when_the_client_hangs_up_runs_twice() {
    let [twice, _] = check(Protocol { attempts: 3, hang_up: HangUp::Releases, ..CALM }, [ONE_EFFECT, RECORDED]);
    let [Action::Begin(a), Action::Effect(_), Action::HangUp(b), Action::Begin(c), Action::Effect(_)] = twice[..]
    else {
        panic!("another counterexample: {twice:?}")
    };
    assert!(a == b && a != c);
}

#[test]
fn releasing_after_the_handler_ran_runs_twice_as_the_policy_asks() {
    check(Protocol { attempts: 3, unrecorded: true, ..CALM }, [ONE_EFFECT, ONE_SOURCE, RECORDED]);
}

#[test]
fn lost_acknowledgements_change_nothing_when_they_are_repeated_with_the_same_token() {
    check(Protocol { lost_acks: true, ..CALM }, []);
    check(Protocol { attempts: 3, lost_acks: true, release: true, ..REFUSE }, []);
}

#[test]
fn a_repetition_with_another_token_locks_its_own_owner_out() {
    let forgets = Protocol { attempts: 3, lost_acks: true, same_token: false, ..CALM };
    let [locked_out] = check(forgets, [NOT_LOCKED_OUT]);
    let [Action::BeginLosesAck(a), Action::LeaseEnds, Action::Begin(b)] = locked_out[..] else {
        panic!("another counterexample: {locked_out:?}")
    };
    assert_eq!(a, b);
}

#[test]
fn a_claim_that_vanishes_with_its_lease_runs_twice_in_spite_of_refusing() {
    let shared = Protocol { attempts: 3, pause: true, shared_lease: true, ..CALM };
    let [twice, _, _] = check(shared, [ONE_EFFECT, ONE_SOURCE, RECORDED]);
    assert!(twice.contains(&Action::LeaseEnds), "{twice:?}");
}

#[test]
fn a_store_that_loses_an_acknowledged_record_cannot_be_repaired() {
    let [_, sources] = check(Protocol { loses_record: true, ..CALM }, [ONE_EFFECT, ONE_SOURCE]);
    assert!(sources.contains(&Action::LoseRecord), "{sources:?}");
}

#[test]
fn an_effect_in_the_transaction_of_its_record_happens_once_under_any_fault() {
    let transaction = Protocol { transaction: true, ..RERUN };
    check(Protocol { crash: true, pause: true, ..transaction.clone() }, []);
    check(Protocol { attempts: 3, crash: true, pause: true, lost_acks: true, ..transaction }, []);
}
