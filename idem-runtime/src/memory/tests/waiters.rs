//! Those who wait for the end of a claim, and futures of the store that are dropped.

use std::task::Poll;

use super::*;

#[tokio::test]
async fn a_waiter_of_the_previous_owner_does_not_hold_up_the_new_one() {
    let store = MemoryStore::new();
    let first = claim(&store, 1).await;
    let waiting = key(1);
    let mut waiter = std::pin::pin!(store.ended(&waiting));
    assert!(poll_once(waiter.as_mut()).await.is_pending());
    drop(first);
    let Ok(Begin::Abandoned(mut taken_over)) = begin(&store, 1).await else { panic!("abandoned") };
    taken_over.renew(LEASE).await.unwrap();
    waiter.await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    taken_over.complete(record(1), TTL).await.unwrap();
}

async fn poll_once<F: Future<Output = ()>>(mut future: std::pin::Pin<&mut F>) -> Poll<()> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Each future of the store, dropped before it was polled and after: the key is free, has an owner, is abandoned, or
/// has a record, and in the end the store is empty. All but `ended` are ready when they are polled once.
#[tokio::test]
async fn futures_that_are_dropped_leave_the_key_in_one_of_its_states() {
    let (store, clock) = with_clock(MemoryStore::new());
    let at = key(1);
    // Not polled, they have not happened.
    drop(store.begin(&at, &FINGERPRINT, &OPTIONS));
    assert_eq!(store.usage().entries, 0);
    let mut held = claim(&store, 1).await;
    drop(store.forget(&at));
    drop(held.renew(LEASE));
    drop(store.ended(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    // The claim is dropped with the future that took it.
    drop(held.complete(record(1), TTL));
    let Ok(Begin::Abandoned(taken_over)) = begin(&store, 1).await else { panic!("abandoned") };
    drop(taken_over.release());
    let Ok(Begin::Abandoned(mut taken_over)) = begin(&store, 1).await else { panic!("still abandoned") };
    taken_over.renew(LEASE).await.unwrap();
    // A waiter that is dropped while it waits, at each number of polls, holds up no one.
    for polls in 0..4 {
        let mut waiter = Box::pin(store.ended(&at));
        for _ in 0..polls {
            assert!(poll_once(waiter.as_mut()).await.is_pending());
        }
    }
    taken_over.complete(record(1), TTL).await.unwrap();
    store.ended(&at).await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    // Not polled, a record is not forgotten; an expired one makes way for a claim.
    drop(store.forget(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    clock.advance(TTL);
    claim(&store, 1).await.release().await.unwrap();
    assert_eq!(store.usage(), EMPTY);
}

#[tokio::test]
async fn a_waiter_that_is_dropped_hands_the_end_on_to_the_others() {
    let store = MemoryStore::new();
    let (held, at) = (claim(&store, 1).await, key(1));
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(store.ended(&at))).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_pending());
    }
    held.complete(record(1), TTL).await.unwrap();
    // The first has been woken, and is dropped before it is polled.
    drop(waiters.remove(0));
    for waiter in waiters {
        waiter.await;
    }
}

#[tokio::test]
async fn a_waiter_that_is_never_polled_does_not_hold_up_the_others() {
    let store = MemoryStore::new();
    let (held, at) = (claim(&store, 1).await, key(1));
    let mut waiters: Vec<_> = (0..20).map(|_| Box::pin(store.ended(&at))).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_pending());
    }
    held.complete(record(1), TTL).await.unwrap();
    // The first stays where it is, woken and not polled.
    let unpolled = waiters.remove(0);
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_ready());
    }
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    drop(unpolled);
}

#[tokio::test]
async fn each_end_of_a_claim_wakes_the_waiters() {
    let store = MemoryStore::new();
    for end in 0..4 {
        let held = claim(&store, end).await;
        let at = key(end);
        let mut waiter = std::pin::pin!(store.ended(&at));
        assert!(poll_once(waiter.as_mut()).await.is_pending());
        match end {
            0 => held.complete(record(1), TTL).await.unwrap(),
            1 => held.release().await.unwrap(),
            2 => drop(held),
            _ => drop(held.complete(record(1), TTL)),
        }
        assert!(poll_once(waiter.as_mut()).await.is_ready(), "{end}");
    }
}
