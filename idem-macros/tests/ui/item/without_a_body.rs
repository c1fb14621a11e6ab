use idem_axum::idempotent;

pub trait Orders {
    #[idempotent]
    async fn create(body: String) -> String;
}

fn main() {}
