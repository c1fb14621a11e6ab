use idem_axum::idempotent;

#[idempotent(record = all - sucess)]
async fn create(body: String) -> String {
    body
}

fn main() {}
