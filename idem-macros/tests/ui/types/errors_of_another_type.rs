use idem_axum::idempotent;

fn render(_: u16) -> u16 {
    404
}

#[idempotent(errors = render)]
async fn create() {}

fn main() {}
