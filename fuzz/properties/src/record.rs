//! The record decoder: the head that the engine reads, and the response that the adapter reads.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use idem_axum::fuzzing::{read, record, recorded, replay};
use idem_axum::{Fingerprint, Policy, Record, Timestamp};

use crate::headers::{NEVER, lines};
use crate::input::Input;

const POLICY: Policy = Policy::DEFAULT;
/// Replays with a status that allows no body.
const BODILESS: Policy = Policy::DEFAULT.replay_status(204);
/// The head of a record: version, kind, expiry, and the lengths of execution info and content.
const HEAD: usize = 20;
/// The end of a recorded response: the length of its trailers, and the declared length of a body that is not sent.
const FOOT: usize = 4 + 8;
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);

/// Any bytes are a record or refused, and what was written is what is read.
pub fn record_decoder(input: &[u8]) {
    anything(input);
    written(input);
    response(input);
}

/// As a record, as a response, and as a response without its version.
fn anything(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    let given = Record::new(FINGERPRINT, bytes.clone());
    let content = read(&given);
    let tombstone = read(&given.tombstone()).expect("a tombstone can be read");
    assert_eq!(tombstone.0, None, "a tombstone has no content");
    match content {
        Ok((content, expires_at)) => {
            assert_eq!(tombstone.1, expires_at, "a tombstone lives as long");
            if let Some(content) = content {
                let info = given.execution_info();
                // If the info cannot be read, only the content is known.
                if info.is_some() || bytes.len() == HEAD + content.len() {
                    let again = record(FINGERPRINT, &content, expires_at, info.as_ref());
                    assert_eq!(again, given, "one form for each record");
                }
                replays(&content);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    replays(&bytes);
    replays(&Bytes::from([&[1], input].concat()));
}

/// Whatever the content says, its replay is one whole response.
fn replays(content: &Bytes) {
    let Ok(replayed) = replay(&POLICY, content) else { return };
    assert!(!replayed.status().is_informational(), "{}", replayed.status());
    for name in NEVER.iter().filter(|name| **name != "trailer") {
        assert!(!replayed.headers().contains_key(*name), "`{name}` is replayed");
    }
    // The replay announces its own trailers, and no others.
    let announced: Vec<_> = replayed.headers().get_all("trailer").iter().cloned().collect();
    assert_eq!(replayed.headers()["idempotent-replayed"], "true");
    assert!(replayed.headers().contains_key("cache-control"));
    let status = replayed.status();
    let (body, trailers) = body_and_trailers(replayed);
    assert!(announced.iter().all(|name| trailers.keys().any(|trailer| trailer.as_str() == name)), "{announced:?}");
    let end = content.len() - FOOT - trailers_length(content);
    assert!(content[..end].ends_with(&body), "the body is where it was written");
    if status != 204 {
        let bodiless = replay(&BODILESS, content).expect("it was replayed");
        assert_eq!(self::body(bodiless), "", "a body with a status that allows none");
    }
}

fn trailers_length(content: &Bytes) -> usize {
    let (length, _) = content[content.len() - FOOT..].split_first_chunk().expect("a replay has a foot");
    u32::from_le_bytes(*length).try_into().expect("it was replayed")
}

/// The head.
fn written(input: &[u8]) {
    let mut input = Input(input);
    let mut nanos = [0; 8];
    nanos.fill_with(|| input.byte());
    let expires_at = Timestamp::from_nanos(u64::from_le_bytes(nanos));
    let written = record(FINGERPRINT, input.0, expires_at, None);
    let (content, read_back) = read(&written).expect("what was written can be read");
    assert_eq!((content.as_deref(), read_back), (Some(input.0), expires_at));
    for length in 0..written.bytes().len() {
        let short = Record::new(FINGERPRINT, written.bytes().slice(..length));
        assert!(read(&short).is_err(), "the first {length} bytes");
    }
}

/// The response: a status, header lines up to an empty one, and a body.
fn response(input: &[u8]) {
    let mut input = Input(input);
    let status = 200 + (u16::from(input.byte()) | u16::from(input.byte()) << 8) % 400;
    let end = input.0.windows(2).position(|two| two == b"\n\n").unwrap_or(input.0.len());
    let headers = lines(input.take(end));
    input.take(2);
    let text = input.0;
    let mut response = Response::new(Body::from(text.to_vec()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    *response.headers_mut() = headers;
    let content = recorded(&POLICY, response).expect("it is recorded");
    for length in 0..(content.len() - text.len()).min(64) {
        assert!(replay(&POLICY, &content.slice(..length)).is_err(), "the first {length} bytes of the head");
    }
    let replayed = replay(&POLICY, &content).expect("what was recorded can be replayed");
    assert_eq!(replayed.status(), status);
    // With its own status the server decides whether the body is sent, as it does for the first response.
    assert_eq!(body(replayed), text);
    replays(&content);
}

fn body(response: Response) -> Bytes {
    body_and_trailers(response).0
}

fn body_and_trailers(response: Response) -> (Bytes, HeaderMap) {
    let body = response.into_body().collect().now_or_never().expect("it is there at once").expect("it is whole");
    let trailers = body.trailers().cloned().unwrap_or_default();
    for name in trailers.keys() {
        assert!(!NEVER.contains(&name.as_str()), "`{name}` is replayed as a trailer");
    }
    (body.to_bytes(), trailers)
}
