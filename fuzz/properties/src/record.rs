//! The record decoder: the head that the engine reads, and the answer that the adapter reads.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use http_body_util::BodyExt;
use idem_axum::fuzzing::{read, record, recorded, replay};
use idem_axum::{Fingerprint, Policy, Record, Timestamp};

use crate::headers::{NEVER, lines};
use crate::input::Input;

const POLICY: Policy = Policy::DEFAULT;
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);

/// Any bytes are a record or refused, and what was written is what is read.
pub fn record_decoder(input: &[u8]) {
    anything(input);
    written(input);
    response(input);
}

/// As a record, as an answer, and as an answer without its version.
fn anything(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    let given = Record::new(FINGERPRINT, bytes.clone());
    let content = read(&given);
    let tombstone = read(&given.tombstone()).expect("a tombstone can be read");
    assert_eq!(tombstone.0, None, "a tombstone has no answer");
    match content {
        Ok((answer, expires_at)) => {
            assert_eq!(tombstone.1, expires_at, "a tombstone lives as long");
            if let Some(answer) = answer {
                let origin = given.origin();
                // Of a record whose origin cannot be read, only the answer is known. One of the first version is not written
                // any more.
                if bytes[0] != 1 && (origin.is_some() || ends_with(&given, &answer)) {
                    let again = record(FINGERPRINT, &answer, expires_at, origin.as_ref());
                    assert_eq!(again, given, "one form for each record");
                }
                replays(&answer);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    replays(&bytes);
    replays(&Bytes::from([&[1], input].concat()));
}

/// Whether nothing follows the answer.
fn ends_with(record: &Record, answer: &Bytes) -> bool {
    record.bytes().len() == 20 + answer.len()
}

/// Whatever the answer says, its replay is one whole response.
fn replays(answer: &Bytes) {
    let Ok(replayed) = replay(&POLICY, answer) else { return };
    assert!(!replayed.status().is_informational(), "{}", replayed.status());
    for name in NEVER {
        assert!(!replayed.headers().contains_key(*name), "`{name}` is replayed");
    }
    assert_eq!(replayed.headers()["idempotent-replayed"], "true");
    assert!(replayed.headers().contains_key("cache-control"));
    let bodiless = matches!(replayed.status().as_u16(), 204 | 205 | 304);
    let body = body(replayed);
    assert!(answer.ends_with(&body) && (body.is_empty() || !bodiless));
}

/// The head.
fn written(input: &[u8]) {
    let mut input = Input(input);
    let mut nanos = [0; 8];
    nanos.fill_with(|| input.byte());
    let expires_at = Timestamp::from_nanos(u64::from_le_bytes(nanos));
    let written = record(FINGERPRINT, input.0, expires_at, None);
    let (answer, read_back) = read(&written).expect("what was written can be read");
    assert_eq!((answer.as_deref(), read_back), (Some(input.0), expires_at));
    for length in 0..written.bytes().len().min(10) {
        let short = Record::new(FINGERPRINT, written.bytes().slice(..length));
        assert!(read(&short).is_err(), "the first {length} bytes");
    }
}

/// The answer: a status, header lines up to an empty one, and a body.
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
    let answer = recorded(&POLICY, response).expect("it is recorded");
    for length in 0..(answer.len() - text.len()).min(64) {
        assert!(replay(&POLICY, &answer.slice(..length)).is_err(), "the first {length} bytes of the head");
    }
    let replayed = replay(&POLICY, &answer).expect("what was recorded can be replayed");
    assert_eq!(replayed.status(), status);
    let wanted = if matches!(status, 204 | 205 | 304) { &b""[..] } else { text };
    assert_eq!(body(replayed), wanted);
    replays(&answer);
}

fn body(response: Response) -> Bytes {
    let body = response.into_body().collect().now_or_never().expect("it is there at once");
    body.expect("it is whole").to_bytes()
}
