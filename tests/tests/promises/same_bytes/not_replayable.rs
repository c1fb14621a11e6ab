//! Responses that are larger than `max_response`, or whose stream fails: the first caller gets them, and the handler never runs again.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use idem_tests::{Ask, Connection, Setup, feed, once, post as send, responding};

fn ask() -> Ask {
    send("/").key("k")
}

async fn assert_tombstone(setup: &Setup) {
    for _ in 0..2 {
        ask().to(&setup.app).await.assert_refused(409, "idempotency_not_replayable");
    }
    ask().body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    assert_eq!((setup.probe.runs(), setup.store.usage().in_flight), (1, 0));
}

#[tokio::test]
async fn a_response_as_large_as_allowed_is_replayed() {
    let setup = responding!([max_response = "10B"], || "0123456789");
    let first = ask().to(&setup.app).await;
    first.assert_ran(200);
    ask().to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_response_one_byte_larger_leaves_a_tombstone() {
    let setup = responding!([max_response = "10B"], || "01234567890");
    let first = ask().to(&setup.app).await;
    first.assert_ran(200);
    assert_eq!(first.text(), "01234567890");
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn by_default_a_mebibyte_is_replayed_and_a_byte_more_is_not() {
    for (length, replayed) in [(1024 * 1024, true), (1024 * 1024 + 1, false)] {
        let setup = responding!([], move || vec![b'x'; length]);
        let server = setup.serve().await;
        assert_eq!(ask().at(&server).await.body.len(), length);
        let retry = ask().at(&server).await;
        assert_eq!((retry.is_replay(), retry.status), (replayed, if replayed { 200 } else { 409 }));
    }
}

#[tokio::test]
async fn a_stream_as_large_as_allowed_is_replayed_and_a_larger_one_is_not() {
    for (last, replayed) in [("89", true), ("89x", false)] {
        let (feed, body) = feed();
        let setup = responding!([max_response = "10B"], once(body));
        let server = setup.serve().await;
        let mut client = Connection::open(&server).await;
        client.send(ask().bytes()).await;
        client.head().await;
        for frame in ["0123", "4567", last] {
            feed.send(frame);
            assert_eq!(client.chunk().await.unwrap(), frame.as_bytes());
        }
        if replayed {
            drop(feed);
            assert_eq!(client.chunk().await, None);
            assert_eq!(ask().at(&server).await.text(), "0123456789");
        } else {
            setup.settled().await;
            assert_tombstone(&setup).await;
            feed.send("the caller gets the rest");
            assert_eq!(client.chunk().await.unwrap(), b"the caller gets the rest");
            drop(feed);
            assert_eq!(client.chunk().await, None);
        }
    }
}

#[tokio::test]
async fn frames_ready_at_once_past_the_limit_reach_the_caller_whole() {
    let frames = (0..100).map(|_| Ok::<_, Infallible>("0123456789"));
    let setup = responding!([max_response = "100B"], once(Body::from_stream(stream::iter(frames))));
    assert_eq!(ask().to(&setup.app).await.body.len(), 1000);
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn a_stream_without_an_end_reaches_the_caller_and_does_not_run_again() {
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024])));
    let setup = responding!([max_response = "4KiB"], once(Body::from_stream(endless)));
    let mut body = ask().response(&setup.app).await.into_body();
    for _ in 0..100 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1024);
    }
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn a_stream_that_fails_leaves_a_tombstone() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    client.head().await;
    feed.send("one");
    assert_eq!(client.chunk().await.unwrap(), b"one");
    feed.fail();
    assert_eq!(client.rest().await, b"", "cut off, without the end of a chunked body");
    setup.settled().await;
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn a_stream_that_fails_at_once_leaves_a_tombstone() {
    let (feed, body) = feed();
    feed.send("one");
    feed.fail();
    let setup = responding!([], once(body));
    let mut body = ask().response(&setup.app).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert!(body.frame().await.unwrap().is_err());
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn a_stream_that_panics_leaves_a_tombstone() {
    let (feed, body) = feed();
    let setup = responding!([], once(then_panics(body)));
    feed.send("one");
    let response = ask().response(&setup.app).await;
    drop(feed);
    assert!(response.into_body().collect().await.is_err(), "cut off, as a stream that fails");
    setup.settled().await;
    assert_tombstone(&setup).await;
}

/// Before a byte was sent, it is a panic like any other.
#[tokio::test]
async fn a_stream_that_panics_at_once_is_500_and_does_not_run_again() {
    let (feed, body) = feed();
    feed.send("one");
    drop(feed);
    let setup = responding!([], once(then_panics(body)));
    let first = ask().to(&setup.app).await;
    first.assert_refused(500, "idempotency_handler_panicked");
    ask().to(&setup.app).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

fn then_panics(body: Body) -> Body {
    let panics = stream::once(async { panic!("within the stream") });
    Body::from_stream(body.into_data_stream().chain(panics))
}

#[tokio::test]
async fn a_client_that_leaves_a_response_too_large_changes_nothing() {
    let (feed, body) = feed();
    let setup = responding!([max_response = "1B"], once(body));
    let response = ask().response(&setup.app).await;
    feed.send("larger");
    drop(response);
    setup.settled().await;
    assert_tombstone(&setup).await;
}

#[tokio::test]
async fn after_its_ttl_a_tombstone_is_gone() {
    let setup = responding!([max_response = "1B", ttl = "1m"], || "larger");
    ask().to(&setup.app).await.assert_ran(200);
    assert_tombstone(&setup).await;
    setup.clock.advance(std::time::Duration::from_secs(60));
    ask().to(&setup.app).await.assert_ran(200);
}
