//! The table: who owns a row, when it expires, how it is made, and how it is cleaned up.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use idem_runtime::{Begin, Claim, Endpoint, Idempotency, RefusalReason, StorageKey, Store, StoreError};
use idem_sqlx::{ConnectError, MigrateError, OnceExt, PostgresStore};
use idem_testkit::postgres::Postgres;
use idem_testkit::wait::{until, within};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::common::*;

async fn with_a_store() -> (Postgres, PostgresStore) {
    let server = Postgres::quick().await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    (server, store)
}

#[tokio::test]
async fn a_claim_whose_owner_is_gone_is_abandoned_and_looking_does_not_change_that() {
    let (_server, store) = with_a_store().await;
    let key = key();
    drop(claim_for(&store, &key, SHORT, TTL).await);
    assert_eq!(state_of(&store, &key).await, "in flight");
    drop(abandoned(&store, &key).await);
    assert_eq!(state_of(&store, &key).await, "abandoned");
    assert!(matches!(store.begin(&key, &OTHER, &OPTIONS).await, Ok(Begin::InFlight(found)) if found == MINE));
    let mut new_owner = abandoned(&store, &key).await;
    new_owner.renew(LEASE).await.unwrap();
    assert_eq!(state_of(&store, &key).await, "in flight");
}

#[tokio::test]
async fn a_late_owner_goes_on_if_no_owner_has_replaced_it_and_is_lost_otherwise() {
    let (_server, store) = with_a_store().await;
    let (renews, completes, replaced) = (key(), key(), key());
    let mut one = claim_for(&store, &renews, SHORT, TTL).await;
    let two = claim_for(&store, &completes, SHORT, TTL).await;
    let mut three = claim_for(&store, &replaced, SHORT, TTL).await;
    for key in [&renews, &completes] {
        drop(abandoned(&store, key).await);
    }
    one.renew(LEASE).await.unwrap();
    assert_eq!(state_of(&store, &renews).await, "in flight");
    two.complete(record("late"), TTL).await.unwrap();
    assert_eq!(state_of(&store, &completes).await, "completed: late");
    abandoned(&store, &replaced).await.renew(LEASE).await.unwrap();
    let (copy, another) = (three.try_clone().unwrap(), three.try_clone().unwrap());
    assert!(matches!(three.renew(LEASE).await, Err(StoreError::Lost)));
    assert!(matches!(copy.complete(record("late"), TTL).await, Err(StoreError::Lost)));
    assert!(matches!(another.release().await, Err(StoreError::Lost)));
    assert_eq!(state_of(&store, &replaced).await, "in flight");
}

#[tokio::test]
async fn a_new_owner_that_was_late_itself_does_not_take_over_from_an_owner_that_renewed() {
    let (_server, store) = with_a_store().await;
    let key = key();
    let mut owner = claim_for(&store, &key, SHORT, TTL).await;
    let mut new_owner = abandoned(&store, &key).await;
    owner.renew(LEASE).await.unwrap();
    assert!(matches!(new_owner.renew(LEASE).await, Err(StoreError::Lost)));
}

#[tokio::test]
async fn a_new_owner_does_not_take_over_from_another_new_owner_that_is_gone_as_well() {
    let (_server, store) = with_a_store().await;
    let key = key();
    drop(claim_for(&store, &key, SHORT, TTL).await);
    let (mut one, mut two) = (abandoned(&store, &key).await, abandoned(&store, &key).await);
    one.renew(SHORT).await.unwrap();
    drop(abandoned(&store, &key).await);
    assert!(matches!(two.renew(LEASE).await, Err(StoreError::Lost)), "it has not looked since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_new_owners_at_once_one_takes_over() {
    let (server, store) = with_a_store().await;
    for _ in 0..10 {
        let key = key();
        drop(claim_for(&store, &key, SHORT, TTL).await);
        let mut new_owners = Vec::new();
        for _ in 0..16 {
            new_owners.push(abandoned(&store, &key).await);
        }
        let together = Arc::new(Barrier::new(new_owners.len()));
        let mut takeovers = JoinSet::new();
        for mut new_owner in new_owners {
            let together = Arc::clone(&together);
            takeovers.spawn(async move {
                together.wait().await;
                new_owner.renew(LEASE).await.is_ok()
            });
        }
        assert_eq!(takeovers.join_all().await.into_iter().filter(|&owns| owns).count(), 1);
    }
    drop(server);
}

#[tokio::test]
async fn an_abandoned_claim_stays_for_its_ttl_from_the_end_of_its_lease_and_then_the_key_is_free() {
    let (server, store) = with_a_store().await;
    let key = key();
    let mut claim = claim_for(&store, &key, SHORT, 10 * SHORT).await;
    claim.renew(SHORT).await.unwrap();
    let renewed = Instant::now();
    drop(abandoned(&store, &key).await);
    let row = format!("SELECT expires_at - lease_until FROM idempotency WHERE key = '\\x{}'", hex(&key));
    assert!(server.sql(&row).trim().starts_with("00:00:01.5"), "{}", server.sql(&row));
    while state_of(&store, &key).await == "abandoned" {}
    assert!(renewed.elapsed() > 10 * SHORT, "{:?}", renewed.elapsed());
    assert_eq!(state_of(&store, &key).await, "in flight", "of the new owner");
    assert!(matches!(claim.renew(LEASE).await, Err(StoreError::Lost)));
}

#[tokio::test]
async fn a_ttl_shorter_than_the_lease_does_not_free_a_claim_that_lives() {
    let (_server, store) = with_a_store().await;
    let key = key();
    let mut claim = claim_for(&store, &key, LEASE, Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(state_of(&store, &key).await, "in flight");
    claim.renew(LEASE).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(state_of(&store, &key).await, "in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_may_migrate_at_once_and_again() {
    let server = Postgres::quick().await;
    let mut migrations = JoinSet::new();
    let together = Arc::new(Barrier::new(8));
    for number in 0..8 {
        // Two tables in one schema that is not there yet.
        let table = if number % 2 == 0 { "one" } else { "two" };
        let store = PostgresStore::builder().schema("shop").table(table).connect(&server.url()).await.unwrap();
        let together = Arc::clone(&together);
        migrations.spawn(async move {
            together.wait().await;
            store.migrate().await.map(|()| store)
        });
    }
    for migrated in migrations.join_all().await {
        let store = migrated.unwrap();
        store.migrate().await.unwrap();
        assert_eq!(state_of(&store, &key()).await, "claimed");
    }
    assert_eq!(server.sql("SELECT count(*) FROM shop.one_migrations").trim(), "1", "once");
}

#[tokio::test]
async fn a_table_of_a_later_version_is_left_alone_unless_this_version_works_with_it() {
    let (server, store) = with_a_store().await;
    server.sql("INSERT INTO idempotency_migrations (version) VALUES (99)");
    let refused = store.migrate().await.unwrap_err();
    assert!(matches!(refused, MigrateError::Newer { found: 99, .. }), "{refused:?}");
    server.sql("UPDATE idempotency_migrations SET is_additive = true WHERE version = 99");
    store.migrate().await.unwrap();
}

#[tokio::test]
async fn the_published_statements_make_the_table_by_hand() {
    let server = Postgres::quick().await;
    let statements = include_str!("../../migrations/postgres/0001_table.sql");
    let names = [
        ("{table}", "public.idempotency"),
        ("{index}", "idempotency_clean_after"),
        ("{claim}", "public.idempotency_claim"),
        ("{complete}", "public.idempotency_complete"),
    ];
    server.sql(&names.iter().fold(statements.to_owned(), |text, (placeholder, name)| text.replace(placeholder, name)));
    let (store, recorded) = (PostgresStore::connect(&server.url()).await.unwrap(), key());
    leave_record(&store, &recorded, "response").await;
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    let there = store.migrate().await.unwrap_err();
    assert!(
        matches!(there, MigrateError::Database(_)) && there.to_string().contains("leave out `migrate()`"),
        "{there}"
    );
}

/// The rights that the documentation of [`PostgresStore`] names, and no others.
#[tokio::test]
async fn a_role_needs_few_rights_once_the_table_is_there() {
    let server = Postgres::quick().await;
    let at = |url: String| async move { PostgresStore::builder().schema("shop").connect(&url).await.unwrap() };
    server.sql(
        "REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON DATABASE postgres FROM PUBLIC; CREATE ROLE app LOGIN; \
         ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
    );
    at(server.url()).await.migrate().await.unwrap();
    server.sql(
        "GRANT CONNECT ON DATABASE postgres TO app; GRANT USAGE ON SCHEMA shop TO app; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON shop.idempotency TO app; \
         GRANT SELECT ON shop.idempotency_migrations TO app",
    );
    let store = at(server.url().replace("idem@", "app@")).await;
    store.migrate().await.unwrap();
    let (recorded, taken_over, waited) = (key(), key(), key());
    leave_record(&store, &recorded, "response").await;
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    assert!(store.inspect(&recorded).await.unwrap().is_some());
    assert!(store.forget(&recorded).await.unwrap());
    drop(claim_for(&store, &taken_over, SHORT, TTL).await);
    abandoned(&store, &taken_over).await.renew(LEASE).await.unwrap();
    let claimed = claim(&store, &waited).await;
    let (_, released) = tokio::join!(store.ended(&waited), async {
        server.wait_until("SELECT count(*) FROM shop.idempotency WHERE awaited", "1").await;
        claimed.release().await
    });
    released.unwrap();
    server.sql("UPDATE shop.idempotency SET clean_after = now(), expires_at = now()");
    assert_eq!(store.clean_once().await.unwrap(), 1);
    let idempotency = Idempotency::new(store.clone());
    let mut connection = PgConnection::connect(&server.url().replace("idem@", "app@")).await.unwrap();
    connection.execute("SET search_path = nowhere").await.unwrap();
    for may_execute in [false, true] {
        let mut tx = connection.begin().await.unwrap();
        let once = idempotency.once("ship", may_execute.to_string());
        let value = once.run_in(&mut tx, async |_| Ok::<_, RefusalReason>("shipped".to_owned())).await;
        assert_eq!(value.is_ok(), may_execute, "{value:?}");
        tx.commit().await.unwrap();
        server.sql("GRANT EXECUTE ON FUNCTION shop.idempotency_claim, shop.idempotency_complete TO app");
    }
    assert_eq!(server.sql("SELECT count(*) FROM shop.idempotency WHERE record IS NOT NULL").trim(), "1");
    server.sql("REVOKE SELECT ON shop.idempotency_migrations FROM app");
    let refused = within("the refusal", store.migrate()).await.unwrap_err();
    assert!(matches!(refused, MigrateError::Database(_)), "{refused:?}");
}

#[tokio::test]
async fn names_and_settings_that_cannot_be_are_refused_before_anything_is_opened() {
    let nowhere = "postgres://anyone:secret@127.0.0.1:1/nothing";
    for name in ["", "a b", "Robert'); DROP TABLE students; --", "a\"b", "1a", "pg.x"] {
        for builder in [PostgresStore::builder().schema(name), PostgresStore::builder().table(name)] {
            let refused = builder.connect(nowhere).await.unwrap_err();
            assert!(matches!(refused, ConnectError::Name(_)), "{name}: {refused:?}");
        }
    }
    let refused = PostgresStore::builder().max_connections(0).connect(nowhere).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Setting(_)), "{refused:?}");
    for timeout in [Duration::ZERO, Duration::from_secs(3601), Duration::MAX] {
        let refused = PostgresStore::builder().timeout(timeout).connect(nowhere).await.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{refused:?}") };
        assert!(what.contains("`timeout` is") && what.contains("set a few seconds"), "{what}");
    }
    let refused = PostgresStore::connect("mysql://anyone@127.0.0.1/nothing").await.unwrap_err();
    assert!(matches!(refused, ConnectError::Url(_)), "{refused:?}");
    let builder = PostgresStore::builder().timeout(Duration::from_millis(100));
    let refused = builder.connect(nowhere).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Connection(_)), "{refused:?}");
    assert!(!refused.to_string().contains("secret"), "{refused}");
}

/// The cleanup goes by a time that the index has, and that only a claim sets.
#[tokio::test]
async fn a_row_that_is_used_again_has_nothing_of_its_last_use() {
    let (server, _) = with_a_store().await;
    let store = PostgresStore::builder().count_replays(true).connect(&server.url()).await.unwrap();
    let key = key();
    leave_record(&store, &key, "response").await;
    assert_eq!(state_of(&store, &key).await, "completed: response");
    server.wait_until("SELECT replays FROM idempotency", "1").await;
    let expire = "UPDATE idempotency SET expires_at = now(), clean_after = now(), awaited = true, info = 'last'";
    server.sql(expire);
    let _claim = claim(&store, &key).await;
    let row = "SELECT replays, awaited, record IS NULL, info IS NULL, clean_after > now() FROM idempotency";
    assert_eq!(server.sql(row).trim(), "0|f|t|t|t");
}

#[tokio::test]
async fn a_lease_that_never_ends_is_as_good_as_another() {
    let (_server, store) = with_a_store().await;
    let key = key();
    let mut claimed = claim_for(&store, &key, Duration::MAX, Duration::MAX).await;
    claimed.renew(Duration::MAX).await.unwrap();
    assert_eq!(state_of(&store, &key).await, "in flight");
    claimed.complete(record("response"), Duration::MAX).await.unwrap();
    assert_eq!(state_of(&store, &key).await, "completed: response");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleanup_deletes_what_has_expired_batch_by_batch_while_begins_run() {
    const OVER: u64 = 2500;
    let (server, store) = with_a_store().await;
    server.sql(&format!(
        "INSERT INTO idempotency SELECT decode(lpad(to_hex(n), 16, '0') || repeat('00', 24), 'hex'), \
             decode(repeat('11', 16), 'hex'), decode(repeat('07', 32), 'hex'), now(), 0, now(), now(), false, \
             CASE WHEN n % 2 = 0 THEN '\\x00'::bytea END FROM generate_series(1000000, 1000000 + {OVER} - 1) n"
    ));
    let (kept, locked) = (key(), numbered(1_000_007));
    leave_record(&store, &kept, "response").await;
    let claimed = claim(&store, &key()).await;
    // Another transaction works on an expired row: it is not waited for.
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    let lock = format!("SELECT 1 FROM idempotency WHERE key = '\\x{}' FOR UPDATE", hex(&locked));
    transaction.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
    // Of the others every fifth is claimed again meanwhile.
    let begins = tokio::spawn({
        let store = store.clone();
        async move {
            let mut claims = Vec::new();
            for number in (1_000_010..1_000_000 + OVER).step_by(5) {
                claims.push(claim(&store, &numbered(number)).await);
            }
            claims
        }
    });
    let cleaners = tokio::join!(store.clean_once(), store.clean_once());
    let claims = begins.await.unwrap();
    let deleted = cleaners.0.unwrap() + cleaners.1.unwrap();
    assert!(deleted >= OVER - 1 - claims.len() as u64 && deleted < OVER, "{deleted}");
    for claim in claims {
        claim.complete(record("again"), TTL).await.expect("a claim that lives is not deleted");
    }
    transaction.rollback().await.unwrap();
    assert_eq!(store.clean_once().await.unwrap(), 1, "the row that was locked");
    assert_eq!(store.clean_once().await.unwrap(), 0);
    assert_eq!(state_of(&store, &kept).await, "completed: response");
    claimed.complete(record("response"), TTL).await.unwrap();
}

#[tokio::test]
async fn a_cleanup_deletes_no_more_at_once_than_a_batch() {
    let (server, store) = with_a_store().await;
    for _ in 0..25 {
        leave_record(&store, &key(), "response").await;
    }
    server.sql(
        "UPDATE idempotency SET clean_after = now(), expires_at = now(); CREATE TABLE batches (deleted bigint); \
         CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO batches SELECT count(*) FROM gone; RETURN NULL; END'; \
         CREATE TRIGGER noted AFTER DELETE ON idempotency REFERENCING OLD TABLE AS gone \
             FOR EACH STATEMENT EXECUTE FUNCTION noted()",
    );
    let batches = PostgresStore::builder().cleanup_batch(10).connect(&server.url()).await.unwrap();
    assert_eq!(batches.clean_once().await.unwrap(), 25);
    assert_eq!(server.sql("SELECT string_agg(deleted::text, ' ') FROM batches").trim(), "10 10 5");
}

#[tokio::test]
async fn unknown_outcomes_are_found_behind_a_page_of_others_until_they_expire() {
    let (server, store) = with_a_store().await;
    server.sql(
        "INSERT INTO idempotency (key, owner, fingerprint, clean_after, lease_until, expires_at, record) \
             SELECT decode(lpad(to_hex(n), 64, '0'), 'hex'), decode(repeat('11', 16), 'hex'), decode(repeat('07', 32), 'hex'), \
                 later, now(), later, '\\x00' FROM generate_series(1, 1500) n, (SELECT now() + interval '1 hour' AS later) t",
    );
    let last = StorageKey::from_bytes([0xff; 32]);
    drop(claim_for(&store, &last, SHORT, TTL).await);
    drop(abandoned(&store, &last).await);
    let listed = async || {
        let (mut keys, mut pages, mut from) = (Vec::new(), 0, None);
        loop {
            let page = store.inspect_unknown(from.as_ref()).await.unwrap();
            keys.extend(page.keys.into_iter().map(|(key, _)| key));
            pages += 1;
            from = page.next;
            if from.is_none() || pages > 10 {
                break (keys, pages);
            }
        }
    };
    assert_eq!(listed().await, (vec![last], 3), "two pages, and an empty one");
    server.sql("UPDATE idempotency SET expires_at = now() WHERE record IS NULL");
    assert_eq!(listed().await, (vec![], 3));
}

/// A replay is counted behind the request, and by then the key may have the record of another owner.
#[tokio::test]
async fn a_replay_is_not_counted_of_the_record_of_a_later_owner() {
    let (server, _) = with_a_store().await;
    let store = PostgresStore::builder().count_replays(true).connect(&server.url()).await.unwrap();
    let (replaced, other) = (key(), key());
    leave_record(&store, &replaced, "response").await;
    leave_record(&store, &other, "response").await;
    let mut next = PgConnection::connect(&server.url()).await.unwrap();
    let mut replaces = next.begin().await.unwrap();
    replaces.execute("UPDATE idempotency SET owner = decode(repeat('11', 16), 'hex')").await.unwrap();
    assert_eq!(state_of(&store, &replaced).await, "completed: response");
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "1").await;
    replaces.commit().await.unwrap();
    // One task counts, so this replay comes after the first one.
    assert_eq!(state_of(&store, &other).await, "completed: response");
    let replays = async |key| store.inspect(key).await.unwrap().unwrap().replays;
    until("the second replay is counted", async || replays(&other).await == Some(1)).await;
    assert_eq!(replays(&replaced).await, Some(0));
}

#[tokio::test]
async fn neither_a_replay_nor_a_wait_for_what_has_ended_writes_or_locks() {
    let (server, store) = with_a_store().await;
    let (recorded, claimed, unknown) = (key(), key(), key());
    leave_record(&store, &recorded, "response").await;
    let _claim = claim(&store, &claimed).await;
    drop(claim_for(&store, &unknown, SHORT, TTL).await);
    drop(abandoned(&store, &unknown).await);
    // The first look marks the rows as committed, and the server logs that if it has checksums.
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    assert_eq!(state_of(&store, &claimed).await, "in flight");
    let position = "SELECT pg_current_wal_insert_lsn(), (SELECT string_agg(xmax::text, ',') FROM idempotency)";
    server.sql("CHECKPOINT");
    let before = server.sql(position);
    for _ in 0..20 {
        assert_eq!(state_of(&store, &recorded).await, "completed: response");
        assert_eq!(state_of(&store, &claimed).await, "in flight");
        store.ended(&recorded).await;
        store.ended(&unknown).await;
    }
    assert_eq!(server.sql(position), before);
}

/// How many bytes the server has written to its log.
fn logged(server: &Postgres) -> u64 {
    server.sql("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").trim().parse().unwrap()
}

/// Measured on PostgreSQL 15: 585 bytes for a claim and a record of a few bytes, 875 for an execution of the engine with a response
/// of 180 bytes, and 132 for a renewal.
#[tokio::test]
async fn a_key_costs_the_log_of_the_server_a_few_hundred_bytes() {
    const KEYS: u64 = 300;
    // Without the whole pages that follow a checkpoint, which are many or few as the operator sets.
    let server = Postgres::with(&["fsync=off", "full_page_writes=off", "autovacuum=off"]).await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let before = logged(&server);
    for _ in 0..KEYS {
        leave_record(&store, &key(), "response").await;
    }
    let key_costs = (logged(&server) - before) / KEYS;
    let engine = Idempotency::new(store.clone());
    let before = logged(&server);
    for _ in 0..KEYS {
        let attempt = attempt(key()).at(Endpoint::new("POST", "/orders/{id}"));
        engine.run(attempt, |_| async { executed(&"response ".repeat(20)) }).await.unwrap();
    }
    let execution_costs = (logged(&server) - before) / KEYS;
    let mut claimed = claim(&store, &key()).await;
    let before = logged(&server);
    for _ in 0..KEYS {
        claimed.renew(LEASE).await.unwrap();
    }
    let costs = (key_costs, execution_costs, (logged(&server) - before) / KEYS);
    println!("{costs:?}");
    assert!(costs.0 < 600 && costs.1 < 900 && costs.2 < 150, "{costs:?}");
}

#[tokio::test]
async fn no_step_of_a_claim_changes_an_index() {
    const KEYS: u64 = 200;
    let (server, store) = with_a_store().await;
    let mut claims = Vec::new();
    for _ in 0..KEYS {
        let mut claim = claim(&store, &key()).await;
        claim.renew(LEASE).await.unwrap();
        claims.push(claim);
        // Others are completed meanwhile, as in a service.
        if claims.len() > 5 {
            claims.remove(0).complete(record(&"response ".repeat(30)), TTL).await.unwrap();
        }
    }
    // A session reports what it did when it ends.
    server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'idem' AND pid <> pg_backend_pid()",
    );
    let updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'idempotency'";
    let expected = KEYS + KEYS - 5;
    server.wait_until(updates, &format!("{expected}|{expected}")).await;
}

/// An execution that takes longer than its lease has a record that expires later than its claim would have.
#[tokio::test]
async fn a_cleanup_leaves_what_was_renewed_and_comes_back_when_it_has_expired() {
    let (server, store) = with_a_store().await;
    let mut claimed = claim_for(&store, &key(), SHORT, Duration::ZERO).await;
    claimed.renew(LEASE).await.unwrap();
    let due = "SELECT count(*) FROM idempotency WHERE clean_after <= clock_timestamp()";
    server.wait_until(due, "1").await;
    assert_eq!(store.clean_once().await.unwrap(), 0);
    assert_eq!(server.sql(due).trim(), "0", "it is not looked at each time");
    claimed.complete(record("response"), Duration::ZERO).await.unwrap();
    server.sql("UPDATE idempotency SET clean_after = clock_timestamp()");
    assert_eq!(store.clean_once().await.unwrap(), 1);
}
