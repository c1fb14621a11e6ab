//! What the stores need of a database, and how they ask it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tokio::time::{Instant, sleep, timeout_at};

use crate::errors::{DatabaseError, Problem, Spoils, Step};
use crate::pool::Pool;

/// The pause before a second try; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A database, with its dialect.
pub(crate) trait Database: Send + Sync + Sized + 'static {
    type Connection: Connection;
    type Row: Send;

    /// Runs one statement, which commits by itself.
    fn ask(
        connection: &mut Self::Connection,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// What an error means.
    fn problem(error: sqlx::Error, table: &Table) -> Problem;

    /// The unit in which the statements count time.
    const TICK: Duration;

    /// A duration in the unit in which the statements count time; never shorter than it is, not even by the part of a
    /// unit that the database's clock leaves out.
    fn ticks(duration: Duration) -> i64;

    /// A row of a statement that looks at a key.
    fn seen(row: &Self::Row) -> Result<Seen, sqlx::Error>;

    /// A row of the statement that inspects.
    fn shown(row: &Self::Row) -> Result<Shown, sqlx::Error>;

    /// The number that a row begins with.
    fn number(row: &Self::Row) -> Result<i64, sqlx::Error>;
}

/// What a statement is given.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Bytes(&'a [u8]),
    /// Bytes, or nothing.
    Maybe(Option<&'a [u8]>),
    Number(i64),
}

/// What stands under a key.
pub(crate) enum Seen {
    /// What the statement has just made of it: a claim of the asking owner.
    Claimed,
    /// What was there before.
    Standing { owner: Vec<u8>, fingerprint: Vec<u8>, record: Option<Vec<u8>>, lapsed: bool },
}

/// What an operator is told of a row.
pub(crate) struct Shown {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) record: Option<Vec<u8>>,
    pub(crate) lapsed: bool,
    pub(crate) origin: Option<Vec<u8>>,
    /// In ticks since 1970, as is the next.
    pub(crate) lease_until: i64,
    pub(crate) expires_at: i64,
    pub(crate) replays: i64,
}

/// The table, as the statements name it.
pub(crate) struct Table {
    pub(crate) quoted: String,
}

/// The statements of a store. Where a claim's owner has already done what one asks for, it does it again.
pub(crate) struct Statements {
    /// `key, owner`: what stands under the key, for databases where looking first is cheaper.
    pub(crate) look: Option<Arc<str>>,
    /// `key, owner, fingerprint, lease, retention, origin`: a claim, or what stands in its way, or nothing where it changed meanwhile.
    pub(crate) begin: Arc<str>,
    /// `key, owner, lease, retention`: a row if done.
    pub(crate) renew: Arc<str>,
    /// `key, owner, lease, retention, former owner, fingerprint, origin`: a row if done. Without an origin, that of the former
    /// owner stays.
    pub(crate) take_over: Arc<str>,
    /// `key, owner, record, ttl`: a row if done.
    pub(crate) complete: Arc<str>,
    /// `key, owner`: a row if done.
    pub(crate) release: Arc<str>,
    /// `key`: a row for what was removed.
    pub(crate) forget: Arc<str>,
    /// `key`: what stands there, to be shown.
    pub(crate) inspect: Arc<str>,
    /// `key, owner, replays`: a row if they were added to those of the owner's record.
    pub(crate) count: Arc<str>,
    /// `key`: the milliseconds that are left of the lease, while the claim is in flight. Says that somebody waits.
    pub(crate) wait: Arc<str>,
    /// `key`: the same, without saying so.
    pub(crate) still: Arc<str>,
    /// `batch`: a row for each that it deleted.
    pub(crate) clean: Arc<str>,
}

/// The rows of a statement.
pub(crate) struct Answer<R> {
    pub(crate) rows: Vec<R>,
    /// The statement was tried before, and that try may have taken effect.
    pub(crate) repeated: bool,
}

/// Asks the database, again if need be, within a time.
pub(crate) struct Asker<D: Database> {
    pub(crate) pool: Pool<D::Connection>,
    pub(crate) table: Arc<Table>,
    /// For everything, pauses included.
    pub(crate) timeout: Duration,
}

/// Whether a statement may have taken effect, or may do so still, although no answer says so. It is right at every moment, so
/// that it is right also where the future that asks is dropped.
#[derive(Default)]
pub(crate) struct Doubt(AtomicBool);

impl Doubt {
    pub(crate) fn is_left(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn set(&self, left: bool) -> bool {
        self.0.swap(left, Ordering::SeqCst)
    }
}

impl<D: Database> Asker<D> {
    pub(crate) async fn ask(
        &self,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Answer<D::Row>, DatabaseError> {
        self.ask_doubting(step, sql, values, &Doubt::default()).await
    }

    /// As [`ask`](Self::ask), and says what is known of the effect however it ends.
    pub(crate) async fn ask_doubting(
        &self,
        step: Step,
        sql: &Arc<str>,
        values: &[Value<'_>],
        doubt: &Doubt,
    ) -> Result<Answer<D::Row>, DatabaseError> {
        let until = Instant::now() + self.timeout;
        let mut pause = FIRST_PAUSE;
        let mut read_only = false;
        loop {
            match self.once(until, sql, values, doubt).await {
                Ok(rows) => return Ok(Answer { rows, repeated: doubt.is_left() }),
                Err(problem) => {
                    read_only |= matches!(problem, Problem::ReadOnly);
                    if !problem.may_pass() || Instant::now() + pause >= until {
                        // The last try may have had too little time to be told so again.
                        let problem = if read_only && problem.is_late() { Problem::ReadOnly } else { problem };
                        return Err(DatabaseError { step, problem });
                    }
                }
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Half of the time is for one try, so that a connection that has gone silent does not use up the time of a new one.
    async fn once(
        &self,
        until: Instant,
        sql: &Arc<str>,
        values: &[Value<'_>],
        doubt: &Doubt,
    ) -> Result<Vec<D::Row>, Problem> {
        let mut lent = match self.pool.lend(until, self.timeout).await {
            Ok(lent) => lent,
            Err(Problem::Refused(error)) => return Err(D::problem(error, &self.table)),
            Err(problem) => return Err(problem),
        };
        let this_try = until.min(Instant::now() + self.timeout / 2);
        let earlier = doubt.set(true);
        let problem = match timeout_at(this_try, D::ask(&mut lent.connection, sql, values)).await {
            Ok(Ok(rows)) => {
                doubt.set(earlier);
                lent.give_back();
                return Ok(rows);
            }
            Ok(Err(error)) => D::problem(error, &self.table),
            Err(_) => Problem::TimedOut { waited: self.timeout },
        };
        if !problem.leaves_doubt() {
            doubt.set(earlier);
        }
        match problem.spoils() {
            Spoils::Nothing => lent.give_back(),
            Spoils::Connection => drop(lent),
            Spoils::All => self.pool.distrust(),
        }
        Err(problem)
    }
}

/// Between half of `pause` and all of it, so that those who failed together do not try again together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the pause is only less spread.
    let _ = getrandom::fill(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}
