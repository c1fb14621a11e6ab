//! PostgreSQL behind PgBouncer.
#![cfg(feature = "postgres")]

use std::time::Duration;

use idem_runtime::{Begin, Claim, Store, StoreError};
use idem_sqlx::{ConnectError, PostgresStore, Problem};
use idem_testkit::pgbouncer::PgBouncer;
use idem_testkit::postgres::Postgres;
use tokio::task::JoinSet;

use crate::common::*;

const IGNORED: &str = "ignore_startup_parameters = options, extra_float_digits";

async fn migrated() -> Postgres {
    let server = Postgres::quick().await;
    PostgresStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    server
}

/// Every step, by two processes.
async fn each_step(server: &Postgres, here: &PostgresStore, there: &PostgresStore) {
    let (recorded, released, taken_over) = (key(), key(), key());
    let mut claimed = claim(here, &recorded).await;
    claimed.renew(LEASE).await.unwrap();
    assert_eq!(state_of(there, &recorded).await, "in flight");
    let (_, completed) = tokio::join!(there.ended(&recorded), async {
        server.wait_until("SELECT count(*) FROM idempotency WHERE awaited", "1").await;
        claimed.complete(record("response"), TTL).await
    });
    completed.unwrap();
    assert_eq!(state_of(there, &recorded).await, "completed: response");
    assert!(there.inspect(&recorded).await.unwrap().is_some());
    claim(here, &released).await.release().await.unwrap();
    drop(claim_for(here, &taken_over, SHORT, TTL).await);
    abandoned(there, &taken_over).await.renew(LEASE).await.unwrap();
    assert!(there.forget(&recorded).await.unwrap());
    assert_eq!(here.clean_once().await.unwrap(), 0);
    let mut steps = JoinSet::new();
    for _ in 0..40 {
        let (here, there) = (here.clone(), there.clone());
        steps.spawn(async move {
            let key = key();
            leave_record(&here, &key, "response").await;
            assert_eq!(state_of(&there, &key).await, "completed: response");
        });
    }
    while let Some(step) = steps.join_next().await {
        step.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_session_pooling_everything_works_and_idle_processes_leave_connections_to_others() {
    let server = migrated().await;
    let proxy = PgBouncer::before(&server, &["pool_mode = session", "default_pool_size = 4", IGNORED]).await;
    let connect = async || {
        let builder = PostgresStore::builder().max_connections(2).idle_timeout(Duration::from_millis(300));
        builder.connect(&proxy.url()).await.unwrap()
    };
    let (here, there) = (connect().await, connect().await);
    each_step(&server, &here, &there).await;
    // All that the proxy lends were in use. The first two processes are still there.
    let third = connect().await;
    leave_record(&third, &key(), "response").await;
}

/// A proxy before 1.21 keeps no prepared statements. Then steps fail, and no key is claimed twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_transaction_pooling_nothing_runs_twice_and_all_works_if_the_proxy_keeps_prepared_statements() {
    let server = migrated().await;
    let keeps = PgBouncer::keeps_prepared_statements();
    let kept = if keeps { "max_prepared_statements = 100" } else { "" };
    let settings = ["pool_mode = transaction", "default_pool_size = 2", IGNORED, kept];
    let proxy = PgBouncer::before(&server, &settings).await;
    let connect = async || {
        let builder = PostgresStore::builder().timeout(Duration::from_secs(1));
        builder.connect(&proxy.url()).await.unwrap()
    };
    let (here, there) = (connect().await, connect().await);
    if keeps {
        each_step(&server, &here, &there).await;
    }
    let mut requests = JoinSet::new();
    for number in 0..60 {
        let store = if number % 2 == 0 { here.clone() } else { there.clone() };
        requests.spawn(async move {
            let begun = store.begin(&numbered(1_000_000 + number / 2), &MINE, &OPTIONS).await;
            match begun {
                Ok(Begin::Claimed(_)) => Some(number / 2),
                Ok(Begin::InFlight(_)) => None,
                Err(StoreError::Unavailable(_)) if !keeps => None,
                begun => panic!("{}", shown(&begun)),
            }
        });
    }
    let mut claimed: Vec<_> = requests.join_all().await.into_iter().flatten().collect();
    let claims = claimed.len();
    claimed.sort_unstable();
    claimed.dedup();
    assert_eq!(claimed.len(), claims, "a key was claimed twice");
    assert!(!keeps || claims == 30, "{claims}");
}

#[tokio::test]
async fn a_connection_on_which_an_acknowledged_claim_could_be_lost_is_refused() {
    let server = migrated().await;
    let proxy = PgBouncer::before(&server, &["pool_mode = session", "server_lifetime = 1", IGNORED]).await;
    let store = PostgresStore::builder().idle_timeout(Duration::ZERO).connect(&proxy.url()).await.unwrap();
    for (setting, value) in [
        ("synchronous_commit", "off"),
        // A standby that is promoted may lack it.
        ("synchronous_commit", "local"),
        ("default_transaction_isolation", "serializable"),
    ] {
        server.sql(&format!("ALTER ROLE idem SET {setting} = '{value}'"));
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'idem'",
        );
        let refused = PostgresStore::connect(&proxy.url()).await.unwrap_err();
        let ConnectError::Setting(what) = refused else { panic!("{refused:?}") };
        assert!(what.contains(&format!("ALTER ROLE .. SET {setting}")), "{what}");
        let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
        assert!(matches!(problem(&refused), Problem::Setting(_)), "{refused:?}");
        let refused = store.migrate().await.unwrap_err();
        assert!(refused.to_string().contains(&format!("ALTER ROLE .. SET {setting}")), "{refused}");
        // Without a proxy the store sets it.
        let near = PostgresStore::connect(&server.url()).await.unwrap();
        leave_record(&near, &key(), "response").await;
        server.sql(&format!("ALTER ROLE idem RESET {setting}"));
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'idem'",
        );
    }
    assert_eq!(state_of(&store, &key()).await, "claimed");
}
