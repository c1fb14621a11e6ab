use idem_axum::idempotent;

#[idempotent(key = "orders")]
async fn text(body: String) -> String {
    body
}

#[idempotent(key = event.id)]
async fn without_arguments() {}

fn main() {}
