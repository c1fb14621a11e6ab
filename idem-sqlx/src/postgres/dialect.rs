//! The dialect of PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::remote::{Listener, Waiters};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgRow, PgSeverity, PgValueFormat};
use sqlx::{AssertSqlSafe, Connection, Postgres, Row, ValueRef};

use super::listen::listen;
use super::statements::{CLAIM, COMPLETE};
use super::{Location, migrations};
use crate::dialect::{TransactionState, Value, hex, sealed};
use crate::errors::{MigrateError, Problem};

/// The process of a connection, and when it started: another process may get its number later.
#[derive(Debug)]
pub struct Session {
    process: i32,
    started: i64,
}

const GREET: &str = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint, \
     current_setting('synchronous_commit'), current_setting('transaction_isolation'), \
     current_setting('transaction_read_only') \
     FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// The server cuts the texts that it shows. With `track_activities = off` it shows none, only whether a process waits for its client:
/// what the process runs may be of another client of a proxy, and is not cancelled.
const CANCEL: &str = "SELECT CASE state WHEN 'active' THEN pg_cancel_backend(pid) END FROM pg_stat_activity \
     WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2 \
         AND (state = 'active' AND starts_with($3, query) \
             OR state = 'disabled' AND wait_event IS DISTINCT FROM 'ClientRead')";

/// Reads bytes as a session with `bytea_output = 'escape'` writes them: a backslash twice, a byte that is not printed by three octal
/// digits after a backslash, and every other byte as it is.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
        } else if let Some(after) = rest.strip_prefix(b"\\") {
            bytes.push(b'\\');
            rest = after;
        } else {
            let (digits, after) = rest.split_at_checked(3)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
            rest = after;
        }
    }
    Some(bytes)
}

/// Returns whether the server crashed, or the session ended by a failure of the server or of a proxy. What was sent may have taken effect
/// nevertheless: a server whose disk is full may crash when it has written a commit.
fn ended_in_doubt(error: &sqlx::Error, code: Option<&str>) -> bool {
    let refused = error.as_database_error().and_then(|refused| refused.try_downcast_ref::<PgDatabaseError>());
    match refused.map(PgDatabaseError::severity) {
        Some(PgSeverity::Panic) => true,
        // System error, internal error. The others refuse a new session, or are judged by their codes.
        Some(PgSeverity::Fatal) => code.is_some_and(|code| code.starts_with("58") || code.starts_with("XX")),
        _ => false,
    }
}

/// Returns whether an error names a function of the table, and not one that a trigger of the service calls.
fn names_function_of(error: &sqlx::Error, table: &str) -> bool {
    let table = table.replace('"', "");
    let names = |message: &str| [CLAIM, COMPLETE].iter().any(|suffix| message.contains(&format!("{table}{suffix}(")));
    error.as_database_error().is_some_and(|refused| names(refused.message()))
}

impl sealed::Dialect for Postgres {
    const STORE: &'static str = "PostgresStore";

    const TICK: Duration = Duration::from_micros(1);

    type Location = Location;

    type Session = Session;

    fn address(options: &PgConnectOptions) -> String {
        match options.get_socket() {
            Some(socket) => format!("{}:{}", socket.display(), options.get_port()),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        }
    }

    async fn greet(
        connection: &mut PgConnection,
        must_take_writes: bool,
    ) -> Result<Result<Session, Problem>, sqlx::Error> {
        let row = sqlx::raw_sql(GREET).fetch_one(connection).await?;
        let (commit, isolation, read_only): (String, String, String) =
            (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        // On a standby it is on.
        if must_take_writes && read_only == "on" {
            return Ok(Err(Problem::ReadOnly));
        }
        // `local` and `remote_write` do not wait until a standby has it.
        if commit != "on" && commit != "remote_apply" {
            return Ok(Err(Problem::Setting(
                "`synchronous_commit` is not `on` on a new connection, so a claim that was acknowledged could be lost. A \
                 proxy in between drops what the store sets: run ALTER ROLE .. SET synchronous_commit = on",
            )));
        }
        if isolation != "read committed" {
            return Ok(Err(Problem::Setting(
                "a new connection is not in READ COMMITTED, so requests for one key would fail. A proxy in between drops \
                 what the store sets: run ALTER ROLE .. SET default_transaction_isolation = 'read committed'",
            )));
        }
        Ok(Ok(Session { process: row.try_get(0)?, started: row.try_get(1)? }))
    }

    /// Over another connection. The text of the statement is compared, since behind a proxy the process may work for another client
    /// by now. If the session is idle, its reply was lost or the statement never arrived. After a failover to another host the
    /// session is not there, and is not waited for.
    async fn cancel(
        connect: impl Future<Output = Result<PgConnection, Problem>> + Send,
        session: &Session,
        sql: &Arc<str>,
    ) -> Result<bool, Problem> {
        let mut connection = connect.await?;
        let ask = async {
            let cancel = sqlx::query(CANCEL).bind(session.process).bind(session.started).bind(&**sql);
            let cancelled = cancel.fetch_optional(&mut connection).await?;
            connection.close().await?;
            Ok(cancelled.is_some())
        };
        ask.await.map_err(Problem::Refused)
    }

    async fn fetch(
        connection: &mut PgConnection,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        // Only checked names are put into these texts.
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
        for value in values {
            query = match *value {
                Value::Bytes(bytes) => query.bind(bytes),
                Value::Nullable(bytes) => query.bind(bytes),
                Value::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(connection).await
    }

    fn bytes(row: &PgRow, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
        let value = row.try_get_raw(column)?;
        // In hexadecimal digits, they start with `\x`. In the other format no `x` follows a backslash.
        match value.as_str() {
            Ok(text) if value.format() == PgValueFormat::Text && !value.is_null() && !text.starts_with("\\x") => {
                unescaped(text).map(Some).ok_or_else(|| sqlx::Error::Decode("bytes in an unknown format".into()))
            }
            _ => row.try_get(column),
        }
    }

    fn number(row: &PgRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(column)
    }

    fn boolean(row: &PgRow, column: usize) -> Result<Option<bool>, sqlx::Error> {
        row.try_get(column)
    }

    fn problem(error: sqlx::Error, table: &str) -> Problem {
        let code = match &error {
            sqlx::Error::Database(refused) => refused.code(),
            sqlx::Error::Io(_) => return Problem::Broken(error),
            _ => return Problem::Refused(error),
        };
        if ended_in_doubt(&error, code.as_deref()) {
            return Problem::Broken(error);
        }
        match code.as_deref() {
            // Serialization failure, deadlock, lock not available, cancelled by its time limit: rolled back, all of them.
            Some("40001" | "40P01" | "55P03" | "57014") => Problem::Busy(error),
            // Shut down, crashed, starting up, idle or open for too long, and failures of the connection: this connection cannot be used
            // again.
            Some("57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04") => Problem::Broken(error),
            Some(code) if code.starts_with("08") => Problem::Broken(error),
            // A prepared statement that does not exist or exists already, or whose plan no longer fits the table.
            Some("26000" | "42P05" | "0A000") => Problem::Stale(error),
            Some("42P01" | "3F000") => Problem::TableMissing { table: table.to_owned() },
            Some("42883") if names_function_of(&error, table) => Problem::TableMissing { table: table.to_owned() },
            Some("25006") => Problem::ReadOnly,
            Some("53100") => Problem::Full(error),
            _ => Problem::Refused(error),
        }
    }

    async fn migrate(location: &Location) -> Result<(), MigrateError> {
        migrations::run(location).await
    }

    const BEGIN: &'static str = "BEGIN";

    const SESSION: Option<&'static str> = Some("SELECT pg_backend_pid()::bigint");

    const CHANGES: Option<&'static str> = None;

    const COMMIT: &'static str = "COMMIT AND CHAIN";

    const ROLLBACK: &'static str = "ROLLBACK AND CHAIN";

    const HAS_ONE_WRITER: bool = false;

    /// The server, by the moment at which it started, and the database in it. As a number, which no setting of a session changes.
    const DATABASE: &'static str = "SELECT convert_to( \
             (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text || ' ' || current_database(), 'UTF8' \
         )";

    const PARAMETER: char = '$';

    const STEP_TIMEOUT: Duration = Duration::from_secs(5);

    /// A quarter is left, so that handlers may use the pool as well.
    fn max_transactions(connections: usize) -> usize {
        connections.saturating_sub(connections.div_ceil(4)).max(1)
    }

    fn literal(bytes: &[u8]) -> String {
        // As an escape string, which does not depend on `standard_conforming_strings`.
        format!("E'\\\\x{}'::bytea", hex(bytes))
    }

    fn limit(timeout: Duration) -> String {
        format!("; SET LOCAL statement_timeout = {}", timeout.as_millis().clamp(1, 2_147_483_647))
    }

    async fn run(connection: &mut PgConnection, sql: String) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await
    }

    /// Insufficient resources, system error, internal error.
    fn is_own_failure(error: &sqlx::Error) -> bool {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| ["53", "58", "XX"].iter().any(|class| code.starts_with(class)))
    }

    fn transaction_state(error: &sqlx::Error) -> TransactionState {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            Some("25P01" | "3B001") => TransactionState::Gone,
            Some("25P02") => TransactionState::Aborted,
            _ => TransactionState::Open,
        }
    }

    fn ensure_listening(listener: &Listener, location: &Arc<Location>, waiters: &Arc<Waiters>) {
        listener.ensure_running(|| listen(Arc::clone(location), Arc::clone(waiters)));
    }
}

#[cfg(test)]
mod tests {
    use idem_testkit::postgres::Postgres as Server;
    use tokio::time::Instant;

    use super::*;
    use crate::dialect::sealed::Dialect;
    use crate::errors::ConnectionHealth;
    use crate::hosts::{Hosts, OptionsFrom};
    use crate::raised::raised;

    /// The clock of the database leaves a part of a tick out, at both ends of the time that has passed.
    #[test]
    fn a_time_is_rounded_up_and_has_one_tick_more() {
        for (nanos, ticks) in [(0, 1), (1, 2), (1000, 2), (1001, 3)] {
            assert_eq!(Postgres::ticks(Duration::from_nanos(nanos)), ticks, "{nanos} ns");
        }
        assert_eq!(Postgres::ticks(Duration::MAX), i64::MAX);
    }

    /// Behind a proxy the process of a statement that timed out may work for another client by now.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_is_cancelled_only_if_its_process_still_runs_it() {
        let server = Server::quick().await;
        let hosts = Hosts::<Postgres>::new(OptionsFrom::Hosts(vec![server.url().parse().unwrap()]), |options| options);
        let within = Duration::from_secs(10);
        let connect = || hosts.connect(Instant::now() + within, within);
        let (mut connection, session) = connect().await.unwrap();
        let (ours, other): (Arc<str>, Arc<str>) = ("SELECT pg_sleep(60)".into(), "SELECT 1".into());
        let earlier = Session { started: session.started - 1, ..session };
        let runs = tokio::spawn({
            let ours = Arc::clone(&ours);
            async move { Postgres::fetch(&mut connection, &ours, &[]).await.map(drop) }
        });
        let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)'";
        while server.sql(running).trim() == "0" {
            assert!(!runs.is_finished(), "the statement takes a minute");
        }
        let another = async || Ok(connect().await?.0);
        for (session, sql, cancelled) in [(&session, &other, false), (&earlier, &ours, false), (&session, &ours, true)]
        {
            assert_eq!(Postgres::cancel(another(), session, sql).await.unwrap(), cancelled, "{session:?} {sql}");
        }
        let ended = runs.await.unwrap().unwrap_err();
        assert_eq!(ended.as_database_error().unwrap().code().as_deref(), Some("57014"));
    }

    /// What becomes of the connections, whether the step is tried again, and whether it may have taken effect.
    fn follows(error: sqlx::Error) -> (ConnectionHealth, bool, bool) {
        let problem = Postgres::problem(error, "t");
        (problem.connection_health(), problem.is_transient(), problem.leaves_doubt())
    }

    #[test]
    fn bytes_are_read_in_the_escape_format() {
        assert_eq!(unescaped(""), Some(vec![]));
        assert_eq!(unescaped("a\\\\x\\000\\377\\\\\\\\"), Some(b"a\\x\x00\xff\\\\".to_vec()));
        for bad in ["\\", "\\12", "\\400", "\\x61", "\\0é"] {
            assert_eq!(unescaped(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_function_that_is_missing_is_of_the_table_or_of_a_trigger() {
        for (message, of_the_table) in [
            ("function public.t_claim(bytea, bytea) does not exist", true),
            ("function public.t_complete(bytea, bytea) does not exist", true),
            ("function public.audit(text) does not exist", false),
        ] {
            let problem = Postgres::problem(raised("42883", message), "\"public\".\"t\"");
            assert_eq!(matches!(problem, Problem::TableMissing { .. }), of_the_table, "{message}");
        }
    }

    #[test]
    fn a_server_that_fails_is_told_from_a_statement_that_is_wrong() {
        for (code, fails) in [("53200", true), ("58030", true), ("XX001", true), ("23505", false), ("P0001", false)] {
            assert_eq!(Postgres::is_own_failure(&raised(code, "as asked")), fails, "{code}");
        }
    }

    #[test]
    fn a_connection_is_reused_only_if_its_error_allows_that() {
        let raised = |code| raised(code, "as asked");
        for code in ["42P01", "53100", "23505", "42501"] {
            assert_eq!(follows(raised(code)), (ConnectionHealth::Good, false, false), "{code}");
        }
        assert_eq!(follows(raised("40001")), (ConnectionHealth::Good, true, false));
        for code in ["25006", "26000", "0A000"] {
            assert_eq!(follows(raised(code)), (ConnectionHealth::AllSuspect, true, false), "{code}");
        }
        for code in ["57P01", "25P03", "08006"] {
            assert_eq!(follows(raised(code)), (ConnectionHealth::AllSuspect, true, true), "{code}");
        }
        assert_eq!(follows(std::io::Error::other("reset").into()), (ConnectionHealth::AllSuspect, true, true));
        for error in [sqlx::Error::Protocol("out of step".into()), sqlx::Error::WorkerCrashed] {
            assert_eq!(follows(error), (ConnectionHealth::Broken, false, true));
        }
    }
}
