//! Mistakes in a policy that is a constant: the compiler evaluates it.

use std::time::Duration;

use idem_axum::{AddedHeader, InFlight, Part, Policy, Replay, Scope, Statuses, idempotent};

// No header value has spaces at its ends.
const ADDED_HEADER_PADDED: Policy = Policy::DEFAULT.replay_with(&[AddedHeader::new("X-Retry", " no")]);

#[idempotent(policy = ADDED_HEADER_PADDED)]
async fn added_header_padded() {}

// That nothing is compared has to be said.
const FINGERPRINT_EMPTY: Policy = Policy::DEFAULT.fingerprint(&[]);

#[idempotent(policy = FINGERPRINT_EMPTY)]
async fn fingerprint_empty() {}

// One part, written twice.
const FINGERPRINT_TWICE: Policy = Policy::DEFAULT.fingerprint(&[Part::Header("X-A"), Part::Header("x-a")]);

#[idempotent(policy = FINGERPRINT_TWICE)]
async fn fingerprint_twice() {}

// A redirect is neither a refusal nor an acknowledgement.
const IN_FLIGHT_REDIRECT: Policy = Policy::DEFAULT.in_flight(InFlight::reject(302));

#[idempotent(policy = IN_FLIGHT_REDIRECT)]
async fn in_flight_redirect() {}

// A tilde in a pointer is escaped.
const JSON_POINTER_TILDE: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["/a~b"])]);

#[idempotent(policy = JSON_POINTER_TILDE)]
async fn json_pointer_tilde() {}

// Without its slash the pointer would find nothing, and all bodies would be equal.
const JSON_POINTER_WITHOUT_SLASH: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["amount"])]);

#[idempotent(policy = JSON_POINTER_WITHOUT_SLASH)]
async fn json_pointer_without_slash() {}

// An endpoint of which nothing is recorded is not protected.
const RECORD_NOTHING: Policy = Policy::DEFAULT.record(Statuses::NONE);

#[idempotent(policy = RECORD_NOTHING)]
async fn record_nothing() {}

// No response has this status, as in the attribute.
const RECORD_STATUS: Policy = Policy::DEFAULT.record(Statuses::of(700));

#[idempotent(policy = RECORD_STATUS)]
async fn record_status() {}

// The marker would replace a recorded header.
const REPLAY_HEADER_LOCATION: Policy = Policy::DEFAULT.replay_header("Location");

#[idempotent(policy = REPLAY_HEADER_LOCATION)]
async fn replay_header_location() {}

// The status is that of the recorded body.
const REPLAY_STATUS_WITHOUT_BODY: Policy = Policy::DEFAULT.replay_status(409).replay(Replay::STATUS);

#[idempotent(policy = REPLAY_STATUS_WITHOUT_BODY)]
async fn replay_status_without_body() {}

// A policy alone knows no arguments.
const SCOPE_OF_ARGUMENTS: Policy = Policy::DEFAULT.scope(Scope::Arguments);

#[idempotent(policy = SCOPE_OF_ARGUMENTS)]
async fn scope_of_arguments() {}

// The header of a scope has a name.
const SCOPE_HEADER_EMPTY: Policy = Policy::DEFAULT.scope(Scope::Header(""));

#[idempotent(policy = SCOPE_HEADER_EMPTY)]
async fn scope_header_empty() {}

// A timer that overflows its clock would panic while the request is served.
const TIMEOUT_TOO_LONG: Policy = Policy::DEFAULT.timeout(Duration::MAX);

#[idempotent(policy = TIMEOUT_TOO_LONG)]
async fn timeout_too_long() {}

// A handler that may run for no time is no handler.
const TIMEOUT_ZERO: Policy = Policy::DEFAULT.timeout(Duration::ZERO);

#[idempotent(policy = TIMEOUT_ZERO)]
async fn timeout_zero() {}

fn main() {}
