//! A redirect is neither a refusal nor an acknowledgement.

use idem_axum::{InFlight, Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT.in_flight(InFlight::reject(302));

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
