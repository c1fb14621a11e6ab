//! The conformance suite, against a real server.
#![cfg(feature = "postgres")]

use idem_runtime::conformance;
use idem_sqlx::PostgresStore;
use idem_testkit::postgres::Postgres;

/// One test and not one for each case: a server takes longer to start than most cases do. A case that fails says which one
/// it is by its message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgres_store_does_what_every_store_must() {
    let server = Postgres::quick().await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    conformance::all(|| async { store.clone() }).await;
}
