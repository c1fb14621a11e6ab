//! A policy alone knows no arguments.

use idem_axum::{Policy, Scope, idempotent};

const POLICY: Policy = Policy::DEFAULT.scope(Scope::Arguments);

#[idempotent(policy = POLICY)]
async fn handler() {}

fn main() {}
