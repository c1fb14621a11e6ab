//! A service that uses the crate `log`, and no subscriber of `tracing`: `tracing` forwards events to `log` until one is set.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use std::sync::Mutex;

use idem_runtime::{Idempotency, RefusalReason};
use log::{LevelFilter, Log, Metadata, Record};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Not the spans.
        if record.target() == module_path!() {
            LINES.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn events_reach_log_also_after_an_execution() {
    log::set_logger(&Lines).unwrap();
    log::set_max_level(LevelFilter::Info);
    let idempotency = Idempotency::in_memory();
    let value = idempotency.once("ship", "a").run(async || {
        tracing::info!("within");
        Ok::<_, RefusalReason>(1)
    });
    assert_eq!(value.await.unwrap(), 1);
    idempotency.drain().await;
    tracing::info!("after");
    assert_eq!(*LINES.lock().unwrap(), ["within", "after"]);
}
