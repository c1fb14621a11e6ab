//! A client of HTTP/2 that can cancel a stream and close a connection.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::{Ask, Reply, Server, within};

/// One connection, by prior knowledge.
pub struct H2 {
    client: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl H2 {
    pub async fn open(server: &Server) -> Self {
        let stream = within("the connection", TcpStream::connect(server.address)).await.expect("it connects");
        stream.set_nodelay(true).expect("no delay");
        let (client, connection) =
            within("the handshake", h2::client::handshake(stream)).await.expect("it shakes hands");
        Self { client, driver: tokio::spawn(async { drop(connection.await) }) }
    }

    /// Sends a request and its whole body.
    pub async fn start(&self, ask: &Ask) -> (ResponseFuture, SendStream<Bytes>) {
        let (response, mut stream) = self.upload(ask).await;
        stream.send_data(ask.body.clone(), true).expect("it is sent");
        (response, stream)
    }

    /// Sends the head of a request.
    pub async fn upload(&self, ask: &Ask) -> (ResponseFuture, SendStream<Bytes>) {
        let request = ask.request(&format!("http://test{}", ask.target), ());
        let mut client = within("a free stream", self.client.clone().ready()).await.expect("a free stream");
        client.send_request(request, false).expect("it is sent")
    }

    pub async fn ask(&self, ask: &Ask) -> Reply {
        let (response, _stream) = self.start(ask).await;
        let (parts, mut body) = within("the response", response).await.expect("a response").into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = within("more of the response", body.data()).await {
            let data = data.expect("a whole response");
            body.flow_control().release_capacity(data.len()).expect("capacity");
            bytes.extend_from_slice(&data);
        }
        let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        Reply { status: parts.status.as_u16(), headers, body: bytes }
    }

    /// RST_STREAM(CANCEL).
    pub fn cancel(stream: &mut SendStream<Bytes>) {
        stream.send_reset(Reason::CANCEL);
    }

    /// Closes the TCP connection, without a goodbye.
    pub fn hang_up(self) {
        self.driver.abort();
    }
}
