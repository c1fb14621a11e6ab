//! No response has this status, as in the attribute.

use idem_axum::{Policy, Statuses, idempotent};

const POLICY: Policy = Policy::DEFAULT.record(Statuses::of(700));

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
