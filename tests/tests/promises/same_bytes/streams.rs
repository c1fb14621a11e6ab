//! Responses of unknown length reach the first caller live, and are recorded as they flow.

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use idem_tests::{Ask, Connection, H2, feed, once, post as send, responding, until, within};

fn ask() -> Ask {
    send("/").key("k")
}

#[tokio::test]
async fn each_frame_arrives_before_the_next_is_made() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    for frame in ["one", "two", "three"] {
        feed.send(frame);
        assert_eq!(client.chunk().await.unwrap(), frame.as_bytes());
        ask().at(&server).await.assert_refused(409, "idempotency_key_locked");
    }
    drop(feed);
    assert_eq!(client.chunk().await, None);
    // The record is there when the stream has ended, not some time later.
    let replay = ask().over(&mut client).await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!((replay.text(), replay.header("content-length")), ("onetwothree", Some("11")));
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn over_http2_as_well() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    let server = setup.serve().await;
    let client = H2::open(&server).await;
    let (response, _stream) = client.start(&ask()).await;
    let mut body = within("the head", response).await.unwrap().into_body();
    for frame in ["one", "two"] {
        feed.send(frame);
        assert_eq!(within("a frame", body.data()).await.unwrap().unwrap(), frame);
    }
    drop(feed);
    while let Some(end) = within("the end", body.data()).await {
        assert_eq!(end.unwrap(), "", "an empty frame may carry the end");
    }
    assert_eq!(client.ask(&ask()).await.text(), "onetwo");
}

#[tokio::test]
async fn a_client_that_leaves_within_the_stream_gets_the_whole_replay() {
    for reset in [false, true] {
        let (feed, body) = feed();
        let setup = responding!([], once(body));
        let server = setup.serve().await;
        let mut client = Connection::open(&server).await;
        client.send(ask().bytes()).await;
        client.head().await;
        feed.send("one");
        client.chunk().await;
        if reset {
            client.reset()
        } else {
            client.hang_up()
        }
        feed.send("two");
        ask().at(&server).await.assert_refused(409, "idempotency_key_locked");
        feed.send("three");
        drop(feed);
        setup.settled().await;
        let replay = ask().at(&server).await;
        assert_eq!((replay.is_replay(), replay.text()), (true, "onetwothree"), "{replay:?}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_up_the_recording() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    let unread = ask().response(&setup.app).await;
    // Small frames, and all together far less than what is recorded.
    for _ in 0..5000 {
        feed.send("0123456789");
    }
    drop(feed);
    until("the response is recorded", async || setup.store.usage().in_flight == 0).await;
    let replay = ask().to(&setup.app).await;
    assert_eq!((replay.is_replay(), replay.body.len()), (true, 50_000));
    assert_eq!(unread.into_body().collect().await.unwrap().to_bytes().len(), 50_000);
}

#[tokio::test]
async fn frames_that_are_ready_at_once_are_replayed_as_well() {
    let frames = (0..1000).map(|number| Ok::<_, std::io::Error>(format!("{number},")));
    let setup = responding!([], once(axum::body::Body::from_stream(stream::iter(frames))));
    let first = ask().to(&setup.app).await;
    assert!(first.text().starts_with("0,1,2,") && first.text().ends_with(",998,999,"));
    ask().to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn an_empty_stream() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    let response = ask().response(&setup.app).await;
    drop(feed);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    let replay = ask().to(&setup.app).await;
    assert_eq!((replay.is_replay(), replay.text()), (true, ""));
}

#[tokio::test]
async fn trailers_reach_the_first_caller_and_are_replayed() {
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("1"))]);
    let frames = [
        Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from("data"))),
        Ok(http_body::Frame::trailers(trailers)),
    ];
    let setup = responding!([], once(axum::body::Body::new(StreamBody::new(stream::iter(frames)))));
    let first = within("the body", ask().response(&setup.app).await.into_body().collect()).await.unwrap();
    assert_eq!(first.trailers().and_then(|trailers| trailers.get("x-sum")), Some(&HeaderValue::from_static("1")));
    let replay = within("the body", ask().response(&setup.app).await.into_body().collect()).await.unwrap();
    assert_eq!(replay.trailers(), first.trailers());
    assert_eq!(replay.to_bytes(), "data");
}

#[tokio::test]
async fn drain_waits_for_a_stream_that_no_client_reads_any_more() {
    let (feed, body) = feed();
    let setup = responding!([], once(body));
    drop(ask().response(&setup.app).await);
    let mut drained = Box::pin(setup.settled());
    assert!(futures_util::poll!(&mut drained).is_pending());
    feed.send("late");
    drop(feed);
    drained.await;
    assert_eq!(ask().to(&setup.app).await.text(), "late");
}

#[tokio::test]
async fn a_length_that_the_handler_knows_is_kept_for_a_slow_body() {
    let (feed, body) = feed();
    let setup = responding!([], once(([("content-length", "6")], body)));
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    feed.send("one");
    feed.send("two");
    drop(feed);
    let first = client.reply().await;
    assert_eq!((first.header("content-length"), first.text()), (Some("6"), "onetwo"));
    ask().over(&mut client).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}
