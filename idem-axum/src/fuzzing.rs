//! An entrance for fuzz targets. No part of the API.

use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use idem_runtime::{Ended, Fingerprint, Outcome, Recording, Undecodable};

use crate::policy::Policy;
use crate::request::{self, Owner, Unfinished};
use crate::response;

pub use idem_runtime::{Key, Scope, StorageKey, fuzzing::*};

/// The answer that is recorded of a response whose body is ready: `None` where none is.
pub fn recorded(policy: &Policy, response: Response) -> Option<Bytes> {
    match response::capture(policy, response).now_or_never()? {
        Ended { recording: Recording::Done(Outcome::Answer(draft)), .. } => Some(draft.bytes()),
        _ => None,
    }
}

/// Makes the replay of a recorded answer.
///
/// # Errors
/// The answer cannot be read.
pub fn replay(policy: &Policy, answer: &Bytes) -> Result<Response, Undecodable> {
    response::replay(policy, answer)
}

/// The fingerprint of a request.
pub fn fingerprint(policy: &Policy, parts: &Parts, body: &[u8]) -> Fingerprint {
    let mut fingerprint = Unfinished::new(parts, policy);
    if let Owner::Caller(authorization) = request::owner(&parts.headers, policy) {
        fingerprint.bind_caller(&authorization);
    }
    fingerprint.body(body, policy);
    fingerprint.finish()
}
