//! A real server on a free port.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::within;

/// HTTP/1.1 and HTTP/2 on 127.0.0.1, until it is dropped or shut down.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Server {
    pub async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.expect("it serves");
        });
        Self { address, stop: Some(stop), serving }
    }

    /// Shuts down gracefully, as a service does on SIGTERM.
    pub async fn shut_down(mut self) {
        drop(self.stop.take());
        within("the graceful shutdown", &mut self.serving).await.expect("it served");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
