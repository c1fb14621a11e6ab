//! Processes are killed while clients retry, and what clients were told agrees with what handlers did.

use std::time::Duration;

use idem_proofs::cluster::effects::Kind;
use idem_proofs::cluster::findings::{Fault, Findings};
use idem_proofs::cluster::processes::Service;
use idem_proofs::cluster::run::{Kill, run};
use idem_proofs::model::{Abandoned, Protocol};
use idem_proofs::trace::{Event, validate};
use idem_testkit::pgbouncer::PgBouncer;
use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;
use idem_testkit::redis_cluster::RedisCluster;

/// The short form; `OPERATIONS` sets the long one, in which a process is killed every second.
const OPERATIONS: usize = 300;
/// Short, so that the claims of the dead are soon known as such.
const LEASE: Duration = Duration::from_secs(2);

async fn killed(store: &str, path: &'static str) -> Findings {
    let folder = tempfile::tempdir().unwrap();
    let service = Service {
        program: env!("CARGO_BIN_EXE_cluster-server").into(),
        store: store.to_owned(),
        lease: LEASE,
        effects: folder.path().join("effects"),
    };
    let (operations, kill) = match std::env::var("OPERATIONS") {
        Ok(operations) => (operations.parse().expect("a number of operations"), Kill::Every(Duration::from_secs(1))),
        Err(_) => (OPERATIONS, Kill::After(OPERATIONS / 10)),
    };
    let findings = run(&service, path, operations, kill).await;
    println!("{path} over {store}: {findings}");
    assert_eq!(findings.operations.len(), operations);
    assert!(findings.kills >= 3, "{findings}");
    findings
}

/// What may go wrong here: a busy machine also makes owners slow.
const KILLED: Protocol = Protocol { crash: true, pause: true, lost_acks: true, release: true, ..Protocol::CALM };

/// What the engines reported is a run of the model.
fn assert_run_of(protocol: &Protocol, findings: &Findings) {
    assert!(findings.trace.len() > findings.operations.len());
    let unexplained = validate(protocol, &findings.trace);
    unexplained.iter().for_each(|unexplained| println!("{unexplained}"));
    assert!(unexplained.is_empty(), "{} keys have no run of the model", unexplained.len());
}

/// Every operation has one effect and one response, or its client was told that the outcome is unknown.
fn assert_once(findings: &Findings) {
    assert_eq!(findings.faults(), [], "{findings}");
    let (unknown, without_effect) = findings.unknown();
    assert!(unknown > 0, "no kill hit a body, so nothing was shown: {findings}");
    assert_eq!(findings.effects(), findings.operations.len() - without_effect, "{findings}");
    assert_run_of(&KILLED, findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_no_kill_makes_an_effect_twice_or_changes_a_response() {
    let redis = Redis::start().await;
    assert_once(&killed(&redis.url(), "/orders").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_no_kill_makes_an_effect_twice_or_changes_a_response() {
    let postgres = Postgres::quick().await;
    assert_once(&killed(&postgres.url(), "/orders").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_redis_cluster_no_kill_makes_an_effect_twice_or_changes_a_response() {
    let cluster = RedisCluster::start().await;
    assert_once(&killed(&format!("cluster+{}", cluster.nodes[0].url()), "/orders").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_pgbouncer_no_kill_makes_an_effect_twice_or_changes_a_response() {
    for pooling in PgBouncer::poolings() {
        let postgres = Postgres::quick().await;
        let pgbouncer = PgBouncer::before(&postgres, &pooling).await;
        println!("{pooling:?}");
        assert_once(&killed(&pgbouncer.url(), "/orders").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite_no_kill_makes_an_effect_twice_or_changes_a_response() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idempotency.db");
    assert_once(&killed(&format!("sqlite://{}", file.display()), "/orders").await);
}

/// The same run if the policy asks for a second start, and retries wait for the execution in flight: the checker finds the effects
/// that there are twice, and nothing else. Returns whether there are any.
async fn assert_only_effects_twice(store: &str) -> bool {
    let findings = killed(store, "/rerun").await;
    let faults = findings.faults();
    assert!(faults.iter().all(|fault| matches!(fault, Fault::Twice(..))), "{faults:?}");
    // No client is refused for good here.
    assert_eq!(findings.unknown(), (0, 0), "{findings}");
    // The model that refuses has no such step.
    assert_run_of(&Protocol { abandoned: Abandoned::Rerun, lost_owner_replies: false, ..KILLED }, &findings);
    let are_found = faults.iter().any(|fault| matches!(fault, Fault::Twice(Kind::Effect, _)));
    if are_found {
        let unexplained = validate(&KILLED, &findings.trace);
        assert!(unexplained.iter().any(|unexplained| unexplained.line.1.event == Event::TakenOver), "{unexplained:?}");
    }
    are_found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_rerun_the_same_kills_make_effects_twice_and_that_is_found() {
    // A few kills need not hit a handler, so there are more runs if they did not.
    for _ in 0..5 {
        let redis = Redis::start().await;
        if assert_only_effects_twice(&redis.url()).await {
            return;
        }
    }
    panic!("no kill hit a handler, so nothing was shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_rerun_over_a_database_the_same_kills_change_no_response() {
    let postgres = Postgres::quick().await;
    assert_only_effects_twice(&postgres.url()).await;
    let folder = tempfile::tempdir().unwrap();
    assert_only_effects_twice(&format!("sqlite://{}", folder.path().join("idempotency.db").display())).await;
}
