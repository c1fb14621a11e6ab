//! Each check catches the history it is made for, and passes a good one.

use super::*;

mod by_hand;

use by_hand::{BOUNDS, HistoryBuilder, canary, refusal, replay, response};

/// Request 1 of tenant a ran as execution 10.
fn told() -> HistoryBuilder {
    HistoryBuilder::new().req(1, "a", "x").run(10, 1, "a", "x").first(1, 10)
}

#[test]
fn a_good_history_passes() {
    let running = HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").req(2, "a", "x").req(3, "a", "y");
    let refused = running.refuse(2, "idempotency_key_locked", 409).refuse(3, "idempotency_key_mismatch", 422);
    let two_tenants = refused.req(4, "b", "x").run(11, 4, "b", "x").effect(10).end(10).lost(1).first(4, 11);
    let replayed = two_tenants.req(5, "a", "x").replay(5, 10).req(6, "b", "x").replay(6, 11);
    let crashed = replayed.req(7, "c", "x").start(12, 7, "c", "x").crash().lost(7).req(8, "a", "x");
    let again = crashed.run(13, 8, "a", "x").first(8, 13).event(Event::Calm).req(9, "a", "x").replay(9, 13);
    again.event(Event::Drained { abandoned: 0 }).event(Event::Usage { entries: 1, executions: 0 }).passes();
}

#[test]
fn a_response_may_arrive_after_the_crash_of_its_server() {
    told().req(2, "a", "x").crash().replay(2, 10).req(3, "a", "y").run(11, 3, "a", "y").first(3, 11).passes();
}

#[test]
fn i0_a_handler_that_goes_on_after_the_crash() {
    HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").crash().effect(10).violates(&["I0"]);
}

#[test]
fn i0_a_response_without_a_request() {
    told().refuse(7, "idempotency_key_locked", 409).violates(&["I0"]);
}

#[test]
fn i0_lines_out_of_order() {
    let mut lines = told().history.lines();
    lines.swap(0, 3);
    assert!(check(&lines, BOUNDS).iter().any(|violation| violation.invariant.starts_with("I0 ")));
}

#[test]
fn i1_two_handlers_at_once() {
    let both = HistoryBuilder::new().req(1, "a", "x").req(2, "a", "x").start(10, 1, "a", "x").start(11, 2, "a", "x");
    both.end(10).end(11).violates(&["I1", "I2"]);
}

#[test]
fn i2_a_second_start_for_a_client_that_learned_nothing() {
    let first = HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").end(10).lost(1);
    first.req(2, "a", "x").start(11, 2, "a", "x").end(11).lost(2).violates(&["I2"]);
}

#[test]
fn i4_an_effect_twice() {
    HistoryBuilder::new()
        .req(1, "a", "x")
        .start(10, 1, "a", "x")
        .effect(10)
        .effect(10)
        .end(10)
        .first(1, 10)
        .violates(&["I4"]);
}

#[test]
fn i7_a_replay_with_other_bytes() {
    let changes: [fn(&mut SentResponse); 6] = [
        |response| response.status = 200,
        |response| response.body.push(' '),
        |response| response.headers.swap(0, 1),
        |response| drop(response.headers.remove(0)),
        |response| response.headers.push(("set-cookie".into(), "s".into())),
        |response| response.headers.retain(|(name, _)| name != "cache-control"),
    ];
    for change in changes {
        let mut response = replay(10);
        change(&mut response);
        let resp = Event::Resp { id: 2, replayed: true, code: None, response };
        told().req(2, "a", "x").event(resp).violates(&["I7"]);
    }
}

#[test]
fn i7_a_replay_before_the_end() {
    HistoryBuilder::new()
        .req(1, "a", "x")
        .start(10, 1, "a", "x")
        .req(2, "a", "x")
        .replay(2, 10)
        .end(10)
        .violates(&["I7"]);
}

#[test]
fn i8_a_first_response_that_is_not_the_recorded_one() {
    let mut other = response(10);
    other.body.push(' ');
    let resp = Event::Resp { id: 1, replayed: false, code: None, response: other };
    HistoryBuilder::new().req(1, "a", "x").run(10, 1, "a", "x").event(resp).violates(&["I8"]);
}

#[test]
fn i8_a_response_for_another_request_without_the_marker() {
    HistoryBuilder::new()
        .req(1, "a", "x")
        .req(2, "a", "x")
        .run(10, 1, "a", "x")
        .first(1, 10)
        .first(2, 10)
        .violates(&["I8"]);
}

#[test]
fn i9_a_response_from_nowhere() {
    let resp = Event::Resp { id: 1, replayed: false, code: None, response: refusal(500) };
    HistoryBuilder::new().req(1, "a", "x").run(10, 1, "a", "x").event(resp).violates(&["I9"]);
}

#[test]
fn i9_a_response_from_before_the_crash() {
    told().crash().req(2, "a", "x").replay(2, 10).violates(&["I9"]);
}

#[test]
fn i9_two_sources_in_one_window() {
    told().req(2, "a", "x").run(11, 2, "a", "x").first(2, 11).violates(&["I2", "I4", "I9", "I17"]);
}

#[test]
fn i10_another_fingerprint_gets_the_record() {
    told().req(2, "a", "y").replay(2, 10).violates(&["I10"]);
}

#[test]
fn i10_another_fingerprint_is_told_that_the_first_runs() {
    let running = HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").req(2, "a", "y");
    running.refuse(2, "idempotency_key_locked", 409).end(10).first(1, 10).violates(&["I10"]);
}

#[test]
fn i10_a_mismatch_with_itself() {
    told().req(2, "a", "x").refuse(2, "idempotency_key_mismatch", 422).violates(&["I10", "I17"]);
}

#[test]
fn i11_a_refusal_that_gives_away_the_response_of_another_caller() {
    let leak = SentResponse { status: 409, headers: vec![("x-hint".into(), canary(10))], body: String::new() };
    let resp = Event::Resp { id: 2, replayed: false, code: Some("idempotency_key_locked".into()), response: leak };
    told().req(2, "b", "x").event(resp).violates(&["I11"]);
}

#[test]
fn i11_another_tenant_gets_the_record() {
    told().req(2, "b", "x").replay(2, 10).violates(&["I9", "I11"]);
}

fn room(entries: usize) -> HistoryBuilder {
    HistoryBuilder::new().event(Event::Room { entries })
}

#[test]
fn i13_a_place_more_than_there_is_room_for() {
    let held = |entries| room(entries).req(1, "a", "x").run(10, 1, "a", "x").first(1, 10).req(2, "b", "x");
    held(1).run(11, 2, "b", "x").first(2, 11).violates(&["I13"]);
    held(2).run(11, 2, "b", "x").first(2, 11).passes();
}

#[test]
fn i13_a_refusal_for_want_of_room_where_there_is_room() {
    let held = |entries| room(entries).req(1, "a", "x").run(10, 1, "a", "x").first(1, 10).req(2, "b", "x");
    held(2).refuse(2, "idempotency_store_full", 503).violates(&["I13"]);
    held(1).refuse(2, "idempotency_store_full", 503).passes();
    held(1).crash().req(3, "b", "x").refuse(3, "idempotency_store_full", 503).violates(&["I13"]);
}

#[test]
fn i17_a_full_store_that_refuses_a_key_it_holds() {
    let held = room(1).req(1, "a", "x").run(10, 1, "a", "x").first(1, 10);
    held.req(2, "a", "x").refuse(2, "idempotency_store_full", 503).violates(&["I17"]);
}

#[test]
fn i14_an_entry_that_is_left_or_missing() {
    told().event(Event::Usage { entries: 2, executions: 0 }).violates(&["I14"]);
    told().event(Event::Usage { entries: 0, executions: 0 }).violates(&["I14"]);
    told().event(Event::Usage { entries: 1, executions: 1 }).violates(&["I14"]);
}

#[test]
fn i17_a_handler_that_was_cut_off() {
    HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").lost(1).violates(&["I17"]);
}

#[test]
fn i17_a_handler_that_ended_and_was_not_recorded() {
    told().req(2, "a", "x").refuse(2, "idempotency_key_locked", 409).violates(&["I17"]);
    told().req(2, "a", "x").refuse(2, "idempotency_outcome_unknown", 409).violates(&["I17"]);
}

#[test]
fn i22_a_refused_request_that_started_a_handler() {
    let refused = room(1).req(1, "a", "x").run(10, 1, "a", "x").refuse(1, "idempotency_store_full", 503);
    refused.violates(&["I22"]);
}

#[test]
fn i22_a_handler_that_no_request_started() {
    HistoryBuilder::new().run(10, 1, "a", "x").violates(&["I22"]);
    HistoryBuilder::new().req(1, "a", "x").run(10, 1, "a", "y").lost(1).violates(&["I22"]);
}

#[test]
fn i24_no_response_or_a_late_one() {
    told().event(Event::Calm).req(2, "a", "x").wait(10).lost(2).violates(&["I24"]);
    told().event(Event::Calm).req(2, "a", "x").wait(10).event(Event::Fault { what: "none".into() }).violates(&["I24"]);
    let waiting =
        HistoryBuilder::new().event(Event::Calm).req(1, "a", "x").start(10, 1, "a", "x").req(2, "a", "x").end(10);
    waiting.first(1, 10).wait(1).replay(2, 10).violates(&["I24"]);
}

#[test]
fn i24_says_nothing_of_clients_that_give_up_early_or_while_things_go_wrong() {
    told().req(2, "a", "x").wait(10).lost(2).event(Event::Calm).req(3, "a", "x").wait(1).lost(3).passes();
}

#[test]
fn i26_a_handler_that_outlives_the_shutdown() {
    let drained = |abandoned| Event::Drained { abandoned };
    let running = || HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").lost(1);
    running().event(drained(0)).end(10).violates(&["I26"]);
    running().event(drained(1)).passes();
    running().event(drained(2)).violates(&["I26"]);
    running().end(10).event(drained(1)).violates(&["I26"]);
    running().event(drained(1)).effect(10).violates(&["I26"]);
}

#[test]
fn i27_a_key_that_is_in_flight_for_good() {
    let dead = || HistoryBuilder::new().req(1, "a", "x").start(10, 1, "a", "x").lost(1).crash();
    dead().look(2, "a", "x").refuse(2, "idempotency_key_locked", 409).violates(&["I27"]);
    dead().look(2, "a", "x").lost(2).violates(&["I27"]);
    dead().look(2, "a", "x").violates(&["I27"]);
    dead().look(2, "a", "x").refuse(2, "idempotency_outcome_unknown", 409).passes();
    dead().look(2, "a", "x").run(11, 2, "a", "x").first(2, 11).passes();
    dead().req(2, "a", "x").refuse(2, "idempotency_key_locked", 409).passes();
    told().look(2, "a", "x").replay(2, 10).passes();
}
