//! The span of a call.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;

/// Keeps what is written to spans.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<HashMap<&'static str, String>>>);

impl Written {
    fn take(&self) -> [Option<String>; 2] {
        let mut written = std::mem::take(&mut *self.0.lock().unwrap());
        ["outcome", "code"].map(|field| written.remove(field))
    }
}

impl tracing::field::Visit for Written {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.0.lock().unwrap().insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.0.lock().unwrap().insert(field.name(), value.to_owned());
    }
}

impl tracing::Subscriber for Written {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn the_span_of_a_call_tells_its_outcome_and_the_code_of_a_refusal() {
    let written = Written::default();
    let _subscriber = crate::test_support::subscriber::set_default(written.clone());
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let call = async |key: &str| idempotency.once("ship", key).run(async || count(Runs::default()).await).await;
    for outcome in ["executed", "replayed"] {
        call("a").await.unwrap();
        assert_eq!(written.take(), [Some(outcome.to_owned()), None]);
    }
    let lost = idempotency.once("ship", "b");
    let options = BeginOptions::new(Duration::ZERO, Duration::MAX);
    drop(store.begin(&lost.key, lost.fingerprint.as_ref().unwrap(), &options).await.unwrap());
    assert!(matches!(refused(call("b").await), RefusalReason::OutcomeUnknown));
    assert_eq!(written.take(), ["refused", codes::OUTCOME_UNKNOWN].map(|text| Some(text.to_owned())));
}
