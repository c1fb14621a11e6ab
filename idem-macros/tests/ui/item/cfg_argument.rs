use idem_axum::idempotent;

#[idempotent]
pub async fn create(#[cfg(unix)] body: String) -> String {
    body
}

fn main() {}
