//! No header value has spaces at its ends.

use idem_axum::{AddedHeader, Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.replay_with(&[AddedHeader::new("X-Retry", " no")]);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
