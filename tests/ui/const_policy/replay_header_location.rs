//! The marker would replace a recorded header.

use idem_axum::{Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.replay_header("Location");

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
