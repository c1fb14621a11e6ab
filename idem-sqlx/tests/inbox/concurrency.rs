//! Two deliveries at once.

use std::time::Duration;

use idem_runtime::{Abandoned, Idempotency, RefusalReason, WhenInFlight};
use idem_sqlx::{OnceExt, PostgresStore};
use idem_testkit::postgres::Postgres as Server;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool, Postgres};

use crate::shop::{Failure, Shop, Sql};

/// A second process over the same database.
async fn other_process(shop: &Shop<Postgres, Server>) -> Idempotency {
    let pool = PgPoolOptions::new().max_connections(2).connect(&shop.keeper.url()).await.unwrap();
    Idempotency::new(PostgresStore::from_pool(pool))
}

#[tokio::test]
async fn a_key_in_an_open_transaction_is_in_flight_to_other_processes() {
    let shop = Shop::postgres().await;
    let other = other_process(&shop).await;
    let mut tx = shop.begin().await;
    shop.once("a").fingerprint(&"tea").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    for idempotency in [&shop.idempotency, &other] {
        let tea = || idempotency.once("ship", "a").fingerprint(&"tea");
        let refused = shop.deliver(tea()).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
        let refused = shop.deliver(idempotency.once("ship", "a").fingerprint(&"coffee")).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
        let refused = tea().run(async || Ok::<_, Failure>(String::new())).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(other.once("ship", "a").fingerprint(&"tea")).await.unwrap(), "run 1");
    assert_eq!(shop.effects("shipped").await, 1);
}

/// A take-over would wait for the end of the other one, however long that takes.
#[tokio::test]
async fn an_unknown_outcome_that_another_delivery_takes_over_is_in_flight() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;
    let reruns = |then: WhenInFlight| shop.once("a").abandoned(Abandoned::Rerun).in_flight(then);
    let mut tx = shop.begin().await;
    // It has written before the call.
    sqlx::raw_sql("SELECT txid_current()").execute(&mut *tx).await.unwrap();
    let first = reruns(WhenInFlight::Reject).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(5), shop.deliver(reruns(WhenInFlight::Reject)));
    let refused = second.await.expect("at once").unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    for leased in [shop.once("a"), reruns(WhenInFlight::Reject)] {
        let refused = leased.run(async || Ok::<_, Failure>(String::new())).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    let waits = shop.deliver(reruns(WhenInFlight::Wait(Duration::from_secs(60))));
    let (second, ()) = tokio::join!(waits, async { tx.commit().await.unwrap() });
    assert_eq!((first.as_str(), second.unwrap().as_str()), ("run 2", "run 2"));
}

/// A retry that is refused holds the lock of the key for a moment. Without it a take-over would not be seen: others would wait for its
/// row, however long it runs, or be told that the outcome is unknown.
#[tokio::test]
async fn a_take_over_waits_for_the_lock_of_a_retry_that_is_refused() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;
    let reruns = || shop.once("a").abandoned(Abandoned::Rerun).in_flight(WhenInFlight::Reject);
    let mut tx = shop.begin().await;
    reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let lock =
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE mode = 'ExclusiveLock' AND objsubid = 1";
    let lock: i64 = shop.keeper.sql(lock).trim().parse().unwrap();
    tx.rollback().await.unwrap();

    let mut refused = shop.begin().await;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(&mut *refused).await.unwrap();
    let mut tx = shop.begin().await;
    let early = reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(early.reason().is_retryable(), "{early:?}");
    refused.rollback().await.unwrap();
    assert_eq!(reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap(), "run 3");
    for other in [reruns(), shop.once("a")] {
        let second = tokio::time::timeout(Duration::from_secs(5), shop.deliver(other));
        let refused = second.await.expect("at once").unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(reruns()).await.unwrap(), "run 3");
}

/// Between the two looks of a delivery, at the row and at who holds the key, the owner ends, and a message with other contents has the
/// key for a moment, until it finds the record.
#[tokio::test]
async fn a_record_that_came_before_another_message_had_the_key_is_no_mismatch() {
    let shop = Shop::postgres().await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPool::connect(&shop.keeper.url_through(proxy.port())).await.unwrap();
    let other = Idempotency::new(PostgresStore::from_pool(pool));
    let tea = |idempotency: &Idempotency, key: &str| idempotency.once("ship", key).fingerprint(&"tea");
    let mut tx = shop.begin().await;
    tea(&shop.idempotency, "a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let locks = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE mode = 'ExclusiveLock' AND objsubid = 1 \
        UNION ALL SELECT classid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2";
    let locks: Vec<i64> = shop.keeper.sql(locks).lines().map(|lock| lock.parse().unwrap()).collect();
    let value = async || Ok::<_, Failure>("without".to_owned());
    // Both statements are prepared now.
    let refused = tea(&other, "a").run(value).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");

    proxy.set(Direction::ToClient, Fault::Hold);
    let retry = tokio::spawn(tea(&other, "a").run(value));
    proxy.seen(Direction::ToClient).await;
    tx.commit().await.unwrap();
    let mut coffee = shop.begin().await;
    let take = "SELECT pg_advisory_xact_lock($1), pg_advisory_xact_lock_shared($2, 0)";
    let take = sqlx::query(take).bind(locks[0]).bind(i32::try_from(locks[1]).unwrap());
    take.execute(&mut *coffee).await.unwrap();
    proxy.heal();
    assert_eq!(retry.await.unwrap().unwrap(), "run 1");
}

#[tokio::test]
async fn a_delivery_waits_for_another_one_as_declared() {
    let shop = Shop::postgres().await;
    let other = other_process(&shop).await;
    for commits in [true, false] {
        let key = commits.to_string();
        let mut tx = shop.begin().await;
        let first = shop.once(&key).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        let waits = |time| other.once("ship", &key).in_flight(WhenInFlight::Wait(time));
        let refused = shop.deliver(waits(Duration::from_millis(50))).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
        let end = async {
            // The other one has looked who holds the key, and waits.
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query NOT LIKE 'BEGIN%'";
            shop.keeper.wait_until(waiting, "2").await;
            if commits { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
        };
        let (second, ()) = tokio::join!(shop.deliver(waits(Duration::from_secs(60))), end);
        assert_eq!(second.unwrap() == first, commits);
    }
    assert_eq!(shop.effects("shipped").await, 2);
}

#[tokio::test]
async fn in_sqlite_the_begin_of_another_transaction_waits() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    // Without IMMEDIATE the call waits, as long as the connection does.
    let refused =
        shop.deliver(shop.once("a").in_flight(WhenInFlight::Wait(Duration::from_secs(60)))).await.unwrap_err();
    assert!(refused.reason().is_retryable(), "{refused:?}");
    let second = async {
        let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await
    };
    let (second, first) = tokio::join!(second, tx.commit());
    first.unwrap();
    assert_eq!(second.unwrap(), "run 1");
}

#[tokio::test]
async fn many_deliveries_at_once_run_once() {
    let shop = Shop::postgres().await;
    let pool = PgPoolOptions::new().max_connections(16).connect(&shop.keeper.url()).await.unwrap();
    let idempotency = Idempotency::new(PostgresStore::from_pool(pool.clone()));
    for round in 0..5 {
        let all = (0..16).map(|_| {
            let (pool, idempotency) = (pool.clone(), idempotency.clone());
            // The future is `Send`, whatever the function borrows.
            tokio::spawn(async move {
                let what = "shipped".to_owned();
                let mut tx = pool.begin().await.unwrap();
                let once =
                    idempotency.once("ship", round.to_string()).in_flight(WhenInFlight::Wait(Duration::from_secs(60)));
                let number = once
                    .run_in(&mut tx, async |tx| {
                        let insert = "INSERT INTO effects VALUES ($1) RETURNING ctid::text";
                        let row: String = sqlx::query_scalar(insert).bind(&what).fetch_one(&mut *tx).await.unwrap();
                        Ok::<_, Failure>(row)
                    })
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
                number
            })
        });
        let all: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
        assert!(all.iter().all(|value| *value == all[0]), "{all:?}");
        assert_eq!(shop.effects("shipped").await, round + 1);
    }
}

/// Takes messages off the queue until it is empty, each in the transaction that ships its order. Returns the values.
async fn consume(pool: &PgPool, idempotency: &Idempotency) -> Vec<(String, String)> {
    let take = "DELETE FROM messages WHERE id = (SELECT id FROM messages ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) \
        RETURNING order_id";
    let mut values = Vec::new();
    loop {
        let mut tx = pool.begin().await.unwrap();
        let Some(order) = sqlx::query_scalar::<_, String>(take).fetch_optional(&mut *tx).await.unwrap() else {
            return values;
        };
        let once = idempotency.once("ship", &order).in_flight(WhenInFlight::Wait(Duration::from_secs(60)));
        let ship = async |tx: &mut PgConnection| {
            let insert = sqlx::query_scalar("INSERT INTO effects VALUES ($1) RETURNING ctid::text");
            Ok::<String, Failure>(insert.bind(&order).fetch_one(&mut *tx).await.unwrap())
        };
        let value = once.run_in(&mut tx, ship).await.unwrap();
        tx.commit().await.unwrap();
        values.push((order, value));
    }
}

#[tokio::test]
async fn consumers_that_skip_locked_messages_ship_each_order_once() {
    const ORDERS: usize = 10;
    let shop = Shop::postgres().await;
    shop.keeper.sql(&format!(
        "CREATE TABLE messages (id serial PRIMARY KEY, order_id text NOT NULL); \
         INSERT INTO messages (order_id) SELECT (number % {ORDERS})::text FROM generate_series(1, {}) AS number",
        3 * ORDERS
    ));
    let consume = || consume(&shop.pool, &shop.idempotency);
    let values = futures_util::future::join3(consume(), consume(), consume()).await;
    let mut values = [values.0, values.1, values.2].concat();
    assert_eq!(values.len(), 3 * ORDERS, "each message is consumed once");
    values.sort();
    values.dedup();
    assert_eq!(values.len(), ORDERS, "each order has one parcel: {values:?}");
    assert_eq!(shop.keeper.sql("SELECT count(*) FROM effects").trim(), ORDERS.to_string());
}

#[tokio::test]
async fn a_key_that_was_committed_after_the_snapshot_is_an_error_that_a_retry_resolves() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    Shop::<Postgres, Server>::run(&mut tx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(Shop::<Postgres, Server>::count(&mut tx, "SELECT count(*) FROM effects").await, 0);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    let failed = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(failed.reason().is_retryable(), "{failed:?}");
    drop(tx);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

/// What `run_in` did before it refused would keep others from the key until the caller ends its transaction.
#[tokio::test]
async fn a_call_that_is_refused_as_unknown_keeps_nothing() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;

    let mut tx = shop.begin().await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
    let other = shop.once("a").fingerprint(&"another").run_in(&mut tx, async |tx| shop.ship(tx).await).await;
    let refused = other.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
    let other = other_process(&shop).await.once("ship", "a");
    assert!(other.forget().await.unwrap());
    assert_eq!(shop.deliver(other).await.unwrap(), "run 2");
    Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.effects("after").await), (2, 1));
}
