//! A process is killed before and after each statement of the exchange of a `Tx`, and over SQLite within it, too. No effect is doubled
//! or lost, and a retry of another process resolves the request.

use std::time::Duration;

use idem_proofs::cluster::client::{Client, Reply};
use idem_proofs::cluster::processes::Service;
use idem_proofs::cluster::transactions::{STEPS, effects};
use idem_testkit::postgres::Postgres;
use idem_testkit::statements::{Statements, StopPoint};
use idem_testkit::wait::until;
use tempfile::TempDir;

const PATH: &str = "/transfers";

fn service(url: &str, folder: &TempDir) -> Service {
    Service {
        program: env!("CARGO_BIN_EXE_cluster-server").into(),
        store: format!("transactions+{url}"),
        lease: Duration::from_secs(30),
        effects: folder.path().join("effects"),
    }
}

/// Asks until there is a response. The key may be in flight until the database notices that its process is gone.
async fn resolve(client: &mut Client, key: &str, context: &str) -> (String, bool) {
    let mut response = None;
    until(&format!("{context}: the key is not in flight"), async || {
        match client.ask(PATH, key, "").await.unwrap() {
            Reply::Response { execution, replayed } => response = Some((execution, replayed)),
            reply if reply.is_refusal("idempotency_key_locked") => {}
            reply => panic!("{context}: {reply:?}"),
        }
        response.is_some()
    })
    .await;
    response.unwrap()
}

/// The executions with an effect for this key.
async fn effects_of(url: &str, key: &str) -> Vec<String> {
    effects(url).await.into_iter().filter(|line| line.key == key).map(|line| line.execution).collect()
}

/// What a first request got before its process died, if anything, and what retries get then.
async fn retries_resolve(url: &str, other: &mut Client, key: &str, first: Option<Reply>, context: &str) -> bool {
    let before = effects_of(url, key).await;
    assert!(before.len() <= 1, "{context}: {before:?}");
    if let Some(reply) = first {
        // It was told of an execution that was committed.
        let committed = before.first().cloned().unwrap_or_default();
        assert_eq!(reply, Reply::Response { execution: committed, replayed: false }, "{context}");
    }
    let (execution, replayed) = resolve(other, key, context).await;
    // What was committed is replayed, and what was not runs now.
    assert_eq!((before.first() == Some(&execution), replayed), (!before.is_empty(), !before.is_empty()), "{context}");
    assert_eq!(resolve(other, key, context).await, (execution.clone(), true), "{context}");
    assert_eq!(effects_of(url, key).await, [execution], "{context}");
    replayed
}

/// What tells statements apart, without keys and tokens.
fn kinds(statements: &[String]) -> Vec<&str> {
    statements.iter().map(|text| text.get(..12).unwrap_or(text)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_before_and_after_each_statement() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::quick().await;
    let proxy = Statements::to(postgres.port()).await;
    let killed = service(&postgres.url_through(proxy.port()), &folder);
    let start = async || {
        let service = killed.clone();
        tokio::task::spawn_blocking(move || service.start()).await.unwrap()
    };
    let url = postgres.url();
    let other = service(&url, &folder);
    let other_process = tokio::task::spawn_blocking(move || other.start()).await.unwrap();
    let mut other = Client::new(other_process.port());

    // The last ones are sent when the response is on its way.
    let process = start().await;
    proxy.stop_at(usize::MAX, StopPoint::Before);
    resolve(&mut Client::new(process.port()), "measured", "measured").await;
    until("all is sent", async || proxy.statements().iter().any(|text| text == "ROLLBACK")).await;
    drop(process);
    let mut statements = proxy.statements();
    statements.truncate(1 + statements.iter().position(|text| text == "ROLLBACK").unwrap());
    assert_eq!(statements.iter().filter(|text| text.contains("COMMIT")).count(), 1, "{statements:#?}");
    assert!(statements.len() >= 5, "{statements:#?}");

    let mut committed = Vec::new();
    for number in 0..statements.len() {
        for stop in [StopPoint::Before, StopPoint::After] {
            let (key, context) = (format!("{stop:?}-{number}"), format!("{stop:?} {:?}", statements[number]));
            let mut process = start().await;
            proxy.stop_at(number, stop);
            let mut client = Client::new(process.port());
            let asked = key.clone();
            let first = tokio::spawn(async move { client.ask(PATH, &asked, "").await });
            proxy.stopped().await;
            assert_eq!(kinds(&proxy.statements()), kinds(&statements[..=number]), "{context}: another exchange");
            process.kill();
            proxy.cut();
            let first = first.await.unwrap().ok();
            if retries_resolve(&url, &mut other, &key, first, &context).await {
                committed.push((number, stop));
            }
        }
    }
    // The commit is where it is, and nothing before it is found.
    let commit = statements.iter().position(|text| text.contains("COMMIT")).unwrap();
    let later =
        (commit + 1..statements.len()).flat_map(|number| [(number, StopPoint::Before), (number, StopPoint::After)]);
    let expected: Vec<_> = std::iter::once((commit, StopPoint::After)).chain(later).collect();
    assert_eq!(committed, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite_at_each_step_of_each_statement() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("shop.db").display());
    let start = async |url: &str| {
        let service = service(url, &folder);
        tokio::task::spawn_blocking(move || service.start()).await.unwrap()
    };
    let other_process = start(&url).await;
    let mut other = Client::new(other_process.port());
    // Pages that are split take more steps.
    resolve(&mut other, "first", "first").await;

    let mut committed = Vec::new();
    for step in 1.. {
        let (key, context) = (format!("step-{step}"), format!("at step {step}"));
        let process = start(&format!("{url}{STEPS}{step}")).await;
        let mut client = Client::new(process.port());
        let first = client.ask(PATH, &key, "").await.ok();
        if first.is_some() && client.ask(PATH, &key, "").await.is_ok() {
            // It has taken fewer steps.
            break;
        }
        committed.push(retries_resolve(&url, &mut other, &key, first, &context).await);
    }
    // The commit is where it is, and nothing before it is found.
    let commit = committed.iter().position(|committed| *committed).unwrap();
    assert!(commit > 20 && committed[commit..].iter().all(|committed| *committed), "{committed:?}");
}
