//! Extractors first: a request that an extractor rejects is never recorded and never uses up the key.

use std::io;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State, rejection::JsonRejection};
use axum::http::StatusCode;
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use http_body_util::Limited;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send, within};
use serde::Deserialize;
use tower::ServiceExt;

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

/// The rejection becomes a response of the body, and so is recorded.
#[idempotent]
async fn lenient(State(probe): State<Probe>, new: Result<Json<NewOrder>, JsonRejection>) -> Response {
    probe.run().await;
    lenient_response(new)
}

/// The same, with a fingerprint that leaves the body out.
#[idempotent(fingerprint = method + path)]
async fn lenient_about_any_body(State(probe): State<Probe>, new: Result<Json<NewOrder>, JsonRejection>) -> Response {
    probe.run().await;
    lenient_response(new)
}

fn lenient_response(new: Result<Json<NewOrder>, JsonRejection>) -> Response {
    match new {
        Ok(Json(new)) => new.item.into_response(),
        Err(rejection) => (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    }
}

#[idempotent]
async fn expects_an_item(State(probe): State<Probe>, new: Result<Json<NewOrder>, JsonRejection>) -> String {
    probe.run().await;
    new.expect("an item").0.item
}

#[idempotent]
async fn whole_request(State(probe): State<Probe>, _: Request) {
    probe.run().await;
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/orders", post(order))
        .route("/orders/{number}", post(placed))
        .route("/lenient", post(lenient))
        .route("/lenient-about-any", post(lenient_about_any_body))
        .route("/expects", post(expects_an_item))
        .route("/whole", post(whole_request));
    Setup::of(routes)
}

/// Sends `ask` with a body of these frames, which come one by one.
async fn framed(app: &Router, ask: &Ask, frames: Vec<io::Result<Bytes>>) -> Response {
    let request = ask.request(&ask.target, Body::from_stream(stream::iter(frames)));
    within("a response", app.clone().oneshot(request)).await.unwrap_or_else(|never| match never {})
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
async fn a_rejection_beside_a_running_handler_leaves_it_alone() {
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
async fn a_rejection_that_the_handler_takes_is_a_response_like_any_other() {
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

#[tokio::test]
async fn a_rejection_of_a_body_that_broke_off_leaves_the_key_to_the_whole_one() {
    for (path, broken) in [("/lenient", 400), ("/lenient-about-any", 400), ("/expects", 500)] {
        let setup = setup();
        let ask = send(path).key("k").json(r#"{"item":"book"}"#);
        let frames = vec![Ok(ask.body.slice(..8)), Err(io::Error::other("the upload broke off"))];
        let response = framed(&setup.app, &ask, frames).await;
        assert_eq!((response.status().as_u16(), setup.probe.runs()), (broken, 1), "{path}");
        setup.settled().await;
        setup.assert_nothing_stored();
        let first = ask.to(&setup.app).await;
        first.assert_ran(200);
        assert_eq!(first.text(), "book", "{path}");
        ask.to(&setup.app).await.assert_replay_of(&first);
        assert_eq!(setup.probe.runs(), 2, "{path}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_the_same_request_however_it_is_cut() {
    let setup = setup();
    let app = setup.app.clone().layer(DefaultBodyLimit::max(1000));
    let ask = send("/lenient").key("k").json("").body(vec![b'1'; 2000]);
    let cut = |lengths: &[usize]| {
        let mut rest = ask.body.clone();
        let frames = lengths.iter().map(|&length| Ok(rest.split_to(length))).collect();
        framed(&app, &ask, frames)
    };
    assert_eq!(cut(&[990, 100, 910]).await.status(), 400);
    for lengths in [&[990, 20, 990][..], &[2000], &[1001, 999], &[1; 2000], &[990, 100, 910]] {
        let retry = cut(lengths).await;
        let replayed = retry.headers().contains_key("idempotent-replayed");
        assert!(retry.status() == 400 && replayed, "{lengths:?}: {}", retry.status());
    }
    let mut other = ask.body.to_vec();
    other[999] = b'2';
    let other = framed(&app, &ask, vec![Ok(other.into())]).await;
    assert_eq!(other.status(), 422, "the last byte within the limit counts");
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn a_limit_that_a_layer_puts_on_the_body_is_413_as_any_other() {
    let setup = setup();
    // As `RequestBodyLimitLayer` of tower-http does for a body of unknown length.
    let limited = map_request(|request: Request| async { request.map(|body| Body::new(Limited::new(body, 10))) });
    let app = setup.app.clone().layer(limited);
    for path in ["/whole", "/orders"] {
        let ask = send(path).key("k").json(r#"{"item":"book"}"#);
        let frames = vec![Ok(ask.body.slice(..8)), Ok(ask.body.slice(8..))];
        assert_eq!(framed(&app, &ask, frames).await.status(), 413, "{path}");
        assert_eq!(setup.probe.runs(), 0);
        setup.assert_nothing_stored();
    }
    // What came of the body depends on its frames, so nothing is recorded for it.
    let ask = send("/lenient").key("k").json(r#"{"item":"book"}"#);
    for runs in 1..=2 {
        let response = framed(&app, &ask, vec![Ok(ask.body.clone())]).await;
        assert_eq!((response.status().as_u16(), setup.probe.runs()), (400, runs));
        setup.settled().await;
        setup.assert_nothing_stored();
    }
}
