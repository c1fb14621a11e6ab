//! A timer that overflows its clock would panic while the request is served.

use std::time::Duration;

use idem_axum::{Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.timeout(Duration::MAX);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
