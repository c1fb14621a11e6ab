//! The bodies of refusals: problem details, Stripe's errors, and those of the Agentic Commerce Protocol.

use std::fmt;

use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::refusal::Refusal;

/// The default `errors`: problem details, RFC 9457.
pub(super) fn problem(refusal: &Refusal) -> Response {
    let (code, title, status) = (refusal.code(), refusal.title(), refusal.status().as_u16());
    let body = format_args!(
        r#"{{"type":"urn:problem-type:{code}","title":"{title}","status":{status},"detail":"{refusal}","code":"{code}"}}"#
    );
    json(refusal, "application/problem+json", body)
}

/// The `errors` of [`Policy::STRIPE`](super::Policy::STRIPE), in Stripe's shape.
pub(super) fn stripe(refusal: &Refusal) -> Response {
    let r#type = match refusal {
        Refusal::Mismatch { .. }
        | Refusal::PolicyChanged { .. }
        | Refusal::InFlight { .. }
        | Refusal::KeyInvalid { .. } => "idempotency_error",
        Refusal::KeyMissing { .. } => "invalid_request_error",
        _ => "api_error",
    };
    let code = match refusal {
        Refusal::InFlight { .. } => "idempotency_key_in_use",
        other => other.code(),
    };
    let body = format_args!(r#"{{"error":{{"type":"{type}","code":"{code}","message":"{refusal}"}}}}"#);
    json(refusal, "application/json", body)
}

/// The `errors` of [`Policy::ACP`](super::Policy::ACP), a flat object. The protocol names three codes; the other refusals keep their own.
pub(super) fn acp(refusal: &Refusal) -> Response {
    let code = match refusal {
        Refusal::KeyMissing { .. } => "idempotency_key_required",
        Refusal::Mismatch { .. } => "idempotency_conflict",
        Refusal::InFlight { .. } => "idempotency_in_flight",
        other => other.code(),
    };
    let r#type = match refusal.status().as_u16() {
        503 => "service_unavailable",
        500.. => "processing_error",
        _ => "invalid_request",
    };
    let body = format_args!(r#"{{"type":"{type}","code":"{code}","message":"{refusal}"}}"#);
    json(refusal, "application/json", body)
}

/// Returns a response with this JSON. It is written as it is: no text of a refusal, and no name of a header, has a character that JSON
/// escapes.
fn json(refusal: &Refusal, content_type: &'static str, body: fmt::Arguments<'_>) -> Response {
    let mut text = String::with_capacity(512);
    // A string takes whatever is written.
    let _ = fmt::Write::write_fmt(&mut text, body);
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
