//! One part, written twice.

use idem_axum::{Part, Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.fingerprint(&[Part::Header("X-A"), Part::Header("x-a")]);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
