//! Commits that fail, and commits that are not confirmed.

use std::time::Duration;

use idem_testkit::postgres::Postgres as Server;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::wait::until;
use sqlx::postgres::PgPoolOptions;
use tokio::time::timeout;

use crate::shop::{Effects, Shop, postgres_service, send, start};

/// A service that reaches its database through a proxy, and nothing else does.
async fn behind_a_proxy(
    shop: &Shop<sqlx::Postgres, Server>,
) -> (Proxy, crate::shop::App<sqlx::Postgres>, axum::Router) {
    let proxy = Proxy::to(shop.keeper.port()).await;
    let url = shop.keeper.url_through(proxy.port());
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap();
    let (app, _, router) = postgres_service(pool);
    (proxy, app, router)
}

#[tokio::test]
async fn a_commit_that_took_effect_and_was_not_confirmed_is_found() {
    let shop = Shop::postgres(4).await;
    let (proxy, app, router) = behind_a_proxy(&shop).await;
    let first = start(&router, "/act/wait-201", "a");
    app.written().await;
    // The database has committed when it replies.
    proxy.set(Direction::ToClient, Fault::ResetAfter(0));
    app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));
    assert_eq!(send(&router, "/act/wait-201", "a", "").await.brief(), (201, "run 1"));
    assert_eq!((shop.effects().await, app.runs()), (1, 1));
}

/// No one can tell whether it took effect, and a retry would take effect once more.
#[tokio::test]
async fn a_commit_without_a_record_that_was_not_confirmed_is_a_500_that_asks_for_no_retry() {
    let shop = Shop::postgres(4).await;
    let (proxy, app, router) = behind_a_proxy(&shop).await;
    // The policy does not record a success, and then there is no key.
    for (key, effects) in [(Some("a"), 1), (None, 2)] {
        let not_confirmed = async {
            app.written().await;
            proxy.set(Direction::ToClient, Fault::ResetAfter(0));
            app.go_on.add_permits(1);
        };
        let (reply, ()) = tokio::join!(send(&router, "/errors/wait-201", key, ""), not_confirmed);
        assert_eq!((reply.brief(), reply.retry_after), ((500, ""), false), "{key:?}");
        assert_eq!(shop.effects().await, effects, "{key:?}");
    }
}

#[tokio::test]
async fn a_commit_that_did_not_arrive_is_503_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    let (proxy, app, router) = behind_a_proxy(&shop).await;
    let first = start(&router, "/act/wait-201", "a");
    app.written().await;
    proxy.set(Direction::ToServer, Fault::ResetAfter(0));
    app.go_on.add_permits(1);
    let lost = first.await.unwrap();
    assert!(lost.status == 503 && lost.retry_after, "{lost:?}");
    // It is not known, as long as the commit may still arrive.
    assert!(!lost.body.contains("Nothing was done"), "{lost:?}");
    assert_eq!(shop.effects().await, 0);
    app.go_on.add_permits(1);
    assert_eq!(send(&router, "/act/wait-201", "a", "").await.brief(), (201, "run 2"));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn the_record_of_another_request_confirms_no_commit() {
    let shop = Shop::postgres(4).await;
    let (proxy, app, router) = behind_a_proxy(&shop).await;
    let first = start(&router, "/act/wait-201", "a");
    app.written().await;
    proxy.refuse();
    app.go_on.add_permits(1);
    until("the key is free", async || shop.send("/act/201", "a").await.status == 201).await;
    proxy.heal();
    let lost = first.await.unwrap();
    assert!(lost.status == 503 && lost.retry_after, "{lost:?}");
    assert_eq!(shop.effects().await, 1);
}

/// The session does not learn that its client is gone: it holds the key until then.
#[tokio::test]
async fn a_session_that_still_holds_the_key_is_waited_for() {
    let shop = Shop::postgres(4).await;
    let (proxy, _, router) = behind_a_proxy(&shop).await;
    // It commits only when the test lets it.
    shop.keeper.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(1); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let mut gate = sqlx::Acquire::acquire(&shop.app.pool).await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut *gate).await.unwrap();
    let first = start(&router, "/act/201", "a");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    shop.keeper.wait_until(waits, "1").await;
    let before = proxy.round_trips();
    proxy.cut();
    let duplicate = shop.send("/act/201", "a").await;
    assert!(duplicate.is("idempotency_key_locked"), "{duplicate:?}");
    // More than it takes to connect and to look once.
    until("it looks again", async || proxy.round_trips() > before + 12 || first.is_finished()).await;
    assert!(!first.is_finished());
    sqlx::raw_sql("SELECT pg_advisory_unlock(1)").execute(&mut *gate).await.unwrap();
    let reply = first.await.unwrap();
    assert_eq!(reply.brief(), (201, "run 1"));
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn a_connection_that_broke_while_the_handler_ran_is_503_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    for run in 1..=2 {
        let first = shop.start("/act/wait-201", "a");
        shop.app.written().await;
        shop.keeper.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'");
        shop.app.go_on.add_permits(1);
        let lost = first.await.unwrap();
        assert!(lost.status == 503 && lost.retry_after, "{lost:?}");
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
}

#[tokio::test]
async fn a_success_over_an_aborted_transaction_is_a_500_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    for run in 1..=2 {
        assert_eq!(shop.send("/act/failing-201", "a").await.brief(), (500, ""));
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
    // A refusal of the handler is not one of the database.
    assert_eq!(shop.send("/act/failing-402", "b").await.status, 402);
    assert!(shop.send("/act/failing-402", "b").await.replayed);
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_is_a_500_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql(
        "CREATE TABLE runs (run bigint PRIMARY KEY); \
         ALTER TABLE effects ADD FOREIGN KEY (run) REFERENCES runs DEFERRABLE INITIALLY DEFERRED",
    );
    assert_eq!(shop.send("/act/201", "a").await.brief(), (500, ""));
    shop.keeper.sql("INSERT INTO runs VALUES (1)");
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 2"));
    assert_eq!(shop.effects().await, 1);
}

/// With the codes by which the store knows that its own statements failed.
#[tokio::test]
async fn a_trigger_that_fails_at_the_commit_is_a_500_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql(
        "CREATE TABLE code (code text); INSERT INTO code VALUES (NULL); \
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = (SELECT code FROM code); END $$; \
         CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    for code in ["42P01", "0A000", "P0001"] {
        shop.keeper.sql(&format!("UPDATE code SET code = '{code}'"));
        assert_eq!(shop.send("/act/201", "a").await.brief(), (500, ""), "{code}");
    }
    shop.keeper.sql("DROP TRIGGER fail ON effects");
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 4"));
}

/// With the codes of a server that has no memory, cannot write a file, or finds damage.
#[tokio::test]
async fn a_server_that_fails_at_the_commit_is_503_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    for (number, code) in ["53200", "58030", "XX001"].into_iter().enumerate() {
        shop.keeper.sql(&format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER fail BEFORE UPDATE ON idempotency FOR EACH ROW EXECUTE FUNCTION fail()",
        ));
        let failed = shop.send("/act/201", code).await;
        assert!(failed.status == 503 && failed.retry_after, "{code}: {failed:?}");
        shop.keeper.sql("DROP TRIGGER fail ON idempotency");
        assert_eq!(shop.send("/act/201", code).await.brief(), (201, &*format!("run {}", 2 * number + 2)));
    }
    assert_eq!(shop.effects().await, 3);
}

#[tokio::test]
async fn transactions_that_cannot_be_serialized_are_503_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql("ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
    let pool = PgPoolOptions::new().max_connections(4).connect(&shop.keeper.url()).await.unwrap();
    let (app, _, router) = postgres_service(pool);
    // A serialization failure, and a deadlock.
    for (code, run) in [("40001", "run 2"), ("40P01", "run 4")] {
        shop.keeper.sql(&format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{code}'; END $$; \
             CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
             EXECUTE FUNCTION fail()",
        ));
        let failed = send(&router, "/act/201", code, "").await;
        assert!(failed.status == 503 && failed.retry_after, "{failed:?}");
        shop.keeper.sql("DROP TRIGGER fail ON effects");
        assert_eq!(send(&router, "/act/201", code, "").await.brief(), (201, run));
    }
    // Many at once, on one key: conflicts of our own statements are no one's concern.
    let all: Vec<_> = (0..16).map(|_| start(&router, "/waits/201", "b")).collect();
    for reply in all {
        let reply = reply.await.unwrap();
        assert_eq!(reply.brief(), (201, "run 5"));
    }
    assert_eq!((shop.effects().await, app.runs()), (3, 5));
}

#[tokio::test]
async fn a_session_that_the_server_ends_since_the_handler_is_idle_is_503_and_the_key_is_free() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql("ALTER DATABASE postgres SET idle_in_transaction_session_timeout = '200ms'");
    let pool = PgPoolOptions::new().max_connections(4).connect(&shop.keeper.url()).await.unwrap();
    let (app, _, router) = postgres_service(pool);
    let first = start(&router, "/act/wait-201", "a");
    app.written().await;
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    shop.keeper.wait_until(idle, "0").await;
    app.go_on.add_permits(2);
    let ended = first.await.unwrap();
    assert!(ended.status == 503 && ended.retry_after, "{ended:?}");
    assert_eq!(send(&router, "/act/wait-201", "a", "").await.brief(), (201, "run 2"));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn the_timeout_of_the_policy_ends_a_statement_on_the_server() {
    let shop = Shop::postgres(4).await;
    assert_eq!(shop.send("/limited/slow-sleep-201", "a").await.status, 504);
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'";
    assert_eq!(shop.keeper.sql(running).trim(), "0");
    assert_eq!(shop.effects().await, 0);
}

/// The server ends the statement after the same time, and the handler may see that first.
#[tokio::test]
async fn a_handler_whose_statement_ran_out_of_time_has_timed_out() {
    let shop = Shop::postgres(4).await;
    for (path, key) in [("/limited/busy-201", Some("a")), ("/limited/slow-402", Some("b")), ("/limited/slow-201", None)]
    {
        let timed_out = shop.send(path, key).await;
        assert_eq!(timed_out.status, 504, "{path}: {}", timed_out.body);
        assert!(timed_out.body.contains("idempotency_handler_timed_out"), "{path}: {}", timed_out.body);
    }
    assert_eq!(shop.effects().await, 0);
    for key in ["a", "b"] {
        assert_eq!(shop.send("/act/201", key).await.status, 201, "the key is free");
    }
}

/// Less than a step of the store may take.
const STEP: Duration = Duration::from_secs(4);

/// How many servers run the statement of a handler that is hasty.
const RUNS_ON: &str = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";

#[tokio::test]
async fn a_statement_that_the_handler_stopped_waiting_for_does_not_go_on_at_the_server() {
    let shop = Shop::postgres(4).await;
    let reply = timeout(STEP, shop.send("/act/hasty-500", "a")).await.expect("it is cancelled");
    assert_eq!(reply.status, 500);
    assert_eq!(shop.keeper.sql(RUNS_ON).trim(), "0");
    assert_eq!(shop.send("/act/201", "b").await.brief(), (201, "run 2"));
}

/// sqlx reads the reply to it before it sends the next one. Its error would be that of the commit, which was never sent.
#[tokio::test]
async fn a_client_error_after_a_statement_that_was_given_up_and_failed_is_recorded() {
    let shop = Shop::postgres(4).await;
    for replayed in [false, true] {
        let reply = shop.send("/act/fickle-402", "a").await;
        assert_eq!((reply.brief(), reply.replayed), ((402, "run 1"), replayed));
    }
    let refused = shop.send("/act/fickle-201", "b").await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(shop.effects().await, 0);
    assert_eq!(shop.send("/act/201", "b").await.brief(), (201, "run 3"));
}

/// The statement would hold the connection, and its locks, for ten minutes.
#[tokio::test]
async fn a_client_error_does_not_wait_for_a_statement_that_was_given_up() {
    let shop = Shop::postgres(4).await;
    for replayed in [false, true] {
        let reply = timeout(STEP, shop.send("/act/hasty-402", "a")).await.expect("it is cancelled");
        assert_eq!((reply.brief(), reply.replayed), ((402, "run 1"), replayed));
    }
    assert_eq!(shop.keeper.sql(RUNS_ON).trim(), "0");
}

/// It would be committed with the rest, so only the time limit of a step ends it.
#[tokio::test]
async fn a_success_waits_for_a_statement_that_was_given_up_and_not_for_long() {
    let shop = Shop::postgres(4).await;
    let reply = shop.send("/act/hasty-201", "a").await;
    assert!(reply.status == 503 && reply.retry_after, "{reply:?}");
    shop.keeper.wait_until(RUNS_ON, "0").await;
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 2"));
}

/// Otherwise each try would leave another server process behind, up to the limit of the server.
#[tokio::test]
async fn a_commit_that_waits_keeps_its_place_in_the_pool() {
    waits_in_its_place(Server::quick().await).await;
}

/// Such a server does not show what a session does.
#[tokio::test]
async fn a_commit_that_waits_keeps_its_place_if_the_server_does_not_track_activities() {
    waits_in_its_place(Server::with(&["fsync=off", "track_activities=off"]).await).await;
}

async fn waits_in_its_place(server: Server) {
    let shop = Shop::over(server, 4).await;
    shop.keeper.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(1); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let mut gate = sqlx::Acquire::acquire(&shop.app.pool).await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut *gate).await.unwrap();
    let reply = shop.send("/act/201", "a").await;
    assert!(reply.status == 503 && reply.retry_after, "{reply:?}");
    assert_eq!(shop.app.pool.size(), 2, "the gate, and the commit");
    sqlx::raw_sql("SELECT pg_advisory_unlock(1)").execute(&mut *gate).await.unwrap();
    until("the commit has ended", async || shop.app.pool.size() == 1).await;
    let retry = shop.send("/act/201", "a").await;
    assert_eq!((retry.brief(), retry.replayed), ((201, "run 1"), true));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn bytes_are_read_whatever_the_server_writes_them_as() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql("ALTER DATABASE postgres SET bytea_output = 'escape'");
    let pool = PgPoolOptions::new().max_connections(4).connect(&shop.keeper.url()).await.unwrap();
    let (app, _, router) = postgres_service(pool);
    for _ in 0..2 {
        assert_eq!(send(&router, "/act/201", "a", "").await.brief(), (201, "run 1"));
    }
    assert_eq!(send(&router, "/act/402", "a", "").await.status, 422);
    assert_eq!((shop.effects().await, app.runs()), (1, 1));
}

/// A service over a server that writes a log, with these settings.
async fn with_log(settings: &[&str]) -> Shop<sqlx::Postgres, Server> {
    let log = ["fsync=off", "logging_collector=on", "log_directory=log", "log_filename=all.log"];
    Shop::over(Server::with(&[&log[..], settings].concat()).await, 4).await
}

/// Returns the log up to now, which is marked.
async fn log(shop: &Shop<sqlx::Postgres, Server>, mark: &str) -> String {
    // What the pool sends when a connection returns comes before.
    let pool = &shop.app.pool;
    until("all connections are idle", async || pool.num_idle() == usize::try_from(pool.size()).unwrap()).await;
    shop.keeper.sql(&format!("DO $$ BEGIN RAISE WARNING '{mark}'; END $$"));
    // In two parts, since the query is in the log as well.
    let is_marked = format!("SELECT strpos(pg_read_file('log/all.log'), 'WARNING:  ' || '{mark}') > 0");
    shop.keeper.wait_until(&is_marked, "t").await;
    let log = shop.keeper.sql("SELECT pg_read_file('log/all.log')");
    log.split_once(&format!("WARNING:  {mark}")).unwrap().0.to_owned()
}

/// A warning for each request would fill the log of the server.
#[tokio::test]
async fn the_server_has_nothing_to_warn_of() {
    let shop = with_log(&["log_min_messages=warning"]).await;
    for ending in ["201", "201", "402", "500", "panic", "nested-201", "nested-402", "unrecorded"] {
        shop.send(&format!("/act/{ending}"), ending).await;
        shop.send(&format!("/act/{ending}"), None).await;
    }
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    assert_eq!(shop.send("/act/wait-201", "a").await.status, 409);
    shop.app.go_on.add_permits(1);
    first.await.unwrap();
    let log = log(&shop, "end").await;
    let troubles: Vec<_> = log.lines().filter(|line| line.contains("WARNING:") || line.contains("ERROR:")).collect();
    assert_eq!(troubles, [""; 0]);
}

/// Each line of this log is a round trip. The client does not wait for the last one.
#[tokio::test]
async fn a_first_execution_costs_one_round_trip_more_than_a_bare_transaction_and_a_replay_takes_two() {
    let shop = with_log(&["log_min_messages=warning", "log_statement=all", "log_line_prefix=%a|"]).await;
    shop.send("/act/201", "warm").await;
    let mut end = log(&shop, "warm").await.len();
    let first = &["BEGIN; ", "SAVEPOINT ", "INSERT INTO effects ", "RELEASE SAVEPOINT ", "ROLLBACK"][..];
    let expire = "UPDATE idempotency SET expires_at = now()";
    for (request, starts) in [("first", first), ("replay", &["BEGIN; ", "ROLLBACK"]), ("expired", first)] {
        if request == "expired" {
            shop.keeper.sql(expire);
        }
        let response = shop.send("/act/201", "a").await;
        assert_eq!((response.status, response.replayed), (201, request == "replay"), "{request}");
        let log = log(&shop, request).await;
        let lines = log[end..].lines();
        end = log.len();
        let statements: Vec<_> =
            lines.clone().filter_map(|line| Some(line.split_once("|LOG:  statement: ")?.1)).collect();
        let ours: Vec<_> = statements.iter().filter(|line| first.iter().any(|start| line.starts_with(start))).collect();
        assert_eq!(ours.len(), starts.len(), "{request}: {statements:#?}");
        assert!(ours.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{request}: {statements:#?}");
        let commits = statements.iter().filter(|line| line.contains("COMMIT")).count();
        assert_eq!(commits, usize::from(request != "replay"), "{request}: {statements:#?}");
        // The store has not looked at the table. It prepares each statement on its connections.
        let looks = |line: &&str| line.contains("|LOG:  execute ") && line.contains("\"idempotency\"");
        assert_eq!(lines.filter(looks).collect::<Vec<_>>(), [""; 0], "{request}");
    }
}
