//! Which store the layer was mounted with.

use idem_axum::Idempotency;
use idem_sqlx::{PostgresStore, SqliteStore};
use sqlx::postgres::PgPoolOptions;

use crate::shop::{Effects, Shop, over_postgres, over_sqlite, postgres_service, send};

#[tokio::test]
async fn a_store_that_cannot_open_the_transaction_is_a_500_and_leaves_the_key_free() {
    let (postgres, sqlite) = (Shop::postgres(4).await, Shop::sqlite(4).await);
    let connected = PostgresStore::connect(&postgres.keeper.url()).await.unwrap();
    let opened = SqliteStore::open(sqlite.keeper.path().join("shop.db")).await.unwrap();
    let of_postgres = || Idempotency::new(PostgresStore::from_pool(postgres.app.pool.clone()));
    let of_sqlite = || Idempotency::new(SqliteStore::from_pool(sqlite.app.pool.clone()));
    let routers = [
        over_postgres::router(&postgres.app, Idempotency::in_memory()),
        over_postgres::router(&postgres.app, Idempotency::new(connected)),
        over_postgres::router(&postgres.app, of_sqlite()),
        over_sqlite::router(&sqlite.app, Idempotency::in_memory()),
        over_sqlite::router(&sqlite.app, Idempotency::new(opened)),
        over_sqlite::router(&sqlite.app, of_postgres()),
    ];
    for (which, router) in routers.iter().enumerate() {
        for key in [Some("a"), Some("a"), None] {
            assert_eq!(send(router, "/act/201", key, "").await.brief(), (500, ""), "{which}");
        }
    }
    assert_eq!((postgres.app.runs(), sqlite.app.runs()), (0, 0));
    let right = over_postgres::router(&postgres.app, of_postgres());
    assert_eq!(send(&right, "/act/201", "a", "").await.status, 201);
    let right = over_sqlite::router(&sqlite.app, of_sqlite());
    assert_eq!(send(&right, "/act/201", "a", "").await.status, 201);
}

#[tokio::test]
async fn the_transaction_is_in_the_database_of_the_endpoints_own_store() {
    let shop = Shop::postgres(4).await;
    shop.keeper.sql("CREATE DATABASE other");
    let url = shop.keeper.url().replace("/postgres?", "/other?");
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE effects (run bigint)").execute(&pool).await.unwrap();
    PostgresStore::from_pool(pool.clone()).migrate().await.unwrap();
    let (other, _, router) = postgres_service(pool);
    assert_eq!(send(&router, "/act/201", "a", "").await.status, 201);
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&other.pool).await.unwrap();
    assert_eq!((count, shop.effects().await), (1, 0));
}
