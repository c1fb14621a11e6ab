//! The adapter crate by another path, with its own name hidden.

mod framework {
    pub mod retries {
        pub use ::idem_axum::*;
    }
}

mod idem_axum {}

use axum::{Router, routing::post};
use framework::retries::{Policy, idempotent};

const POLICY: Policy = Policy::DEFAULT;

#[idempotent(crate = framework::retries, policy = POLICY, ttl = "1h", scope = body.len())]
async fn create(body: String) -> String {
    body
}

mod inner {
    #[super::idempotent(crate = crate::crate_path::framework::retries, record = all - 400)]
    pub async fn create(body: String) -> String {
        body
    }
}

#[test]
fn compiles() {
    let _: Router = Router::new().route("/", post(create)).route("/inner", post(inner::create));
}
