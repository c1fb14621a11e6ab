use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use idem_runtime::{DecodeError, Executed, Outcome, RecordBuilder, Recording};

use super::{Framing, MAX_READY, RecordedRequest};
use crate::policy::{Policy, Replay};
use crate::warnings::Warnings;

fn request(policy: &Policy, framing: Framing) -> RecordedRequest<'_> {
    RecordedRequest { policy, framing, has_transaction: false, body_failed: false, warnings: Warnings::default() }
}

fn head() -> Framing {
    Framing { is_head: true, ..Framing::default() }
}

async fn record(policy: &Policy, response: Response) -> Executed<Response> {
    super::record(&request(policy, Framing::default()), response, MAX_READY).await.unwrap()
}

async fn buffer(policy: &Policy, response: Response) -> (Response, bool) {
    super::buffer(&request(policy, Framing::default()), response).await.unwrap()
}

fn replay(policy: &Policy, content: &Bytes) -> Result<Response, DecodeError> {
    super::replay(policy, false, content)
}

fn content(record: &RecordBuilder) -> Bytes {
    Bytes::copy_from_slice(record.as_slice())
}

/// The record that `response` leaves under `policy`, as the adapter gets it back.
async fn recorded(policy: &Policy, response: impl IntoResponse) -> Bytes {
    let Executed { recording: Recording::Done(Outcome::Record(builder)), .. } =
        record(policy, response.into_response()).await
    else {
        panic!("not recorded")
    };
    content(&builder)
}

async fn replayed(policy: &Policy, response: impl IntoResponse) -> (StatusCode, Vec<(String, Vec<u8>)>, Vec<u8>) {
    let record = recorded(policy, response).await;
    let (parts, body) = replay(policy, &record).unwrap().into_parts();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    (parts.status, headers, axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec())
}

fn named(headers: &[(String, Vec<u8>)]) -> Vec<&str> {
    headers.iter().map(|(name, _)| name.as_str()).collect()
}

fn response() -> Response {
    let mut response = (StatusCode::CREATED, [("x-a", "1")], vec![0_u8, 255, 10]).into_response();
    response.headers_mut().append("x-b", HeaderValue::from_bytes(&[0xff, b'b']).unwrap());
    response.headers_mut().append("x-a", HeaderValue::from_static("2"));
    response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static("session=1"));
    response.headers_mut().append(header::CONTENT_LENGTH, HeaderValue::from_static("1"));
    response
}

#[tokio::test]
async fn status_headers_and_body_come_back_byte_for_byte() {
    let (status, headers, body) = replayed(&Policy::DEFAULT, response()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(named(&headers), ["content-type", "x-a", "x-a", "x-b", "cache-control", "idempotent-replayed"]);
    assert_eq!((&headers[1].1[..], &headers[2].1[..], &headers[3].1[..]), (&b"1"[..], &b"2"[..], &b"\xffb"[..]));
    assert_eq!(body, [0, 255, 10]);
}

#[tokio::test]
async fn only_what_the_policy_names_is_recorded_and_replayed() {
    let policy = Policy::DEFAULT.replay(Replay::STATUS.and(Replay::BODY)).no_replay_header();
    let (status, headers, body) = replayed(&policy, response()).await;
    assert_eq!((status, body.len()), (StatusCode::CREATED, 3));
    assert_eq!(named(&headers), ["content-type", "cache-control"], "the type belongs to the body");

    let policy = Policy::DEFAULT.replay(Replay::HEADERS).replay_header("X-Again");
    assert!(
        !recorded(&policy, response()).await.windows(3).any(|part| part == [0, 255, 10]),
        "a body that is not replayed is not kept"
    );
    let (status, headers, body) = replayed(&policy, response()).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert!(named(&headers).contains(&"x-again") && named(&headers).contains(&"x-b"));

    let (status, ..) = replayed(&Policy::DEFAULT.replay_status(409), response()).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_policy_that_came_later_sends_no_more_than_it_says() {
    let trailers = http::HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("6"))]);
    let frames = [Frame::data(Bytes::from_static(b"one")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let headers = [("content-type", "text/plain"), ("x-token", "secret"), ("trailer", "x-sum")];
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    let content = recorded(&Policy::DEFAULT, (StatusCode::CREATED, headers, body)).await;
    for (parts, status, headers, body) in [
        (Replay::STATUS, 201, &[][..], &b""[..]),
        (Replay::BODY, 200, &["content-type"], b"one"),
        (Replay::HEADERS, 200, &["content-type", "x-token"], b""),
    ] {
        let replayed = replay(&Policy::DEFAULT.replay(parts).no_replay_header(), &content).unwrap();
        let names: Vec<_> = replayed.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!((replayed.status().as_u16(), &names[..]), (status, &[headers, &["cache-control"]].concat()[..]));
        let whole = replayed.into_body().collect().await.unwrap();
        assert!(whole.trailers().is_none(), "{parts:?}");
        assert_eq!(whole.to_bytes(), body);
    }
}

#[tokio::test]
async fn an_empty_response_to_head_gets_no_length() {
    let policy = &Policy::DEFAULT;
    let request = request(policy, head());
    for (response, length) in [(().into_response(), None), ("four".into_response(), Some("4"))] {
        let Executed { recording: Recording::Done(Outcome::Record(builder)), .. } =
            super::record(&request, response, MAX_READY).await.unwrap()
        else {
            panic!("not recorded")
        };
        let replayed = super::replay(policy, true, &content(&builder)).unwrap();
        let declared = replayed.headers().get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes);
        assert_eq!(declared, length.map(str::as_bytes));
    }
}

#[tokio::test]
async fn a_trailer_without_a_value_comes_back() {
    let trailers = http::HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static(""))]);
    let body = Body::new(StreamBody::new(stream::iter([
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"one"))),
        Ok(Frame::trailers(trailers.clone())),
    ])));
    let content = recorded(&Policy::DEFAULT, body).await;
    let replayed = replay(&Policy::DEFAULT, &content).unwrap().into_body().collect().await.unwrap();
    assert_eq!(replayed.trailers(), Some(&trailers));
}

#[tokio::test]
async fn headers_are_added_by_the_recorded_status() {
    let should_retry = async |policy: &Policy, status: u16| {
        let (_, headers, _) = replayed(policy, StatusCode::from_u16(status).unwrap()).await;
        headers.into_iter().find(|(name, _)| name == "stripe-should-retry").map(|(_, value)| value)
    };
    assert_eq!(should_retry(&Policy::STRIPE, 500).await.as_deref(), Some(&b"false"[..]));
    assert_eq!(should_retry(&Policy::STRIPE.replay_status(200), 500).await.as_deref(), Some(&b"false"[..]));
    assert_eq!(should_retry(&Policy::STRIPE, 402).await, None);
}

#[tokio::test]
async fn a_sensitive_value_stays_sensitive() {
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    let record = recorded(&Policy::DEFAULT, [("x-secret", secret), ("x-open", HeaderValue::from_static("1"))]).await;
    let response = replay(&Policy::DEFAULT, &record).unwrap();
    assert!(response.headers()["x-secret"].is_sensitive() && !response.headers()["x-open"].is_sensitive());
    assert_eq!(response.headers()["x-secret"], "secret");
}

#[test]
#[should_panic(expected = "no replay has it")]
fn a_policy_cannot_forge_a_framing_header() {
    let _ = Policy::DEFAULT.replay_header("Content-Length");
}

#[tokio::test]
async fn cache_control_of_the_handler_stays() {
    let (_, headers, _) = replayed(&Policy::DEFAULT, [(header::CACHE_CONTROL, "private")]).await;
    assert_eq!(headers.iter().filter(|(name, _)| name == "cache-control").count(), 1);
    assert!(headers.contains(&("cache-control".into(), b"private".to_vec())));
}

#[tokio::test]
async fn a_body_is_replayed_with_its_own_status_and_with_no_other_that_allows_none() {
    for status in [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED] {
        let (own, _, body) = replayed(&Policy::DEFAULT, (status, "five5")).await;
        assert_eq!((own, body.len()), (status, 5), "the server decides, as for the first response");
        let policy = Policy::DEFAULT.replay_status(status.as_u16());
        let (other, _, body) = replayed(&policy, "five5").await;
        assert_eq!((other, body.len()), (status, 0));
    }
}

#[tokio::test]
async fn a_damaged_record_is_an_error() {
    let good = recorded(&Policy::DEFAULT, response()).await;
    let body = 3;
    for length in 0..good.len() - body {
        assert!(replay(&Policy::DEFAULT, &good.slice(..length)).is_err(), "{length}");
    }
    let damaged = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        replay(&Policy::DEFAULT, &bytes.into()).map(|_| ())
    };
    assert!(damaged(0, 2).is_err(), "version");
    assert!(damaged(1, 101).is_err() && damaged(2, 0xff).is_err(), "no final status");
    assert!(damaged(11, b' ').is_err(), "a space in a header name");
    assert!(damaged(4, 0xff).is_err(), "more headers than there are");
}

#[test]
fn a_record_cannot_smuggle_a_framing_header() {
    let mut builder = RecordBuilder::new();
    builder.put(&[1, 200, 0, 1, 0, 14, 0, 1, 0, 0, 0]);
    builder.put(b"content-length9");
    builder.put(&[0; 12]);
    let response = replay(&Policy::DEFAULT, &content(&builder)).unwrap();
    assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
}

#[tokio::test]
async fn a_full_header_map_is_not_recorded_and_does_not_panic() {
    let mut full = Response::new(Body::empty());
    for number in 0..24_576 {
        let name = HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap();
        full.headers_mut().insert(name, HeaderValue::from_static("1"));
    }
    let ended = record(&Policy::DEFAULT, full).await;
    assert!(matches!(ended.recording, Recording::Done(Outcome::NotReplayable)));
    assert_eq!(ended.response.headers().len(), 24_576, "the first caller gets them all");

    // A record that still says so, as a store may.
    let mut forged = RecordBuilder::new();
    forged.put(&[1, 200, 0]);
    forged.put(&24_576_u16.to_le_bytes());
    for number in 0..24_576 {
        let name = format!("x-{number:05}");
        forged.put(&[7, 0, 0, 0, 0, 0]);
        forged.put(name.as_bytes());
    }
    assert!(replay(&Policy::DEFAULT, &content(&forged)).is_err());
}

#[tokio::test]
async fn a_body_that_is_buffered_is_awaited_to_its_end_whatever_its_trailers_are() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let trailers = http::HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))]);
    let frames = [Frame::data(Bytes::from_static(b"four")), Frame::trailers(trailers)];
    let frames = stream::iter(frames.map(Ok::<_, Infallible>)).chain(stream::once(ended).filter_map(async |_| None));
    let response = Response::new(Body::new(StreamBody::new(Box::pin(frames))));
    let policy = &Policy::DEFAULT.max_response(4);
    let mut buffered = Box::pin(buffer(policy, response));
    assert!((&mut buffered).now_or_never().is_none(), "the body has not ended");
    drop(end);
    let (response, has_failed) = buffered.await;
    let body = response.into_body().collect().await.unwrap();
    assert!(!has_failed && body.trailers().is_some_and(|trailers| trailers.len() == 1));
}

/// A body that says how long it is, and never comes.
struct Announced(u64);

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_not_awaited() {
    for (size, is_awaited) in [(4, true), (5, false), (6, false)] {
        let buffered =
            buffer(&Policy::DEFAULT.max_response(4), Response::new(Body::new(Announced(size)))).now_or_never();
        assert_eq!(buffered.is_none(), is_awaited, "{size}");
    }
}

/// A body that says it has ten bytes, and has three.
struct Cut(Option<Bytes>);

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.take().map(Frame::data).map(Ok))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(if self.0.is_some() { 10 } else { 7 })
    }
}

async fn ends_with_its_data(mut body: Body) -> bool {
    body.frame().await.is_some() && body.is_end_stream()
}

#[tokio::test]
async fn a_body_that_is_ready_says_no_more_of_its_length_than_before() {
    let policy = &Policy::DEFAULT;
    let bytes = Bytes::from_static(b"one");
    let stream = || Body::from_stream(stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"one"))]));
    let makers: [(&dyn Fn() -> Body, _); 4] = [
        (&|| Body::from("one"), Some(3)),
        (&stream, None),
        (&|| Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()), None),
        (&|| Body::new(Cut(Some(bytes.clone()))), Some(10)),
    ];
    for (make, length) in makers {
        let (buffered, _) = buffer(policy, Response::new(make())).await;
        for response in [Response::new(make()), buffered] {
            let body = record(policy, response).await.response.into_body();
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (length, false));
            assert_eq!(ends_with_its_data(body).await, ends_with_its_data(make()).await);
        }
    }
}

fn frames<const N: usize>(frames: [Result<Frame<Bytes>, std::io::Error>; N]) -> Body {
    Body::new(StreamBody::new(stream::iter(frames)))
}

#[tokio::test]
async fn a_long_body_that_is_ready_goes_live_only_if_the_client_reads_it_and_its_length_is_unknown() {
    let long = || Body::from_stream(stream::iter((0..100).map(|_| Ok::<_, Infallible>(vec![b'x'; 1024]))));
    for (response, is_live) in [
        (long().into_response(), true),
        (([(header::CONTENT_LENGTH, "102400")], long()).into_response(), false),
        ((StatusCode::NO_CONTENT, long()).into_response(), false),
    ] {
        let executed = record(&Policy::DEFAULT, response).await;
        assert_eq!(matches!(executed.recording, Recording::Live(_)), is_live, "{:?}", executed.response);
    }
}

#[tokio::test]
async fn what_comes_after_the_declared_length_is_not_asked_for() {
    let data = Frame::data(Bytes::from_static(b"four"));
    let body = frames([Ok(data), Err(std::io::Error::other("on purpose"))]);
    let response = ([(header::CONTENT_LENGTH, "3")], body).into_response();
    let (_, _, body) = replayed(&Policy::DEFAULT, response).await;
    assert_eq!(body, b"fou");
}

#[tokio::test]
async fn a_body_that_fails_after_its_declared_length_is_whole_as_it_is_for_its_client() {
    let four = || stream::iter([Ok(Bytes::from_static(b"four")), Err(std::io::Error::other("on purpose"))]);
    let of_length = |body| ([(header::CONTENT_LENGTH, "4")], body).into_response();
    let (_, _, body) = replayed(&Policy::DEFAULT, of_length(Body::from_stream(four()))).await;
    assert_eq!(body, b"four");
    let ready = of_length(Body::from_stream(four()));
    let (response, has_failed) = buffer(&Policy::DEFAULT, ready).await;
    assert!(!has_failed && replayed(&Policy::DEFAULT, response).await.2 == b"four");
    let late = stream::once(tokio::task::yield_now()).filter_map(async |()| None).chain(four());
    let live = record(&Policy::DEFAULT, of_length(Body::from_stream(Box::pin(late)))).await;
    let Recording::Live(recorded) = live.recording else { panic!("its frames are not there yet") };
    assert!(matches!(recorded.await.outcome, Outcome::Record(_)));
}

#[tokio::test]
async fn trailers_take_room_by_their_names_and_values() {
    let trailers = http::HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("12"))]);
    for (max, is_recorded) in [(11, true), (10, false)] {
        let body = frames([Ok(Frame::data(Bytes::from_static(b"four"))), Ok(Frame::trailers(trailers.clone()))]);
        let ended = record(&Policy::DEFAULT.max_response(max), Response::new(body)).await;
        assert_eq!(matches!(ended.recording, Recording::Done(Outcome::Record(_))), is_recorded, "{max}");
    }
}

#[tokio::test]
async fn trailers_beyond_what_is_recorded_are_sent_once() {
    let trailers = http::HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))]);
    let frames = [Frame::data(Bytes::from_static(b"four")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let late = stream::once(tokio::task::yield_now()).filter_map(async |()| None).chain(stream::iter(frames));
    let response = Response::new(Body::new(StreamBody::new(Box::pin(late))));
    let Executed { response, recording: Recording::Live(recorded) } =
        record(&Policy::DEFAULT.max_response(4), response).await
    else {
        panic!("its frames are not there yet")
    };
    let recorded = recorded.await;
    assert!(matches!(recorded.outcome, Outcome::NotReplayable));
    let mut body = response.into_body();
    let mut kinds = Vec::new();
    while let Some(frame) = body.frame().await {
        kinds.push(if frame.unwrap().is_data() { "data" } else { "trailers" });
    }
    assert_eq!(kinds, ["data", "trailers"]);
}

#[tokio::test]
async fn a_body_that_turns_out_too_long_is_not_awaited_and_a_shorter_one_is() {
    for (data, is_awaited) in [("fou", true), ("four", true), ("four!", false)] {
        let sent = stream::once(async move { Ok::<_, Infallible>(Bytes::from(data)) });
        let response = Response::new(Body::from_stream(sent.chain(stream::pending())));
        let buffered = buffer(&Policy::DEFAULT.max_response(4), response).now_or_never();
        assert_eq!(buffered.is_none(), is_awaited, "{data}");
    }
}

#[tokio::test]
async fn a_body_of_its_declared_length_is_recorded_although_its_stream_has_not_ended() {
    let sent = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"four")) });
    let body = Body::from_stream(sent.chain(stream::pending()));
    let response = ([(header::CONTENT_LENGTH, "4")], body).into_response();
    let (_, _, body) = replayed(&Policy::DEFAULT, response).await;
    assert_eq!(body, b"four");
}

#[tokio::test]
async fn a_body_is_not_awaited_for_longer_than_its_known_length_or_its_method_says() {
    let open = |text: &'static str| {
        let data = stream::iter([Ok::<_, Infallible>(Bytes::from_static(text.as_bytes()))]);
        Body::from_stream(data.chain(stream::pending()))
    };
    let of_length = |length: &'static str| ([(header::CONTENT_LENGTH, length)], open("onetwo")).into_response();
    let post = Framing::default();
    for (framing, response) in [(post, of_length("6")), (post, of_length("3")), (head(), open("").into_response())] {
        let request = request(&Policy::DEFAULT, framing);
        let (response, has_failed) = super::buffer(&request, response).now_or_never().unwrap().unwrap();
        assert!(!has_failed);
        let executed = super::record(&request, response, MAX_READY).now_or_never().unwrap().unwrap();
        assert!(matches!(executed.recording, Recording::Done(Outcome::Record(_))));
    }
}
