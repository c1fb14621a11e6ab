//! The conformance suite, on real files.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod kept;

use idem_sqlx::SqliteStore;
use kept::Kept;
use tempfile::TempDir;

async fn in_a_file() -> Kept<SqliteStore, TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.unwrap();
    store.migrate().await.unwrap();
    Kept { store, _with: folder }
}

idem_runtime::conformance_tests!(in_a_file);
