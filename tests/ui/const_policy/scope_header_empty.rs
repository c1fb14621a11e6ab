//! The header of a scope has a name.

use idem_axum::{Policy, Scope, idempotent};

const POLICY: Policy = Policy::DEFAULT.scope(Scope::Header(""));

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
