//! The server's host.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idem_axum::{Clock, Idempotency, ManualClock, MemoryStore, Timestamp};
use idem_testkit::intercept::Intercept;
use turmoil::net::{TcpListener, TcpStream};

use super::shop::{Protection, Shop};
use crate::faulty::{Fault, ReleaseOnDrop};
use crate::history::Event;
use crate::map_store::MapStore;
use crate::trace::Trace;

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

/// Where the server keeps its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// In its memory, which its crash empties.
    InProcess,
    /// In a store with leases that outlives it, and has this fault.
    Remote(Option<RemoteFault>),
}

/// A mistake of a store that outlives the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteFault {
    /// A mistake of the store.
    OfStore(Fault),
    /// Claims are released when their owner is torn down.
    ReleasesOnDrop,
}

/// The simulated time, which does not depend on who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct SimulatedClock(Arc<AtomicU64>);

impl SimulatedClock {
    pub(super) fn set(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A store that outlives the server.
#[derive(Clone)]
struct Remote {
    store: MapStore,
    releases_on_drop: bool,
    clock: SimulatedClock,
    lease: Duration,
}

/// A server that forgets everything when its host crashes, unless its store is a remote one: each start has its own engine.
#[derive(Clone)]
pub struct Server {
    pub shop: Shop,
    pub protection: Protection,
    /// For how many keys its store has room.
    pub room: usize,
    remote: Option<Remote>,
    trace: Option<Trace>,
    running: Arc<Mutex<Option<(Idempotency, MemoryStore)>>>,
}

impl Server {
    pub fn new(shop: Shop, protection: Protection) -> Self {
        Self { shop, protection, room: usize::MAX, remote: None, trace: None, running: Arc::default() }
    }

    /// The same with a store for this many keys.
    #[must_use]
    pub fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// The same over a store with this lease that outlives it. Call it when the room is known.
    #[must_use]
    pub(super) fn with_remote_store(self, fault: Option<RemoteFault>, clock: SimulatedClock, lease: Duration) -> Self {
        let of_store = match fault {
            Some(RemoteFault::OfStore(fault)) => Some(fault),
            _ => None,
        };
        let releases_on_drop = fault == Some(RemoteFault::ReleasesOnDrop);
        let remote = Remote { store: MapStore::new(self.room, of_store), releases_on_drop, clock, lease };
        Self { remote: Some(remote), ..self }
    }

    /// The same with a trace, which learns of each start.
    #[must_use]
    pub(super) fn traced(self, trace: Trace) -> Self {
        Self { trace: Some(trace), ..self }
    }

    /// The engine and the store in memory since the last start.
    ///
    /// # Panics
    /// Before the first start, and if the store is not in memory.
    pub fn engine(&self) -> (Idempotency, MemoryStore) {
        self.running.lock().unwrap().clone().expect("the server has started")
    }

    /// A new engine over a new store, whose records do not grow old in the simulation.
    pub fn restart(&self) -> Idempotency {
        if let Some(trace) = &self.trace {
            trace.next_process();
        }
        if let Some(Remote { store, releases_on_drop, clock, lease }) = self.remote.clone() {
            let builder = if releases_on_drop {
                Idempotency::builder(Intercept::new(store, ReleaseOnDrop))
            } else {
                Idempotency::builder(store)
            };
            return builder.clock(clock).lease(lease).build();
        }
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
