//! Running a statement: again if need be, and within a time.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::StorageKey;
use idem_runtime::remote::{InDoubt, jitter};
use tokio::time::{Instant, sleep, timeout_at};

use crate::dialect::{Dialect, Statements, Value};
use crate::errors::{ConnectionHealth, DatabaseError, Problem, Step};
use crate::hosts::refined;
use crate::pool::{Pool, PooledConnection};

/// The pause before a second try; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// Returns how long the database may let a statement wait for others. It is a little less than the store waits for a reply, so that
/// the reply is read: the connection is then in order, and the step not in doubt.
pub(crate) fn lock_wait(timeout: Duration) -> Duration {
    timeout * 9 / 20
}

/// Runs the statements of a store.
pub(crate) struct Executor<D: Dialect> {
    pub(crate) statements: Statements,
    pub(crate) pool: Pool<D>,
    /// Connections that only read, if the database has any use for them.
    pub(crate) readers: Option<Pool<D>>,
    /// The table, as it is named in SQL.
    pub(crate) table: String,
    /// How long a step may take, pauses included.
    pub(crate) timeout: Duration,
}

/// The rows of a statement.
pub(crate) struct Rows<R> {
    pub(crate) rows: Vec<R>,
    /// The statement was tried before, and that try may have taken effect.
    pub(crate) repeated: bool,
}

impl<D: Dialect> Executor<D> {
    /// Runs a statement.
    pub(crate) async fn execute(
        &self,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Rows<D::Row>, DatabaseError> {
        self.run(&self.pool, step, sql, values, &InDoubt::default()).await
    }

    /// Runs a statement that only reads.
    pub(crate) async fn read(
        &self,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Rows<D::Row>, DatabaseError> {
        self.run(self.readers.as_ref().unwrap_or(&self.pool), step, sql, values, &InDoubt::default()).await
    }

    /// Runs a statement, and keeps `in_doubt` right however that ends.
    pub(crate) async fn execute_in_doubt(
        &self,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
        in_doubt: &InDoubt,
    ) -> Result<Rows<D::Row>, DatabaseError> {
        self.run(&self.pool, step, sql, values, in_doubt).await
    }

    async fn run(
        &self,
        pool: &Pool<D>,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
        in_doubt: &InDoubt,
    ) -> Result<Rows<D::Row>, DatabaseError> {
        let until = Instant::now() + self.timeout;
        let mut pause = FIRST_PAUSE;
        let mut earlier = None;
        loop {
            let pooled = pool.acquire(until, self.timeout).await;
            let start = Instant::now();
            let tried = match pooled {
                Ok(pooled) => self.run_once(pool, pooled, until, sql, values, in_doubt).await,
                Err(problem) => Err(refined::<D>(problem, &self.table)),
            };
            let problem = match tried {
                Ok(rows) => return Ok(Rows { rows, repeated: in_doubt.get() }),
                Err(problem) => problem.or_earlier(earlier.take()),
            };
            // Another try would wait until the time of the step has run out, and be in doubt.
            let is_late = matches!(problem, Problem::Busy(_)) && Instant::now() + start.elapsed() > until;
            let may_repeat = problem.is_transient() && !is_late && !(step.adds() && in_doubt.get());
            if !may_repeat || Instant::now() + pause >= until {
                return Err(DatabaseError { step, problem });
            }
            earlier = Some(problem);
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// One try takes at most half of the time, so that a silent connection leaves time for a new one.
    async fn run_once(
        &self,
        pool: &Pool<D>,
        mut pooled: PooledConnection<D>,
        until: Instant,
        sql: &Arc<str>,
        values: &[Value<'_>],
        in_doubt: &InDoubt,
    ) -> Result<Vec<D::Row>, Problem> {
        let this_try = until.min(Instant::now() + self.timeout / 2);
        let earlier = in_doubt.set(true);
        let problem = match timeout_at(this_try, D::fetch(pooled.connection_for(sql), sql, values)).await {
            Ok(Ok(rows)) => {
                in_doubt.set(earlier);
                pooled.put_back();
                return Ok(rows);
            }
            Ok(Err(error)) => {
                pooled.replied();
                D::problem(error, &self.table)
            }
            Err(_) => Problem::TimedOut { waited: self.timeout },
        };
        if !problem.leaves_doubt() {
            in_doubt.set(earlier);
        }
        pool.note_trouble(&problem);
        match problem.connection_health() {
            ConnectionHealth::Good => pooled.put_back(),
            ConnectionHealth::Broken => drop(pooled),
            ConnectionHealth::AllSuspect => pool.close_idle(),
        }
        Err(problem)
    }
}

pub(crate) fn key_value(key: &StorageKey) -> Value<'_> {
    Value::Bytes(key.as_bytes())
}
