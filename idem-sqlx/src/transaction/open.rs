//! A connection within a transaction.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::read_late_replies;
use crate::dialect::{Dialect, TransactionState, Value};
use crate::errors::Step;
use crate::table::Table;

/// The pause before the server is asked what became of a step; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A connection within a transaction. If it is dropped, the connection is closed, and the database rolls back. If a step has not
/// ended, it first keeps its place in the pool until it has: each try would leave another process of the server behind. The first step
/// keeps none, since its session is not known yet; the server limits how long that step waits for a lock.
pub(crate) struct OpenTransaction<D: Dialect> {
    table: Arc<Table<D>>,
    connection: Option<PoolConnection<D>>,
    /// See [`SESSION`](crate::dialect::sealed::Dialect::SESSION). `None` also until it is known.
    session: Option<i64>,
    /// Since when the transaction is known to have begun.
    begun: Instant,
    sent: Option<Sent>,
}

/// A step that was sent, until its reply has come.
#[derive(Clone, Copy, PartialEq)]
enum Sent {
    /// It leaves the transaction open, and may be cancelled.
    Within,
    /// It ends the transaction. A commit that is cancelled may have taken effect, and behind a proxy the session may be another
    /// client's by then.
    Last,
}

impl<D: Dialect> OpenTransaction<D> {
    pub(super) fn new(table: &Arc<Table<D>>, connection: PoolConnection<D>) -> Self {
        Self {
            table: Arc::clone(table),
            connection: Some(connection),
            session: None,
            begun: Instant::now(),
            sent: None,
        }
    }

    /// Sets the session in which the transaction has begun.
    pub(super) fn set_begun(&mut self, session: Option<i64>) {
        (self.session, self.begun) = (session, Instant::now());
    }

    pub(super) fn session(&self) -> Option<i64> {
        self.session
    }

    /// Returns the session, and since when its transaction is known.
    fn known_session(&self) -> Option<(i64, Instant)> {
        self.session.map(|session| (session, self.begun))
    }

    #[allow(clippy::expect_used, reason = "only `put_back` and `drop` take it")]
    pub(crate) fn connection(&self) -> &D::Connection {
        self.connection.as_ref().expect("a connection")
    }

    #[allow(clippy::expect_used, reason = "only `put_back` and `drop` take it")]
    pub(crate) fn connection_mut(&mut self) -> &mut D::Connection {
        self.connection.as_mut().expect("a connection")
    }

    /// Runs statements.
    pub(super) async fn run(&mut self, sql: String) -> Result<Vec<D::Row>, sqlx::Error> {
        self.step(sql, Sent::Within).await
    }

    /// Runs statements of which the last one ends the transaction. If they undo what the handler wrote, a statement that it gave up is
    /// cancelled first. Otherwise its end is waited for.
    pub(super) async fn run_last(&mut self, sql: String, undoes: bool) -> Result<Vec<D::Row>, sqlx::Error> {
        if undoes {
            self.end_given_up().await?;
        }
        self.step(sql, Sent::Last).await
    }

    /// Waits for the replies to statements that the handler gave up, and has the server cancel them.
    async fn end_given_up(&mut self) -> Result<(), sqlx::Error> {
        self.sent = Some(Sent::Within);
        let (table, session) = (Arc::clone(&self.table), self.known_session());
        let ended = async {
            let mut replies = pin!(read_late_replies::<D>(self.connection_mut()));
            loop {
                tokio::select! {
                    // Usually there are none.
                    biased;
                    replied = &mut replies => return replied,
                    () = sleep(FIRST_PAUSE) => {}
                }
                // To its end: what is sent later must not be cancelled.
                has_ended(&table, session, Sent::Within).await;
            }
        };
        timeout(D::STEP_TIMEOUT, ended).await.unwrap_or_else(|_| Err(timed_out()))
    }

    async fn step(&mut self, sql: String, sent: Sent) -> Result<Vec<D::Row>, sqlx::Error> {
        // A statement of the handler that is waited for may be cancelled.
        self.sent = Some(Sent::Within);
        let step = async {
            read_late_replies::<D>(self.connection_mut()).await?;
            self.sent = Some(sent);
            D::run(self.connection_mut(), sql).await
        };
        let rows = timeout(D::STEP_TIMEOUT, step).await.map_err(|_| timed_out())?;
        self.sent = None;
        rows
    }

    /// Begins what the handler may roll back. By sqlx, which then counts one transaction: a `begin` of the handler is a savepoint.
    pub(super) async fn savepoint(&mut self, name: &str) -> Result<(), sqlx::Error> {
        // The name is made here.
        let savepoint = AssertSqlSafe(format!("SAVEPOINT {name}")).into_sql_str();
        self.sent = Some(Sent::Within);
        let begun = D::TransactionManager::begin(self.connection_mut(), Some(savepoint));
        let begun = timeout(D::STEP_TIMEOUT, begun).await.map_err(|_| timed_out())?;
        self.sent = None;
        begun
    }

    /// Rolls back, and returns the connection to its pool. It has no savepoint yet. If that fails, or a step was cancelled, the
    /// connection is closed.
    pub(super) async fn undo(mut self) {
        if self.sent.is_some() {
            return;
        }
        let is_undone = match self.run_last("ROLLBACK".to_owned(), true).await {
            Ok(_) => true,
            // It did not even begin.
            Err(error) => D::transaction_state(&error) == TransactionState::Gone,
        };
        if is_undone && let Some(connection) = self.connection.take() {
            return_to_pool(connection);
        }
    }

    /// Returns the connection to its pool, after [`COMMIT`](crate::dialect::sealed::Dialect::COMMIT) or
    /// [`ROLLBACK`](crate::dialect::sealed::Dialect::ROLLBACK).
    pub(super) fn put_back(mut self) {
        // Otherwise the handler forgot a nested transaction.
        if D::TransactionManager::get_transaction_depth(self.connection()) == 1 {
            // Ends the empty transaction. It is sent before anything else, and the pool waits for it.
            D::TransactionManager::start_rollback(self.connection_mut());
            if let Some(connection) = self.connection.take() {
                return_to_pool(connection);
            }
        }
    }
}

impl<D: Dialect> Drop for OpenTransaction<D> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        match (self.sent, Handle::try_current()) {
            // A session that is not known yet cannot be asked for.
            (Some(sent), Ok(runtime)) if self.session.is_some() || D::SESSION.is_none() => {
                let session = self.known_session();
                drop(runtime.spawn(end(Arc::clone(&self.table), connection, session, sent)));
            }
            _ => drop(connection.detach()),
        }
    }
}

/// Returns a connection to its pool. sqlx calls the pool's `after_release` first and asks the connection whether it is alive, and waits
/// without a limit. When this stops waiting, the connection is closed, and its place in the pool is free.
fn return_to_pool<D: Dialect>(mut connection: PoolConnection<D>) {
    if let Ok(runtime) = Handle::try_current() {
        let returned = connection.return_to_pool();
        drop(runtime.spawn(async move {
            let _ = timeout(D::STEP_TIMEOUT, returned).await;
            // It is empty by now. The pool makes another connection if it has too few.
            drop(connection);
        }));
    }
}

/// Keeps the place of a connection in its pool until the server has ended the step that was sent. `session` is the session and since when
/// its transaction is known.
async fn end<D: Dialect>(
    table: Arc<Table<D>>,
    mut connection: PoolConnection<D>,
    session: Option<(i64, Instant)>,
    sent: Sent,
) {
    let ended = async {
        let mut pause = FIRST_PAUSE;
        sleep(pause).await;
        // If it runs nothing, its reply was lost.
        while !has_ended(&table, session, sent).await {
            pause = (pause * 2).min(MAX_PAUSE);
            sleep(pause).await;
        }
    };
    // The ping is replied to after the step; if the connection is broken, it fails.
    tokio::select! {
        _ = connection.ping() => {}
        () = ended => {}
        () = table.pool_closed() => {}
    }
    drop(connection.detach());
}

/// Asks whether the server runs nothing in a session, and has it cancel what it runs if that may be.
async fn has_ended<D: Dialect>(table: &Table<D>, session: Option<(i64, Instant)>, sent: Sent) -> bool {
    let executor = &table.executor;
    let (Some(end), Some((session, begun))) = (&executor.statements.end, session) else { return false };
    // A part less, since the clock of the server may be slower.
    let age = i64::try_from((begun.elapsed() * 9 / 10).as_micros()).unwrap_or(i64::MAX);
    let values = [Value::Number(session), Value::Number(i64::from(sent == Sent::Within)), Value::Number(age)];
    executor.read(Step::Wait, end, &values).await.is_ok_and(|running| running.rows.is_empty())
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no reply from the database in time"))
}
