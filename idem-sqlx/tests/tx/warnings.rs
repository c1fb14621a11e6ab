//! What is logged: a handler that keeps its transaction waiting, and a store that cannot open it.

use std::fmt;
use std::time::Duration;

use idem_axum::Idempotency;
use sqlx::Database;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, subscriber};

use crate::shop::{Effects, Shop, over_sqlite, send};

/// Sends the text of each event of a level and a crate.
struct Logged {
    level: Level,
    target: &'static str,
    sender: UnboundedSender<String>,
}

impl Subscriber for Logged {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == self.level && metadata.target().starts_with(self.target)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        // The test may have ended.
        let _ = self.sender.send(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

/// The events of this thread from now on.
fn logged(level: Level, target: &'static str) -> (UnboundedReceiver<String>, subscriber::DefaultGuard) {
    let (sender, receiver) = unbounded_channel();
    (receiver, idem_testkit::subscriber::set_default(Logged { level, target, sender }))
}

/// The warnings of this thread from now on.
fn warnings() -> (UnboundedReceiver<String>, subscriber::DefaultGuard) {
    logged(Level::WARN, "idem_sqlx")
}

async fn is_named_while_it_waits<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let (mut warnings, _guard) = warnings();
    // One that has ended is not waited for.
    assert_eq!(shop.send("/all/201", "b").await.status, 201);
    // Also after a statement that failed.
    for (path, status) in [("/act/wait-201", 201), ("/act/failing-wait-500", 500)] {
        let first = shop.start(path, path);
        shop.app.written().await;
        let warning = timeout(Duration::from_secs(60), warnings.recv()).await.expect("a warning").unwrap();
        assert!(warning.contains("`Tx` waiting") && warning.contains("/act/{what}"), "{warning}");
        shop.app.go_on.add_permits(1);
        assert_eq!(first.await.unwrap().status, status);
    }
    assert!(warnings.try_recv().is_err(), "one warning for each");
}

#[tokio::test]
async fn a_handler_that_keeps_its_transaction_waiting_is_named_over_postgres() {
    is_named_while_it_waits(Shop::postgres(4).await).await;
}

#[tokio::test]
async fn a_handler_that_keeps_its_transaction_waiting_is_named_over_sqlite() {
    is_named_while_it_waits(Shop::sqlite(4).await).await;
}

/// The database works, and nothing waits for the handler. Another transaction waits, which is not its own.
#[tokio::test]
async fn statements_that_take_long_are_no_reason_for_a_warning() {
    let shop = Shop::postgres(4).await;
    let _other = shop.app.pool.begin().await.unwrap();
    let (mut warnings, _guard) = warnings();
    for path in ["/act/busy-201", "/act/chatty-201"] {
        assert_eq!(shop.send(path, path).await.status, 201);
    }
    assert_eq!(warnings.try_recv().ok(), None);
}

#[tokio::test]
async fn the_error_of_a_store_that_cannot_open_the_transaction_says_what_to_mount() {
    let shop = Shop::sqlite(2).await;
    let router = over_sqlite::router(&shop.app, Idempotency::in_memory());
    let (mut errors, _guard) = logged(Level::ERROR, "idem_axum");
    assert_eq!(send(&router, "/act/201", "a", "").await.brief(), (500, ""));
    let error = errors.try_recv().unwrap();
    assert!(error.contains("mount an engine over a store that was made with `from_pool`"), "{error}");
    assert!(errors.try_recv().is_err(), "one error");
}

/// It says what was in the way, and not that the key changed.
#[tokio::test]
async fn the_error_of_a_file_that_others_keep_locked_says_so() {
    let shop = Shop::sqlite(2).await;
    let mut other = shop.app.pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *other).await.unwrap();
    let (mut errors, _guard) = logged(Level::ERROR, "idem_axum");
    assert_eq!(shop.send("/act/201", "a").await.status, 503);
    let error = errors.try_recv().unwrap();
    assert!(error.contains("other transactions were in the way"), "{error}");
}

/// As one that was restored without them, or made by hand.
#[tokio::test]
async fn the_error_of_a_table_without_its_functions_says_what_to_do() {
    let shop = Shop::postgres(2).await;
    for (function, status) in [("idempotency_complete", 500), ("idempotency_claim", 503)] {
        shop.keeper.sql(&format!("DROP FUNCTION {function}"));
        let (mut errors, _guard) = logged(Level::ERROR, "idem_");
        assert_eq!(shop.send("/act/201", function).await.status, status, "{function}");
        let error = errors.try_recv().unwrap();
        assert!(error.contains("lacks its functions") && error.contains("`migrations`"), "{function}: {error}");
    }
    assert_eq!(shop.effects().await, 0);
}
