use idem_runtime::{Idempotency, RefusalReason, idempotent};

#[idempotent(engine = engine, key = order, scope = "ship")]
fn not_async(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order, scope = "ship")]
async unsafe fn unsafety(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn returns_nothing(engine: Idempotency, order: String) {}

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn hidden(engine: Idempotency, order: String) -> Result<impl ToString, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn borrows(engine: Idempotency, order: &str) -> Result<String, RefusalReason> {
    Ok(order.to_owned())
}

struct App(Idempotency);

impl App {
    #[idempotent(engine = self.0, key = order, scope = "ship")]
    async fn receiver(&self, order: String) -> Result<String, RefusalReason> {
        Ok(order)
    }
}

#[idempotent(engine = engine, key = order, scope = "ship")]
fn returns_a_future(engine: Idempotency, order: String) -> impl Future<Output = Result<String, RefusalReason>> {
    std::future::ready(Ok(order))
}

fn main() {}
