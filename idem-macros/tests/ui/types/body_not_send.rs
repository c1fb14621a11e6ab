use idem_axum::idempotent;
use std::rc::Rc;

#[idempotent]
async fn create() {
    let order = Rc::new(1);
    std::future::ready(()).await;
    drop(order);
}

fn main() {}
