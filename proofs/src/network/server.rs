//! The server's host.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idem_axum::{Idempotency, ManualClock, MemoryStore};
use turmoil::net::{TcpListener, TcpStream};

use super::shop::{Protection, Shop};
use crate::history::Event;

/// Where the server listens.
pub(super) const PORT: u16 = 80;

/// The simulated network as `axum::serve` takes it.
pub struct Listener(TcpListener);

/// Listens on the port of the simulation.
///
/// # Errors
/// If the port is taken.
pub async fn listen() -> io::Result<Listener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.map(Listener)
}

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(_gone_already) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A server that forgets everything when its host crashes: each start has an engine and a store of its own.
#[derive(Clone)]
pub struct Server {
    pub shop: Shop,
    pub protection: Protection,
    /// For how many keys its store has room.
    pub room: usize,
    running: Arc<Mutex<Option<(Idempotency, MemoryStore)>>>,
}

impl Server {
    pub fn new(shop: Shop, protection: Protection) -> Self {
        Self { shop, protection, room: usize::MAX, running: Arc::default() }
    }

    /// The same with a store for so many keys.
    #[must_use]
    pub fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// The engine and the store since the last start.
    ///
    /// # Panics
    /// Before the first start.
    pub fn engine(&self) -> (Idempotency, MemoryStore) {
        self.running.lock().unwrap().clone().expect("the server has started")
    }

    /// A new engine over a new store, whose records do not grow old in the simulation.
    pub fn restart(&self) -> Idempotency {
        let store = MemoryStore::builder().max_entries(self.room).build();
        self.shop.history.write((self.shop.now)(), Event::Room { entries: self.room });
        let idempotency = Idempotency::builder(store.clone()).clock(ManualClock::new()).build();
        *self.running.lock().unwrap() = Some((idempotency.clone(), store));
        idempotency
    }

    /// Starts again, and serves until the host crashes.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn serve(self) -> turmoil::Result {
        let idempotency = self.restart();
        let app = self.shop.app(self.protection, &idempotency);
        axum::serve(listen().await?, app).await?;
        Ok(())
    }
}
