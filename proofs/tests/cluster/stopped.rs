//! The owner of a claim is stopped for longer than its lease, and continues when others have given it up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use idem_proofs::cluster::client::{Client, Reply};
use idem_proofs::cluster::effects::{self, Kind};
use idem_proofs::cluster::processes::{Process, Service, trace_beside};
use idem_proofs::model::Protocol;
use idem_proofs::trace;
use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;
use idem_testkit::wait::until;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(1);
const KEY: &str = "order-1";

/// Two processes over one store. The first one runs a handler that waits, and is stopped.
struct StoppedOwner {
    folder: TempDir,
    owner: Process,
    other: Process,
    first: JoinHandle<std::io::Result<Reply>>,
}

impl StoppedOwner {
    async fn over(store: &str, path: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = Service {
            program: env!("CARGO_BIN_EXE_cluster-server").into(),
            store: store.to_owned(),
            lease: LEASE,
            effects: folder.path().join("effects"),
        };
        let (owner, other) = (service.start(), service.start());
        let headers = format!("x-until-there-is: {}\r\n", gate(folder.path()).display());
        let port = owner.port();
        let first = tokio::spawn(async move { Client::new(port).ask(path, KEY, &headers).await });
        let stopped = Self { folder, owner, other, first };
        until("the handler runs", async || stopped.executions(Kind::Start).len() == 1).await;
        stopped.owner.stop();
        stopped
    }

    /// Lets the owner continue, and its handler come to its end.
    fn resume(&self) {
        self.owner.resume();
        std::fs::write(gate(self.folder.path()), "").unwrap();
    }

    /// The executions that did this, in order.
    fn executions(&self, kind: Kind) -> Vec<String> {
        let lines = effects::read(&self.folder.path().join("effects"));
        lines.into_iter().filter(|line| line.kind == kind).map(|line| line.execution).collect()
    }

    /// What the engines reported is a run of the model, in which an owner is slow.
    fn assert_run_of(&self, protocol: &Protocol) {
        let lines = trace::read(&trace_beside(&self.folder.path().join("effects"))).unwrap();
        let protocol = Protocol { pause: true, ..protocol.clone() };
        let unexplained: Vec<_> = trace::validate(&protocol, &lines).iter().map(ToString::to_string).collect();
        assert!(unexplained.is_empty(), "{}", unexplained.concat());
        assert!(!trace::validate(&Protocol { pause: false, ..protocol }, &lines).is_empty(), "no owner was slow");
    }

    /// Asks the other process as long as it says that the key is in flight.
    async fn retry(&self, path: &str) -> Reply {
        let mut reply = None;
        until("the key is not in flight", async || {
            let got = Client::new(self.other.port()).ask(path, KEY, "").await.unwrap();
            let settled = !got.is_refusal("idempotency_key_locked");
            reply = Some(got);
            settled
        })
        .await;
        reply.unwrap()
    }
}

fn gate(folder: &Path) -> PathBuf {
    folder.join("gate")
}

fn response(execution: &str, replayed: bool) -> Reply {
    Reply::Response { execution: execution.to_owned(), replayed }
}

async fn refused_until_the_owner_goes_on(store: &str) {
    let mut stopped = StoppedOwner::over(store, "/orders").await;
    let reply = stopped.retry("/orders").await;
    assert!(reply.is_refusal("idempotency_outcome_unknown"), "{reply:?}");
    stopped.resume();
    let first = (&mut stopped.first).await.unwrap().unwrap();
    let executions = stopped.executions(Kind::Effect);
    assert_eq!(executions.len(), 1);
    assert_eq!(
        first,
        response(&executions[0], false),
        "no other owner has run the handler, so the owner's response holds"
    );
    assert_eq!(stopped.retry("/orders").await, response(&executions[0], true));
    assert_eq!(stopped.executions(Kind::Start), executions);
    stopped.assert_run_of(&Protocol::CALM);
}

async fn overtaken_by_the_second_run(store: &str) {
    let mut stopped = StoppedOwner::over(store, "/rerun").await;
    let second = stopped.retry("/rerun").await;
    let starts = stopped.executions(Kind::Start);
    assert_eq!(starts.len(), 2);
    assert_eq!(second, response(&starts[1], false));
    stopped.resume();
    let late = (&mut stopped.first).await.unwrap().unwrap();
    assert!(
        late.is_refusal("idempotency_outcome_unknown"),
        "the late owner's client gets no response of the handler: {late:?}"
    );
    assert_eq!(stopped.retry("/rerun").await, response(&starts[1], true));
    // Which is what the policy has asked for.
    assert_eq!(stopped.executions(Kind::Effect), [&*starts[1], &*starts[0]]);
    stopped.assert_run_of(&Protocol::RERUN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_a_retry_is_refused_until_the_stopped_owner_completes() {
    refused_until_the_owner_goes_on(&Redis::start().await.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_a_retry_is_refused_until_the_stopped_owner_completes() {
    refused_until_the_owner_goes_on(&Postgres::quick().await.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_the_second_run_wins_and_the_late_owner_says_so() {
    overtaken_by_the_second_run(&Redis::start().await.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_the_second_run_wins_and_the_late_owner_says_so() {
    overtaken_by_the_second_run(&Postgres::quick().await.url()).await;
}
