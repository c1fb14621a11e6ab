use idem_axum::idempotent;

#[idempotent(abandoned = re_run)]
async fn create(body: String) -> String {
    body
}

fn main() {}
