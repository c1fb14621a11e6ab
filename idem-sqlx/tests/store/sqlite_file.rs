//! The file: damaged, full, locked, read-only, and cleaned up.
#![cfg(feature = "sqlite")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use idem_runtime::{Begin, Claim, Idempotency, RefusalReason, RunResult, StorageKey, Store, StoreError};
use idem_sqlx::{ConnectError, MigrateError, Problem, SqliteStore};
use idem_testkit::wait::{until, within};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqlitePool};
use tempfile::TempDir;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::common::*;

struct File {
    _folder: TempDir,
    path: PathBuf,
    store: SqliteStore,
}

impl File {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("idempotency.db");
        let store = SqliteStore::open(&path).await.unwrap();
        store.migrate().await.unwrap();
        Self { _folder: folder, path, store }
    }

    async fn connection(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(&self.path).connect().await.unwrap()
    }

    async fn sql(&self, statement: String) {
        self.connection().await.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

/// While the file is locked `begin` gives up, and tries once more; meanwhile the lease of another process expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_keeps_its_claim_while_that_of_its_first_try_is_released() {
    const LOCKED: Duration = Duration::from_millis(700);
    let file = File::new().await;
    let store = SqliteStore::builder().timeout(Duration::from_secs(1)).open(&file.path).await.unwrap();
    let mut new_owners = 0;
    for _ in 0..4 {
        let key = key();
        let mut other = file.connection().await;
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        let asked = tokio::spawn({
            let (store, key) = (store.clone(), key);
            async move { store.begin(&key, &MINE, &OPTIONS).await }
        });
        // Longer than the first try, and shorter than both.
        tokio::time::sleep(LOCKED).await;
        let expired = format!(
            "INSERT INTO idempotency (key, owner, fingerprint, lease_until, expires_at)
             VALUES (x'{}', randomblob(16), x'{}', 1, 99999999999999); COMMIT",
            hex(&key),
            hex(&StorageKey::from_bytes(*MINE.as_bytes()))
        );
        other.execute(AssertSqlSafe(expired)).await.unwrap();
        let Ok(Begin::Abandoned(mut new_owner)) = asked.await.unwrap() else { continue };
        if new_owner.renew(OPTIONS.lease).await.is_err() {
            continue;
        }
        new_owners += 1;
        // Long enough for a release, which would be wrong, and whose first pause is 50 ms.
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            assert_eq!(state_of(&store, &key).await, "in flight");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        new_owner.renew(OPTIONS.lease).await.unwrap();
    }
    assert!(new_owners > 0, "nothing was tried");
}

#[tokio::test]
async fn a_damaged_row_is_an_error_and_never_a_free_key() {
    let file = File::new().await;
    let store = &file.store;
    let other = key();
    leave_record(store, &other, "of another key").await;
    for change in [
        "record = substr(record, 1, length(record) - 1)",
        "record = x''",
        "record = zeroblob(length(record))",
        &format!("record = (SELECT record FROM idempotency WHERE key = x'{}')", hex(&other)),
        "fingerprint = zeroblob(32)",
    ] {
        let damaged = key();
        leave_record(store, &damaged, "response").await;
        file.sql(format!("UPDATE idempotency SET {change} WHERE key = x'{}'", hex(&damaged))).await;
        for _ in 0..2 {
            let state = state_of(store, &damaged).await;
            assert!(state.contains("unreadable") && state.contains("damaged"), "{change}: {state}");
        }
    }
}

#[tokio::test]
async fn a_full_file_refuses_new_keys_serves_old_ones_and_records_that_a_handler_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("idempotency.db");
    let store = SqliteStore::builder().max_bytes(512 * 1024).open(&path).await.unwrap();
    store.migrate().await.unwrap();
    let engine = Idempotency::new(store.clone());
    // Some room is needed for the last page of a claim; the responses are far larger.
    let mut keys = Vec::new();
    let tombstone = loop {
        let key = key();
        match engine.run(attempt(key), |_| async { executed(&"long ".repeat(10_000)) }).await {
            Ok(RunResult::Executed(response)) => assert_eq!(response.len(), 50_000, "the client gets its response"),
            ran => panic!("{ran:?}"),
        }
        match engine.run(attempt(key), |_| async { executed("another") }).await {
            Ok(RunResult::Replayed(replay)) => assert_eq!(replay.content().len(), 50_000),
            Err(RefusalReason::NotReplayable) => break key,
            ran => panic!("{ran:?}"),
        }
        keys.push(key);
    };
    assert!(keys.len() > 5, "{}", keys.len());
    let refused = loop {
        match store.begin(&key(), &MINE, &OPTIONS).await {
            Ok(Begin::Claimed(_)) => {}
            begun => break begun,
        }
    };
    assert!(matches!(refused, Err(StoreError::Full)), "{}", shown(&refused));
    for key in keys {
        assert!(matches!(
            engine.run(attempt(key), |_| async { executed("another") }).await,
            Ok(RunResult::Replayed(_))
        ));
    }
    let again = engine.run(attempt(tombstone), |_| async { executed("another") }).await;
    assert!(matches!(again, Err(RefusalReason::NotReplayable)), "{again:?}");
}

#[tokio::test]
async fn a_file_that_others_keep_locked_is_an_error_in_time_and_reading_goes_on() {
    let file = File::new().await;
    let store = SqliteStore::builder().timeout(Duration::from_secs(2)).open(&file.path).await.unwrap();
    let recorded = key();
    leave_record(&store, &recorded, "response").await;
    let mut other = file.connection().await;
    let transaction = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let asked = Instant::now();
    let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&refused), Problem::Busy(_)), "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    transaction.rollback().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test]
async fn a_missing_table_is_an_error_that_says_what_to_call() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.unwrap();
    let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&refused), Problem::TableMissing { .. }), "{refused:?}");
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test]
async fn the_published_statements_make_the_table_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("idempotency.db");
    let (store, recorded) = (SqliteStore::open(&path).await.unwrap(), key());
    let statements = include_str!("../../migrations/sqlite/0001_table.sql");
    let statements = statements.replace("{table}", "idempotency").replace("{index}", "idempotency_expires_at");
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    connection.execute(AssertSqlSafe(statements)).await.unwrap();
    leave_record(&store, &recorded, "response").await;
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    let there = store.migrate().await.unwrap_err();
    assert!(
        matches!(there, MigrateError::Database(_)) && there.to_string().contains("leave out `migrate()`"),
        "{there}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_may_make_the_file_and_migrate_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("idempotency.db");
    let (together, mut migrations) = (Arc::new(Barrier::new(8)), JoinSet::new());
    for _ in 0..8 {
        let (together, path) = (Arc::clone(&together), path.clone());
        migrations.spawn(async move {
            together.wait().await;
            let store = SqliteStore::open(path).await.unwrap();
            store.migrate().await.unwrap();
            state_of(&store, &key()).await
        });
    }
    assert_eq!(migrations.join_all().await, vec!["claimed"; 8]);
}

#[tokio::test]
async fn a_row_that_is_used_again_has_nothing_of_its_last_use() {
    let file = File::new().await;
    let store = SqliteStore::builder().count_replays(true).open(&file.path).await.unwrap();
    let key = key();
    let replays = async || store.inspect(&key).await.unwrap().unwrap().replays;
    for _ in 0..2 {
        leave_record(&store, &key, "response").await;
        assert_eq!(replays().await, Some(0));
        assert_eq!(state_of(&store, &key).await, "completed: response");
        until("the replay is counted", async || replays().await == Some(1)).await;
        file.sql("UPDATE idempotency SET expires_at = 1".to_owned()).await;
    }
}

#[tokio::test]
async fn a_completion_repeated_by_its_owner_changes_nothing() {
    let File { store, _folder, .. } = File::new().await;
    let key = key();
    let claim = claim(&store, &key).await;
    let copy = claim.try_clone().unwrap();
    claim.complete(record("response"), TTL).await.unwrap();
    let expires_at = async || store.inspect(&key).await.unwrap().unwrap().expires_at;
    let before = expires_at().await;
    copy.complete(record("another response"), 2 * TTL).await.unwrap();
    assert_eq!(expires_at().await, before);
    assert_eq!(state_of(&store, &key).await, "completed: response");
}

#[tokio::test]
async fn a_lease_that_never_ends_is_as_good_as_another() {
    let file = File::new().await;
    let key = key();
    let mut claimed = claim_for(&file.store, &key, Duration::MAX, Duration::MAX).await;
    claimed.renew(Duration::MAX).await.unwrap();
    assert_eq!(state_of(&file.store, &key).await, "in flight");
    claimed.complete(record("response"), Duration::MAX).await.unwrap();
    assert_eq!(state_of(&file.store, &key).await, "completed: response");
}

#[tokio::test]
async fn the_claim_of_a_dropped_begin_is_released() {
    let file = File::new().await;
    let mut other = file.connection().await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let key = key();
    // It waits for the lock in a thread, which goes on although its future was dropped.
    let begin = file.store.begin(&key, &MINE, &OPTIONS);
    assert!(tokio::time::timeout(Duration::from_millis(200), begin).await.is_err());
    other.execute("COMMIT").await.unwrap();
    within("the release", file.store.drained()).await;
    claim(&file.store, &key).await.complete(record("response"), TTL).await.unwrap();
    assert_eq!(state_of(&file.store, &key).await, "completed: response");
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", "a b", "a\"; DROP TABLE b; --"] {
        let refused = SqliteStore::builder().table(name).open(folder.path().join("new.db")).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Name(_)), "{refused:?}");
    }
    assert!(!folder.path().join("new.db").exists());
    std::fs::write(folder.path().join("text.db"), "not a database, and long enough to be looked at".repeat(30))
        .unwrap();
    for path in [folder.path().join("text.db"), folder.path().join("nowhere").join("new.db")] {
        let refused = SqliteStore::open(path).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Connection(_)), "{refused:?}");
        let said = refused.to_string();
        assert!(said.contains("its folder exists and this process may write there"), "{said}");
    }
    let url = format!("sqlite:{}", folder.path().join("new.db").display());
    let said = SqliteStore::connect(&url).await.unwrap_err().to_string();
    assert!(said.contains("`connect` only if its URL has `?mode=rwc`"), "{said}");
    for timeout in [Duration::ZERO, Duration::from_secs(3601), Duration::MAX] {
        let refused = SqliteStore::builder().timeout(timeout).open(folder.path().join("new.db")).await.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{refused:?}") };
        assert!(what.contains("`timeout` is") && what.contains("set a few seconds"), "{what}");
    }
    for path in ["", ":memory:"] {
        let refused = SqliteStore::open(path).await.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{refused:?}") };
        assert!(what.contains("needs a file") && what.contains("`MemoryStore`"), "{what}");
    }
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:", "sqlite:keys.db?mode=memory"] {
        let refused = SqliteStore::connect(url).await.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{url}: {refused:?}") };
        assert!(what.contains("needs a file") && what.contains("`MemoryStore`"), "{url}: {what}");
    }
    let refused = SqliteStore::open("sqlite:keys.db").await.unwrap_err();
    assert!(refused.to_string().contains("give it to `connect`"), "{refused}");
    for url in ["postgres://localhost/shop", "keys.db", "sqlite:keys.db?mode=wrong"] {
        let refused = SqliteStore::connect(url).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Url(_)), "{url}: {refused:?}");
    }
    // It is tried again as long as there is time.
    let locked = folder.path().join("locked.db");
    let mut other = SqliteConnectOptions::new().filename(&locked).create_if_missing(true).connect().await.unwrap();
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    let refused = SqliteStore::builder().timeout(Duration::from_millis(300)).open(&locked).await.unwrap_err();
    assert!(matches!(refused, ConnectError::TimedOut(_)), "{refused:?}");
    let file = File::new().await;
    file.sql("INSERT INTO idempotency_migrations (version) VALUES (99)".into()).await;
    assert!(matches!(file.store.migrate().await, Err(MigrateError::Newer { found: 99, .. })));
    file.sql("UPDATE idempotency_migrations SET is_additive = 1".into()).await;
    file.store.migrate().await.unwrap();
}

/// Each connection would have another database, so the table would be gone before the first request.
#[tokio::test]
async fn a_pool_in_memory_is_not_migrated() {
    for url in ["sqlite::memory:", "sqlite:keys?mode=memory&cache=shared", "sqlite:"] {
        let pool = SqlitePool::connect(url).await.unwrap();
        let refused = SqliteStore::from_pool(pool).migrate().await.unwrap_err();
        let MigrateError::Database(sqlx::Error::Configuration(_)) = &refused else { panic!("{url}: {refused:?}") };
        let said = refused.to_string();
        assert!(said.contains("nothing was migrated") && said.contains("needs a file"), "{url}: {said}");
        assert!(!said.contains("needs the right"), "{url}: {said}");
    }
}

/// As after a move of the file that the service knows of.
#[tokio::test]
async fn new_options_of_the_pool_of_the_handlers_are_those_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let options = |name| SqliteConnectOptions::new().filename(folder.path().join(name)).create_if_missing(true);
    let pool = SqlitePool::connect_with(options("old.db")).await.unwrap();
    let store = SqliteStore::from_pool(pool.clone());
    pool.set_connect_options(options("new.db"));
    store.migrate().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    let mut new = options("new.db").connect().await.unwrap();
    let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency").fetch_one(&mut new).await.unwrap();
    assert_eq!(claims, 1);
}

/// Such a store may be on a disk that loses what is not synced. In WAL mode it is as with `FULL`.
#[tokio::test]
async fn the_commits_of_the_store_are_on_the_disk_without_wal_too() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("a.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options.synchronous(SqliteSynchronous::Off)).await.unwrap();
    let store = SqliteStore::from_pool(pool.clone());
    store.migrate().await.unwrap();
    let trigger = "CREATE TABLE seen (synchronous INTEGER); CREATE TRIGGER see AFTER INSERT ON idempotency \
         BEGIN INSERT INTO seen SELECT synchronous FROM pragma_synchronous; END";
    pool.execute(trigger).await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    let seen: i64 = sqlx::query_scalar("SELECT synchronous FROM seen").fetch_one(&pool).await.unwrap();
    // <https://sqlite.org/pragma.html#pragma_synchronous>: the folder is synced after the journal is deleted.
    assert_eq!(seen, 3);
}

/// As in a container to which a file was given and not its folder. The test takes a mount that every Linux has: the store looks at the
/// place before SQLite does, so it does not matter that this one is a folder.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_is_mounted_without_its_folder_is_refused() {
    for refused in [SqliteStore::open("/proc").await, SqliteStore::connect("sqlite:///proc?mode=rwc").await] {
        let refused = refused.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{refused:?}") };
        assert!(what.contains("mount the folder"), "{what}");
    }
}

#[tokio::test]
async fn a_cleanup_deletes_what_has_expired_batch_by_batch() {
    let file = File::new().await;
    let store = SqliteStore::builder().cleanup_batch(100).open(&file.path).await.unwrap();
    let (kept, claimed) = (key(), claim(&store, &key()).await);
    leave_record(&store, &kept, "response").await;
    file.sql(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 350) INSERT INTO idempotency \
         (key, owner, fingerprint, lease_until, expires_at) \
         SELECT randomblob(32), randomblob(16), randomblob(32), 0, 0 FROM n"
            .into(),
    )
    .await;
    assert_eq!(store.clean_once().await.unwrap(), 350);
    assert_eq!(store.clean_once().await.unwrap(), 0);
    assert_eq!(state_of(&store, &kept).await, "completed: response");
    claimed.complete(record("response"), TTL).await.unwrap();
}

#[tokio::test]
async fn a_late_owner_goes_on_if_no_owner_has_replaced_it_and_is_lost_otherwise() {
    let file = File::new().await;
    let (here, there) = (&file.store, SqliteStore::open(&file.path).await.unwrap());
    let (completes, replaced) = (key(), key());
    let one = claim_for(here, &completes, SHORT, TTL).await;
    let two = claim_for(here, &replaced, SHORT, TTL).await;
    drop(abandoned(&there, &completes).await);
    one.complete(record("late"), TTL).await.unwrap();
    assert_eq!(state_of(&there, &completes).await, "completed: late");
    abandoned(&there, &replaced).await.renew(LEASE).await.unwrap();
    assert!(matches!(two.complete(record("late"), TTL).await, Err(StoreError::Lost)));
    assert_eq!(state_of(here, &replaced).await, "in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_this_process_are_notified_and_others_poll() {
    let file = File::new().await;
    let (here, there) = (&file.store, SqliteStore::open(&file.path).await.unwrap());
    let awaited = key();
    let claim = claim(here, &awaited).await;
    let mut waits = JoinSet::new();
    for (store, patience) in [(here.clone(), 150), (there, 1500)] {
        waits.spawn(async move {
            store.ended(&awaited).await;
            (Instant::now(), Duration::from_millis(patience))
        });
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    claim.complete(record("response"), TTL).await.unwrap();
    let completed = Instant::now();
    for (woken, patience) in waits.join_all().await {
        assert!(woken.saturating_duration_since(completed) < patience);
    }
}

#[tokio::test]
async fn a_url_of_sqlx_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("idempotency.db");
    let refused = SqliteStore::connect(&format!("sqlite:{}", path.display())).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Connection(_)), "{refused:?}");
    assert!(!path.exists(), "without `mode=rwc` the file must exist");
    let key = key();
    for url in [format!("sqlite:{}?mode=rwc", path.display()), format!("sqlite://{}", path.display())] {
        let store = SqliteStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        if state_of(&store, &key).await == "claimed" {
            assert!(url.ends_with("rwc"));
        }
    }
    assert_eq!(state_of(&SqliteStore::open(&path).await.unwrap(), &key).await, "in flight");
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_file_is_for_its_owner_alone_and_the_mode_of_another_stays() {
    use std::os::unix::fs::PermissionsExt;

    let file = File::new().await;
    leave_record(&file.store, &key(), "response").await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", file.path.display()));
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&beside(suffix)), 0o600, "{suffix}");
    }
    let shared = file.path.with_file_name("shared.db");
    std::fs::write(&shared, "").unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o660)).unwrap();
    SqliteStore::open(&shared).await.unwrap().migrate().await.unwrap();
    assert_eq!(mode(&shared), 0o660);
}

#[tokio::test]
async fn what_is_forgotten_is_not_left_in_the_file() {
    const SECRET: &str = "4111 1111 1111 1111";
    let file = File::new().await;
    let (forgotten, kept) = (key(), key());
    leave_record(&file.store, &forgotten, SECRET).await;
    leave_record(&file.store, &kept, "kept").await;
    assert!(file.store.forget(&forgotten).await.unwrap());
    // Empties the WAL into the file, as a connection does that is closed last.
    let empty = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(empty.fetch_one(&mut file.connection().await).await.unwrap(), 0, "the WAL is in use");
    let content = std::fs::read(&file.path).unwrap();
    let has = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("kept") && !has(SECRET));
}
