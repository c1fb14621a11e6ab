//! The caller is bound: by `Authorization`, by `Cookie` if there is none, by the scope that the policy names.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::got::ResponseKind::{Ran, Replay};
use idem_tests::got::{MISMATCH, app, got, send};
use tracing::field::{Field, Visit};
use tracing::span;

#[idempotent]
async fn cart() -> &'static str {
    "a cart"
}

#[idempotent(scope = global)]
async fn everyone() -> &'static str {
    "the same for everyone"
}

#[idempotent(scope = header("X-Tenant"))]
async fn tenant() -> &'static str {
    "a tenant's"
}

fn routes() -> Router {
    app(Router::new().route("/", post(cart)).route("/global", post(everyone)).route("/tenant", post(tenant)))
}

#[tokio::test]
async fn a_cookie_binds_the_key_if_there_is_no_authorization() {
    let app = routes();
    assert_eq!(got(&send(&app, "/", &[("cookie", "session=alice")], "").await), Ran);
    assert_eq!(got(&send(&app, "/", &[("cookie", "session=alice")], "").await), Replay);
    assert_eq!(got(&send(&app, "/", &[("cookie", "session=bob")], "").await), MISMATCH);
    assert_eq!(got(&send(&app, "/", &[], "").await), MISMATCH);
    assert_eq!(got(&send(&app, "/", &[("authorization", "session=alice")], "").await), MISMATCH);
}

#[tokio::test]
async fn a_cookie_does_not_count_beside_an_authorization() {
    let app = routes();
    let alice = ("authorization", "Bearer alice");
    assert_eq!(got(&send(&app, "/", &[alice, ("cookie", "seen=1")], "").await), Ran);
    assert_eq!(got(&send(&app, "/", &[alice, ("cookie", "seen=2")], "").await), Replay);
    assert_eq!(got(&send(&app, "/", &[("authorization", "Bearer bob"), ("cookie", "seen=1")], "").await), MISMATCH);
}

#[tokio::test]
async fn empty_credentials_are_none() {
    let (alice, bob) = (("cookie", "session=alice"), ("cookie", "session=bob"));
    for empty in [&[("authorization", "")][..], &[("authorization", " ")], &[("authorization", ""); 2]] {
        let app = routes();
        let with = |cookie| [empty, &[cookie]].concat();
        assert_eq!(got(&send(&app, "/", &with(alice), "").await), Ran);
        assert_eq!(got(&send(&app, "/", &with(bob), "").await), MISMATCH);
        assert_eq!(got(&send(&app, "/", &[alice], "").await), Replay, "as without the header");
    }
    let app = routes();
    assert_eq!(got(&send(&app, "/", &[("cookie", ""), ("authorization", "")], "").await), Ran);
    assert_eq!(got(&send(&app, "/", &[], "").await), Replay);
    let app = routes();
    for cookie in [alice, bob] {
        let sent = send(&app, "/tenant", &[("x-tenant", ""), cookie], "").await;
        assert_eq!(got(&sent), if cookie == alice { Ran } else { MISMATCH }, "an empty tenant is none");
    }
}

#[tokio::test]
async fn cookies_may_be_spread_over_lines() {
    let app = routes();
    assert_eq!(got(&send(&app, "/", &[("cookie", "a=1; b=2")], "").await), Ran);
    assert_eq!(got(&send(&app, "/", &[("cookie", "a=1"), ("cookie", "b=2")], "").await), Replay);
    assert_eq!(got(&send(&app, "/", &[("cookie", "a=1"), ("cookie", "b=3")], "").await), MISMATCH);
}

#[tokio::test]
async fn a_global_scope_binds_no_caller() {
    let app = routes();
    assert_eq!(got(&send(&app, "/global", &[("cookie", "session=alice")], "").await), Ran);
    assert_eq!(got(&send(&app, "/global", &[("cookie", "session=bob")], "").await), Replay);
    assert_eq!(got(&send(&app, "/global", &[("authorization", "Bearer carol")], "").await), Replay);
}

#[tokio::test]
async fn a_header_scope_whose_header_is_missing_is_the_caller() {
    let app = routes();
    let cookie = |value| ("cookie", value);
    assert_eq!(got(&send(&app, "/tenant", &[cookie("session=alice")], "").await), Ran);
    assert_eq!(got(&send(&app, "/tenant", &[cookie("session=bob")], "").await), MISMATCH);
    assert_eq!(got(&send(&app, "/tenant", &[cookie("session=alice"), ("x-tenant", "t")], "").await), Ran);
    assert_eq!(got(&send(&app, "/tenant", &[cookie("session=bob"), ("x-tenant", "t")], "").await), Replay);
}

/// Keeps the warnings about cookies.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                let _ = write!(self.0, "{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        if text.0.contains("Cookie") {
            self.0.lock().unwrap().push(text.0);
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_caller_known_by_a_cookie_is_warned_of_once_for_each_endpoint() {
    let warnings = Warnings::default();
    let _guard = idem_testkit::subscriber::set_default(warnings.clone());
    let seen = || warnings.0.lock().unwrap().len();
    let app = routes();
    send(&app, "/", &[("authorization", "Bearer alice"), ("cookie", "a=1")], "").await;
    send(&app, "/global", &[("cookie", "a=1")], "").await;
    send(&app, "/tenant", &[("cookie", "a=1"), ("x-tenant", "t")], "").await;
    assert_eq!(seen(), 0, "no cookie was used");
    for path in ["/", "/", "/tenant", "/tenant", "/"] {
        send(&app, path, &[("cookie", "a=2")], "").await;
    }
    let warnings = warnings.0.lock().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, endpoint) in warnings.iter().zip(["POST /", "POST /tenant"]) {
        assert!(warning.contains(endpoint) && warning.contains("scope = user.id"), "{warning}");
        assert!(!warning.contains("a=2"), "{warning}");
    }
}
