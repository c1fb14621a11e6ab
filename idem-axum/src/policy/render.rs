//! The bodies of refusals: problem details, Stripe's errors, and those of the Agentic Commerce Protocol.

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde::Serialize;

use super::refusal::Refusal;

/// Problem details, RFC 9457.
#[derive(Serialize)]
struct ProblemDetails<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: String,
    code: &'a str,
}

/// The default `errors`: problem details.
pub(super) fn problem(refusal: &Refusal) -> Response {
    let body = ProblemDetails {
        r#type: format!("urn:problem-type:{}", refusal.code()),
        title: refusal.title(),
        status: refusal.status().as_u16(),
        detail: refusal.to_string(),
        code: refusal.code(),
    };
    json(refusal, "application/problem+json", &body)
}

/// Stripe's shape of an error.
#[derive(Serialize)]
struct StripeError<'a> {
    error: StripeErrorObject<'a>,
}

#[derive(Serialize)]
struct StripeErrorObject<'a> {
    r#type: &'a str,
    code: &'a str,
    message: String,
}

/// The `errors` of [`Policy::STRIPE`].
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
    let error = StripeErrorObject { r#type, code, message: refusal.to_string() };
    json(refusal, "application/json", &StripeError { error })
}

/// The flat error of the Agentic Commerce Protocol.
#[derive(Serialize)]
struct AcpError<'a> {
    r#type: &'a str,
    code: &'a str,
    message: String,
}

/// The `errors` of [`Policy::ACP`](super::Policy::ACP). The protocol names three codes; the other refusals keep their own.
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
    json(refusal, "application/json", &AcpError { r#type, code, message: refusal.to_string() })
}

fn json(refusal: &Refusal, content_type: &'static str, body: &impl Serialize) -> Response {
    // Serialising strings and numbers cannot fail; an empty body would still have the right status.
    let mut text = Vec::with_capacity(512);
    let body = serde_json::to_writer(&mut text, body).map(|()| text).unwrap_or_default();
    let mut response = (refusal.status(), body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
