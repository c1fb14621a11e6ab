//! A tilde in a pointer is escaped.

use idem_axum::{Part, Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["/a~b"])]);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
