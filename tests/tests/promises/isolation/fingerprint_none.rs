//! `no_fingerprint`, and a pointer in a `const` policy.

use axum::Router;
use axum::routing::post;
use idem_axum::{Part, Policy, idempotent};
use idem_tests::got::ResponseKind::{Ran, Replay};
use idem_tests::got::{MISMATCH, app, got, send};

const NONE: Policy = Policy::DEFAULT.no_fingerprint();
const POINTER: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["/amount"])]);

#[idempotent(policy = NONE)]
async fn nothing() {}
#[idempotent(policy = NONE)]
async fn nothing_either() {}
#[idempotent(policy = POINTER)]
async fn amount() {}

#[tokio::test]
async fn only_handler_endpoint_and_caller_take_part() {
    let app = app(Router::new().route("/{id}", post(nothing)).route("/{id}/b", post(nothing_either)));
    let alice = ("authorization", "alice");
    assert_eq!(got(&send(&app, "/1", &[alice], "one").await), Ran);
    assert_eq!(got(&send(&app, "/2?q=1", &[alice], "two").await), Replay);
    assert_eq!(got(&send(&app, "/1", &[], "one").await), MISMATCH);
    assert_eq!(got(&send(&app, "/1/b", &[alice], "one").await), MISMATCH, "another endpoint");
}

#[tokio::test]
async fn a_pointer_of_a_const_policy_counts() {
    let app = app(Router::new().route("/", post(amount)));
    assert_eq!(got(&send(&app, "/", &[], r#"{"amount":5}"#).await), Ran);
    assert_eq!(got(&send(&app, "/", &[], r#"{"amount":5,"note":""}"#).await), Replay);
    assert_eq!(got(&send(&app, "/", &[], r#"{"amount":999999}"#).await), MISMATCH);
}
