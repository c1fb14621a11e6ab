//! The spans and events of this thread and of the tasks it starts, as a subscriber gets them, at every level.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// A span, closed or not.
#[derive(Clone, Debug)]
pub struct CapturedSpan {
    pub name: &'static str,
    pub target: &'static str,
    pub level: Level,
    pub fields: BTreeMap<&'static str, String>,
    pub closed: bool,
}

/// An event, and the names of the spans it is in, innermost first.
#[derive(Clone, Debug)]
pub struct CapturedEvent {
    pub level: Level,
    pub target: &'static str,
    pub fields: BTreeMap<&'static str, String>,
    pub within: Vec<&'static str>,
}

/// Everything that was seen.
#[derive(Clone, Default)]
pub struct Spans(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    spans: Vec<(u64, CapturedSpan)>,
    events: Vec<CapturedEvent>,
}

impl Spans {
    pub fn capture() -> (Self, DefaultGuard) {
        let spans = Self::default();
        let guard = idem_testkit::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
        (spans, guard)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("not poisoned")
    }

    /// The spans of this name, oldest first.
    pub fn named(&self, name: &str) -> Vec<CapturedSpan> {
        self.inner().spans.iter().map(|(_, span)| span.clone()).filter(|span| span.name == name).collect()
    }

    /// The events whose target starts so, oldest first.
    pub fn events(&self, target: &str) -> Vec<CapturedEvent> {
        self.inner().events.iter().filter(|event| event.target.starts_with(target)).cloned().collect()
    }
}

impl CapturedSpan {
    pub fn get(&self, field: &str) -> Option<&str> {
        self.fields.get(field).map(String::as_str)
    }

    /// A field with a number.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.get(field).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number in {field}: {self:?}"))
    }
}

impl CapturedEvent {
    pub fn get(&self, field: &str) -> Option<&str> {
        self.fields.get(field).map(String::as_str)
    }
}

/// Notes each field, and refuses one that is written a second time: most subscribers would show both values.
struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let earlier = self.0.insert(field.name(), format!("{value:?}"));
        assert!(earlier.is_none(), "`{field}` is written twice: {earlier:?}, then {value:?}");
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        let mut fields = BTreeMap::new();
        attributes.record(&mut Fields(&mut fields));
        let (name, target, level) = (metadata.name(), metadata.target(), *metadata.level());
        self.inner().spans.push((id.into_u64(), CapturedSpan { name, target, level, fields, closed: false }));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        // The last one, since ids are used again.
        if let Some((_, span)) = self.inner().spans.iter_mut().rfind(|(other, _)| *other == id.into_u64()) {
            values.record(&mut Fields(&mut span.fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        let within = context.event_scope(event).into_iter().flatten().map(|span| span.name()).collect();
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        self.inner().events.push(CapturedEvent { level, target, fields, within });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Some((_, span)) = self.inner().spans.iter_mut().rfind(|(other, _)| *other == id.into_u64()) {
            span.closed = true;
        }
    }
}
