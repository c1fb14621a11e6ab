//! Handlers that do to their transaction what they should not.

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::post;
use idem_axum::{IdempotencyLayer, idempotent};
use idem_sqlx::{Tx, TxRejection};
use idem_testkit::postgres::Postgres as Server;
use sqlx::{Database, Sqlite, SqliteConnection};

use crate::shop::{Effects, Shop, over_both, send, start};

over_both!(
    a_handler_that_ends_its_transaction_gets_500_and_its_retries_are_refused,
    a_transaction_that_outlives_its_handler_is_undone,
    a_request_without_a_key_is_no_success_either,
    no_handler_runs_without_the_one_transaction
);

async fn a_handler_that_ends_its_transaction_gets_500_and_its_retries_are_refused<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let mut effects = 0;
    let endings = ["201", "402", "500", "unrecorded"];
    let misuses = [
        "commit",
        "rollback",
        "commit-begin",
        "rollback-begin",
        "rollback-write",
        "blank-commit",
        "blank-commit-write",
    ];
    for misuse in misuses {
        for ending in endings {
            let (path, key) = (format!("/act/{misuse}-{ending}"), format!("{misuse}-{ending}"));
            let runs = shop.app.runs();
            let reply = shop.send(&path, &*key).await;
            assert_eq!((reply.status, reply.body.as_str()), (500, ""), "{key}");
            let retry = shop.send(&path, &*key).await;
            assert!(retry.status == 409 && retry.is("idempotency_outcome_unknown"), "{key}: {retry:?}");
            let other = send(&shop.router, &path, &*key, "another request").await;
            assert!(other.status == 422 && other.is("idempotency_key_mismatch"), "{key}: {other:?}");
            assert_eq!(shop.app.runs(), runs + 1, "{key}");
            // What the handler committed itself stays.
            let wrote = !misuse.contains("blank") && misuse.contains("commit");
            effects += usize::from(wrote || misuse.contains("write"));
            assert_eq!(shop.effects().await, effects, "{key}");
        }
    }
    assert_eq!(shop.send("/act/201", "after").await.status, 201);
}

#[tokio::test]
async fn a_nested_transaction_whose_beginning_is_dropped_ends_the_transaction_in_postgres() {
    let shop = Shop::postgres(4).await;
    for (path, effects) in [("/act/cancel-201", 0), ("/act/cancel-402", 0), ("/act/cancel-write-201", 1)] {
        let reply = shop.send(path, path).await;
        assert_eq!((reply.status, reply.body.as_str()), (500, ""), "{path}");
        let retry = shop.send(path, path).await;
        assert!(retry.status == 409 && retry.is("idempotency_outcome_unknown"), "{path}: {retry:?}");
        // What it wrote after that is outside of any transaction.
        assert_eq!(shop.effects().await, effects, "{path}");
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    shop.keeper.wait_until(open, "0").await;
    assert_eq!(shop.send("/act/201", "after").await.status, 201);
}

async fn a_transaction_that_outlives_its_handler_is_undone<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let reply = shop.send("/leaks", "a").await;
    assert_eq!((reply.status, reply.body.as_str()), (500, ""));
    shop.app.written().await;
    shop.app.go_on.add_permits(1);
    shop.app.written().await;
    assert_eq!(shop.effects().await, 0);
    assert_eq!(shop.send("/act/201", "b").await.status, 201);
    assert_eq!(shop.effects().await, 1);
}

async fn a_request_without_a_key_is_no_success_either<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for misuse in ["commit-201", "rollback-201", "rollback-402"] {
        assert_eq!(shop.send(&format!("/act/{misuse}"), None).await.status, 500, "{misuse}");
    }
    assert_eq!(shop.effects().await, 1);
    assert_eq!(shop.send("/act/201", None).await.status, 201);
}

async fn no_handler_runs_without_the_one_transaction<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    for path in ["/two", "/plain"] {
        assert_eq!(shop.send(path, "a").await.brief(), (500, ""), "{path}");
    }
}

/// Uses a transaction, wherever that is.
fn used(tx: &Tx<Sqlite>) -> &'static str {
    let _: &SqliteConnection = tx;
    "used"
}

/// An extractor that uses it.
struct Hasty;

impl<S: Sync> FromRequestParts<S> for Hasty {
    type Rejection = TxRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, TxRejection> {
        used(&Tx::from_request_parts(parts, state).await?);
        Ok(Self)
    }
}

#[idempotent]
async fn in_an_extractor(_: Hasty) {}

#[idempotent(scope = used(&tx))]
async fn in_the_scope(tx: Tx<Sqlite>) {
    drop(tx);
}

#[idempotent(key = used(&tx))]
async fn in_the_key(tx: Tx<Sqlite>) {
    drop(tx);
}

#[tokio::test]
async fn a_transaction_that_is_used_before_the_handler_runs_is_a_panic_that_says_why() {
    let shop = Shop::sqlite(2).await;
    let router = Router::new()
        .route("/extractor", post(in_an_extractor))
        .route("/scope", post(in_the_scope))
        .route("/key", post(in_the_key))
        .layer(IdempotencyLayer::new(shop.idempotency.clone()));
    for path in ["/extractor", "/scope", "/key"] {
        let panic = start(&router, path, "a").await.expect_err(path).into_panic();
        let text = panic.downcast::<String>().expect("a text");
        assert!(text.contains("used before its transaction has begun; use it in the handler"), "{path}: {text}");
    }
    assert_eq!(shop.send("/act/201", "a").await.status, 201);
}

/// A prepared transaction has no session, and keeps its locks.
#[tokio::test]
async fn a_handler_that_prepares_its_transaction_keeps_the_key_until_others_end_it() {
    let server = Server::with(&["fsync=off", "max_prepared_transactions=2"]).await;
    let shop = Shop::over(server, 4).await;
    for path in ["/act/prepare-201", "/reruns/prepare-201"] {
        for (end, state) in [("COMMIT", "idempotency_outcome_unknown"), ("ROLLBACK", "")] {
            let key = format!("{path}-{end}");
            assert_eq!(shop.send(path, &*key).await.brief(), (500, ""), "{key}");
            let runs = shop.app.runs();
            for _ in 0..2 {
                let retry = shop.send(path, &*key).await;
                assert!(retry.is("idempotency_key_locked"), "{key}: {retry:?}");
            }
            let other = send(&shop.router, path, &*key, "another request").await;
            assert!(other.is("idempotency_key_mismatch"), "{key}: {other:?}");
            shop.keeper.sql(&format!("{end} PREPARED 'a'"));
            let retry = shop.send(path, &*key).await;
            if path.contains("act") && !state.is_empty() {
                assert!(retry.is(state) && shop.app.runs() == runs, "{key}: {retry:?}");
                continue;
            }
            // It runs again, and a take-over is prepared.
            assert_eq!((retry.status, shop.app.runs()), (500, runs + 1), "{key}");
            let retry = shop.send(path, &*key).await;
            assert!(retry.is("idempotency_key_locked"), "{key}: {retry:?}");
            shop.keeper.sql("ROLLBACK PREPARED 'a'");
        }
    }
    assert_eq!(shop.effects().await, 2);
}

/// As a trigger does: the handler has taken effect, and no retry may run again.
#[tokio::test]
async fn a_record_that_the_database_does_not_take_is_500_and_its_retries_are_refused() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER swallow BEFORE UPDATE ON idempotency FOR EACH ROW WHEN (NEW.record IS NOT NULL) \
             EXECUTE FUNCTION swallow()",
    );
    assert_eq!(shop.send("/act/201", "a").await.status, 500);
    let retry = shop.send("/act/201", "a").await;
    assert!(retry.status == 409 && retry.is("idempotency_outcome_unknown"), "{retry:?}");
    assert_eq!((shop.app.runs(), shop.effects().await), (1, 1));
}

/// A role that the handler takes, as one does for row level security, is also that of the record.
#[tokio::test]
async fn a_role_without_rights_to_the_table_of_records_undoes_a_success() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql("CREATE ROLE guest; GRANT INSERT ON effects TO guest");
    for runs in [1, 2] {
        assert_eq!(shop.send("/act/guest-write-201", "a").await.brief(), (500, ""));
        assert_eq!((shop.app.runs(), shop.effects().await), (runs, 0), "the key is free");
    }
    // What is undone is also the role.
    assert_eq!(shop.send("/act/guest-write-402", "b").await.status, 402);
    assert!(shop.send("/act/guest-write-402", "b").await.replayed);
    shop.keeper.sql("GRANT UPDATE, SELECT ON idempotency TO guest");
    assert_eq!(shop.send("/act/guest-write-201", "a").await.status, 201);
    assert_eq!(shop.effects().await, 2);
}
