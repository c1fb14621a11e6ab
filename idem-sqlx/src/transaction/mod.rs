//! Claims that are transactions of handlers: the record and what the handler wrote are one commit.
//!
//! A transaction begins with a claim whose lease has ended: the row is seen by others only if the handler commits it, and then its
//! outcome is unknown. What tells others of a key in flight is a lock, and within this process
//! [`Running`](crate::running::Running).

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::remote::jitter;
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{Begin, BeginOptions, Fingerprint, StorageKey, StoreError};
use sqlx::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::dialect::{Dialect, Statements, Value};
use crate::errors::{ConnectionHealth, DatabaseError, Problem, Step};
use crate::execute::key_value;
use crate::rows::{self, BeginRow};
use crate::running::Entered;
use crate::table::Table;

mod caller;
mod claim;
mod commit;
mod open;
mod row;

use row::ClaimRow;

pub(crate) use caller::InCallersTransaction;
pub(crate) use claim::TransactionClaim;
pub(crate) use open::OpenTransaction;

/// How often a key is claimed if, each time, another request changed it.
pub(crate) const MAX_ATTEMPTS: usize = 16;
/// The pause after a failure that another transaction caused.
const PAUSE: Duration = Duration::from_millis(5);

/// The pool of the handlers, in which their transactions are.
pub(crate) struct Transactions<D: Dialect> {
    pool: sqlx::Pool<D>,
    permits: Arc<Semaphore>,
    /// How long a request waits for its turn and a connection. If the turn comes late, it waits up to the store's timeout longer.
    queue_timeout: Duration,
}

impl<D: Dialect> Transactions<D> {
    pub(crate) fn new(pool: sqlx::Pool<D>) -> Self {
        let connections = usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX);
        let permits = Arc::new(Semaphore::new(D::max_transactions(connections).min(Semaphore::MAX_PERMITS)));
        Self { queue_timeout: pool.options().get_acquire_timeout(), permits, pool }
    }

    fn connections(&self) -> usize {
        usize::try_from(self.pool.options().get_max_connections()).unwrap_or(usize::MAX)
    }

    /// Returns whether a transaction that begins now would wait for others, or for the service to return a connection.
    fn must_queue(&self) -> bool {
        let is_pool_busy =
            self.pool.num_idle() == 0 && usize::try_from(self.pool.size()).is_ok_and(|size| size >= self.connections());
        is_pool_busy || self.permits.available_permits() == 0
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = timeout(self.queue_timeout, Arc::clone(&self.permits).acquire_owned()).await;
        let none = || Problem::NoConnection { max_connections: self.connections(), waited: self.queue_timeout };
        permit.map_err(|_| none())?.map_err(|_| none())
    }

    /// Returns a connection of the pool to a request that has waited for its turn.
    async fn connect(&self, table: &Arc<Table<D>>, waited: Duration) -> Result<OpenTransaction<D>, Problem> {
        let start = Instant::now();
        // Under too high a load each turn comes at the last moment, and no request would get anywhere without time for this.
        let least = table.executor.timeout.min(self.queue_timeout);
        let limit = self.queue_timeout.saturating_sub(waited).max(least);
        let acquired = loop {
            let left = limit.saturating_sub(start.elapsed());
            // sqlx asks an idle connection whether it is alive, and waits for its reply without a limit. When this stops waiting, it is closed.
            let this_try = if self.pool.num_idle() == 0 { left } else { left.min(table.executor.timeout / 2) };
            match timeout(this_try, self.pool.acquire()).await {
                Ok(acquired) => break acquired,
                Err(_) if this_try == left => break Err(sqlx::Error::PoolTimedOut),
                Err(_) => {}
            }
        };
        match acquired {
            Ok(connection) => Ok(OpenTransaction::new(table, connection)),
            Err(sqlx::Error::PoolTimedOut) => {
                Err(Problem::NoConnection { max_connections: self.connections(), waited: self.queue_timeout })
            }
            Err(error) => Err(D::problem(error, &table.executor.table)),
        }
    }
}

/// A request for a transaction.
struct Beginner<'a, D: Dialect> {
    table: &'a Arc<Table<D>>,
    transactions: &'a Transactions<D>,
    slot: TransactionSlot,
    row: ClaimRow,
}

impl<D: Dialect> Transactions<D> {
    /// Begins the transaction that `slot` wants, and claims the key in it.
    pub(crate) async fn begin(
        &self,
        table: &Arc<Table<D>>,
        slot: &TransactionSlot,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<TransactionClaim<D>>, StoreError> {
        let row = ClaimRow::new(key, fingerprint, options)?;
        let beginner = Beginner { table, transactions: self, slot: slot.clone(), row };
        let entered = if beginner.slot.is_unkeyed() {
            None
        } else {
            let info = options.info.as_ref();
            let Some(entered) = table.running.enter(key, fingerprint, info) else {
                return Ok(table.begin_beside(key, fingerprint, info).await?);
            };
            Some(entered)
        };
        let begun = beginner.begin(entered).await;
        Ok(begun.map_err(|problem| DatabaseError { step: Step::Begin, problem })?)
    }
}

impl<D: Dialect> Beginner<'_, D> {
    async fn begin(self, entered: Option<Entered>) -> Result<Begin<TransactionClaim<D>>, Problem> {
        let executor = &self.table.executor;
        // A replay need not wait for its turn.
        let must_queue = self.transactions.must_queue();
        if entered.is_some() && (executor.statements.looks_first || must_queue) {
            match self.look().await? {
                Some(BeginRow::Claim { lease_has_expired: true, .. }) | None => {}
                Some(row) => return Ok(self.judge(row)),
            }
        }
        let start = Instant::now();
        let mut guards = Some((entered, self.transactions.permit().await?));
        let waited = start.elapsed();
        let until = Instant::now() + executor.timeout;
        let mut in_the_way = Problem::Contended;
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 0 && Instant::now() >= until {
                break;
            }
            let mut open = self.transactions.connect(self.table, waited).await?;
            let rows = match open.run(self.begin_sql()).await {
                Ok(rows) => rows,
                Err(error) => match self.failed(open, error, &mut in_the_way).await? {
                    Some(row) => return Ok(self.judge(row)),
                    None => continue,
                },
            };
            let mut rows = rows.iter();
            let mut number = |sql: Option<_>| sql.and_then(|_| rows.next()).map(rows::number::<D>).transpose();
            let (session, changes) = (number(D::SESSION)?, number(D::CHANGES)?);
            open.set_begun(session);
            let row = match rows.next() {
                _ if self.slot.is_unkeyed() => Some(BeginRow::Claimed),
                row => row.map(|row| BeginRow::read::<D>(row, &self.row.key)).transpose()?,
            };
            let previous_owner = match row {
                Some(BeginRow::Claimed) => None,
                Some(BeginRow::Claim { owner, fingerprint, lease_has_expired: true })
                    if fingerprint == self.row.fingerprint =>
                {
                    let is_taken_over = self.table.is_taken_over(&self.row.key, open.session()).await;
                    if is_taken_over.map_err(|error| error.problem)? {
                        open.undo().await;
                        return Ok(Begin::InFlight(fingerprint));
                    }
                    if let Some(lock) = lock_sql::<D>(&executor.statements, &self.row.key)
                        && open.run(lock).await.map_err(|error| D::problem(error, &executor.table))?.is_empty()
                    {
                        open.undo().await;
                        sleep(jitter(PAUSE)).await;
                        continue;
                    }
                    Some(owner)
                }
                Some(row) => {
                    open.undo().await;
                    return Ok(self.judge(row));
                }
                None => {
                    open.undo().await;
                    let ClaimRow { key, fingerprint, info, .. } = &self.row;
                    let begun = self.table.begin_beside_holder(key, fingerprint, info.as_ref()).await;
                    match begun.map_err(|error| error.problem)? {
                        Some(begun) => return Ok(begun),
                        // It has ended meanwhile.
                        None => continue,
                    }
                }
            };
            let Some(guards) = guards.take() else { break };
            let mut claim = TransactionClaim::new(self, changes, open, guards);
            if let Some(previous_owner) = previous_owner {
                claim.wait_for_take_over(previous_owner);
                return Ok(Begin::Abandoned(claim));
            }
            claim.hand_over().await.map_err(|error| D::problem(error, &executor.table))?;
            return Ok(Begin::Claimed(claim));
        }
        Err(in_the_way)
    }

    /// Returns the row of the key, if it is not free.
    async fn look(&self) -> Result<Option<BeginRow>, Problem> {
        self.table.look(&self.row.key).await.map_err(|error| error.problem)
    }

    /// Judges an error of the first step, in which nothing can have happened. Returns a row that explains it, or `None` if it is
    /// worth another try, and leaves what was in the way.
    async fn failed(
        &self,
        open: OpenTransaction<D>,
        error: sqlx::Error,
        in_the_way: &mut Problem,
    ) -> Result<Option<BeginRow>, Problem> {
        // A server that was silent for the whole time of a step would get another process from each further try.
        let is_silent = matches!(&error, sqlx::Error::Io(error) if error.kind() == ErrorKind::TimedOut);
        let problem = D::problem(error, &self.table.executor.table);
        // Each request that the database refuses would otherwise cost the pool a connection.
        if problem.connection_health() == ConnectionHealth::Good {
            open.undo().await;
        } else {
            drop(open);
        }
        let may_repeat = match problem {
            Problem::Busy(_) => !self.slot.is_unkeyed(),
            // It may have broken while it was idle, as all others of the pool after a restart of the server.
            Problem::Broken(_) => !is_silent,
            _ => false,
        };
        if !may_repeat {
            return Err(problem);
        }
        *in_the_way = problem;
        sleep(jitter(PAUSE)).await;
        // What was in the way may have had the same key.
        if self.slot.is_unkeyed() { Ok(None) } else { self.look().await }
    }

    /// Returns what a row means to a request that does not get the claim.
    fn judge(&self, row: BeginRow) -> Begin<TransactionClaim<D>> {
        self.table.judge_without_claim(&self.row.key, &self.row.fingerprint, row)
    }

    fn begin_sql(&self) -> String {
        let limit = self.slot.timeout().map(D::limit).unwrap_or_default();
        let mut sql = D::BEGIN.to_owned();
        for number in [D::SESSION, D::CHANGES].into_iter().flatten() {
            sql.push_str("; ");
            sql.push_str(number);
        }
        sql.push_str(&limit);
        if !self.slot.is_unkeyed() {
            sql.push_str("; ");
            sql.push_str(&self.row.claim::<D>(&self.table.executor.statements));
        }
        sql
    }
}

/// Waits for the replies to statements that were given up, whose errors are in the state of the transaction. sqlx would read them before
/// it sends the next statement, and return an error of theirs as if that statement, which it then does not send, had failed.
async fn read_late_replies<D: Dialect>(connection: &mut D::Connection) -> Result<(), sqlx::Error> {
    loop {
        match connection.flush().await {
            // Each is taken out of what has come.
            Err(sqlx::Error::Database(_)) => {}
            ended => return ended,
        }
    }
}

/// Returns a statement that has a row if the transaction has the lock of a key. A retry that is refused has it for a moment, and an
/// abandoned claim is seen all the while: taken over without it, the key would look free to others, who would wait for the row.
fn lock_sql<D: Dialect>(statements: &Statements, key: &StorageKey) -> Option<String> {
    statements.lock.as_ref().map(|lock| fill::<D>(lock, &[key_value(key)]))
}

/// Returns whether the database has rolled the whole transaction back by itself, as SQLite does if a write finds no room on the disk,
/// and nothing was written after that. `claimed` is the number of [`CHANGES`](crate::dialect::sealed::Dialect::CHANGES) after the claim: if it is still
/// the same, no row was changed. If the claim is there, it was committed.
async fn nothing_is_left<D: Dialect>(
    connection: &mut D::Connection,
    table: &Table<D>,
    row: &ClaimRow,
    claimed: Option<i64>,
) -> bool {
    let (Some(changes), Some(claimed)) = (D::CHANGES, claimed) else { return false };
    // Of no owner, since an owner does not see its own claim.
    let look = fill::<D>(&table.executor.statements.look, &[key_value(&row.key), Value::Bytes(&[])]);
    let Ok(rows) = D::run(connection, format!("{changes}; {look}")).await else { return false };
    let changed = rows.first().and_then(|row| rows::number::<D>(row).ok());
    let is_committed = match rows.get(1).map(|found| BeginRow::read::<D>(found, &row.key)) {
        None => false,
        // One that was to be taken over.
        Some(Ok(BeginRow::Claim { owner: found, .. })) => found == row.owner,
        Some(_) => true,
    };
    changed == Some(claimed) && !is_committed
}

/// Returns a statement with its values in it, so that it can be sent together with others.
fn fill<D: Dialect>(sql: &str, values: &[Value<'_>]) -> String {
    let mut filled = String::with_capacity(sql.len() + 64);
    let mut parts = sql.split(D::PARAMETER);
    filled.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(digits);
        let value = number.parse().ok().and_then(|number: usize| values.get(number.wrapping_sub(1)));
        match value {
            Some(Value::Bytes(bytes) | Value::Nullable(Some(bytes))) => filled.push_str(&D::literal(bytes)),
            Some(Value::Nullable(None)) | None => filled.push_str("NULL"),
            Some(Value::Number(number)) => filled.push_str(&number.to_string()),
        }
        filled.push_str(rest);
    }
    filled
}
