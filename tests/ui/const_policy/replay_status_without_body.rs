//! The status is that of the recorded body.

use idem_axum::{Policy, Replay, idempotent};

const POLICY: Policy = Policy::DEFAULT.replay_status(409).replay(Replay::STATUS);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
