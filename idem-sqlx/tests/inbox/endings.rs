//! How a call and its transaction end, over either database.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::task::Poll;

use futures_util::FutureExt;
use idem_runtime::{Abandoned, Idempotency, RefusalReason};
use idem_sqlx::{Dialect, OnceExt};
use sqlx::Connection;

use crate::shop::{Failure, Shop, Sql, over_both};

over_both!(
    after_the_commit_the_recorded_value_is_returned,
    after_a_rollback_of_the_caller_the_key_is_free,
    an_error_undoes_what_the_function_wrote_and_nothing_else,
    a_panic_undoes_what_the_function_wrote_and_is_resumed,
    a_key_that_comes_twice_in_one_transaction_runs_once,
    another_message_under_the_same_id_is_a_mismatch,
    a_future_that_was_dropped_and_committed_leaves_an_unknown_outcome,
    wherever_a_call_is_dropped_it_takes_effect_once_at_most,
    a_function_that_ends_the_transaction_leaves_an_unknown_outcome,
    a_nested_transaction_of_the_function_is_a_savepoint,
    a_nested_transaction_of_the_caller_that_is_rolled_back_frees_the_key,
    beyond_the_maximum_of_executions_nothing_is_done,
    a_key_that_was_used_without_a_transaction_is_the_same_key
);

async fn after_the_commit_the_recorded_value_is_returned<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for _ in 0..3 {
        assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    }
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 2");
    assert_eq!((shop.effects("shipped").await, shop.runs.get()), (2, 2));
    let report = shop.once("a").inspect().await.unwrap().unwrap();
    assert_eq!(report.content().unwrap(), &b"J\"run 1\""[..], "it is as `run` records it");
}

async fn after_a_rollback_of_the_caller_the_key_is_free<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for explicit in [true, false] {
        let mut tx = shop.begin().await;
        shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        if explicit {
            tx.rollback().await.unwrap();
        } else {
            drop(tx);
        }
        assert_eq!((shop.effects("shipped").await, shop.records().await), (0, 0));
    }
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 3");
    assert_eq!(shop.effects("shipped").await, 1);
}

async fn an_error_undoes_what_the_function_wrote_and_nothing_else<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
    let failing = async |tx: &mut D::Connection| -> Result<String, Failure> {
        shop.ship(tx).await?;
        Err(Failure::AsAsked)
    };
    for _ in 0..2 {
        assert!(matches!(shop.once("a").run_in(&mut tx, failing).await, Err(Failure::AsAsked)));
    }
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("after").await, shop.effects("shipped").await), (1, 1, 0));
    assert_eq!(shop.records().await, 0);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 3");
}

async fn a_panic_undoes_what_the_function_wrote_and_is_resumed<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let panicking = async |tx: &mut D::Connection| -> Result<String, Failure> {
        shop.ship(tx).await?;
        panic!("as asked")
    };
    let call = shop.once("a").run_in(&mut tx, panicking);
    let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "as asked");
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("after").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

async fn a_key_that_comes_twice_in_one_transaction_runs_once<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    for key in ["a", "b", "a", "b"] {
        let value = shop.once(key).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        assert_eq!(value, if key == "a" { "run 1" } else { "run 2" });
    }
    let other = shop.once("a").fingerprint(&"other").run_in(&mut tx, async |tx| shop.ship(tx).await).await;
    assert!(matches!(other.unwrap_err().reason(), RefusalReason::Mismatch));
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (2, 2));
}

async fn another_message_under_the_same_id_is_a_mismatch<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    assert_eq!(shop.deliver(shop.once("a").fingerprint(&"tea")).await.unwrap(), "run 1");
    let refused = shop.deliver(shop.once("a").fingerprint(&"coffee")).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
    assert_eq!(shop.deliver(shop.once("a").fingerprint(&"tea")).await.unwrap(), "run 1");
}

async fn a_future_that_was_dropped_and_committed_leaves_an_unknown_outcome<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    shop.leave_unknown().await;
    for _ in 0..2 {
        let refused = shop.deliver(shop.once("a")).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
    }
    assert_eq!(shop.deliver(shop.once("a").abandoned(Abandoned::Rerun)).await.unwrap(), "run 2");
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

async fn wherever_a_call_is_dropped_it_takes_effect_once_at_most<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut half_way = 0;
    let mut rounds = (0..).flat_map(|round| (0..12).map(move |polls| (round, polls)));
    // On a busy machine a reply is often there at once, and a call ends at its first poll.
    while let Some((round, polls)) = rounds.next()
        && (round < 2 || half_way < 3)
    {
        let commits = (round + polls) % 2 == 0;
        let (key, before) = (format!("{round} {polls} {commits}"), shop.effects("shipped").await);
        let mut tx = shop.begin().await;
        let mut call = Box::pin(shop.once(&key).run_in(&mut tx, async |tx| shop.ship(tx).await));
        let mut polled = 0;
        let ended = poll_fn(|cx| {
            polled += 1;
            if polled > polls { Poll::Ready(None) } else { call.as_mut().poll(cx).map(Some) }
        });
        half_way += usize::from(ended.await.is_none() && polls > 0);
        drop(call);
        if commits {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }
        let (committed, runs) = (shop.effects("shipped").await - before, shop.runs.get());
        let retry = shop.deliver(shop.once(&key)).await;
        let (reran, effects) = (shop.runs.get() - runs, shop.effects("shipped").await - before);
        assert!(effects <= 1 && (committed == 0 || reran == 0), "{key}: {committed}, {reran}, {retry:?}");
        assert!(commits || (retry.is_ok() && effects == 1), "{key}: {retry:?}");
    }
}

async fn a_function_that_ends_the_transaction_leaves_an_unknown_outcome<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for (end, ships) in [("COMMIT", true), ("COMMIT", false), ("ROLLBACK", true)] {
        for fails in [false, true] {
            let key = format!("{end} {ships} {fails}");
            let mut tx = shop.begin().await;
            let misusing = async |tx: &mut D::Connection| {
                let value = if ships { shop.ship(tx).await } else { Ok("nothing".to_owned()) };
                Shop::<D, K>::run(tx, end).await;
                if fails { Err(Failure::AsAsked) } else { value }
            };
            let refused = shop.once(&key).run_in(&mut tx, misusing).await.unwrap_err();
            assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{key}: {refused:?}");
            // There is nothing to end.
            drop(tx);
            let retry = shop.deliver(shop.once(&key)).await.unwrap_err();
            assert!(matches!(retry.reason(), RefusalReason::OutcomeUnknown), "{key}: {retry:?}");
        }
    }
}

async fn a_nested_transaction_of_the_function_is_a_savepoint<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let nested = async |tx: &mut D::Connection| -> Result<String, Failure> {
        let mut kept = Connection::begin(&mut *tx).await.unwrap();
        shop.ship(&mut kept).await?;
        kept.commit().await.unwrap();
        let mut dropped = Connection::begin(&mut *tx).await.unwrap();
        shop.ship(&mut dropped).await
    };
    assert_eq!(shop.once("a").run_in(&mut tx, nested).await.unwrap(), "run 2");
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}

async fn a_nested_transaction_of_the_caller_that_is_rolled_back_frees_the_key<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let mut undone = tx.begin().await.unwrap();
    assert_eq!(shop.once("a").run_in(&mut undone, async |tx| shop.ship(tx).await).await.unwrap(), "run 1");
    undone.rollback().await.unwrap();
    if !D::HAS_ONE_WRITER {
        assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2", "at once");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}

async fn beyond_the_maximum_of_executions_nothing_is_done<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let store = shop.once("a").store::<idem_sqlx::SqlStore<D>>().unwrap().clone();
    let none = Idempotency::builder(store).max_executions(0).build();
    let refused = shop.deliver(none.once("ship", "a")).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::TooManyExecutions), "{refused:?}");
    assert_eq!((shop.runs.get(), shop.records().await), (0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

async fn a_key_that_was_used_without_a_transaction_is_the_same_key<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let value = async || Ok::<_, Failure>("without".to_owned());
    assert_eq!(shop.once("a").run(value).await.unwrap(), "without");
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "without");
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 1");
    assert_eq!(shop.once("b").run(value).await.unwrap(), "run 1");
}
