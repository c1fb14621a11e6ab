//! What a drain waits for beside the handlers: the store, and what starts while the store is at it.

use std::time::Duration;

use super::far::Events;
use super::*;

/// The store has something left to do until it may end.
struct Busy {
    asked: Notify,
    may_end: Gate,
}

impl Busy {
    fn over_memory() -> Intercept<MemoryStore, Self> {
        Intercept::new(MemoryStore::new(), Self { asked: Notify::new(), may_end: Gate::new(0) })
    }

    /// The drain has come to the store.
    async fn asked(&self) {
        let asked = tokio::time::timeout(Duration::from_secs(10), self.asked.notified()).await;
        asked.expect("a drain asks the store");
    }
}

impl Hooks<MemoryStore> for Busy {
    async fn drained(&self, _: &MemoryStore) {
        self.asked.notify_one();
        self.may_end.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_store_and_for_executions_that_start_meanwhile() {
    let store = Busy::over_memory();
    let idempotency = Idempotency::new(store.clone());
    let drain = tokio::spawn({
        let idempotency = idempotency.clone();
        async move {
            idempotency.drain().await;
            idempotency.executions()
        }
    });
    store.hooks.asked().await;
    assert!(!drain.is_finished());
    let handler = Handler::new();
    let late = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), handler.run(response("late")));
        async move { idempotency.run(attempt("late", "r"), run).await }
    });
    handler.started.notified().await;
    store.hooks.may_end.add_permits(1);
    // The drain comes back for the store only when the late execution has ended.
    tokio::select! {
        biased;
        () = store.hooks.asked.notified() => panic!("an execution runs"),
        () = tokio::task::yield_now() => assert!(!drain.is_finished()),
    }
    handler.may_end.add_permits(1);
    store.hooks.asked().await;
    store.hooks.may_end.add_permits(1);
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(ran(late.await.unwrap()), 1);
}

#[tokio::test]
async fn a_drain_that_is_ended_while_only_the_store_is_at_it_cuts_no_handler_off() {
    let idempotency = Idempotency::new(Busy::over_memory());
    assert_eq!(idempotency.drain_until(async {}).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_a_store_that_never_finishes() {
    let idempotency = Idempotency::builder(Busy::over_memory()).lease(Duration::from_secs(30)).build();
    let started = Instant::now();
    tokio::time::timeout(Duration::from_secs(24 * 60 * 60), idempotency.drain()).await.expect("the drain ends");
    assert!(started.elapsed() >= Duration::from_secs(30), "unconfirmed claims get a lease: {:?}", started.elapsed());
}

#[tokio::test]
async fn a_drain_that_is_stopped_says_how_many_handlers_are_cut_off() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::new();
    let mut running = Vec::new();
    for (executions, text) in [(1, "while 1 execution was running"), (2, "while 2 executions were running")] {
        let engine = idempotency.clone();
        let (attempt, run) = (attempt(&executions.to_string(), "x"), handler.run(response("one")));
        running.push(tokio::spawn(async move { engine.run(attempt, run).await }));
        handler.started.notified().await;
        let timeout = idempotency.drain_until(async {}).await.unwrap_err();
        assert_eq!((timeout.executions(), idempotency.executions()), (executions, executions));
        assert!(timeout.to_string().contains(text), "{timeout}");
    }
    handler.may_end.add_permits(2);
    for run in running {
        run.await.unwrap().unwrap();
    }
    assert_eq!(idempotency.drain_until(std::future::pending()).await, Ok(()));
}

#[tokio::test]
async fn an_engine_that_is_dropped_while_handlers_run_is_warned_about() {
    for runs in [true, false] {
        let warnings = Arc::<AtomicUsize>::default();
        let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::WARN, Arc::clone(&warnings)));
        let idempotency = Idempotency::in_memory();
        let handler = Handler::new();
        if runs {
            let mut first = Box::pin(idempotency.run(attempt("a", "x"), handler.run(response("one"))));
            tokio::select! {
                () = handler.started.notified() => {}
                _ = &mut first => panic!("the handler waits"),
            }
        }
        drop(idempotency);
        assert_eq!(warnings.load(Ordering::SeqCst), usize::from(runs));
    }
}
