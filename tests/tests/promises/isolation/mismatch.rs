//! A key used for another request: refused while the first runs and after, and the record stays as it was.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{post, put};
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, H2, Probe, Setup, post as send, put as change};

#[idempotent]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    let run = probe.run().await;
    (StatusCode::CREATED, format!("order {run}: {body}"))
}

#[idempotent]
async fn cancel(State(probe): State<Probe>) -> String {
    format!("cancelled in run {}", probe.run().await)
}

#[idempotent(scope = global)]
async fn anybody(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/orders", post(order).put(order))
        .route("/orders/{id}", put(order))
        .route("/cancellations", post(cancel))
        .route("/anybody", post(anybody));
    Setup::of(routes)
}

fn ask() -> Ask {
    send("/orders?dry=0").key("k").header("authorization", "Bearer alice").body("a book")
}

/// Each differs from `ask` in one thing.
fn others() -> Vec<(&'static str, Ask)> {
    let but_for = |change: fn(&mut Ask)| {
        let mut ask = ask();
        change(&mut ask);
        ask
    };
    let authorization = |value: &'static str| {
        let mut ask = ask();
        ask.headers.retain(|(name, _)| name != "authorization");
        if value.is_empty() { ask } else { ask.header("authorization", value) }
    };
    vec![
        ("body", ask().body("a pen")),
        ("no body", ask().body("")),
        ("longer body", ask().body("a book ")),
        ("query", but_for(|ask| ask.target = "/orders?dry=1".into())),
        ("no query", but_for(|ask| ask.target = "/orders".into())),
        ("empty query", but_for(|ask| ask.target = "/orders?".into())),
        ("order of the query", but_for(|ask| ask.target = "/orders?dry=0&a=1".into())),
        ("method", but_for(|ask| ask.method = "PUT")),
        ("path and endpoint", but_for(|ask| (ask.method, ask.target) = ("PUT", "/orders/1?dry=0".into()))),
        ("endpoint", but_for(|ask| ask.target = "/cancellations?dry=0".into())),
        ("caller", authorization("Bearer mallory")),
        ("no caller", authorization("")),
        ("a caller twice", ask().header("authorization", "Bearer alice")),
        ("scheme of the caller", authorization("bearer alice")),
    ]
}

#[tokio::test]
async fn any_difference_is_422_while_the_handler_runs() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut first = Connection::open(&server).await;
    first.send(ask().bytes()).await;
    setup.probe.started(1).await;
    for (difference, other) in others() {
        let reply = other.at(&server).await;
        assert_eq!((reply.status, reply.code().as_deref()), (422, Some("idempotency_key_mismatch")), "{difference}");
    }
    setup.probe.open();
    let response = first.reply().await;
    response.assert_ran(201);
    ask().at(&server).await.assert_replay_of(&response);
    assert_eq!((setup.probe.runs(), setup.store.usage().entries), (1, 1));
}

#[tokio::test]
async fn any_difference_is_422_afterwards_and_the_record_stays() {
    let setup = setup();
    let server = setup.serve().await;
    let response = ask().at(&server).await;
    let usage = setup.store.usage();
    for (difference, other) in others() {
        let reply = other.at(&server).await;
        assert_eq!((reply.status, reply.code().as_deref()), (422, Some("idempotency_key_mismatch")), "{difference}");
        assert!(!reply.text().contains("a book") && !reply.text().contains("order 1"), "{difference}: {reply:?}");
        ask().at(&server).await.assert_replay_of(&response);
    }
    assert_eq!((setup.probe.runs(), setup.store.usage()), (1, usage));
}

#[tokio::test]
async fn headers_that_are_not_declared_make_no_difference() {
    let setup = setup();
    let response = ask().to(&setup.app).await;
    let retry = ask().header("user-agent", "other").header("x-request-id", "2").header("cookie", "a=b");
    retry.to(&setup.app).await.assert_replay_of(&response);
}

#[tokio::test]
async fn the_same_key_in_another_order_of_requests_is_refused_as_well() {
    // A key used on the second endpoint first belongs to the second endpoint.
    let setup = setup();
    send("/cancellations").key("k").to(&setup.app).await.assert_ran(200);
    send("/orders").key("k").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
}

#[tokio::test]
async fn two_path_parameters_are_two_requests() {
    let setup = setup();
    change("/orders/1").key("k").to(&setup.app).await.assert_ran(201);
    change("/orders/2").key("k").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    change("/orders/%31").key("k").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn a_global_scope_does_not_bind_the_caller() {
    let setup = setup();
    let first = send("/anybody").key("k").header("authorization", "Bearer alice").to(&setup.app).await;
    let other = send("/anybody").key("k").header("authorization", "Bearer bob").to(&setup.app).await;
    other.assert_replay_of(&first);
}

#[tokio::test]
async fn the_same_request_over_http1_and_http2_is_one() {
    let setup = setup();
    let server = setup.serve().await;
    let first = ask().at(&server).await;
    let client = H2::open(&server).await;
    client.ask(&ask()).await.assert_replay_of(&first);
    client.ask(&ask().body("a pen")).await.assert_refused(422, "idempotency_key_mismatch");
    let ask = send("/orders").key("by h2".replace(' ', "-").as_str()).body("x");
    let first = client.ask(&ask).await;
    ask.at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 2);
}

#[tokio::test]
async fn an_absolute_uri_and_another_host_are_the_same_request() {
    let setup = setup();
    let server = setup.serve().await;
    let first = ask().at(&server).await;
    let mut absolute = ask();
    absolute.target = "http://test/orders?dry=0".into();
    absolute.at(&server).await.assert_replay_of(&first);
    ask().header("x-forwarded-host", "other").at(&server).await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_chunked_body_and_one_with_a_length_are_the_same_request() {
    let setup = setup();
    let server = setup.serve().await;
    let first = ask().at(&server).await;
    let mut client = Connection::open(&server).await;
    client
        .send(
            [ask().head(), b"transfer-encoding: chunked\r\n\r\n2;ext=1\r\na \r\n4\r\nbook\r\n0\r\n\r\n".to_vec()]
                .concat(),
        )
        .await;
    client.reply().await.assert_replay_of(&first);
}

#[tokio::test]
async fn no_body_and_an_empty_body_are_the_same_request() {
    let setup = setup();
    let server = setup.serve().await;
    let ask = send("/orders").key("k");
    let first = ask.at(&server).await;
    let mut client = Connection::open(&server).await;
    client.send([ask.head(), b"\r\n".to_vec()].concat()).await;
    client.reply().await.assert_replay_of(&first);
}
