use idem_axum::idempotent;

#[idempotent(errors = |refusal| render(refusal))]
async fn create(body: String) -> String {
    body
}

fn main() {}
