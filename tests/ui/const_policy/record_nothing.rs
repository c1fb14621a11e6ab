//! An endpoint of which nothing is recorded is not protected.

use idem_axum::{Policy, Statuses, idempotent};

const POLICY: Policy = Policy::DEFAULT.record(Statuses::NONE);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
