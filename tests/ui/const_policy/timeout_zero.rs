//! A handler that may run for no time is no handler.

use std::time::Duration;

use idem_axum::{Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.timeout(Duration::ZERO);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
