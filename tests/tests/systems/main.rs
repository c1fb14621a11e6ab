//! Public APIs and their idempotency, line by line, black box over real sockets. The programs are the ones in `examples/`;
//! each line of an API's documentation is above the test that checks it.

mod acp_checkout;
mod clients;
mod described;
mod gire_mobility;
mod iex_exchanger;
mod stripe_like;
mod telness_connect;
mod xcover;

use axum::Router;
use idem_axum::{Idempotency, ManualClock, MemoryStore};
use idem_tests::{Server, until};

/// An example, served.
struct System {
    server: Server,
    clock: ManualClock,
    idempotency: Idempotency,
}

impl System {
    async fn serve(app: impl FnOnce(Idempotency) -> Router) -> Self {
        let clock = ManualClock::new();
        let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
        let server = Server::start(app(idempotency.clone())).await;
        Self { server, clock, idempotency }
    }

    /// Until exactly this many handlers run.
    async fn running(&self, handlers: usize) {
        until("this many handlers run", async || self.idempotency.executions() == handlers).await;
    }
}
