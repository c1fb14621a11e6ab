//! What is written twice.

use idem_axum::idempotent;

#[idempotent]
#[idempotent(ttl = "1h")]
async fn attribute(body: String) -> String {
    body
}

#[idempotent(fingerprint = header("X-Version") + header("x-version"))]
async fn fingerprint_header(body: String) -> String {
    body
}

#[idempotent(fingerprint = body + path + body)]
async fn fingerprint_term(body: String) -> String {
    body
}

#[idempotent(required, required = false)]
async fn flag(body: String) -> String {
    body
}

#[idempotent(fingerprint = json("/id") + json("/lines", "/id"))]
async fn json_pointer(body: String) -> String {
    body
}

#[idempotent(ttl = "24h", required, ttl = "1h")]
async fn option(body: String) -> String {
    body
}

#[idempotent(replay = body + status + body)]
async fn replay_term(body: String) -> String {
    body
}

#[idempotent(scope = (path, global, path))]
async fn scope_path(body: String) -> String {
    body
}

#[idempotent(shadow, ttl = "1h", shadow)]
async fn shadow(body: String) -> String {
    body
}

fn main() {}
