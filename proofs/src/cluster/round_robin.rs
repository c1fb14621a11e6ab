//! A proxy that gives each connection to the next process.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct RoundRobin {
    port: u16,
    backends: Arc<Backends>,
    listening: JoinHandle<()>,
}

#[derive(Debug)]
struct Backends {
    ports: Vec<AtomicU16>,
    next: AtomicUsize,
}

impl RoundRobin {
    /// A proxy in front of these ports.
    pub async fn over(ports: impl IntoIterator<Item = u16>) -> Self {
        let backends =
            Arc::new(Backends { ports: ports.into_iter().map(AtomicU16::new).collect(), next: AtomicUsize::new(0) });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let listening = tokio::spawn(listen(listener, Arc::clone(&backends)));
        Self { port, backends, listening }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A process has been replaced by one on another port.
    pub fn replace(&self, place: usize, port: u16) {
        self.backends.ports[place].store(port, Ordering::Relaxed);
    }
}

impl Drop for RoundRobin {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, backends: Arc<Backends>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let turn = backends.next.fetch_add(1, Ordering::Relaxed) % backends.ports.len();
        let port = backends.ports[turn].load(Ordering::Relaxed);
        tokio::spawn(async move {
            // A process that is dead is the client's to find out, as it is with any proxy that checks from time to time.
            let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let _ = copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
