use idem_axum::idempotent;

#[idempotent(max_response = "1mib")]
async fn create(body: String) -> String {
    body
}

fn main() {}
