use idem_axum::idempotent;

pub struct Orders;

impl Orders {
    #[idempotent]
    pub async fn create(&self, body: String) -> String {
        body
    }
}

fn main() {}
