//! One process of the service: `cluster-server <store> <lease in milliseconds> <file of effects>`. With `transactions+` before the
//! URL of a database the effects are rows in it, and with `cluster+` a URL is that of a node of a Redis Cluster. What the engine
//! reports goes to a file beside that of the effects. It says on which port it listens, and ends when its standard input does, so that
//! none is left behind when a test is killed.

use std::io::Read;
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyBuilder, IdempotencyKey, IdempotencyLayer, idempotent};
use idem_proofs::cluster::effects::{Effects, Kind};
use idem_proofs::cluster::processes::trace_beside;
use idem_proofs::cluster::transactions;
use idem_proofs::trace::{Observer, Trace};
use idem_redis::RedisStore;
use idem_sqlx::{PostgresStore, SqliteStore};
use idem_testkit::dice::Dice;
use tokio::net::TcpListener;
use tokio::time::sleep;

#[idempotent(required, abandoned = refuse)]
async fn create_order(
    State(effects): State<Arc<Effects>>,
    key: IdempotencyKey,
    headers: HeaderMap,
) -> (StatusCode, String) {
    (StatusCode::CREATED, ship(&effects, &key, &headers).await)
}

#[idempotent(required, abandoned = rerun, in_flight = wait("3s"))]
async fn rerun_order(
    State(effects): State<Arc<Effects>>,
    key: IdempotencyKey,
    headers: HeaderMap,
) -> (StatusCode, String) {
    (StatusCode::CREATED, ship(&effects, &key, &headers).await)
}

/// How many executions in a hundred block the thread of the runtime that they run on.
const BLOCKS: u64 = 10;
/// How many of a hundred of those block it for longer than the lease of a run with kills.
const BLOCKS_LONG: u64 = 10;
const LONG: Duration = Duration::from_millis(2500);

/// Takes a few milliseconds, half of them before the effect and half after it.
async fn ship(effects: &Effects, key: &IdempotencyKey, headers: &HeaderMap) -> String {
    let execution = format!("{:016x}", Dice::unseeded().roll());
    effects.add(Kind::Start, key.as_str(), &execution).expect("the file of effects takes a line");
    // A test that has to find the handler running says for how long it runs.
    if let Some(gate) = headers.get("x-until-there-is").and_then(|path| path.to_str().ok()) {
        while !Path::new(gate).exists() {
            sleep(Duration::from_millis(5)).await;
        }
    } else if Dice::unseeded().percent(BLOCKS) {
        let mut dice = Dice::unseeded();
        thread::sleep(if dice.percent(BLOCKS_LONG) { LONG } else { dice.millis(0..=20) });
    }
    sleep(Dice::unseeded().millis(0..=20)).await;
    effects.add(Kind::Effect, key.as_str(), &execution).expect("the file of effects takes a line");
    sleep(Dice::unseeded().millis(0..=20)).await;
    execution
}

async fn over(store: &str) -> IdempotencyBuilder {
    if let Some(path) = store.strip_prefix("sqlite://") {
        let store = SqliteStore::open(path).await.expect("the file can be opened");
        store.migrate().await.expect("the table can be made");
        tokio::spawn(store.cleanup());
        Idempotency::builder(store)
    } else if store.starts_with("postgres://") {
        let store = PostgresStore::connect(store).await.expect("the database lets us in");
        store.migrate().await.expect("the table can be made");
        tokio::spawn(store.cleanup());
        Idempotency::builder(store)
    } else if let Some(node) = store.strip_prefix("cluster+") {
        let store = RedisStore::cluster_builder([node]).connect().await;
        Idempotency::builder(store.expect("the cluster lets us in"))
    } else {
        Idempotency::builder(RedisStore::connect(store).await.expect("the server lets us in"))
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, lease, effects] = &arguments[..] else {
        eprintln!("cluster-server <store> <lease in milliseconds> <file of effects>");
        exit(2);
    };
    let lease = Duration::from_millis(lease.parse().expect("a lease in milliseconds"));
    let trace = Trace::append(&trace_beside(Path::new(effects))).expect("the file of the trace");
    tracing::subscriber::set_global_default(Observer::of(trace)).expect("there is no other subscriber");
    let effects = Arc::new(Effects::open(Path::new(effects)).expect("the file of effects"));
    let (transfers, builder) = match store.strip_prefix("transactions+") {
        Some(url) => transactions::service(url).await,
        None => (Router::new(), over(store).await),
    };
    let idempotency = builder.lease(lease).build();
    let app = Router::new()
        .route("/orders", post(create_order))
        .route("/rerun", post(rerun_order))
        .with_state(effects)
        .merge(transfers)
        .layer(IdempotencyLayer::new(idempotency));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("a bound port").port());
    axum::serve(listener, app).await.expect("the server continues");
}
