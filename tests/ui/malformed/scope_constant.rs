use idem_axum::idempotent;

const ORDERS: &str = "orders";

#[idempotent(scope = ("orders", "v1"))]
async fn tuple(body: String) -> String {
    body
}

#[idempotent(scope = ("orders"))]
async fn parentheses(body: String) -> String {
    body
}

#[idempotent(scope = { "orders" })]
async fn block(body: String) -> String {
    body
}

#[idempotent(scope = (ORDERS, path))]
async fn constant(body: String) -> String {
    body
}

fn main() {}
