//! A request that can be sent again, over any way.

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::{Connection, Reply, Server, within};

/// A request. Sending it does not use it up, so that a retry is the same request.
#[derive(Clone, Debug)]
#[must_use]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Bytes,
}

pub fn post(target: &str) -> Ask {
    Ask::new("POST", target)
}

pub fn put(target: &str) -> Ask {
    Ask::new("PUT", target)
}

pub fn get(target: &str) -> Ask {
    Ask::new("GET", target)
}

impl Ask {
    pub fn new(method: &'static str, target: &str) -> Self {
        Self { method, target: target.to_owned(), headers: Vec::new(), body: Bytes::new() }
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: &str) -> Self {
        self.header("content-type", "application/json").body(body.to_owned())
    }

    /// The request as the `http` crate has it, with a body of one's own.
    pub fn request<B>(&self, target: &str, body: B) -> Request<B> {
        let mut request = Request::builder().method(self.method).uri(target);
        for (name, value) in &self.headers {
            request = request.header(name, value.as_slice());
        }
        request.body(body).expect("a request that can be made")
    }

    /// Sends it into the router, and gives the response back as it comes.
    pub async fn response(&self, app: &Router) -> Response {
        let request = self.request(&self.target, Body::from(self.body.clone()));
        within("the router's response", app.clone().oneshot(request)).await.unwrap_or_else(|never| match never {})
    }

    /// Sends it into the router, without a socket.
    pub async fn to(&self, app: &Router) -> Reply {
        whole(self.response(app).await).await
    }

    /// Sends it over its own connection.
    pub async fn at(&self, server: &Server) -> Reply {
        self.over(&mut Connection::open(server).await).await
    }

    /// Sends it over this connection, which must be usable afterwards.
    pub async fn over(&self, connection: &mut Connection) -> Reply {
        connection.send(self.bytes()).await;
        connection.reply().await
    }

    /// The bytes of HTTP/1.1.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The bytes of HTTP/1.1 up to where the headers about the body follow.
    pub fn head(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nhost: test\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }
}

/// Collects a response that came without a socket.
pub(crate) async fn whole(response: Response) -> Reply {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let body = within("the whole body", body.collect()).await.expect("a whole body").to_bytes().to_vec();
    Reply { status: parts.status.as_u16(), headers, body }
}
