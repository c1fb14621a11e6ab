//! The layer that writes down what the engine reports.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::{Event, Line, Trace};

/// A layer that writes what the engine reports to a [`Trace`].
#[derive(Debug)]
pub struct Observer {
    trace: Trace,
    requests: AtomicU64,
}

/// The request of a span.
struct Request {
    process: u64,
    number: u64,
    key: String,
}

impl Observer {
    /// A subscriber that writes to this trace, and nothing else.
    pub fn of(trace: Trace) -> impl Subscriber + Send + Sync {
        tracing_subscriber::registry().with(Self { trace, requests: AtomicU64::new(0) })
    }

    fn write(&self, request: &Request, event: Event) {
        let Request { process, number, key } = request;
        self.trace.write(Line { process: *process, request: *number, key: key.clone(), event });
    }
}

/// The fields that matter here.
#[derive(Default)]
struct Fields {
    key: Option<String>,
    event: Option<Event>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "key" => self.key = Some(value),
            "execution" => self.event = Some(Event::Started(value)),
            "replay_of" => self.event = Some(Event::Replayed(value)),
            "code" => self.event = Some(Event::Refused(value)),
            "claim" => {
                self.event = match &*value {
                    "granted" => Some(Event::Granted),
                    "taken_over" => Some(Event::TakenOver),
                    "completed" => Some(Event::Completed),
                    "released" => Some(Event::Released),
                    "lost" => Some(Event::Lost),
                    "unconfirmed" => Some(Event::Unconfirmed),
                    other => panic!("a step of a claim that no trace knows: {other}"),
                }
            }
            _ => {}
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Observer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("idem_runtime")
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() == "idempotency"
            && let Some(span) = context.span(id)
        {
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            let request = Request { process: self.trace.process(), number, key: String::new() };
            span.extensions_mut().insert(request);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(request) = extensions.get_mut::<Request>() else { return };
        if let Some(key) = fields.key {
            request.key = key;
            fields.event = Some(Event::Asked);
        }
        // A refusal before the key was read is of no key.
        if let Some(event) = fields.event.filter(|_| !request.key.is_empty()) {
            self.write(request, event);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(
            reported @ (Event::Granted
            | Event::TakenOver
            | Event::Completed
            | Event::Released
            | Event::Lost
            | Event::Unconfirmed),
        ) = fields.event
        else {
            return;
        };
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(request) = span.extensions().get::<Request>() {
                self.write(request, reported);
                return;
            }
        }
    }
}
