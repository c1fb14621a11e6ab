//! The conformance suite, on real files.
#![cfg(feature = "sqlite")]

use idem_sqlx::SqliteStore;
use idem_testkit::intercept::{Intercept, Keeps};
use tempfile::TempDir;

async fn in_a_file() -> Intercept<SqliteStore, Keeps<TempDir>> {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.unwrap();
    store.migrate().await.unwrap();
    Intercept::new(store, Keeps(folder))
}

idem_runtime::conformance_tests!(in_a_file);
