//! The conformance suite, against a real server.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod kept;

use idem_servers::postgres::Postgres;
use idem_sqlx::PostgresStore;
use kept::Kept;

async fn on_a_server() -> Kept<PostgresStore, Postgres> {
    let server = Postgres::quick().await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    Kept { store, _with: server }
}

idem_runtime::conformance_tests!(on_a_server);
