//! A few connections, lent for one statement at a time.
//!
//! sqlx's own pool pings the server around every use, which would double the round trips, and waits for it without a limit.
//! Here a connection comes back only if its statement ended well. Otherwise it is closed. If its caller stopped waiting for the
//! statement, it first keeps its place until the server has ended the statement: a server that hangs would otherwise collect
//! a process for each try.
//!
//! A new connection is made in a task, which goes on if its caller stops waiting: the next caller uses it. After one that could not be
//! made, or was of no use, there is a pause before the next one. A server that is silent, read-only or out of connections, or does not let
//! the store in, would otherwise get one from each caller, again and again.
//!
//! A place may be held in a runtime that is not driven any more, and then does not come back. If all places are held for longer
//! than any step takes, one more is made.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use idem_runtime::remote::jitter;
use sqlx::Connection;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::dialect::Dialect;
use crate::errors::Problem;
use crate::hosts::Hosts;

/// The pause before the server is asked what became of a statement; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long asking may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before the next connection is made in [`Trouble`]; it doubles up to [`MAX_TROUBLE_PAUSE`].
const FIRST_TROUBLE_PAUSE: Duration = Duration::from_millis(2);
const MAX_TROUBLE_PAUSE: Duration = Duration::from_millis(200);
/// How long the making of a connection may take before the next one is made beside it: its first packet may be lost.
const MAX_TROUBLE_WAIT: Duration = Duration::from_secs(1);
/// How long, beside the time of a step, no place moves before one more is made: more than a round of [`end`].
const STUCK: Duration = Duration::from_secs(3);
/// How long an idle connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Pool<D: Dialect> {
    shared: Arc<Shared<D>>,
}

struct Shared<D: Dialect> {
    hosts: Arc<Hosts<D>>,
    max_connections: usize,
    /// `None` if idle connections stay open.
    idle_timeout: Option<Duration>,
    permits: Arc<Semaphore>,
    /// When a place was last taken, or a task that holds one went on.
    moved: Mutex<Instant>,
    idle: Mutex<Idle<D>>,
    trouble: Mutex<Option<Trouble>>,
    /// Held while the server is asked, so that one connection is enough for it.
    asks: tokio::sync::Mutex<()>,
}

struct Idle<D: Dialect> {
    /// By the time since which they have been idle, the longest first.
    connections: VecDeque<(Open<D>, Instant)>,
    /// A task closes them.
    is_watched: bool,
}

/// No connection could be made, or it was of no use. It ends with the first new one that is; if the store was refused, also with one that
/// is let in, and after a while without a try.
struct Trouble {
    problem: Problem,
    pause: Duration,
    /// When the next one may be made.
    next: Instant,
}

/// A connection, and what the server calls it.
struct Open<D: Dialect> {
    connection: D::Connection,
    session: D::Session,
    /// No statement has succeeded on it.
    is_new: bool,
}

impl<D: Dialect> Pool<D> {
    pub(crate) fn new(hosts: Arc<Hosts<D>>, max_connections: usize, idle_timeout: Option<Duration>) -> Self {
        let shared = Shared {
            hosts,
            max_connections,
            idle_timeout,
            permits: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            moved: Mutex::new(Instant::now()),
            idle: Mutex::new(Idle { connections: VecDeque::new(), is_watched: false }),
            trouble: Mutex::default(),
            asks: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns a connection: the one used last, or a new one.
    pub(crate) async fn acquire(&self, until: Instant, waited: Duration) -> Result<PooledConnection<D>, Problem> {
        let shared = &self.shared;
        let none = || Problem::NoConnection { max_connections: shared.max_connections, waited };
        let permit = timeout_at(until, Arc::clone(&shared.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            shared.end_standstill(waited);
            return Err(none());
        };
        shared.note_progress();
        // The time of another caller may have run out at the same moment as that of this one.
        if Instant::now() >= until {
            return Err(none());
        }
        let idle = shared.idle().connections.pop_back();
        let lent = match idle {
            Some((open, _)) => (open, permit),
            None => {
                shared.may_connect()?;
                let made = timeout_at(until, shared.connect(permit, waited)).await;
                let lost = || Problem::Unreachable { waited, source: None };
                made.map_err(|_| lost())?.map_err(|_| lost())??
            }
        };
        Ok(PooledConnection { shared: Arc::clone(shared), lent: Some(lent), running: None })
    }

    /// Notes the problem of a statement if others will have it as well.
    pub(crate) fn note_trouble(&self, problem: &Problem) {
        if matches!(problem, Problem::ReadOnly) {
            self.shared.note_trouble(problem);
        }
    }

    /// Closes the idle connections: if one broke, the others are likely to be broken, too.
    pub(crate) fn close_idle(&self) {
        let idle = std::mem::take(&mut self.shared.idle().connections);
        drop(idle);
    }
}

impl<D: Dialect> Shared<D> {
    fn idle(&self) -> MutexGuard<'_, Idle<D>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_progress(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Makes one more place if none has moved for longer than a step takes.
    fn end_standstill(&self, waited: Duration) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.elapsed() > waited + STUCK {
            self.permits.add_permits(1);
            *moved = Instant::now();
        }
    }

    /// Returns an error if a connection was tried a moment ago, or is being tried.
    fn may_connect(&self) -> Result<(), Problem> {
        let (mut trouble, now) = (self.trouble(), Instant::now());
        // It may have ended since. Many who come together would be told of it while one of them finds that out, and would not try again.
        trouble.take_if(|trouble| !trouble.problem.is_transient() && now >= trouble.next + MAX_TROUBLE_WAIT);
        if let Some(trouble) = &mut *trouble {
            if now < trouble.next
                && let Some(problem) = trouble.problem.of_all_connections()
            {
                return Err(problem);
            }
            trouble.pause = (trouble.pause * 2).min(MAX_TROUBLE_PAUSE);
            trouble.next = now + MAX_TROUBLE_WAIT;
        }
        Ok(())
    }

    fn note_trouble(&self, problem: &Problem) {
        let Some(problem) = problem.of_all_connections() else { return };
        let mut trouble = self.trouble();
        let pause = trouble.as_ref().map_or(FIRST_TROUBLE_PAUSE, |trouble| trouble.pause);
        *trouble = Some(Trouble { problem, pause, next: Instant::now() + jitter(pause) });
    }

    /// A connection was made. Those who are told of a refusal do not try again, so from now on none is. Other trouble goes on: the
    /// connection may be read-only, or the last one that the server had left.
    fn note_login(&self) {
        self.trouble().take_if(|trouble| !trouble.problem.is_transient());
    }

    /// Makes a connection, which is idle afterwards if its caller has stopped waiting.
    fn connect(self: &Arc<Self>, permit: OwnedSemaphorePermit, waited: Duration) -> oneshot::Receiver<Made<D>> {
        let (made, receiver) = oneshot::channel();
        let (shared, hosts) = (Arc::downgrade(self), Arc::clone(&self.hosts));
        tokio::spawn(async move {
            let connected = hosts.connect(Instant::now() + waited, waited).await;
            let Some(shared) = shared.upgrade() else { return };
            match &connected {
                Ok(_) => shared.note_login(),
                Err(problem) => shared.note_trouble(problem),
            }
            let connected = connected.map(|(connection, session)| (Open { connection, session, is_new: true }, permit));
            if let Err(Ok((open, _permit))) = made.send(connected) {
                shared.put_back(open);
            }
        });
        receiver
    }

    fn put_back(self: &Arc<Self>, open: Open<D>) {
        let mut idle = self.idle();
        idle.connections.push_back((open, Instant::now()));
        if let Some(idle_timeout) = self.idle_timeout
            && !idle.is_watched
            && let Ok(runtime) = Handle::try_current()
        {
            idle.is_watched = true;
            runtime.spawn(close_when_idle(IdleWatch { shared: Arc::downgrade(self) }, idle_timeout));
        }
    }
}

/// A new connection, with its place.
type Made<D> = Result<(Open<D>, OwnedSemaphorePermit), Problem>;

/// The task that closes idle connections. If it ends with its runtime, another one can start.
struct IdleWatch<D: Dialect> {
    shared: Weak<Shared<D>>,
}

impl<D: Dialect> IdleWatch<D> {
    /// Returns a connection that has been idle for `idle_timeout`, or when the next one will have been. `None` if none is idle.
    fn next(&mut self, idle_timeout: Duration) -> Option<Result<Open<D>, Instant>> {
        let shared = self.shared.upgrade()?;
        let mut idle = shared.idle();
        let Some((_, since)) = idle.connections.front() else {
            idle.is_watched = false;
            // Another task may start from now on.
            self.shared = Weak::new();
            return None;
        };
        let until = *since + idle_timeout;
        if until > Instant::now() {
            return Some(Err(until));
        }
        idle.connections.pop_front().map(|(open, _)| Ok(open))
    }
}

impl<D: Dialect> Drop for IdleWatch<D> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.idle().is_watched = false;
        }
    }
}

async fn close_when_idle<D: Dialect>(mut watch: IdleWatch<D>, idle_timeout: Duration) {
    while let Some(next) = watch.next(idle_timeout) {
        match next {
            Ok(open) => drop(timeout(CLOSE_TIMEOUT, open.connection.close()).await),
            Err(until) => sleep_until(until).await,
        }
    }
}

/// A connection of a pool. It is closed if it is dropped without [`put_back`](Self::put_back).
pub(crate) struct PooledConnection<D: Dialect> {
    shared: Arc<Shared<D>>,
    /// `None` once it was put back.
    lent: Option<(Open<D>, OwnedSemaphorePermit)>,
    /// The statement that was sent, until its reply has come.
    running: Option<Arc<str>>,
}

impl<D: Dialect> PooledConnection<D> {
    /// Returns the connection, on which `sql` is about to be sent.
    #[allow(clippy::expect_used, reason = "only `put_back` and `drop` take it")]
    pub(crate) fn connection_for(&mut self, sql: &Arc<str>) -> &mut D::Connection {
        self.running = Some(Arc::clone(sql));
        &mut self.lent.as_mut().expect("a connection").0.connection
    }

    /// The reply has come, or the connection is broken.
    pub(crate) fn replied(&mut self) {
        self.running = None;
    }

    /// Returns a connection that is in order to the pool.
    pub(crate) fn put_back(mut self) {
        if let Some((mut open, permit)) = self.lent.take() {
            if std::mem::take(&mut open.is_new) {
                *self.shared.trouble() = None;
            }
            self.shared.put_back(open);
            // One that was given up has come back.
            if self.shared.permits.available_permits() >= self.shared.max_connections {
                permit.forget();
            }
        }
    }
}

impl<D: Dialect> Drop for PooledConnection<D> {
    fn drop(&mut self) {
        if let (Some((open, permit)), Some(sql)) = (self.lent.take(), self.running.take())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(end(Arc::downgrade(&self.shared), open, sql, permit));
        }
    }
}

/// Keeps the place of a connection until the server has ended the statement that was sent, or the session.
async fn end<D: Dialect>(shared: Weak<Shared<D>>, open: Open<D>, sql: Arc<str>, permit: OwnedSemaphorePermit) {
    let Open { mut connection, session, .. } = open;
    let asks = async {
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            let Some(shared) = shared.upgrade() else { return };
            shared.note_progress();
            let _turn = shared.asks.lock().await;
            let until = Instant::now() + ASK_TIMEOUT;
            let connect = async { Ok(shared.hosts.connect(until, ASK_TIMEOUT).await?.0) };
            if let Ok(Ok(false)) = timeout_at(until, D::cancel(connect, &session, &sql)).await {
                return;
            }
        }
    };
    // The ping is replied to after the statement; if the connection is broken, it fails.
    tokio::select! {
        _ = connection.ping() => {}
        () = asks => {}
    }
    drop(connection);
    drop(permit);
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use sqlx::Sqlite;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::hosts::OptionsFrom;

    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Waits for less than the time of a step.
    async fn take(pool: &Pool<Sqlite>) -> Option<PooledConnection<Sqlite>> {
        pool.acquire(Instant::now() + TIMEOUT / 10, TIMEOUT).await.ok()
    }

    #[tokio::test]
    async fn one_more_place_is_made_if_none_moves_and_is_gone_when_all_have_come_back() {
        let pool = &Pool::new(
            Arc::new(Hosts::new(OptionsFrom::Hosts(vec![SqliteConnectOptions::new()]), |options| options)),
            1,
            None,
        );
        let last_moved = |before| *pool.shared.moved.lock().unwrap() = Instant::now() - before;
        let none_is_free = async || tokio::join!(take(pool), take(pool), take(pool));
        last_moved(2 * STUCK);
        let given_up = take(pool).await.unwrap();
        assert!(matches!(none_is_free().await, (None, None, None)));
        assert!(matches!(none_is_free().await, (None, None, None)), "it was taken a moment ago");
        last_moved(STUCK);
        assert!(matches!(none_is_free().await, (None, None, None)));
        assert!(matches!(none_is_free().await, (None, None, None)), "a step may still wait");
        last_moved(2 * STUCK);
        assert!(matches!(none_is_free().await, (None, None, None)));
        let other = take(pool).await.expect("one more place");
        assert!(matches!(none_is_free().await, (None, None, None)), "no more than one");
        assert!(matches!(none_is_free().await, (None, None, None)), "no more than one");
        given_up.put_back();
        other.put_back();
        let _one = take(pool).await.unwrap();
        assert!(matches!(none_is_free().await, (None, None, None)), "all have come back");
    }
}
