//! Statements that fail, and connections that break.

use futures_util::FutureExt;
use idem_runtime::{Abandoned, RefusalReason};
use idem_sqlx::OnceExt;
use idem_testkit::postgres::Postgres as Server;
use sqlx::{Connection, PgConnection, Postgres, Sqlite, SqliteConnection};
use tempfile::TempDir;

use crate::shop::{Failure, Shop, Sql};

#[tokio::test]
async fn a_record_that_cannot_be_read_leaves_the_transaction_as_it_was() {
    let shop = Shop::postgres().await;
    shop.deliver(shop.once("a")).await.unwrap();
    shop.keeper.sql("UPDATE idempotency SET record = '\\x00'");
    let mut tx = shop.begin().await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(!refused.reason().is_retryable(), "{refused:?}");
    assert_eq!(shop.keeper.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").trim(), "0");
    tx.commit().await.unwrap();
    assert_eq!(shop.runs.get(), 1);
}

/// What a transaction has read is of the time of its first statement, and SQLite lets it write only as long as nothing has changed since.
#[tokio::test]
async fn a_transaction_of_sqlite_that_read_before_another_one_wrote_is_told_how_to_begin() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.begin().await;
    sqlx::query("SELECT count(*) FROM effects").fetch_one(&mut *tx).await.unwrap();
    shop.deliver(shop.once("other")).await.unwrap();
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(refused.reason().is_retryable() && refused.chain().contains("BEGIN IMMEDIATE"), "{}", refused.chain());
    tx.rollback().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}

/// SQLite rolls the whole transaction back if a statement of one row finds no room.
#[tokio::test]
async fn a_first_write_that_finds_no_room_in_sqlite_leaves_the_key_free() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::raw_sql("INSERT INTO effects VALUES ('before'); PRAGMA max_page_count = 50").execute(&mut *tx).await.unwrap();
    let write = async |tx: &mut SqliteConnection| {
        let large = sqlx::raw_sql("INSERT INTO effects VALUES (zeroblob(1000000))").execute(tx).await;
        large.map(|_| String::new()).map_err(|_| Failure::AsAsked)
    };
    let failed = shop.once("a").run_in(&mut tx, write).await.unwrap_err();
    assert!(matches!(failed, Failure::AsAsked), "{failed:?}");
    sqlx::raw_sql("PRAGMA max_page_count = 1000000").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.records().await), (0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

/// The claim that is taken over is one change of the connection, as a new one is.
#[tokio::test]
async fn a_first_write_of_a_take_over_that_finds_no_room_in_sqlite_leaves_the_outcome_unknown_as_it_was() {
    let shop = Shop::sqlite().await;
    shop.leave_unknown().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::raw_sql("PRAGMA max_page_count = 50").execute(&mut *tx).await.unwrap();
    let write = async |tx: &mut SqliteConnection| {
        let large = sqlx::raw_sql("INSERT INTO effects VALUES (zeroblob(1000000))").execute(tx).await;
        large.map(|_| String::new()).map_err(|_| Failure::AsAsked)
    };
    let failed = shop.once("a").abandoned(Abandoned::Rerun).run_in(&mut tx, write).await.unwrap_err();
    assert!(matches!(failed, Failure::AsAsked), "{failed:?}");
    sqlx::raw_sql("PRAGMA max_page_count = 1000000").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let refused = shop.deliver(shop.once("a")).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
    assert_eq!(shop.deliver(shop.once("a").abandoned(Abandoned::Rerun)).await.unwrap(), "run 2");
}

/// SQLite does so too if the disk refuses a write.
#[tokio::test]
async fn a_claim_or_a_record_whose_failure_rolls_everything_back_leaves_the_key_free() {
    let shop = Shop::sqlite().await;
    for event in ["INSERT", "UPDATE OF record"] {
        let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let trigger = format!(
            "INSERT INTO effects VALUES ('before'); CREATE TRIGGER no_room BEFORE {event} ON idempotency \
             BEGIN SELECT raise(ROLLBACK, 'no room'); END"
        );
        Shop::<Sqlite, TempDir>::run(&mut tx, &trigger).await;
        let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
        assert!(refused.reason().is_retryable() && refused.chain().contains("no room"), "{event}: {refused:?}");
        // What the caller does after that is in a transaction.
        shop.ship(&mut tx).await.unwrap();
        tx.rollback().await.unwrap();
        assert_eq!((shop.effects("before").await, shop.effects("shipped").await), (0, 0), "{event}");
        assert_eq!(shop.records().await, 0, "{event}");
    }
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 4");
}

#[tokio::test]
async fn a_record_that_the_database_refuses_is_undone_alone_and_no_fault_of_the_function() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let trigger = "INSERT INTO effects VALUES ('before'); CREATE TRIGGER no_room BEFORE UPDATE OF record ON idempotency \
         BEGIN SELECT raise(ABORT, 'no room'); END";
    Shop::<Sqlite, TempDir>::run(&mut tx, trigger).await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(refused.reason().is_retryable() && refused.chain().contains("no room"), "{refused:?}");
    Shop::<Sqlite, TempDir>::run(&mut tx, "DROP TRIGGER no_room").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

#[tokio::test]
async fn a_success_over_an_aborted_transaction_is_undone() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
    let failing = async |tx: &mut PgConnection| {
        let value = shop.ship(tx).await;
        sqlx::raw_sql("SELECT * FROM nothing").execute(&mut *tx).await.unwrap_err();
        value
    };
    let failed = shop.once("a").run_in(&mut tx, failing).await.unwrap_err();
    assert!(failed.reason().is_retryable() && failed.chain().contains("return the error"), "{}", failed.chain());
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
}

#[tokio::test]
async fn a_transaction_that_had_failed_before_is_an_error_that_says_so() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    sqlx::raw_sql("SELECT * FROM nothing").execute(&mut *tx).await.unwrap_err();
    let failed = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(failed.reason().is_retryable() && failed.chain().contains("is aborted"), "{}", failed.chain());
    assert_eq!(shop.runs.get(), 0);
}

#[tokio::test]
async fn after_the_connection_broke_an_error_is_that_of_the_function_and_the_key_is_free() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    let call = shop.once("a").run_in(&mut tx, async |tx| {
        shop.ship(tx).await?;
        sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut *tx).await.unwrap_err();
        Err::<String, _>(Failure::AsAsked)
    });
    assert!(matches!(call.await, Err(Failure::AsAsked)));
    drop(tx);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
    assert_eq!(shop.effects("shipped").await, 1);
}

/// Sends a statement that fails after a while, and stops waiting for it.
fn give_up(connection: &mut PgConnection) {
    let given_up = sqlx::raw_sql("SELECT pg_sleep(0.2); SELECT 1 / 0").execute(connection).now_or_never();
    assert!(given_up.is_none(), "it takes a while");
}

/// sqlx returns the error of such a statement as that of the next one, which is never sent.
#[tokio::test]
async fn an_error_after_a_statement_that_was_given_up_undoes_what_the_function_wrote_and_nothing_else() {
    for is_nested in [false, true] {
        let shop = Shop::postgres().await;
        let mut tx = shop.begin().await;
        Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
        let hasty = async |tx: &mut PgConnection| {
            shop.ship(tx).await?;
            if is_nested {
                give_up(&mut Connection::begin(&mut *tx).await.unwrap());
            } else {
                give_up(tx);
            }
            Err::<String, _>(Failure::AsAsked)
        };
        let failed = shop.once("a").run_in(&mut tx, hasty).await.unwrap_err();
        assert!(matches!(failed, Failure::AsAsked), "{failed:?}");
        tx.commit().await.unwrap();
        let effects = (shop.effects("before").await, shop.effects("shipped").await, shop.records().await);
        assert_eq!(effects, (1, 0, 0), "nested: {is_nested}");
    }
}

#[tokio::test]
async fn a_success_after_a_statement_that_was_given_up_is_undone_if_the_statement_fails() {
    for is_nested in [false, true] {
        let shop = Shop::postgres().await;
        let mut tx = shop.begin().await;
        Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
        let hasty = async |tx: &mut PgConnection| {
            let value = shop.ship(tx).await;
            if is_nested {
                give_up(&mut Connection::begin(&mut *tx).await.unwrap());
            } else {
                give_up(tx);
            }
            value
        };
        let ended = shop.once("a").run_in(&mut tx, hasty).await;
        // A failure within a nested transaction is undone with that.
        assert_eq!(ended.is_ok(), is_nested, "{ended:?}");
        tx.commit().await.unwrap();
        let left = usize::from(is_nested);
        assert_eq!((shop.effects("before").await, shop.effects("shipped").await), (1, left), "nested: {is_nested}");
        assert_eq!(shop.records().await, left, "nested: {is_nested}");
    }
}

/// Where a statement is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GivenUp {
    Nowhere,
    Plainly,
    Nested,
    /// Twice, in a nested transaction and in the one around it.
    Doubly,
}

impl GivenUp {
    const ALL: [Self; 4] = [Self::Nowhere, Self::Plainly, Self::Nested, Self::Doubly];

    async fn run(self, connection: &mut PgConnection, statement: &'static str) {
        match self {
            Self::Nowhere => {}
            Self::Plainly => drop(sqlx::raw_sql(statement).execute(connection).now_or_never()),
            Self::Nested => {
                let mut nested = Connection::begin(connection).await.unwrap();
                drop(sqlx::raw_sql(statement).execute(&mut *nested).now_or_never());
            }
            Self::Doubly => {
                let mut outer = Connection::begin(connection).await.unwrap();
                let mut inner = Connection::begin(&mut *outer).await.unwrap();
                drop(sqlx::raw_sql(statement).execute(&mut *inner).now_or_never());
                drop(inner);
                drop(sqlx::raw_sql(statement).execute(&mut *outer).now_or_never());
            }
        }
    }
}

/// Before the call and within it, whether it fails or not, whatever the function returns: all or nothing.
#[tokio::test]
async fn whatever_statement_is_given_up_the_effect_and_the_record_are_one() {
    let shop = &Shop::postgres().await;
    for (number, (statement, fails)) in
        [("SELECT pg_sleep(0.01)", false), ("SELECT pg_sleep(0.01); SELECT 1 / 0", true)].into_iter().enumerate()
    {
        for before in GivenUp::ALL {
            for within in GivenUp::ALL {
                for succeeds in [true, false] {
                    let case = format!("{number} {before:?} {within:?} {succeeds}");
                    sqlx::raw_sql("DELETE FROM effects").execute(&shop.pool).await.unwrap();
                    let mut tx = shop.begin().await;
                    Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
                    before.run(&mut tx, statement).await;
                    let call = shop.once(&case).run_in(&mut tx, async |tx| {
                        let value = shop.ship(tx).await?;
                        within.run(tx, statement).await;
                        if succeeds { Ok(value) } else { Err(Failure::AsAsked) }
                    });
                    let is_ok = call.await.is_ok();
                    tx.commit().await.unwrap();
                    let is_recorded = shop.once(&case).inspect().await.unwrap().is_some();
                    let is_aborted = fails && before == GivenUp::Plainly;
                    let wanted = succeeds && !is_aborted && !(fails && within == GivenUp::Plainly);
                    let (kept, shipped) = (shop.effects("before").await, shop.effects("shipped").await);
                    assert_eq!((is_ok, is_recorded, shipped), (wanted, wanted, usize::from(wanted)), "{case}");
                    assert_eq!(kept, usize::from(!is_aborted), "{case}");
                }
            }
        }
    }
}

/// sqlx then rolls the whole transaction back, and counts none any more: it would not end one that is begun in its place.
#[tokio::test]
async fn a_nested_transaction_whose_beginning_is_given_up_leaves_no_transaction_in_the_pool() {
    for statement in ["SELECT pg_sleep(0.1)", "SELECT pg_sleep(0.1); SELECT 1 / 0"] {
        let shop = Shop::postgres().await;
        let mut tx = shop.begin().await;
        let call = shop.once("a").run_in(&mut tx, async |tx| {
            let value = shop.ship(tx).await;
            // So that the next one waits.
            assert!(sqlx::raw_sql(statement).execute(&mut *tx).now_or_never().is_none());
            assert!(Connection::begin(&mut *tx).now_or_never().is_none());
            value
        });
        let refused = call.await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
        tx.commit().await.unwrap();
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        assert_eq!(shop.keeper.sql(open).trim(), "0");
        assert_eq!(shop.effects("shipped").await, 0);
    }
}

#[tokio::test]
async fn a_statement_that_the_caller_gave_up_in_a_nested_transaction_is_not_the_failure_of_the_claim() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    give_up(&mut tx.begin().await.unwrap());
    assert_eq!(shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap(), "run 1");
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}
