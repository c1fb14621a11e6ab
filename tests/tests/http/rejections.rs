//! A request that an extractor rejects is never recorded and never uses up the key.

use axum::extract::{Path, Query, State, rejection::JsonRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send};
use serde::Deserialize;

#[derive(Deserialize)]
struct NewOrder {
    item: String,
}

#[derive(Deserialize)]
struct Page {
    page: u32,
}

#[idempotent]
async fn order(State(probe): State<Probe>, Json(new): Json<NewOrder>) -> (StatusCode, String) {
    probe.run().await;
    (StatusCode::CREATED, new.item)
}

#[idempotent]
async fn placed(Path(number): Path<u32>, Query(page): Query<Page>, State(probe): State<Probe>) -> (StatusCode, String) {
    probe.run().await;
    (StatusCode::CREATED, format!("{number} on {}", page.page))
}

/// The rejection becomes an answer of the body, and so is recorded.
#[idempotent]
async fn lenient(State(probe): State<Probe>, new: Result<Json<NewOrder>, JsonRejection>) -> Response {
    probe.run().await;
    match new {
        Ok(Json(new)) => new.item.into_response(),
        Err(rejection) => (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    }
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/orders", post(order))
        .route("/orders/{number}", post(placed))
        .route("/lenient", post(lenient));
    Setup::of(routes)
}

#[tokio::test]
async fn what_json_rejects_uses_up_nothing() {
    let setup = setup();
    let server = setup.serve().await;
    let wrong = [
        (400, send("/orders").json("{")),
        (400, send("/orders").json("")),
        (415, send("/orders").body(r#"{"item":"book"}"#)),
        (422, send("/orders").json(r#"{"item":1}"#)),
        (422, send("/orders").json("{}")),
    ];
    for (status, ask) in wrong {
        let ask = ask.key("k");
        for _ in 0..2 {
            let reply = ask.at(&server).await;
            assert!(reply.status == status && !reply.is_replay() && reply.code().is_none(), "{status}: {reply:?}");
        }
    }
    setup.assert_nothing_stored();
    let right = send("/orders").key("k").json(r#"{"item":"book"}"#);
    let first = right.at(&server).await;
    first.assert_ran(201);
    right.at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn what_path_and_query_reject_uses_up_nothing() {
    let setup = setup();
    let key = |target: &str| send(target).key("k");
    for target in ["/orders/one?page=1", "/orders/1?page=one", "/orders/1"] {
        assert_eq!(key(target).to(&setup.app).await.status, 400, "{target}");
    }
    setup.assert_nothing_stored();
    let first = key("/orders/1?page=1").to(&setup.app).await;
    first.assert_ran(201);
    key("/orders/1?page=1").to(&setup.app).await.assert_replay_of(&first);
    // The record is not what an extractor's rejection gives way to.
    assert_eq!(key("/orders/1?page=x").to(&setup.app).await.status, 400);
    key("/orders/2?page=1").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
}

#[tokio::test]
async fn a_rejection_beside_a_running_body_leaves_it_alone() {
    let setup = setup();
    setup.probe.close();
    let right = send("/orders").key("k").json(r#"{"item":"book"}"#);
    let (app, ask) = (setup.app.clone(), right.clone());
    let running = tokio::spawn(async move { ask.to(&app).await });
    setup.probe.started(1).await;
    assert_eq!(send("/orders").key("k").json("{}").to(&setup.app).await.status, 422);
    right.to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    let first = running.await.unwrap();
    right.to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_rejection_that_the_body_takes_is_an_answer_like_any_other() {
    let setup = setup();
    let ask: Ask = send("/lenient").key("k").json("{");
    let first = ask.to(&setup.app).await;
    first.assert_ran(400);
    ask.to(&setup.app).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn what_the_router_refuses_uses_up_nothing() {
    let setup = setup();
    assert_eq!(send("/nowhere").key("k").to(&setup.app).await.status, 404);
    assert_eq!(Ask::new("PATCH", "/orders").key("k").to(&setup.app).await.status, 405);
    setup.assert_nothing_stored();
}
