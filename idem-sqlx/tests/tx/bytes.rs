//! The connection to PostgreSQL is cut after each byte of a request's exchange. Whatever was lost, a retry resolves it, and the
//! handler has taken effect once.

use axum::Router;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use sqlx::postgres::PgPoolOptions;

use crate::shop::{Effects, Shop, postgres_service, send};

/// The short form cuts after each 37th byte; `CUTS=1` sets the long one, of every byte.
const STEP: usize = 37;

/// Retries until there is a response. Returns it.
async fn resolve(router: &Router, key: &str, context: &str) -> String {
    for _ in 0..1000 {
        let reply = send(router, "/act/201", key, "").await;
        match reply.status {
            201 => return reply.body,
            503 if reply.retry_after => {}
            409 if reply.is("idempotency_key_locked") => tokio::task::yield_now().await,
            _ => panic!("{context}: {reply:?}"),
        }
    }
    panic!("{context}: it does not resolve");
}

async fn cut_after_each_byte(direction: Direction) {
    let shop = Shop::postgres(2).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&shop.keeper.url_through(proxy.port())).await.unwrap();
    let (_, _, router) = postgres_service(pool.clone());
    let ready = async |key: &str| {
        assert_eq!(send(&router, "/act/201", key, "").await.status, 201);
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
    let (mut keys, mut lost) = (2, 0);
    for after in (0..=bytes).step_by(step) {
        ready(&format!("before-{after}")).await;
        let (key, context) = (format!("cut-{after}"), format!("{direction:?}, cut after {after} of {bytes} bytes"));
        proxy.set(direction, Fault::ResetAfter(after));
        let reply = send(&router, "/act/201", &*key, "").await;
        proxy.heal();
        // The handler makes a 500 of an error of its statement.
        assert!(matches!(reply.status, 201 | 500 | 503), "{context}: {reply:?}");
        lost += usize::from(reply.status != 201);
        let resolved = resolve(&router, &key, &context).await;
        assert!(reply.status != 201 || reply.body == resolved, "{context}: two responses");
        assert_eq!(resolve(&router, &key, &context).await, resolved, "{context}");
        keys += 2;
        assert_eq!(shop.effects().await, keys, "{context}");
    }
    assert!(lost > 0, "no cut was felt");
}

#[tokio::test]
async fn of_what_the_service_sends() {
    cut_after_each_byte(Direction::ToServer).await;
}

#[tokio::test]
async fn of_what_the_database_sends() {
    cut_after_each_byte(Direction::ToClient).await;
}
