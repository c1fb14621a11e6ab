//! All mistakes come out of one compile, each where it is.

use idem_axum::idempotent;

#[idempotent(
    tll = "24h",
    header = "Idempotency Key",
    required = "yes",
    min_key = 0,
    fingerprint = bdoy + path + path,
    in_flight = wait("0s")
    mismatch = 200,
    record = all - 999 - sucess,
    required,
)]
fn create(body: String) -> String {
    body
}

fn main() {}
