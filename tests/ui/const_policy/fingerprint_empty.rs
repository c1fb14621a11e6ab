//! That nothing is compared has to be said.

use idem_axum::{Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.fingerprint(&[]);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
