//! The statements, each of which is one transaction under READ COMMITTED.

use std::sync::Arc;

use crate::dialect::Statements;

/// Time is `clock_timestamp()`, which goes on within a statement: `now()` would not move while it waits for a lock, and
/// the times of concurrent statements would not agree.
const NOW: &str = "clock_timestamp()";

/// The channel on which the end of a claim is notified. Names are long and channels are not, so it has a hash of them; if
/// two tables share one, a waiter is woken in vain.
pub(super) fn channel(schema: &str, table: &str) -> String {
    let bytes = schema.bytes().chain([b'.']).chain(table.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("idem_{hash:016x}")
}

/// `table` is quoted and `channel` needs no quotes.
pub(super) fn statements(table: &str, channel: &str) -> Statements {
    let sql = |text: &str| -> Arc<str> { text.replace("{t}", table).replace("{now}", NOW).into() };
    // PostgreSQL makes all transactions that notify commit one after the other, so only the ends of awaited claims are notified.
    let notify = format!(
        "SELECT CASE WHEN awaited THEN pg_notify('{channel}', encode(key, 'hex')) IS NOT NULL ELSE true END FROM done"
    );
    Statements {
        look: None,
        // `held` reads an existing row without a lock and without a write. If there is none, `begun` is the one step that
        // decides. Neither gives a row if another statement has just won: the statement does not see the row that
        // it had to wait for, and the next one will.
        begin: sql("WITH held AS ( \
                 SELECT owner, fingerprint, record, lease_until <= {now} AS lapsed FROM {t} \
                 WHERE key = $1 AND expires_at > {now} AND NOT (owner = $2 AND record IS NULL) \
             ), begun AS ( \
                 INSERT INTO {t} AS old (key, owner, fingerprint, lease_until, expires_at, info) \
                 SELECT $1::bytea, $2::bytea, $3::bytea, {now} + $4::bigint * interval '1 microsecond', \
                     {now} + $5::bigint * interval '1 microsecond', $6::bytea \
                 WHERE NOT EXISTS (SELECT FROM held) \
                 ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, fingerprint = excluded.fingerprint, \
                     lease_until = {now} + $4::bigint * interval '1 microsecond', \
                     expires_at = {now} + $5::bigint * interval '1 microsecond', awaited = false, record = NULL, \
                     info = excluded.info, replays = 0 \
                 WHERE old.expires_at <= {now} OR (old.owner = excluded.owner AND old.record IS NULL) \
                 RETURNING 1 \
             ) \
             SELECT NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean FROM begun \
             UNION ALL SELECT owner, fingerprint, record, lapsed FROM held"),
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
        complete: sql(&format!(
            "WITH done AS ( \
                 UPDATE {{t}} SET record = coalesce(record, $3), info = NULL, expires_at = CASE WHEN record IS NULL \
                     THEN {{now}} + $4 * interval '1 microsecond' ELSE expires_at END \
                 WHERE key = $1 AND owner = $2 RETURNING key, awaited \
             ) {notify}"
        )),
        release: sql(&format!(
            "WITH done AS ( \
                 DELETE FROM {{t}} WHERE key = $1 AND owner = $2 AND record IS NULL RETURNING key, awaited \
             ) {notify}"
        )),
        forget: sql(&format!(
            "WITH done AS ( \
                 DELETE FROM {{t}} WHERE key = $1 AND (record IS NOT NULL OR lease_until <= {{now}}) \
                 RETURNING key, awaited \
             ) {notify}"
        )),
        // Counted from the epoch in whole microseconds, as `bigint`, which no rounding changes.
        inspect: sql("SELECT fingerprint, record, lease_until <= {now}, info, \
                 (extract(epoch FROM lease_until) * 1000000)::bigint, \
                 (extract(epoch FROM expires_at) * 1000000)::bigint, replays \
             FROM {t} WHERE key = $1 AND expires_at > {now}"),
        count: sql(
            "UPDATE {t} SET replays = replays + $3 WHERE key = $1 AND owner = $2 AND record IS NOT NULL RETURNING 1",
        ),
        wait: sql("UPDATE {t} SET awaited = true WHERE key = $1 AND record IS NULL AND lease_until > {now} \
             RETURNING (extract(epoch FROM lease_until - {now}) * 1000)::bigint"),
        poll: sql("SELECT (extract(epoch FROM lease_until - {now}) * 1000)::bigint FROM {t} \
             WHERE key = $1 AND record IS NULL AND lease_until > {now}"),
        // The time is asked for once, so that the index can be used; and again of each row, since a `begin` may have taken
        // it meanwhile. `SKIP LOCKED`: a row that is in use is left for the next cleanup.
        clean: sql("WITH expired AS MATERIALIZED ( \
                 SELECT key FROM {t} WHERE expires_at <= (SELECT {now}) ORDER BY expires_at LIMIT $1 \
                 FOR UPDATE SKIP LOCKED \
             ) DELETE FROM {t} WHERE key IN (SELECT key FROM expired) AND expires_at <= {now} RETURNING 1"),
    }
}
