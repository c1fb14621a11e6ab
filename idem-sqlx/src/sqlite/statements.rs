//! The statements, each of which is one transaction.

use std::sync::Arc;

use crate::dialect::Statements;

/// Milliseconds since 1970. SQLite reads the clock once for each statement, after it has the lock that it writes under.
const NOW: &str = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";

/// `table` is quoted.
pub(super) fn statements(table: &str) -> Statements {
    let sql = |text: &str| -> Arc<str> { text.replace("{t}", table).replace("{now}", NOW).into() };
    let poll = sql("SELECT lease_until - {now} FROM {t} WHERE key = ?1 AND record IS NULL AND lease_until > {now}");
    // Repeated by the same owner it changes nothing, the expiry included.
    let complete = sql("UPDATE {t} SET record = coalesce(record, ?3), \
             expires_at = CASE WHEN record IS NULL THEN {now} + ?4 ELSE expires_at END \
         WHERE key = ?1 AND owner = ?2 RETURNING 0");
    let look = sql("SELECT owner, fingerprint, record, lease_until <= {now} FROM {t} \
         WHERE key = ?1 AND expires_at > {now} AND NOT (owner = ?2 AND record IS NULL)");
    let begin = sql("INSERT INTO {t} (key, owner, fingerprint, lease_until, expires_at, info) \
         VALUES (?1, ?2, ?3, {now} + ?4, {now} + ?5, ?6) \
         ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, fingerprint = excluded.fingerprint, \
             lease_until = excluded.lease_until, expires_at = excluded.expires_at, record = NULL, \
             info = excluded.info, replays = 0 \
         WHERE expires_at <= {now} OR (owner = excluded.owner AND record IS NULL) \
         RETURNING NULL, NULL, NULL, NULL");
    // The claim has no row if the key is not free.
    let claim_in_transaction = format!("{begin}; {look}").into();
    Statements {
        // Reading needs no lock, so a retry gets its replay while others write.
        look,
        looks_first: true,
        holder: None,
        lock: None,
        idle: None,
        end: None,
        // One statement takes the lock to write at once. Reading first and writing then, in one transaction, would be
        // refused (SQLITE_BUSY) if another process has written in between, and no timeout helps against that.
        begin,
        claim_in_transaction,
        renew: sql("UPDATE {t} SET lease_until = {now} + ?3, expires_at = {now} + ?4 \
             WHERE key = ?1 AND owner = ?2 AND record IS NULL RETURNING 1"),
        take_over: sql(
            "UPDATE {t} SET owner = ?2, info = coalesce(?7, info), lease_until = {now} + ?3, expires_at = {now} + ?4 \
             WHERE key = ?1 AND record IS NULL AND fingerprint = ?6 \
                 AND (owner = ?2 OR (owner = ?5 AND lease_until <= {now})) RETURNING 1",
        ),
        complete_in_transaction: Arc::clone(&complete),
        complete,
        release: sql("DELETE FROM {t} WHERE key = ?1 AND owner = ?2 AND record IS NULL RETURNING 0"),
        forget: sql("DELETE FROM {t} WHERE key = ?1 AND (record IS NOT NULL OR lease_until <= {now}) RETURNING 0"),
        forget_unlocked: None,
        notify: None,
        inspect: sql(
            "SELECT fingerprint, record, lease_until <= {now}, info, lease_until, expires_at, replays FROM {t} \
             WHERE key = ?1 AND expires_at > {now}",
        ),
        // Along the primary key, so that a page reads a limited number of rows.
        unknown: sql("WITH part AS ( \
                 SELECT key, fingerprint, info, lease_until, expires_at, replays, \
                     record IS NULL AND lease_until <= {now} AND expires_at > {now} AS is_unknown \
                 FROM {t} WHERE key > ?1 ORDER BY key LIMIT ?2 \
             ) \
             SELECT fingerprint, NULL, 1, info, lease_until, expires_at, replays, key, is_unknown FROM part \
             WHERE is_unknown OR key = (SELECT key FROM part ORDER BY key DESC LIMIT 1) ORDER BY key"),
        revoke: sql("UPDATE {t} SET owner = ?2, lease_until = {now} \
             WHERE key = ?1 AND record IS NULL AND (lease_until > {now} OR owner = ?2) RETURNING 1"),
        count: sql("UPDATE {t} SET replays = replays + ?3 WHERE key = ?1 AND owner = ?2 RETURNING 1"),
        wait: Arc::clone(&poll),
        poll,
        clean: sql("DELETE FROM {t} WHERE rowid IN \
                 (SELECT rowid FROM {t} WHERE expires_at <= {now} ORDER BY expires_at LIMIT ?1) RETURNING 1"),
    }
}
