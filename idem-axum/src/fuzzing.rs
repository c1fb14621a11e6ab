//! An entrance for fuzz targets. No part of the API.

use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use idem_runtime::{DecodeError, Executed, Fingerprint, Outcome, Recording};

use crate::policy::Policy;
use crate::request::body::ReadBody;
use crate::request::{FingerprintInput, KeyOwner, rewritten_path};
use crate::response;
use crate::warnings::Warnings;

pub use idem_runtime::{Key, Scope, StorageKey, fuzzing::*};

/// Returns the record of a response whose body is ready; `None` if there is none.
pub fn recorded(policy: &Policy, response: Response) -> Option<Bytes> {
    let (framing, warnings) = (response::Framing::default(), Warnings::default());
    let request = response::RecordedRequest { policy, framing, has_transaction: false, body_failed: false, warnings };
    match response::record(&request, response, usize::MAX).now_or_never()?.ok()? {
        Executed { recording: Recording::Done(Outcome::Record(record)), .. } => {
            Some(Bytes::copy_from_slice(record.as_slice()))
        }
        _ => None,
    }
}

/// Makes the replay of a recorded response.
///
/// # Errors
/// The record cannot be read.
pub fn replay(policy: &Policy, content: &Bytes) -> Result<Response, DecodeError> {
    response::replay(policy, false, content)
}

/// Returns the fingerprint of a request.
pub fn fingerprint(policy: &Policy, parts: &Parts, body: &[u8]) -> Fingerprint {
    let rewritten = rewritten_path(&mut parts.clone());
    let mut fingerprint = FingerprintInput::new(parts, policy, rewritten.as_deref());
    if let (_, Some(caller)) = KeyOwner::new(parts, policy, rewritten.as_deref()).scope(None) {
        fingerprint.bind_caller(&caller);
    }
    fingerprint.body(&ReadBody::of(Bytes::copy_from_slice(body), policy), policy);
    fingerprint.finish()
}
