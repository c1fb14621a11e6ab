//! `replay`, `replay_status` and `replay_header`: what of a record is replayed, and how.

use axum::Json;
use axum::http::StatusCode;
use idem_tests::{Ask, Reply, Setup, post as send, responding};
use serde_json::json;

fn ask() -> Ask {
    send("/").key("k")
}

fn response() -> (StatusCode, [(&'static str, &'static str); 2], Json<serde_json::Value>) {
    (StatusCode::CREATED, [("location", "/1"), ("content-encoding", "identity")], Json(json!({ "id": 1 })))
}

async fn twice(setup: &Setup) -> (Reply, Reply) {
    let (first, replay) = (ask().to(&setup.app).await, ask().to(&setup.app).await);
    assert_eq!(setup.probe.runs(), 1);
    (first, replay)
}

#[tokio::test]
async fn a_replay_has_status_and_body() {
    let setup = responding!([replay = status + body], response);
    let (first, replay) = twice(&setup).await;
    assert_eq!((replay.status, &replay.body), (201, &first.body));
    assert_eq!(replay.header("location"), None);
    assert_eq!(replay.header("content-type"), Some("application/json"), "without it the body has no meaning");
    assert!(replay.is_replay());
}

#[tokio::test]
async fn a_replay_has_each_piece_alone() {
    let (_, replay) = twice(&responding!([replay = body], response)).await;
    assert_eq!((replay.status, replay.json(), replay.header("location")), (200, json!({ "id": 1 }), None));
    let (_, replay) = twice(&responding!([replay = status], response)).await;
    assert_eq!((replay.status, replay.text(), replay.header("content-type")), (201, "", None));
    let (_, replay) = twice(&responding!([replay = headers], response)).await;
    assert_eq!((replay.status, replay.text(), replay.header("location")), (200, "", Some("/1")));
    let (_, replay) = twice(&responding!([replay = headers + status], response)).await;
    assert_eq!((replay.status, replay.text(), replay.header("location")), (201, "", Some("/1")));
}

#[tokio::test]
async fn without_the_body_its_size_does_not_matter() {
    let setup = responding!([replay = status, max_response = "1B"], || (StatusCode::CREATED, "larger"));
    let (first, replay) = twice(&setup).await;
    assert_eq!((first.text(), replay.status, replay.is_replay()), ("larger", 201, true));
}

#[tokio::test]
async fn replay_status_is_what_a_replay_is_sent_with() {
    let (first, replay) = twice(&responding!([replay_status = 409], response)).await;
    assert_eq!((first.status, replay.status, replay.json()), (201, 409, json!({ "id": 1 })));
    assert!(replay.is_replay());
    // What a status forbids, it forbids here as well.
    let (_, replay) = twice(&responding!([replay_status = 204], response)).await;
    assert_eq!((replay.status, replay.text()), (204, ""));
}

#[tokio::test]
async fn replay_header_has_the_name_one_wants_or_is_none() {
    let (first, replay) = twice(&responding!([replay_header = "X-Replay"], response)).await;
    assert_eq!((first.header("x-replay"), replay.header("x-replay")), (None, Some("true")));
    assert_eq!(replay.header("idempotent-replayed"), None);
    let (first, replay) = twice(&responding!([replay_header = none], response)).await;
    assert_eq!(replay.headers.len(), first.headers.len() + 1, "only `cache-control` is added: {replay:?}");
    assert_eq!((replay.status, replay.body), (first.status, first.body));
}
