//! The negative corpus: 114 hostile and odd inputs, what is to become of each, and one table that says where each is run.

mod app;
mod phases;
mod records;
mod responses;
mod script;
mod stores;

use std::collections::BTreeMap;

use futures_util::future::LocalBoxFuture;
use idem_tests::{Connection, Setup};

use app::{Named, assert_alive, assert_small, routes, watch_for_panics};
use script::{Expected, Input, Step, inputs};

/// An input that data does not describe: its number, what it is, and the code that sends it and looks at what comes of it.
pub struct CodedInput {
    pub id: u16,
    pub name: &'static str,
    pub run: fn() -> LocalBoxFuture<'static, ()>,
}

/// `coded![54 => a_name, ..]`: async functions as a table.
#[macro_export]
macro_rules! coded {
    ($($id:literal => $name:ident),* $(,)?) => {
        &[$($crate::CodedInput { id: $id, name: stringify!($name), run: || Box::pin($name()) }),*]
    };
}

const CODED: &[&[CodedInput]] = &[responses::INPUTS, phases::INPUTS, records::INPUTS, stores::INPUTS];

/// Inputs that are sent nowhere, and why.
const NOT_RUN: &[(u16, &str)] = &[
    (
        106,
        "`Claim::release` takes the claim by value, so a renewal after it does not compile; remote stores: the owner token",
    ),
    (109, "a failover between `begin` and `complete` takes a remote store with replicas"),
    (110, "an exhausted pool takes a remote store with connections"),
    (111, "FLUSHALL is Redis"),
    (112, "NOSCRIPT is Redis"),
    (113, "40001, 40P01, 57P01 and 55P03 are Postgres"),
    (114, "BUSY, FULL and READONLY are SQLite"),
];

/// Runs one input against its own application.
async fn run(input: &Input) {
    let _named = Named(format!("{} {}", input.id, input.name));
    let setup = Setup::of(routes());
    let server = setup.serve().await;
    let mut connection = None;
    let mut heads = false;
    for step in &input.steps {
        match step {
            Step::Send(bytes) => {
                let mut new = Connection::open(&server).await;
                // A server that refuses may close before it has read everything.
                let _ = new.try_send(bytes).await;
                heads = bytes.starts_with(b"HEAD ");
                connection = Some(new);
            }
            Step::More(bytes) => connection.as_mut().expect("a connection").send(bytes).await,
            Step::HalfClose => connection.as_mut().expect("a connection").half_close().await,
            Step::Close => connection.take().expect("a connection").hang_up(),
            Step::Reset => connection.take().expect("a connection").reset(),
            Step::Advance(duration) => setup.clock.advance(*duration),
            Step::Expect(Expected::Cut) => {
                assert_eq!(connection.as_mut().expect("a connection").rest().await, b"", "a response");
            }
            Step::Expect(Expected::Reply { statuses, replay, code }) => {
                let connection = connection.as_mut().expect("a connection");
                let reply = if heads { connection.head().await } else { connection.reply().await };
                assert!(statuses.contains(&reply.status), "{statuses:?}: {reply:?}");
                assert_eq!(reply.is_replay(), *replay, "{reply:?}");
                // If the response may be hyper's own, it has no code.
                assert!(reply.code() == *code || statuses.len() > 1, "{code:?}: {reply:?}");
                assert_small(&reply);
            }
            Step::Totals { runs, stored } => {
                let usage = setup.store.usage();
                assert_eq!((setup.probe.runs(), usage.entries), (*runs, *stored), "{usage:?}");
            }
        }
    }
    assert_alive(&server).await;
}

async fn run_group(group: &str) {
    watch_for_panics();
    let inputs: Vec<_> = inputs().into_iter().filter(|input| input.group == group).collect();
    assert!(!inputs.is_empty(), "nothing in {group}");
    for input in &inputs {
        run(input).await;
    }
}

async fn run_coded(inputs: &[CodedInput]) {
    watch_for_panics();
    for input in inputs {
        let _named = Named(format!("{} {}", input.id, input.name));
        (input.run)().await;
    }
}

#[tokio::test]
async fn header() {
    run_group("header").await;
}

#[tokio::test]
async fn bytes() {
    run_group("bytes").await;
}

#[tokio::test]
async fn size() {
    run_group("size").await;
}

#[tokio::test]
async fn framing() {
    run_group("framing").await;
}

#[tokio::test]
async fn semantics() {
    run_group("semantics").await;
}

#[tokio::test]
async fn responses() {
    run_coded(responses::INPUTS).await;
}

#[tokio::test]
async fn phases() {
    run_coded(phases::INPUTS).await;
}

#[tokio::test]
async fn stored_records() {
    run_coded(records::INPUTS).await;
}

#[tokio::test]
async fn store_behaviour() {
    run_coded(stores::INPUTS).await;
}

#[test]
fn every_input_is_run_or_said_why_not() {
    let groups = ["header", "bytes", "size", "framing", "semantics"];
    let mut found: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for input in inputs() {
        assert!(groups.contains(&input.group.as_str()), "no test runs the group {}", input.group);
        found.entry(input.id).or_default().push(input.name);
    }
    for coded in CODED.iter().copied().flatten() {
        found.entry(coded.id).or_default().push(coded.name.to_owned());
    }
    for (id, reason) in NOT_RUN {
        assert!(!found.contains_key(id), "{id} is run: {:?}", found[id]);
        found.entry(*id).or_default().push((*reason).to_owned());
    }
    let ids: Vec<u16> = found.into_keys().collect();
    assert_eq!(ids, (1..=114).collect::<Vec<u16>>());
}
