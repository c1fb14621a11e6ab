//! Which store the engine has.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{CachedStore, Idempotency};
use idem_sqlx::{Dialect, OnceExt, PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres as Server;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres};

use crate::shop::{Shop, Sql, file};

/// Asserts that the engine is refused, says what to mount, and leaves the transaction as it was.
async fn refuses<D: Dialect, K>(shop: &Shop<D, K>, idempotency: &Idempotency, name: &str)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let refused = idempotency.once("ship", "a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(refused.reason().is_retryable() && refused.chain().contains(name), "{}", refused.chain());
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.runs.get(), shop.records().await), (0, 0));
}

#[tokio::test]
async fn a_store_in_another_database_is_an_error_that_says_what_to_mount() {
    let (postgres, sqlite) = (Shop::postgres().await, Shop::sqlite().await);
    refuses(&postgres, &Idempotency::in_memory(), "a `PostgresStore` over the same database").await;
    refuses(&postgres, &sqlite.idempotency, "a `PostgresStore` over the same database").await;
    refuses(&sqlite, &postgres.idempotency, "a `SqliteStore` over the same database").await;

    // With a separate table, and in the transaction's database without one.
    let another = Shop::postgres().await;
    refuses(&postgres, &another.idempotency, "a `PostgresStore` over the same database").await;
    postgres.keeper.sql("CREATE DATABASE other");
    let url = postgres.keeper.url().replace("/postgres?", "/other?");
    let other = PgPool::connect(&url).await.unwrap();
    PostgresStore::from_pool(other.clone()).migrate().await.unwrap();
    let other = Idempotency::new(PostgresStore::from_pool(other));
    refuses(&postgres, &other, "a `PostgresStore` over the same database").await;
    postgres.keeper.sql("CREATE DATABASE empty");
    let mut tx = PgPool::connect(&url.replace("/other?", "/empty?")).await.unwrap().begin().await.unwrap();
    let call = postgres.once("a").run_in(&mut tx, async |tx| postgres.ship(tx).await);
    let refused = call.await.unwrap_err().chain();
    assert!(refused.contains("a `PostgresStore` over the same database"), "no table: {refused}");

    let pool = file(&sqlite.keeper, "other.db").await;
    let store = SqliteStore::from_pool(pool);
    refuses(&sqlite, &Idempotency::new(store), "a `SqliteStore` over the same database").await;
    assert_eq!(sqlite.deliver(sqlite.once("a")).await.unwrap(), "run 1");
    assert_eq!(postgres.deliver(postgres.once("a")).await.unwrap(), "run 1");
}

#[tokio::test]
async fn a_store_behind_a_cache_or_in_an_arc_is_in_its_database() {
    let shop = Shop::postgres().await;
    let store = || PostgresStore::from_pool(shop.pool.clone());
    let mounted = [
        Idempotency::new(Arc::new(store())),
        Idempotency::new(CachedStore::new(store())),
        Idempotency::new(CachedStore::new(Arc::new(store()))),
        Idempotency::new(Arc::new(CachedStore::new(store()))),
    ];
    for (number, idempotency) in mounted.iter().enumerate() {
        for _ in 0..2 {
            let value = shop.deliver(idempotency.once("ship", number.to_string())).await.unwrap();
            assert_eq!(value, format!("run {}", number + 1));
        }
    }
    assert_eq!(shop.effects("shipped").await, mounted.len());
}

#[tokio::test]
async fn a_server_that_was_restarted_is_the_same_database() {
    let mut shop = Shop::postgres().await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    shop.keeper.restart().await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 2");
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_leaves_the_transaction_as_it_was() {
    let shop = Shop::postgres().await;
    let nowhere = shop.pool.connect_options().as_ref().clone().socket("/nowhere");
    let pool = PgPoolOptions::new().connect_lazy_with(nowhere);
    let store = PostgresStore::builder().timeout(Duration::from_millis(200)).with_pool(pool).unwrap();
    refuses(&shop, &Idempotency::new(store), "no connection to the database").await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

#[tokio::test]
async fn settings_of_the_callers_session_do_not_make_it_another_database() {
    let shop = Shop::postgres().await;
    for setting in ["TIME ZONE 'Asia/Kolkata'", "datestyle = 'German'", "bytea_output = 'escape'"] {
        let mut tx = shop.begin().await;
        Shop::<Postgres, Server>::run(&mut tx, &format!("SET LOCAL {setting}")).await;
        for _ in 0..2 {
            shop.once(setting).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(shop.effects("shipped").await, 3);
}
