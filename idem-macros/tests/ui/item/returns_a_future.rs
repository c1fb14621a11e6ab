use std::future::{Future, ready};
use std::pin::Pin;

use idem_axum::idempotent;

#[idempotent]
fn create(body: String) -> impl Future<Output = String> + Send {
    ready(body)
}

#[idempotent]
fn boxed(body: String) -> Pin<Box<dyn Future<Output = String> + Send>> {
    Box::pin(ready(body))
}

fn main() {}
