//! Plain functions, by either crate.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Idempotency, RefusalReason, idempotent};
use serde::{Deserialize, Serialize};

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
}

#[derive(Serialize)]
struct Order {
    id: u64,
    item: String,
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    parcel: String,
}

#[derive(Debug)]
enum ShipError {
    Io(std::io::Error),
    Refused(RefusalReason),
}

impl From<std::io::Error> for ShipError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<RefusalReason> for ShipError {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

/// Ships an order.
#[idempotent(engine = app.idempotency, key = order.id, scope = "ship", ttl = "7d", fingerprint = order)]
#[deny(warnings)]
pub async fn ship(app: App, mut order: Order) -> Result<Receipt, ShipError> {
    let _ = app;
    order.item.push('!');
    if order.item.is_empty() {
        Err(std::io::Error::other("no item"))?;
    }
    Ok(Receipt { parcel: order.item })
}

#[idem_axum::idempotent(
    engine = engine,
    key = format!("{tenant}/{id}"),
    scope = tenant,
    in_flight = wait("5s"),
    abandoned = rerun,
    fingerprint = none
)]
async fn pack<T: Send + 'static>(
    engine: &'static Idempotency,
    (tenant, id): (String, u64),
    _: T,
) -> Result<u64, RefusalReason> {
    tokio::time::sleep(Duration::ZERO).await;
    Ok(id)
}

/// The parts of a tuple are borrowed, as one value is.
#[idempotent(engine = app.idempotency, key = order.id, scope = "move", fingerprint = (order.item, shelf))]
async fn relocate(app: App, order: Order, shelf: String) -> Result<Receipt, ShipError> {
    let _ = app;
    Ok(Receipt { parcel: order.item + &shelf })
}

struct Service {
    engine: Arc<Idempotency>,
}

impl Service {
    #[idempotent(engine = self.engine, key = self.name(), scope = b"sweep")]
    async fn sweep(self: Arc<Self>) -> Result<(), RefusalReason> {
        #![allow(unused_variables)]
        let unused = 1;
        Ok(())
    }

    fn name(&self) -> &'static str {
        "tonight"
    }
}

#[test]
fn compiles() {
    let _ = (ship, pack::<u8>, relocate, Service::sweep);
}
