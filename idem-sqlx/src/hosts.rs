//! The servers that a URL names, and the one of them that takes writes.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;
use tokio::time::{Instant, timeout_at};

use crate::dialect::{Dialect, Options};
use crate::errors::Problem;

/// Where the options of a connection come from.
pub(crate) enum OptionsFrom<D: Dialect> {
    /// One host, or several of which one takes writes. Never empty.
    Hosts(Vec<Options<D>>),
    /// That of the pool of the handlers, whose options may change, as when a password does.
    Pool(sqlx::Pool<D>),
}

/// How to connect to a database that is on one host, or on any of several.
pub(crate) struct Hosts<D: Dialect> {
    options_from: OptionsFrom<D>,
    /// Adds the settings of the store to options.
    with_settings: Box<dyn Fn(Options<D>) -> Options<D> + Send + Sync>,
    /// The index of the host that was connected to last.
    last: AtomicUsize,
}

impl<D: Dialect> Hosts<D> {
    pub(crate) fn new(
        options_from: OptionsFrom<D>,
        with_settings: impl Fn(Options<D>) -> Options<D> + Send + Sync + 'static,
    ) -> Self {
        Self { options_from, with_settings: Box::new(with_settings), last: AtomicUsize::new(0) }
    }

    /// Returns the pool of the handlers, if the database is that of one.
    pub(crate) fn pool(&self) -> Option<sqlx::Pool<D>> {
        match &self.options_from {
            OptionsFrom::Hosts(_) => None,
            OptionsFrom::Pool(pool) => Some(pool.clone()),
        }
    }

    fn count(&self) -> usize {
        match &self.options_from {
            OptionsFrom::Hosts(hosts) => hosts.len(),
            OptionsFrom::Pool(_) => 1,
        }
    }

    fn options(&self, host: usize) -> Options<D> {
        let options = match &self.options_from {
            OptionsFrom::Hosts(hosts) => hosts[host].clone(),
            OptionsFrom::Pool(pool) => (*pool.connect_options()).clone(),
        };
        (self.with_settings)(options)
    }

    /// Returns how to connect to the host that was connected to last.
    pub(crate) fn last(&self) -> Options<D> {
        self.options(self.last.load(Ordering::Relaxed))
    }

    /// Connects to the one host. Of several it is the first that takes writes, in their order, beginning with the one that was
    /// connected to last: a host that is away costs its share of the time once.
    pub(crate) async fn connect(
        &self,
        until: Instant,
        waited: Duration,
    ) -> Result<(D::Connection, D::Session), Problem> {
        let count = self.count();
        if count == 1 {
            return connect_to::<D>(&self.last(), false, until, waited).await;
        }
        let last = self.last.load(Ordering::Relaxed);
        let mut passed_over = Vec::new();
        for tried in 0..count {
            let host = (last + tried) % count;
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / u32::try_from(count - tried).unwrap_or(u32::MAX);
            let options = self.options(host);
            let address = D::address(&options);
            match connect_to::<D>(&options, true, now + share, waited).await {
                Ok(connected) => {
                    self.last.store(host, Ordering::Relaxed);
                    return Ok(connected);
                }
                Err(problem) => match refined::<D>(problem, "") {
                    problem if problem.is_transient() => passed_over.push(format!("{address}: {}", reason(&problem))),
                    // A wrong password, a missing database: what is wrong with one host is not mended by another one.
                    problem @ Problem::Refused(_) => {
                        let what = format!("{address}: {}", reason(&problem));
                        return Err(Problem::Refused(sqlx::Error::Configuration(what.into())));
                    }
                    problem => return Err(problem),
                },
            }
        }
        Err(Problem::Unreachable { waited, source: Some(io::Error::other(passed_over.join("; ")).into()) })
    }
}

async fn connect_to<D: Dialect>(
    options: &Options<D>,
    must_take_writes: bool,
    until: Instant,
    waited: Duration,
) -> Result<(D::Connection, D::Session), Problem> {
    let connect = async {
        let mut connection = options.connect().await?;
        Ok((D::greet(&mut connection, must_take_writes).await?, connection))
    };
    match timeout_at(until, connect).await {
        Ok(Ok((greeted, connection))) => greeted.map(|session| (connection, session)),
        // Starting up, shutting down, out of connections, failing, or not there.
        Ok(Err(error)) if is_transient(&error) => Err(Problem::Unreachable { waited, source: Some(error) }),
        Ok(Err(error)) => Err(Problem::Refused(error)),
        Err(_) => Err(Problem::Unreachable { waited, source: None }),
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase() || is_failure_of_server(&**error),
        _ => false,
    }
}

/// System error, internal error: PostgreSQL itself, or a proxy that says so of whatever stops it, such as too many clients. Codes of
/// SQLite are shorter.
fn is_failure_of_server(error: &dyn DatabaseError) -> bool {
    error.code().is_some_and(|code| code.len() == 5 && (code.starts_with("58") || code.starts_with("XX")))
}

/// Returns what an error on a new connection means if it is read as that of a statement.
pub(crate) fn refined<D: Dialect>(problem: Problem, table: &str) -> Problem {
    match problem {
        Problem::Refused(error) => D::problem(error, table),
        problem => problem,
    }
}

/// Says in a few words why a host was not connected to.
fn reason(problem: &Problem) -> String {
    match (problem, problem.error()) {
        (Problem::ReadOnly, _) => "it is a standby, or read-only".to_owned(),
        // Without what sqlx puts before it.
        (_, Some(error)) => error.source().map_or_else(|| error.to_string(), ToString::to_string),
        (_, None) => "no reply in time".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raised::raised;

    #[test]
    fn a_failure_of_a_server_or_a_proxy_is_worth_another_try_and_a_refusal_is_not() {
        for code in ["XX000", "58030"] {
            assert!(is_transient(&raised(code, "as asked")), "{code}");
        }
        // The last one is of SQLite.
        for code in ["28P01", "28000", "3D000", "5898"] {
            assert!(!is_transient(&raised(code, "as asked")), "{code}");
        }
    }
}
