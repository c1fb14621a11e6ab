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
        // With `track_activities = off` the server shows only whether a session waits for its client: it is waited for, and not cancelled.
        end: Some(sql(
            "SELECT CASE WHEN $2::bigint = 1 AND state = 'active' THEN pg_cancel_backend(pid) END FROM pg_stat_activity \
             WHERE pid = $1::bigint \
                 AND (state = 'active' OR state = 'disabled' AND wait_event IS DISTINCT FROM 'ClientRead')",
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
        claim: Some(sql("SELECT NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean \
             WHERE {claim}($1, $2, $3, $4, $5, $6, $7, $8, {salt})")),
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
        count: sql(
            "UPDATE {t} SET replays = replays + $3 WHERE key = $1 AND owner = $2 AND record IS NOT NULL RETURNING 1",
        ),
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
