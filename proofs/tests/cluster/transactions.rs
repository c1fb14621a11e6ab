//! Processes and the database are killed while clients retry, and each operation has one effect and one response: an effect is a row
//! in the transaction of its record, so no outcome is unknown.

use std::time::Duration;

use idem_proofs::cluster::findings::Findings;
use idem_proofs::cluster::processes::Service;
use idem_proofs::cluster::run::{Kill, run};
use idem_proofs::cluster::transactions::{TABLE, effects};
use idem_proofs::model::transaction::TransactionProtocol;
use idem_proofs::trace::validate;
use idem_testkit::pgbouncer::PgBouncer;
use idem_testkit::postgres::Postgres;

/// The short form; `OPERATIONS` sets the long one, in which a process is killed every 300 ms.
const OPERATIONS: usize = 300;

fn operations() -> usize {
    std::env::var("OPERATIONS").map_or(OPERATIONS, |operations| operations.parse().expect("a number of operations"))
}

async fn operate(url: &str, kill: Kill) -> Findings {
    let folder = tempfile::tempdir().unwrap();
    let service = Service {
        program: env!("CARGO_BIN_EXE_cluster-server").into(),
        store: format!("transactions+{url}"),
        lease: Duration::from_secs(30),
        effects: folder.path().join("effects"),
    };
    let mut findings = run(&service, "/transfers", operations(), kill).await;
    findings.lines = effects(url).await;
    println!("over {url}: {findings}");
    findings
}

async fn killed(url: &str) -> Findings {
    let kill = match std::env::var("OPERATIONS") {
        Ok(_) => Kill::Every(Duration::from_millis(300)),
        Err(_) => Kill::After(OPERATIONS / 10),
    };
    let findings = operate(url, kill).await;
    assert!(findings.kills >= 3, "{findings}");
    findings
}

fn assert_exactly_once(findings: &Findings) {
    assert_eq!(findings.faults(), [], "{findings}");
    assert_eq!((findings.operations.len(), findings.effects()), (operations(), operations()), "{findings}");
    assert!(findings.operations.iter().all(|operation| !operation.unknown), "{findings}");
    let protocol = TransactionProtocol { fingerprints: Vec::new(), crash: true, lost_acks: true, fault: None };
    let unexplained = validate(&protocol, &findings.trace);
    unexplained.iter().for_each(|unexplained| println!("{unexplained}"));
    assert!(unexplained.is_empty(), "{} keys took steps that the model lacks", unexplained.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_each_operation_has_one_effect_whatever_is_killed() {
    let postgres = Postgres::quick().await;
    assert_exactly_once(&killed(&postgres.url()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_pgbouncer_each_operation_has_one_effect_whatever_is_killed() {
    for pooling in PgBouncer::poolings() {
        let postgres = Postgres::quick().await;
        let pgbouncer = PgBouncer::before(&postgres, &pooling).await;
        println!("{pooling:?}");
        assert_exactly_once(&killed(&pgbouncer.url()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite_each_operation_has_one_effect_whatever_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    assert_exactly_once(&killed(&format!("sqlite://{}", file.display())).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_has_one_effect_if_the_database_is_killed() {
    // Three processes, each with two pools, and this test.
    let mut postgres = Postgres::with(&["fsync=on", "max_connections=100"]).await;
    postgres.sql(TABLE);
    let url = postgres.url();
    let findings = tokio::spawn(async move { operate(&url, Kill::Every(Duration::from_secs(3600))).await });
    let mut restarts = 0;
    while restarts < 5 {
        let committed: usize = postgres.sql("SELECT count(*) FROM effects").trim().parse().unwrap();
        if committed > restarts * operations() / 8 {
            postgres.restart().await;
            restarts += 1;
        }
        tokio::task::yield_now().await;
    }
    let findings = findings.await.unwrap();
    assert!(findings.operations.iter().any(|operation| operation.unavailable > 0), "nothing was felt: {findings}");
    assert_exactly_once(&findings);
}
