//! `in_flight = reject(202)`: a success status acknowledges what is in flight.

use axum::routing::post;
use axum::{Extension, Router};
use http_body_util::BodyExt;
use idem_axum::{InFlight, Policy, idempotent};
use idem_tests::got::ResponseKind::{Refused, Replay};
use idem_tests::got::{Gate, app, got, send};
use serde_json::Value;

const ACCEPTED: Policy = Policy::DEFAULT.in_flight(InFlight::reject(202));
const NO_CONTENT: Policy = Policy::DEFAULT.in_flight(InFlight::reject(204));

#[idempotent(policy = ACCEPTED)]
async fn accepted(Extension(gate): Extension<Gate>) -> &'static str {
    gate.pass().await
}

#[idempotent(policy = NO_CONTENT)]
async fn no_content(Extension(gate): Extension<Gate>) -> &'static str {
    gate.pass().await
}

#[tokio::test]
async fn a_success_status_acknowledges_what_is_in_flight() {
    for (path, status) in [("/accepted", 202), ("/no_content", 204)] {
        let gate = Gate::default();
        let routes = Router::new().route("/accepted", post(accepted)).route("/no_content", post(no_content));
        let app = app(routes).layer(Extension(gate.clone()));
        let first = tokio::spawn({
            let app = app.clone();
            async move { send(&app, path, &[], "").await }
        });
        gate.started.notified().await;
        let acknowledged = send(&app, path, &[], "").await;
        assert_eq!(acknowledged.status(), status);
        assert_eq!(got(&acknowledged), Refused("idempotency_key_locked"));
        assert!(!acknowledged.headers().contains_key("retry-after"), "it is not to be repeated");
        let has_type = acknowledged.headers().contains_key("content-type");
        let body = acknowledged.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((has_type, body.is_empty()), (status == 202, status == 204));
        if status == 202 {
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["status"], 202);
            assert!(!body["detail"].as_str().unwrap().contains("Retry"), "{body}");
        }
        gate.may_end.add_permits(1);
        assert_eq!(first.await.unwrap().status(), 200);
        assert_eq!(got(&send(&app, path, &[], "").await), Replay);
    }
}
