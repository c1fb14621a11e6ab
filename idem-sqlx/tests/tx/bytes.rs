//! The connection to PostgreSQL is cut after each byte of a request's exchange. Whatever was lost, a retry resolves it, and the
//! handler has taken effect once. If its success leaves no record, the response says whether it has.

use axum::Router;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use sqlx::postgres::PgPoolOptions;

use crate::shop::{Effects, Shop, postgres_service, send};

/// The short form cuts after each 37th byte; `CUTS=1` sets the long one, of every byte.
const STEP: usize = 37;

const RECORDED: &str = "/act/201";
const WITHOUT_RECORD: &str = "/errors/201";

/// Retries until there is a response. Returns it.
async fn resolve(router: &Router, key: &str, context: &str) -> String {
    for _ in 0..1000 {
        let reply = send(router, RECORDED, key, "").await;
        match reply.status {
            201 => return reply.body,
            503 if reply.retry_after => {}
            409 if reply.is("idempotency_key_locked") => tokio::task::yield_now().await,
            _ => panic!("{context}: {reply:?}"),
        }
    }
    panic!("{context}: it does not resolve");
}

async fn cut_after_each_byte(direction: Direction, path: &str) {
    let shop = Shop::postgres(2).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&shop.keeper.url_through(proxy.port())).await.unwrap();
    let (_, _, router) = postgres_service(pool.clone());
    let ready = async |key: &str| {
        assert_eq!(send(&router, path, key, "").await.status, 201);
        // Until the connection is back, its bytes are not those of the next request.
        while pool.num_idle() == 0 {
            tokio::task::yield_now().await;
        }
    };
    ready("first").await;
    proxy.set(direction, Fault::None);
    ready("measured").await;
    let bytes = proxy.bytes(direction);
    let step = std::env::var("CUTS").map_or(STEP, |step| step.parse().unwrap());
    let mut lost = 0;
    for after in (0..=bytes).step_by(step) {
        ready(&format!("before-{after}")).await;
        let (key, context) = (format!("cut-{after}"), format!("{direction:?}, cut after {after} of {bytes} bytes"));
        let before = shop.effects().await;
        proxy.set(direction, Fault::ResetAfter(after));
        let reply = send(&router, path, &*key, "").await;
        proxy.heal();
        // The handler makes a 500 of an error of its statement.
        assert!(matches!(reply.status, 201 | 500 | 503), "{context}: {reply:?}");
        lost += usize::from(reply.status != 201);
        if path == WITHOUT_RECORD {
            // A retry would run again, so the first response has to say what happened.
            let effects = shop.effects().await - before;
            match reply.status {
                201 => assert_eq!(effects, 1, "{context}"),
                503 => assert!(reply.retry_after && effects == 0, "{context}: {effects} effects, {reply:?}"),
                _ => assert!(!reply.retry_after && effects <= 1, "{context}: {effects} effects, {reply:?}"),
            }
            continue;
        }
        let resolved = resolve(&router, &key, &context).await;
        assert!(reply.status != 201 || reply.body == resolved, "{context}: two responses");
        assert_eq!(resolve(&router, &key, &context).await, resolved, "{context}");
        assert_eq!(shop.effects().await, before + 1, "{context}");
    }
    assert!(lost > 0, "no cut was felt");
}

#[tokio::test]
async fn of_what_the_service_sends() {
    cut_after_each_byte(Direction::ToServer, RECORDED).await;
}

#[tokio::test]
async fn of_what_the_database_sends() {
    cut_after_each_byte(Direction::ToClient, RECORDED).await;
}

#[tokio::test]
async fn of_what_the_service_sends_for_a_success_without_a_record() {
    cut_after_each_byte(Direction::ToServer, WITHOUT_RECORD).await;
}

#[tokio::test]
async fn of_what_the_database_sends_for_a_success_without_a_record() {
    cut_after_each_byte(Direction::ToClient, WITHOUT_RECORD).await;
}
