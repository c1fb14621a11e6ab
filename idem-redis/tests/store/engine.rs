//! The engine over Redis: what a client sees, and how often a handler runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idem_redis::RedisStore;
use idem_runtime::{
    Abandoned, Attempt, Executed, Idempotency, Lease, ManualClock, Outcome, RecordBuilder, Recording, RefusalReason,
    Rules, RunResult, Store,
};
use idem_testkit::proxy::{Direction, Fault};
use idem_testkit::redis::Redis;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::common::{TIMEOUT, TTL, fingerprint, key, store, through_proxy, until};

const SHORT: Duration = Duration::from_millis(300);

fn attempt(number: u8, wait: Option<Duration>, abandoned: Abandoned) -> Attempt {
    Attempt::new(key(number), fingerprint(1), Rules { ttl: TTL, wait, abandoned, ..Rules::DEFAULT })
}

fn executed(response: String) -> Executed<String> {
    let mut builder = RecordBuilder::new();
    builder.put(response.as_bytes());
    Executed { response, recording: Recording::Done(Outcome::Record(builder)) }
}

/// A handler that counts its runs, and whose response says which run it was.
fn handler(runs: &Arc<AtomicUsize>) -> impl FnOnce(Lease) -> std::future::Ready<Executed<String>> + Send + use<> {
    let runs = Arc::clone(runs);
    move |_| std::future::ready(executed(format!("run {}", runs.fetch_add(1, Ordering::SeqCst) + 1)))
}

fn text(result: RunResult<String>) -> String {
    match result {
        RunResult::Executed(text) => text,
        RunResult::Replayed(replay) => String::from_utf8(replay.content().to_vec()).unwrap(),
    }
}

#[tokio::test]
async fn a_record_is_replayed_as_long_as_the_server_has_it_whatever_the_time_is_here() {
    let server = Redis::start().await;
    let clock = ManualClock::new();
    let engine = Idempotency::builder(store(&server).await).clock(clock.clone()).build();
    let runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        assert_eq!(text(engine.run(attempt(1, None, Abandoned::Rerun), handler(&runs)).await.unwrap()), "run 1");
        clock.advance(2 * TTL);
    }
}

#[tokio::test]
async fn a_handler_that_outlives_its_lease_many_times_is_renewed_and_runs_once() {
    let server = Redis::start().await;
    let engines =
        [store(&server).await, store(&server).await].map(|store| Idempotency::builder(store).lease(SHORT).build());
    let runs = Arc::new(AtomicUsize::new(0));
    let (end, ends) = oneshot::channel::<()>();
    let (starts, started) = oneshot::channel::<()>();
    let first = {
        let (engine, runs) = (engines[0].clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let handler = move |_| async move {
                let _ = starts.send(());
                let _ = ends.await;
                handler(&runs)(Lease::default()).await
            };
            engine.run(attempt(1, None, Abandoned::Rerun), handler).await
        })
    };
    started.await.unwrap();
    let start = Instant::now();
    while start.elapsed() < 5 * SHORT {
        // A retry that would take the claim over, were it abandoned.
        let refused = engines[1].run(attempt(1, None, Abandoned::Rerun), handler(&runs)).await;
        assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
        tokio::time::sleep(SHORT / 10).await;
    }
    end.send(()).unwrap();
    assert_eq!(text(first.await.unwrap().unwrap()), "run 1");
    assert_eq!(text(engines[1].run(attempt(1, None, Abandoned::Rerun), handler(&runs)).await.unwrap()), "run 1");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn a_process_that_is_gone_leaves_an_unknown_outcome_that_only_a_policy_reruns() {
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let gone = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = here.block_on(Redis::start());
    let (starts, started) = std::sync::mpsc::channel();
    let url = server.url();
    gone.spawn(async move {
        let engine = Idempotency::builder(RedisStore::connect(url).await.unwrap()).lease(SHORT).build();
        let handler = move |_| async move {
            starts.send(()).unwrap();
            std::future::pending::<Executed<String>>().await
        };
        engine.run(attempt(1, None, Abandoned::Refuse), handler).await
    });
    started.recv().unwrap();
    // As `kill -9` does, as far as Redis can see.
    gone.shutdown_background();
    here.block_on(async {
        let runs = Arc::new(AtomicUsize::new(0));
        let engine = Idempotency::builder(store(&server).await).lease(SHORT).build();
        let run = |abandoned| engine.run(attempt(1, None, abandoned), handler(&runs));
        until("the lease has expired", async || match run(Abandoned::Refuse).await {
            Err(RefusalReason::InFlight) => false,
            Err(RefusalReason::OutcomeUnknown) => true,
            other => panic!("the handler may have run, but a retry got {other:?}"),
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        assert_eq!(text(run(Abandoned::Rerun).await.unwrap()), "run 1");
        assert_eq!(text(run(Abandoned::Refuse).await.unwrap()), "run 1");
    });
}

#[tokio::test]
async fn a_retry_that_waits_in_another_process_gets_the_replay() {
    let server = Redis::start().await;
    let engines = [store(&server).await, store(&server).await].map(Idempotency::new);
    let runs = Arc::new(AtomicUsize::new(0));
    let (end, ends) = oneshot::channel::<()>();
    let (starts, started) = oneshot::channel::<()>();
    let first = {
        let (engine, runs) = (engines[0].clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let handler = move |_| async move {
                let _ = starts.send(());
                let _ = ends.await;
                handler(&runs)(Lease::default()).await
            };
            engine.run(attempt(1, None, Abandoned::Refuse), handler).await
        })
    };
    started.await.unwrap();
    let mut retries = JoinSet::new();
    for _ in 0..10 {
        let (engine, runs) = (engines[1].clone(), Arc::clone(&runs));
        retries.spawn(async move {
            engine.run(attempt(1, Some(Duration::from_secs(20)), Abandoned::Refuse), handler(&runs)).await
        });
    }
    until("the retries wait", async || {
        server.say(&format!("PUBSUB NUMSUB {}:ended", crate::common::name(1))).await.contains(":1\r\n")
    })
    .await;
    end.send(()).unwrap();
    assert_eq!(text(first.await.unwrap().unwrap()), "run 1");
    while let Some(retry) = retries.join_next().await {
        assert!(matches!(retry.unwrap(), Ok(RunResult::Replayed(replay)) if replay.content() == "run 1"));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn while_the_store_cannot_be_asked_no_handler_starts() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let engine = Idempotency::new(store);
    let runs = Arc::new(AtomicUsize::new(0));
    let run = |number| engine.run(attempt(number, None, Abandoned::Rerun), handler(&runs));
    proxy.refuse();
    assert!(matches!(run(1).await, Err(RefusalReason::StoreUnavailable(_))));
    proxy.heal();
    proxy.set(Direction::ToClient, Fault::Drop);
    assert!(matches!(run(2).await, Err(RefusalReason::StoreUnavailable(_))));
    proxy.heal();
    server.say(&format!("SET {} damaged", crate::common::name(3))).await;
    assert!(matches!(run(3).await, Err(RefusalReason::StoreUnavailable(_))));
    server.say("CONFIG SET maxmemory 1mb").await;
    assert!(matches!(run(4).await, Err(RefusalReason::StoreFull)));
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    server.say("CONFIG SET maxmemory 0").await;
    until("the key is free again", async || run(2).await.is_ok()).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_response_that_the_server_was_down_for_is_recorded_when_it_is_back() {
    let mut server = Redis::durable().await;
    let engine = Idempotency::new(store(&server).await);
    let runs = Arc::new(AtomicUsize::new(0));
    let (end, ends) = oneshot::channel::<()>();
    let (starts, started) = oneshot::channel::<()>();
    let first = {
        let (engine, runs) = (engine.clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let handler = move |_| async move {
                let _ = starts.send(());
                let _ = ends.await;
                handler(&runs)(Lease::default()).await
            };
            engine.run(attempt(1, None, Abandoned::Refuse), handler).await
        })
    };
    started.await.unwrap();
    server.kill();
    end.send(()).unwrap();
    // The client has its response, though the store has not.
    assert_eq!(text(first.await.unwrap().unwrap()), "run 1");
    server.restart().await;
    engine.drain().await;
    let retry = engine.run(attempt(1, None, Abandoned::Refuse), handler(&runs)).await;
    assert!(matches!(&retry, Ok(RunResult::Replayed(replay)) if replay.content() == "run 1"), "{retry:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// Two processes, clients that retry until they have a response, and a network that fails all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_faults_each_handler_runs_once_and_all_its_clients_get_the_same_response() {
    const KEYS: u8 = 40;
    const CLIENTS: usize = 4;
    let server = Redis::start().await;
    let ((one, one_proxy), (other, other_proxy)) = (through_proxy(&server).await, through_proxy(&server).await);
    let watch = store(&server).await;
    let engines = [one, other].map(Idempotency::new);
    let runs: Arc<Mutex<HashMap<u8, usize>>> = Arc::default();
    let mut clients = JoinSet::new();
    for number in 0..KEYS {
        for client in 0..CLIENTS {
            let (engine, runs) = (engines[client % 2].clone(), Arc::clone(&runs));
            clients.spawn(async move {
                // Not all at the same moment, so that they meet the faults at different steps.
                tokio::time::sleep(Duration::from_millis(u64::from(number) * 25)).await;
                let start = Instant::now();
                loop {
                    let runs = Arc::clone(&runs);
                    let handler = move |_| async move {
                        let run = {
                            let mut runs = runs.lock().unwrap();
                            *runs.entry(number).and_modify(|runs| *runs += 1).or_insert(1)
                        };
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        executed(format!("key {number}, run {run}"))
                    };
                    let wait = (client > 1).then_some(Duration::from_secs(1));
                    match engine.run(attempt(number, wait, Abandoned::Refuse), handler).await {
                        Ok(result) => return (number, text(result)),
                        Err(RefusalReason::InFlight | RefusalReason::StoreUnavailable(_))
                            if start.elapsed().as_secs() < 20 =>
                        {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        Err(refused) => panic!("key {number}: {refused:?}"),
                    }
                }
            });
        }
    }
    let over = Arc::new(AtomicBool::new(false));
    let storm = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            for round in (0usize..).take_while(|_| !over.load(Ordering::SeqCst)) {
                for proxy in [&one_proxy, &other_proxy] {
                    match round % 5 {
                        0 => proxy.set(Direction::ToClient, Fault::ResetAfter(round % 50)),
                        1 => proxy.set(Direction::ToServer, Fault::ResetAfter(round * 7 % 400)),
                        2 => proxy.set(Direction::ToClient, Fault::Drop),
                        3 => proxy.black_hole(),
                        _ => proxy.cut(),
                    }
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
                one_proxy.heal();
                other_proxy.heal();
                // What was dropped is missing in the stream, and only another connection can be used.
                one_proxy.cut();
                other_proxy.cut();
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
            [one_proxy, other_proxy]
        }
    });
    let mut responses: HashMap<u8, String> = HashMap::new();
    while let Some(joined) = clients.join_next().await {
        let (number, response) = joined.unwrap();
        let first = responses.entry(number).or_insert_with(|| response.clone());
        assert_eq!(*first, response, "all clients of one key get the same response");
    }
    over.store(true, Ordering::SeqCst);
    // Without faults from now on, so that what is left can be ended.
    let _proxies = storm.await.unwrap();
    for (number, runs) in runs.lock().unwrap().iter() {
        assert_eq!(*runs, 1, "the handler of key {number} ran {runs} times");
    }
    assert_eq!(responses.len(), usize::from(KEYS));
    for engine in &engines {
        // Unconfirmed claims may be looked for as long as their leases last.
        engine.drain_until(tokio::time::sleep(20 * TIMEOUT)).await.expect("every execution ends");
    }
    assert!(watch.forget(&key(0)).await.unwrap());
}
