//! Without its slash the pointer would find nothing, and all bodies would be equal.

use idem_axum::{Part, Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["amount"])]);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
