//! The warning about recorded responses that vary with a header which the key is not bound to.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use idem_axum::{Idempotency, Policy, Statuses, idempotent};
use idem_tests::support::{app, post as send};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps the headers that warnings name.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Header<'a>(&'a Warnings);

impl Visit for Header<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "header" {
            self.0.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Header(self));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[idempotent]
async fn varies() -> [(&'static str, &'static str); 1] {
    [("vary", "Accept")]
}

#[idempotent(fingerprint = path + header("accept"))]
async fn bound() -> [(&'static str, &'static str); 1] {
    [("vary", "Accept, Authorization")]
}

#[idempotent(scope = path)]
async fn of_the_caller_and_path() -> [(&'static str, &'static str); 1] {
    [("vary", "Authorization, Cookie")]
}

#[idempotent(scope = (header("X-Tenant"), path))]
async fn of_the_tenant_and_path() -> [(&'static str, &'static str); 1] {
    [("vary", "X-Tenant")]
}

#[idempotent(scope = tenant)]
async fn of_the_arguments(Path(tenant): Path<String>) -> [(&'static str, &'static str); 1] {
    [("vary", "Cookie")]
}

const UNRECORDED: Policy = Policy::DEFAULT.record(Statuses::SUCCESS);

#[idempotent(policy = UNRECORDED)]
async fn unrecorded() -> (StatusCode, [(&'static str, &'static str); 1]) {
    (StatusCode::BAD_REQUEST, [("vary", "Accept")])
}

#[tokio::test(flavor = "current_thread")]
async fn a_response_that_varies_is_warned_about_once_for_each_endpoint() {
    let warnings = Warnings::default();
    let _guard = idem_testkit::subscriber::set_default(warnings.clone());
    let routes = Router::new().route("/a", post(varies)).route("/b", post(bound)).route("/c", post(unrecorded));
    let app = app(&Idempotency::in_memory(), routes);
    for key in ["one", "two"] {
        for path in ["/a", "/b", "/c"] {
            send(&app, path, &format!("{key}{path}"), "").await;
        }
    }
    assert_eq!(*warnings.0.lock().unwrap(), ["Accept"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_header_is_bound_as_the_scope_says() {
    let warnings = Warnings::default();
    let _guard = idem_testkit::subscriber::set_default(warnings.clone());
    let routes = Router::new()
        .route("/caller", post(of_the_caller_and_path))
        .route("/tenant", post(of_the_tenant_and_path))
        .route("/arguments/{tenant}", post(of_the_arguments));
    let app = app(&Idempotency::in_memory(), routes);
    for path in ["/caller", "/tenant"] {
        send(&app, path, "a", "").await;
    }
    assert_eq!(*warnings.0.lock().unwrap(), [""; 0]);
    send(&app, "/arguments/acme", "a", "").await;
    assert_eq!(*warnings.0.lock().unwrap(), ["Cookie"], "the arguments are bound, and no caller is");
}

#[tokio::test(flavor = "current_thread")]
async fn each_layer_warns_of_its_endpoints() {
    let warnings = Warnings::default();
    let _guard = idem_testkit::subscriber::set_default(warnings.clone());
    for key in ["one", "two"] {
        let app = app(&Idempotency::in_memory(), Router::new().route("/", post(varies)));
        for _ in 0..2 {
            send(&app, "/", key, "").await;
        }
    }
    assert_eq!(*warnings.0.lock().unwrap(), ["Accept", "Accept"]);
}
