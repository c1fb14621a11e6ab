//! What becomes of the writes and of the key, for each way in which a handler ends.

use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use idem_axum::{IdempotencyLayer, Key, Scope, idempotent};
use idem_sqlx::Tx;
use idem_testkit::wait::within;
use sqlx::{Database, Sqlite};

use crate::shop::{Effects, Shop, over_both, send};

over_both!(
    a_success_is_recorded_with_its_writes,
    a_client_error_is_recorded_without_its_writes,
    a_failure_undoes_everything_and_frees_the_key,
    a_declared_record_includes_server_errors,
    a_success_that_is_not_to_be_recorded_is_committed,
    a_nested_transaction_is_a_savepoint,
    a_response_that_is_too_large_commits_a_tombstone,
    a_stream_of_many_frames_is_recorded_with_the_writes,
    a_response_that_breaks_off_undoes_everything,
    a_response_that_panics_when_it_is_dropped_is_recorded_with_the_writes,
    a_response_whose_trailers_come_late_is_recorded_with_the_writes,
    a_response_that_panics_when_it_is_recorded_undoes_everything,
    a_refusal_of_another_call_undoes_everything,
    a_refusal_whose_body_comes_later_is_whole,
    a_request_body_that_breaks_off_undoes_everything,
    without_a_key_it_is_an_ordinary_transaction,
    in_shadow_mode_it_is_an_ordinary_transaction,
    a_timeout_undoes_everything
);

async fn a_success_is_recorded_with_its_writes<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let first = shop.send("/act/201", "a").await;
    assert_eq!((first.brief(), first.replayed), ((201, "run 1"), false));
    let replay = shop.send("/act/201", "a").await;
    assert_eq!((replay.brief(), replay.replayed), ((201, "run 1"), true));
    assert_eq!(shop.effects().await, 1);
    assert_eq!(shop.send("/act/202", "a").await.status, 422);
    assert_eq!(shop.app.runs(), 1);
}

async fn a_client_error_is_recorded_without_its_writes<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for (status, path, run) in [(400, "/act/400", "run 1"), (402, "/act/402", "run 2")] {
        for replayed in [false, true] {
            let reply = shop.send(path, path).await;
            assert_eq!((reply.brief(), reply.replayed), ((status, run), replayed));
        }
    }
    assert_eq!(shop.effects().await, 0);
}

async fn a_failure_undoes_everything_and_frees_the_key<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for (ending, status) in [("500", 500), ("panic", 500), ("unrecorded", 200), ("failing-500", 500)] {
        let before = shop.app.runs();
        for run in 1..=2 {
            let reply = shop.send(&format!("/act/{ending}"), ending).await;
            assert_eq!((reply.status, shop.app.runs()), (status, before + run), "{ending}");
            assert!(ending != "panic" || reply.says_undone(), "{reply:?}");
        }
    }
    assert_eq!(shop.effects().await, 0);
}

async fn a_declared_record_includes_server_errors<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for (path, run) in [("/all/500", "run 1"), ("/stripe/500", "run 2")] {
        for replayed in [false, true] {
            let reply = shop.send(path, path).await;
            assert_eq!((reply.brief(), reply.replayed), ((500, run), replayed), "{path}");
        }
    }
    assert_eq!(shop.effects().await, 0);
}

async fn a_success_that_is_not_to_be_recorded_is_committed<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        assert_eq!(shop.send("/errors/201", "a").await.brief(), (201, &*format!("run {run}")));
        assert_eq!(shop.effects().await, run);
    }
    for _ in 0..2 {
        assert_eq!(shop.send("/errors/402", "b").await.brief(), (402, "run 3"));
    }
    assert_eq!(shop.effects().await, 2);
    let misused = shop.send("/errors/commit-201", "c").await;
    assert_eq!(misused.brief(), (500, ""));
}

async fn a_nested_transaction_is_a_savepoint<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    assert_eq!(shop.send("/act/nested-201", "a").await.status, 201);
    assert_eq!(shop.effects().await, 2, "its own row and that of the nested transaction which was committed");
    assert_eq!(shop.send("/act/nested-402", "b").await.status, 402);
    assert_eq!(shop.send("/act/nested-500", "c").await.status, 500);
    assert_eq!(shop.effects().await, 2, "a nested commit is undone with the rest");
    assert_eq!(shop.send("/act/201", "d").await.status, 201, "the connection is in order");
}

async fn a_response_that_is_too_large_commits_a_tombstone<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let whole = shop.send("/act/large", "a").await;
    assert_eq!((whole.status, whole.body.len()), (201, 2 << 20));
    let retry = shop.send("/act/large", "a").await;
    assert!(retry.status == 409 && retry.is("idempotency_not_replayable"), "{retry:?}");
    assert_eq!((shop.effects().await, shop.app.runs()), (1, 1));
}

async fn a_stream_of_many_frames_is_recorded_with_the_writes<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for replayed in [false, true] {
        let response = shop.send("/act/frames", "a").await;
        assert_eq!((response.status, response.body.len(), response.replayed), (200, 200 * 1024, replayed));
    }
    assert_eq!((shop.effects().await, shop.app.runs()), (1, 1));
}

async fn a_response_that_breaks_off_undoes_everything<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        shop.send("/act/broken", "a").await;
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
}

async fn a_response_that_panics_when_it_is_dropped_is_recorded_with_the_writes<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for replayed in [false, true] {
        let reply = shop.send("/act/brittle", "a").await;
        assert_eq!((reply.brief(), reply.replayed), ((200, "whole"), replayed));
    }
    assert_eq!((shop.effects().await, shop.app.runs()), (1, 1));
}

async fn a_response_whose_trailers_come_late_is_recorded_with_the_writes<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for replayed in [false, true] {
        let reply = shop.send("/act/late", "a").await;
        assert_eq!((reply.brief(), reply.replayed), ((200, "whole"), replayed));
    }
    assert_eq!((shop.effects().await, shop.app.runs()), (1, 1));
}

async fn a_response_that_panics_when_it_is_recorded_undoes_everything<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        let reply = shop.send("/act/mined", "a").await;
        assert!(reply.status == 500 && reply.is("idempotency_handler_panicked") && reply.says_undone(), "{reply:?}");
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
}

async fn a_refusal_of_another_call_undoes_everything<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        assert_eq!(shop.send("/act/refused", "a").await.status, 202);
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
}

async fn a_refusal_whose_body_comes_later_is_whole<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        assert_eq!(shop.send("/later/panic", "a").await.brief(), (500, "refused"));
        assert_eq!((shop.effects().await, shop.app.runs()), (0, run));
    }
}

async fn a_request_body_that_breaks_off_undoes_everything<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    // A success would be a lie, since nothing is kept.
    for (ending, status) in [("201", 500), ("402", 402)] {
        let path = format!("/reads/{ending}");
        let chunks = [Ok("half"), Err(std::io::Error::other("as asked"))];
        let broken = Body::from_stream(futures_util::stream::iter(chunks));
        assert_eq!(send(&shop.router, &path, ending, broken).await.status, status);
        assert!(!shop.app.is_whole.load(Ordering::SeqCst));
        assert_eq!(shop.effects().await, 0, "{ending}");
    }
    let whole = send(&shop.router, "/reads/201", "201", "whole").await;
    assert_eq!((whole.brief(), whole.replayed), ((201, "run 3"), false));
    assert_eq!(shop.effects().await, 1);
}

async fn without_a_key_it_is_an_ordinary_transaction<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for (ending, status, effects) in
        [("201", 201, 1), ("402", 402, 1), ("500", 500, 1), ("201", 201, 2), ("panic", 500, 2)]
    {
        assert_eq!(shop.send(&format!("/act/{ending}"), None).await.status, status);
        assert_eq!(shop.effects().await, effects, "{ending}");
    }
}

async fn in_shadow_mode_it_is_an_ordinary_transaction<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for run in 1..=2 {
        assert_eq!(shop.send("/shadowed/201", "a").await.brief(), (201, &*format!("run {run}")));
    }
    let endings = [("402", 402, true), ("500", 500, false), ("commit-201", 500, false)];
    for (ending, status, _) in endings {
        assert_eq!(shop.send(&format!("/shadowed/{ending}"), ending).await.status, status);
    }
    within("what is recorded", shop.idempotency.drain()).await;
    for (ending, _, is_recorded) in endings {
        let report = shop.idempotency.inspect(&Scope::GLOBAL, &Key::parse(ending.as_bytes()).unwrap()).await.unwrap();
        assert_eq!(report.is_some(), is_recorded, "{ending}: {report:?}");
    }
}

async fn a_timeout_undoes_everything<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    // A response that stalls keeps the transaction open as well.
    for (path, key, run) in [
        ("/limited/sleep", Some("a"), 1),
        ("/limited/sleep", Some("a"), 2),
        ("/limited/stalls", Some("b"), 3),
        ("/limited/stalls", Some("b"), 4),
        ("/limited/stalls", None, 5),
    ] {
        let reply = within("a timeout", shop.send(path, key)).await;
        assert_eq!((reply.status, shop.app.runs()), (504, run), "{path} {key:?}");
        assert!(reply.says_undone(), "{path} {key:?}: {reply:?}");
    }
    assert_eq!(shop.effects().await, 0);
    assert_eq!(shop.send("/limited/201", "c").await.status, 201);
}

#[tokio::test]
async fn a_record_has_its_whole_ttl_from_the_end_of_the_handler() {
    let shop = Shop::postgres(4).await;
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    let end = shop.keeper.sql("SELECT clock_timestamp()");
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    let row = format!(
        "SELECT expires_at - interval '1 day' BETWEEN '{}' AND now(), clean_after > now() FROM idempotency",
        end.trim()
    );
    // The cleanup need not look at it before.
    assert_eq!(shop.keeper.sql(&row).trim(), "t|t");
}

/// Returns the status in the path, whatever became of its large write.
#[idempotent]
async fn careless(mut tx: Tx<Sqlite>, Path((small, status)): Path<(usize, u16)>) -> StatusCode {
    for _ in 0..small {
        sqlx::raw_sql("INSERT INTO effects (run, padding) VALUES (1, NULL)").execute(&mut *tx).await.unwrap();
    }
    drop(sqlx::raw_sql("INSERT INTO effects (run) VALUES (1)").execute(&mut *tx).await);
    StatusCode::from_u16(status).unwrap()
}

/// A service whose handler is [`careless`], with a large write that finds no room once the connection is [`full`].
async fn careless_shop() -> (Shop<Sqlite, tempfile::TempDir>, Router) {
    let shop = Shop::sqlite(1).await;
    let large = "DROP TABLE effects; CREATE TABLE effects (run INTEGER, padding BLOB DEFAULT (zeroblob(1000000)))";
    sqlx::raw_sql(large).execute(&shop.app.pool).await.unwrap();
    let layer = IdempotencyLayer::new(shop.idempotency.clone());
    let router = Router::new().route("/{small}/{status}", post(careless)).layer(layer);
    (shop, router)
}

/// Of the connection, which is closed afterwards.
async fn full(shop: &Shop<Sqlite, tempfile::TempDir>) {
    sqlx::raw_sql("PRAGMA max_page_count = 50").execute(&shop.app.pool).await.unwrap();
}

/// SQLite rolls the whole transaction back if a statement of one row finds no room.
#[tokio::test]
async fn a_first_write_that_finds_no_room_in_sqlite_undoes_everything_and_frees_the_key() {
    let (shop, router) = careless_shop().await;
    // A 422 would be recorded.
    for (path, key, wanted, retry_after) in [
        ("/0/500", Some("a"), 500, false),
        ("/0/201", Some("a"), 500, false),
        ("/0/422", Some("a"), 503, true),
        ("/0/500", None, 500, false),
        ("/0/201", None, 500, false),
        ("/0/422", None, 422, false),
    ] {
        full(&shop).await;
        let reply = send(&router, path, key, "").await;
        assert_eq!((reply.status, reply.retry_after), (wanted, retry_after), "{path} {key:?}");
    }
    assert_eq!(send(&router, "/0/201", "a", "").await.status, 201);
    assert_eq!(shop.effects().await, 1);
}

/// What was changed and rolled back is counted as if it was changed after that, and so committed.
#[tokio::test]
async fn a_later_write_that_finds_no_room_in_sqlite_undoes_everything_and_leaves_an_unknown_outcome() {
    let (shop, router) = careless_shop().await;
    full(&shop).await;
    assert_eq!(send(&router, "/1/201", "a", "").await.status, 500);
    let retry = send(&router, "/1/201", "a", "").await;
    assert!(retry.status == 409 && retry.is("idempotency_outcome_unknown"), "{retry:?}");
    assert_eq!(shop.effects().await, 0);
}

/// Says that this process is one whose files cannot grow beyond some hundred kilobytes.
const LIMITED: &str = "IDEM_TEST_LIMITED";

/// As under a quota: SQLite then says that the disk failed, and not that it is full.
#[tokio::test]
async fn a_commit_that_the_disk_refuses_is_503_in_sqlite_and_the_key_is_free() {
    if std::env::var_os(LIMITED).is_none() {
        let this = "endings::a_commit_that_the_disk_refuses_is_503_in_sqlite_and_the_key_is_free";
        let limited = ["-c", "trap '' XFSZ; ulimit -f 800; exec \"$@\"", "sh"];
        let mut child = tokio::process::Command::new("sh");
        child.args(limited).arg(std::env::current_exe().unwrap()).args(["--exact", this]).env(LIMITED, "");
        let output = child.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    // The large write stays in memory until the commit.
    let (shop, router) = careless_shop().await;
    for _ in 0..2 {
        let reply = send(&router, "/0/201", "a", "").await;
        assert_eq!((reply.status, reply.retry_after), (503, true), "{reply:?}");
    }
    assert_eq!(shop.effects().await, 0);
}
