//! Requests beside one of their process that has entered their key and not begun its transaction, since it waits for its turn. What the
//! database says of the key comes first.

use std::time::Duration;

use idem_axum::Idempotency;
use idem_runtime::{Begin, BeginOptions, Fingerprint, Key, KeyStatus, Outcome, Scope, Settled, Store};
use idem_sqlx::PostgresStore;
use idem_testkit::postgres::Postgres as Server;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::wait::until;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::shop::{App, Reply, Shop, postgres_service, send, start};

/// A process whose pool has no connection left, so that a request with the key `a` waits for its turn: the key is entered.
struct Entered {
    proxy: Proxy,
    app: App<sqlx::Postgres>,
    idempotency: Idempotency,
    router: axum::Router,
    _requests: [JoinHandle<Reply>; 2],
}

impl Entered {
    async fn new(shop: &Shop<sqlx::Postgres, Server>, path: &str, body: &'static str) -> Self {
        let proxy = Proxy::to(shop.keeper.port()).await;
        let url = shop.keeper.url_through(proxy.port());
        let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
        let (app, idempotency, router) = postgres_service(pool);
        let another = proxy.port().to_string();
        let holder = start(&router, "/act/wait-201", &another);
        app.written().await;
        // Now the store is connected as well, and its statement that looks at a key is prepared.
        assert_eq!(send(&router, "/act/wait-201", &*another, "another body").await.status, 422);
        proxy.set(Direction::ToClient, Fault::None);
        let entered = tokio::spawn({
            let (router, path) = (router.clone(), path.to_owned());
            async move { send(&router, &path, "a", body).await }
        });
        // It has looked at its key, which is free.
        proxy.seen(Direction::ToClient).await;
        Self { proxy, app, idempotency, router, _requests: [holder, entered] }
    }
}

fn key() -> Key {
    Key::parse("a".as_bytes()).unwrap()
}

#[tokio::test]
async fn a_record_is_found_if_another_request_has_entered_its_key() {
    let shop = Shop::postgres(4).await;
    let here = Entered::new(&shop, "/global", "another body").await;
    assert_eq!(shop.send("/leased", "a").await.body, "leased");
    let retry = send(&here.router, "/leased", "a", "").await;
    assert_eq!((retry.brief(), retry.replayed), ((200, "leased"), true));
    let found = here.idempotency.inspect(&Scope::GLOBAL, &key()).await.unwrap();
    assert_eq!(found.unwrap().status(), KeyStatus::Recorded);
    assert_eq!((shop.app.runs(), here.app.runs()), (1, 1), "the other run is the holder's");
}

/// Another process has recorded the key, which no one here knows.
#[tokio::test]
async fn a_retry_whose_key_is_entered_is_503_if_the_database_is_away() {
    let shop = Shop::postgres(4).await;
    let here = Entered::new(&shop, "/act/201", "another body").await;
    assert_eq!(shop.send("/act/201", "a").await.status, 201);
    let retry = send(&here.router, "/act/201", "a", "").await;
    assert_eq!((retry.brief(), retry.replayed), ((201, "run 1"), true));
    here.proxy.refuse();
    let retry = send(&here.router, "/act/201", "a", "").await;
    assert!(retry.is("idempotency_store_unavailable") && retry.retry_after, "{retry:?}");
}

/// Its client would take a 422 as final, although nothing was done for the request with another body, and nothing may ever be.
#[tokio::test]
async fn a_request_whose_key_is_only_entered_is_not_a_mismatch() {
    let shop = Shop::postgres(4).await;
    let here = Entered::new(&shop, "/act/201", "another body").await;
    let refused = send(&here.router, "/act/201", "a", "").await;
    assert!(refused.is("idempotency_key_locked") && refused.retry_after, "{refused:?}");
    // Without a transaction it need not wait for its turn.
    let here = Entered::new(&shop, "/global", "another body").await;
    assert_eq!(send(&here.router, "/leased", "a", "").await.brief(), (200, "leased"));
}

/// In SQLite one transaction at a time is open, and only this process knows of its key.
#[tokio::test]
async fn a_request_whose_key_is_only_entered_is_not_a_mismatch_in_sqlite() {
    let shop = Shop::sqlite(4).await;
    let holder = shop.start("/act/wait-201", "holder");
    shop.app.written().await;
    let entered = tokio::spawn({
        let router = shop.router.clone();
        async move { send(&router, "/act/wait-201", "a", "another body").await }
    });
    until("the key is entered", async || shop.idempotency.inspect(&Scope::GLOBAL, &key()).await.unwrap().is_some())
        .await;
    let refused = shop.send("/act/wait-201", "a").await;
    assert!(refused.is("idempotency_key_locked") && refused.retry_after, "{refused:?}");
    shop.app.go_on.add_permits(1);
    assert_eq!(holder.await.unwrap().status, 201);
    shop.app.written().await;
    assert_eq!(shop.send("/act/wait-201", "a").await.status, 422, "it has begun");
    shop.app.go_on.add_permits(1);
    assert_eq!(entered.await.unwrap().brief(), (201, "run 2"));
}

#[tokio::test]
async fn a_transaction_of_another_process_comes_before_one_that_has_only_entered_the_key() {
    let shop = Shop::postgres(4).await;
    for body in ["another body", ""] {
        let here = Entered::new(&shop, "/act/wait-201", body).await;
        let first = shop.start("/act/wait-201", "a");
        shop.app.written().await;
        let duplicate = send(&here.router, "/act/wait-201", "a", "").await;
        assert!(duplicate.is("idempotency_key_locked"), "{body:?}: {duplicate:?}");
        let mismatch = send(&here.router, "/act/wait-201", "a", "a third body").await;
        assert!(mismatch.is("idempotency_key_mismatch"), "{body:?}: {mismatch:?}");
        shop.app.go_on.add_permits(1);
        assert_eq!(first.await.unwrap().status, 201);
        assert!(send(&here.router, "/act/wait-201", "a", "").await.replayed);
        assert!(shop.idempotency.forget(&Scope::GLOBAL, &key()).await.unwrap());
    }
}

/// Its wait would end only with that of the request that has entered the key.
#[tokio::test]
async fn who_waits_beside_an_entered_key_gets_the_record_at_once() {
    let shop = Shop::postgres(4).await;
    for body in ["another body", ""] {
        let here = Entered::new(&shop, "/waits/wait-201", body).await;
        let first = shop.start("/waits/wait-201", "a");
        shop.app.written().await;
        let waiter = start(&here.router, "/waits/wait-201", "a");
        let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'";
        shop.keeper.wait_until(listens, "1").await;
        shop.app.go_on.add_permits(1);
        assert_eq!(first.await.unwrap().status, 201);
        let replay = timeout(Duration::from_secs(10), waiter).await.expect("at once").unwrap();
        assert!(replay.replayed, "{body:?}: {replay:?}");
        assert!(shop.idempotency.forget(&Scope::GLOBAL, &key()).await.unwrap());
        here.proxy.refuse();
        shop.keeper.wait_until(listens, "0").await;
    }
}

/// Otherwise an operator could neither end an execution that hangs nor settle what it left, while retries wait for their turn.
#[tokio::test]
async fn an_operator_can_revoke_and_settle_beside_an_entered_key() {
    let shop = Shop::postgres(4).await;
    let here = Entered::new(&shop, "/global", "another body").await;
    let store = PostgresStore::from_pool(shop.app.pool.clone());
    let (key, day) = (key(), Duration::from_secs(86_400));
    let storage_key = shop.idempotency.storage_key(&Scope::GLOBAL, &key);
    let begun = store.begin(&storage_key, &Fingerprint::from_bytes([1; 32]), &BeginOptions::new(day, day)).await;
    assert!(matches!(begun.unwrap(), Begin::Claimed(_)));
    assert!(here.idempotency.revoke(&Scope::GLOBAL, &key).await.unwrap());
    let found = here.idempotency.inspect(&Scope::GLOBAL, &key).await.unwrap();
    assert_eq!(found.unwrap().status(), KeyStatus::OutcomeUnknown);
    let settled = here.idempotency.settle(&Scope::GLOBAL, &key, Outcome::NotReplayable).await.unwrap();
    assert_eq!(settled, Settled::Now);
}
