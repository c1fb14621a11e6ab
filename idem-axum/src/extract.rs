//! The extractor of the key.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::context::{ParsedKey, RequestContext};
use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::request;

/// Returns the key as the endpoint read it, or by the default policy if there is no endpoint.
fn parsed_key(parts: &Parts) -> ParsedKey {
    if let Some(RequestContext { parsed: Some(parsed), .. }) = parts.extensions.get::<RequestContext>() {
        if parsed.policy.key_from_arguments {
            tracing::error!(
                "the handler of an endpoint with `key = ..` has an argument `IdempotencyKey`, whose extractor runs before the key is \
                 known; write `IdempotencyKey::from_text(..)` in the handler instead"
            );
        }
        return parsed.clone();
    }
    let policy = &Policy::DEFAULT;
    ParsedKey { policy, key: request::key(&parts.headers, policy).map(|key| key.map(IdempotencyKey::new)) }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let ParsedKey { policy, key } = parsed_key(parts);
        key.map_err(|reason| Refusal::KeyInvalid { policy, reason })?.ok_or(Refusal::KeyMissing { policy })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Refusal> {
        let ParsedKey { policy, key } = parsed_key(parts);
        match key {
            // Nothing is enforced.
            Ok(None) | Err(_) if policy.shadow => Ok(None),
            Ok(None) if policy.key_from_arguments => Err(Refusal::KeyMissing { policy }),
            key => key.map_err(|reason| Refusal::KeyInvalid { policy, reason }),
        }
    }
}
