//! The statements, each of which is one transaction under READ COMMITTED.

use std::sync::Arc;

use super::Location;
use crate::dialect::Statements;

/// Time is `clock_timestamp()`, which goes on within a statement: `now()` would not move while it waits for a lock, and
/// the times of concurrent statements would not agree.
const NOW: &str = "clock_timestamp()";

/// The channel on which the end of a claim is notified. Names are long and channels are not, so it has a hash of them; if
/// two tables share one, a waiter is woken in vain.
pub(super) fn channel(schema: &str, table: &str) -> String {
    format!("idem_{:016x}", hash(schema.bytes().chain([b'.']).chain(table.bytes())))
}

fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What the names of the functions have after that of the table.
pub(super) const CLAIM: &str = "_claim";
pub(super) const COMPLETE: &str = "_complete";

pub(super) fn statements(location: &Location) -> Statements {
    let (table, channel) = (&location.quoted(""), &location.channel);
    let (claim, complete) = (&location.quoted(CLAIM), &location.quoted(COMPLETE));
    // A key is claimed under an advisory lock, so that a transaction which holds it stops no one: a request that does not get the
    // lock is told so at once. A second lock tells the fingerprint, and a third one, of a transaction, its endpoint and policy. Both
    // are shared, so they are never waited for, and they are taken first, so the owner of the lock of a key has them, but for the moment
    // in which it gives its locks back. If two tables share a lock, a request is told that its key is in flight.
    let salt = hash(channel.bytes()).cast_signed();
    let lock = |bytes: &str| format!("hashtextextended(encode({bytes}, 'hex'), {salt})");
    // The sign is left out, since columns of the server have none.
    let half = |bytes: &str| format!("({} & 2147483647)::int", lock(bytes));
    let sql = |text: &str| -> Arc<str> {
        let text = text.replace("{key lock}", &lock("$1::bytea"));
        let text = text.replace("{half of $1}", &half("$1::bytea")).replace("{half of $2}", &half("$2::bytea"));
        let text = text.replace("{lock of $3}", &format!("{}, {}", half("$1::bytea"), half("$3::bytea")));
        let text = text.replace("{claim}", claim).replace("{complete}", complete).replace("{salt}", &salt.to_string());
        text.replace("{t}", table).replace("{now}", NOW).into()
    };
    Statements {
        look: sql("SELECT owner, fingerprint, record, lease_until <= {now} FROM {t} \
             WHERE key = $1 AND expires_at > {now} AND NOT (owner = $2 AND record IS NULL)"),
        looks_first: false,
        // One look at the locks, so that all are those of one moment. In that moment the holder may have given a part of them back, so
        // only a lock of another fingerprint tells that there is one. A prepared transaction has no session.
        holder: Some(sql("WITH wanted AS MATERIALIZED ( \
                 SELECT {key lock} AS of_key, {half of $1}::bigint AS class, {half of $2}::bigint AS fingerprint \
             ), locks AS MATERIALIZED ( \
                 SELECT pid, virtualtransaction AS owner, mode, locktype AS type, classid::bigint AS class, objid::bigint AS object, objsubid AS kind, \
                     CASE objsubid WHEN 1 THEN (classid::bigint << 32) | objid::bigint END AS id FROM pg_locks \
                 WHERE granted AND (locktype = 'transactionid' OR locktype = 'advisory' \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
             ) \
             SELECT coalesce(holder.pid, 0)::bigint, coalesce(( \
                 SELECT bool_and(locks.object <> wanted.fingerprint) FROM locks \
                 WHERE locks.owner = holder.owner AND locks.kind = 2 AND locks.class = wanted.class \
             ), false), EXISTS ( \
                 SELECT FROM locks WHERE locks.owner = holder.owner AND locks.kind = 2 AND locks.class = $3::bigint \
                     AND locks.object <> $4::bigint \
             ), EXISTS ( \
                 SELECT FROM locks WHERE locks.owner = holder.owner AND locks.type = 'transactionid' AND locks.mode = 'ExclusiveLock' \
             ) FROM locks AS holder, wanted WHERE holder.id = wanted.of_key AND holder.mode = 'ExclusiveLock'")),
        lock: Some(sql("SELECT 1 WHERE pg_try_advisory_xact_lock({key lock})")),
        idle: Some(sql("SELECT (extract(epoch FROM {now} - state_change) * 1000)::bigint FROM pg_stat_activity \
             WHERE pid = $1::bigint AND state LIKE 'idle in transaction%'")),
        // By its number alone a session may be a later one. A transaction that is younger than what is known of ours is not ours; its age
        // is that of one clock. With `track_activities = off` the server shows only whether a session waits for its client: it is waited
        // for, and not cancelled.
        end: Some(sql(
            "SELECT CASE WHEN $2::bigint = 1 AND state = 'active' THEN pg_cancel_backend(pid) END FROM pg_stat_activity \
             WHERE pid = $1::bigint \
                 AND (state = 'active' AND {now} - xact_start >= $3::bigint * interval '1 microsecond' \
                     OR state = 'disabled' AND wait_event IS DISTINCT FROM 'ClientRead')",
        )),
        // `held` reads an existing row without a lock and without a write, and leaves out a record of another fingerprint, which may be
        // long. If there is none, `begun` is the one step that
        // decides. Neither gives a row if another statement has just won, whose row this one does not see, or if a transaction
        // holds the key.
        begin: sql("WITH locked AS MATERIALIZED ( \
                 SELECT CASE WHEN pg_advisory_xact_lock_shared({lock of $3})::text IS NULL THEN false \
                     ELSE pg_try_advisory_xact_lock({key lock}) END AS got \
             ), held AS ( \
                 SELECT owner, fingerprint, CASE WHEN fingerprint = $3 OR record IS NULL THEN record ELSE info END AS record, \
                     CASE WHEN fingerprint = $3 OR record IS NULL THEN lease_until <= {now} END AS lapsed FROM {t} \
                 WHERE key = $1 AND expires_at > {now} AND NOT (owner = $2 AND record IS NULL) \
             ), begun AS ( \
                 INSERT INTO {t} AS old (key, owner, fingerprint, clean_after, lease_until, expires_at, info) \
                 SELECT $1::bytea, $2::bytea, $3::bytea, {now} + $5::bigint * interval '1 microsecond', \
                     {now} + $4::bigint * interval '1 microsecond', {now} + $5::bigint * interval '1 microsecond', $6::bytea \
                 WHERE NOT EXISTS (SELECT FROM held) AND (SELECT got FROM locked) \
                 ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, fingerprint = excluded.fingerprint, \
                     clean_after = excluded.clean_after, lease_until = {now} + $4::bigint * interval '1 microsecond', \
                     expires_at = {now} + $5::bigint * interval '1 microsecond', awaited = false, record = NULL, \
                     info = excluded.info, replays = 0 \
                 WHERE old.expires_at <= {now} OR (old.owner = excluded.owner AND old.record IS NULL) \
                 RETURNING 1 \
             ) \
             SELECT NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean FROM begun \
             UNION ALL SELECT owner, fingerprint, record, lapsed FROM held"),
        // A transaction sends its statements as they are, and the server would plan each of them: this calls a function, whose
        // statements are planned once for each session.
        claim_in_transaction: sql("SELECT * FROM {claim}($1, $2, $3, $4, $5, $6, $7, $8, {salt})"),
        renew: sql("UPDATE {t} SET lease_until = {now} + $3 * interval '1 microsecond', \
                 expires_at = {now} + $4 * interval '1 microsecond' \
             WHERE key = $1 AND owner = $2 AND record IS NULL RETURNING 1"),
        take_over: sql(
            "UPDATE {t} SET owner = $2, info = coalesce($7, info), lease_until = {now} + $3 * interval '1 microsecond', \
                 expires_at = {now} + $4 * interval '1 microsecond' \
             WHERE key = $1 AND record IS NULL AND fingerprint = $6 \
                 AND (owner = $2 OR (owner = $5 AND lease_until <= {now})) RETURNING 1",
        ),
        // Repeated by the same owner it changes nothing, the expiry included.
        complete: sql("UPDATE {t} SET record = coalesce(record, $3), expires_at = CASE WHEN record IS NULL \
                 THEN {now} + $4 * interval '1 microsecond' ELSE expires_at END \
             WHERE key = $1 AND owner = $2 RETURNING awaited"),
        complete_in_transaction: sql("SELECT 1 WHERE {complete}($1, $2, $3, $4)"),
        release: sql("DELETE FROM {t} WHERE key = $1 AND owner = $2 AND record IS NULL RETURNING awaited"),
        forget: sql(
            "DELETE FROM {t} WHERE key = $1 AND (record IS NOT NULL OR lease_until <= {now}) RETURNING awaited",
        ),
        forget_unlocked: Some(sql("DELETE FROM {t} WHERE key = (SELECT key FROM {t} \
                 WHERE key = $1 AND (record IS NOT NULL OR lease_until <= {now}) FOR UPDATE SKIP LOCKED) RETURNING awaited")),
        notify: Some(sql(&format!("SELECT pg_notify('{channel}', encode($1::bytea, 'hex'))"))),
        // Counted from the epoch in whole microseconds, as `bigint`, which no rounding changes.
        inspect: sql("SELECT fingerprint, record, lease_until <= {now}, info, \
                 (extract(epoch FROM lease_until) * 1000000)::bigint, \
                 (extract(epoch FROM expires_at) * 1000000)::bigint, replays \
             FROM {t} WHERE key = $1 AND expires_at > {now}"),
        // Along the primary key, so that a page reads a limited number of rows.
        unknown: sql("WITH part AS ( \
                 SELECT key, fingerprint, info, lease_until, expires_at, replays, \
                     record IS NULL AND lease_until <= {now} AND expires_at > {now} AS is_unknown \
                 FROM {t} WHERE key > $1 ORDER BY key LIMIT $2 \
             ) \
             SELECT fingerprint, NULL::bytea, true, info, (extract(epoch FROM lease_until) * 1000000)::bigint, \
                 (extract(epoch FROM expires_at) * 1000000)::bigint, replays, key, is_unknown FROM part \
             WHERE is_unknown OR key = (SELECT key FROM part ORDER BY key DESC LIMIT 1) ORDER BY key"),
        revoke: sql("UPDATE {t} SET owner = $2, lease_until = {now} \
             WHERE key = $1 AND record IS NULL AND (lease_until > {now} OR owner = $2) RETURNING 1"),
        count: sql("UPDATE {t} SET replays = replays + $3 WHERE key = $1 AND owner = $2 RETURNING 1"),
        wait: sql("WITH marked AS ( \
                 UPDATE {t} SET awaited = true \
                 WHERE key = $1 AND record IS NULL AND lease_until > {now} AND NOT awaited \
             ) SELECT (extract(epoch FROM lease_until - {now}) * 1000)::bigint FROM {t} \
             WHERE key = $1 AND record IS NULL AND lease_until > {now}"),
        poll: sql("SELECT (extract(epoch FROM lease_until - {now}) * 1000)::bigint FROM {t} \
             WHERE key = $1 AND record IS NULL AND lease_until > {now}"),
        // The time is asked for once, so that the index can be used; and again of each row, since a `begin` may have taken
        // it meanwhile. `SKIP LOCKED`: a row that is in use is left for the next cleanup.
        clean: sql("WITH due AS MATERIALIZED ( \
                 SELECT key FROM {t} WHERE clean_after <= (SELECT {now}) ORDER BY clean_after LIMIT $1 \
                 FOR UPDATE SKIP LOCKED \
             ), moved AS ( \
                 UPDATE {t} SET clean_after = expires_at \
                 WHERE key IN (SELECT key FROM due) AND expires_at > {now} RETURNING false \
             ), deleted AS ( \
                 DELETE FROM {t} WHERE key IN (SELECT key FROM due) AND expires_at <= {now} RETURNING true \
             ) SELECT * FROM deleted UNION ALL SELECT * FROM moved"),
    }
}

#[cfg(test)]
mod tests {
    use idem_testkit::postgres::Postgres;
    use sqlx::postgres::PgConnection;
    use sqlx::{AssertSqlSafe, Connection, Executor};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::PostgresStore;
    use crate::dialect::Value;
    use crate::errors::Step;

    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";

    async fn store(server: &Postgres) -> PostgresStore {
        let store = PostgresStore::connect(&server.url()).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    /// Begins with a key, an owner and a fingerprint that have these bytes, and returns how many rows that gave.
    fn begins(store: &PostgresStore, sql: String, [key, owner, fingerprint]: [u8; 3]) -> JoinHandle<usize> {
        let executor = Arc::clone(store.executor());
        tokio::spawn(async move {
            let (key, owner, fingerprint) = ([key; 32], [owner; 16], [fingerprint; 32]);
            let [key, owner, fingerprint] = [&key[..], &owner, &fingerprint].map(Value::Bytes);
            let values = [key, owner, fingerprint, Value::Number(1), Value::Number(1), Value::Nullable(None)];
            executor.execute(Step::Begin, &sql.into(), &values).await.unwrap().rows.len()
        })
    }

    /// The first of two tries may arrive when the second one has claimed the key and its owner has completed.
    #[tokio::test]
    async fn a_begin_that_is_late_leaves_the_record_of_its_owner() {
        let server = Postgres::quick().await;
        let store = store(&server).await;
        let mut owner = PgConnection::connect(&server.url()).await.unwrap();
        let mut completes = owner.begin().await.unwrap();
        let insert = "INSERT INTO idempotency (key, owner, fingerprint, clean_after, lease_until, expires_at, record) \
             SELECT decode(repeat('01', 32), 'hex'), decode(repeat('02', 16), 'hex'), decode(repeat('03', 32), 'hex'), \
                 later, now(), later, 'record' FROM (SELECT now() + interval '1 hour' AS later) AS times";
        completes.execute(insert).await.unwrap();
        let late = begins(&store, store.executor().statements.begin.to_string(), [1, 2, 3]);
        // Its snapshot has no row, and it waits for what becomes of the one that is in its way.
        server.wait_until(WAITS, "1").await;
        completes.commit().await.unwrap();
        assert_eq!(late.await.unwrap(), 0);
        assert_eq!(server.sql("SELECT convert_from(record, 'UTF8') FROM idempotency").trim(), "record");
    }

    #[tokio::test]
    async fn a_claim_that_waits_for_a_lock_has_its_lease_from_then_on() {
        let server = Postgres::quick().await;
        let store = store(&server).await;
        let begin = || store.executor().statements.begin.to_string();
        assert_eq!(begins(&store, begin(), [1, 2, 3]).await.unwrap(), 1);
        let mut other = PgConnection::connect(&server.url()).await.unwrap();
        let mut in_the_way = other.begin().await.unwrap();
        in_the_way.execute("SELECT FROM idempotency FOR UPDATE").await.unwrap();
        // The first one has expired.
        let waits = begins(&store, begin(), [1, 4, 3]);
        server.wait_until(WAITS, "1").await;
        let now = server.sql("SELECT clock_timestamp()");
        in_the_way.rollback().await.unwrap();
        assert_eq!(waits.await.unwrap(), 1);
        let row = format!("SELECT lease_until > '{0}', expires_at > '{0}' FROM idempotency", now.trim());
        assert_eq!(server.sql(&row).trim(), "t|t");
    }

    #[tokio::test]
    async fn a_cleanup_finds_what_has_expired_by_its_index() {
        let server = Postgres::quick().await;
        let clean = store(&server).await.executor().statements.clean.replace("$1", "10");
        let plan = server.sql(&format!("SET enable_seqscan = off; EXPLAIN {clean}"));
        let by_index = plan.split_once("Index Scan using idempotency_clean_after");
        assert!(by_index.is_some_and(|(_, how)| how.contains("Index Cond: (clean_after <= ")), "{plan}");
    }

    /// After a restart of the server a later session may have the number of ours.
    #[tokio::test]
    async fn a_step_is_cancelled_only_in_a_transaction_that_is_old_enough_to_be_ours() {
        let server = Postgres::quick().await;
        let store = store(&server).await;
        let mut other = PgConnection::connect(&server.url()).await.unwrap();
        let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();
        let runs = tokio::spawn(async move { other.execute("BEGIN; SELECT pg_sleep(60)").await.map(drop) });
        server
            .wait_until(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN%' AND wait_event = 'PgSleep'",
                "1",
            )
            .await;
        let age = server.sql("SELECT (extract(epoch FROM clock_timestamp() - xact_start) * 1000000)::bigint FROM pg_stat_activity WHERE query LIKE 'BEGIN%'");
        let age: i64 = age.trim().parse().unwrap();
        let end = store.executor().statements.end.as_ref().unwrap();
        for (known_for, runs) in [(age + 60_000_000, 0), (age, 1)] {
            let values = [i64::from(session), 1, known_for].map(Value::Number);
            assert_eq!(store.executor().read(Step::Wait, end, &values).await.unwrap().rows.len(), runs, "{known_for}");
        }
        let ended = runs.await.unwrap().unwrap_err();
        assert_eq!(ended.as_database_error().unwrap().code().as_deref(), Some("57014"));
    }

    /// Who finds that a key is locked finds the lock that tells the fingerprint as well.
    #[tokio::test]
    async fn the_lock_of_a_key_is_taken_after_the_one_that_tells_the_fingerprint() {
        let server = Postgres::quick().await;
        let store = store(&server).await;
        let statements = &store.executor().statements;
        let claim = statements.claim_in_transaction.replace("$7", "7").replace("$8", "8");
        let salt = hash(store.location().channel.bytes()).cast_signed();
        let half = |digits: &str| format!("(hashtextextended(repeat('{digits}', 32), {salt}) & 2147483647)::int");
        for sql in [statements.begin.to_string(), claim] {
            let mut other = PgConnection::connect(&server.url()).await.unwrap();
            let mut in_the_way = other.begin().await.unwrap();
            let lock = format!("SELECT pg_advisory_xact_lock({}, {})", half("01"), half("03"));
            in_the_way.execute(AssertSqlSafe(lock)).await.unwrap();
            let begins = begins(&store, sql, [1, 2, 3]);
            server.wait_until(WAITS, "1").await;
            let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1";
            assert_eq!(server.sql(locks).trim(), "0");
            in_the_way.rollback().await.unwrap();
            assert_eq!(begins.await.unwrap(), 1);
            server.sql("TRUNCATE idempotency");
        }
    }
}
