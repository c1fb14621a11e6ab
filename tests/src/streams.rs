//! Bodies that a test feeds by hand.

use std::io;
use std::sync::Mutex;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;

/// The hand that feeds. The handler ends when it is dropped.
pub struct Feed(mpsc::UnboundedSender<io::Result<Vec<u8>>>);

impl Feed {
    /// A frame. It is fine if the body was dropped.
    pub fn send(&self, frame: impl AsRef<[u8]>) {
        let _ = self.0.send(Ok(frame.as_ref().to_vec()));
    }

    /// Makes the stream fail.
    pub fn fail(self) {
        let _ = self.0.send(Err(io::Error::other("the stream broke")));
    }
}

/// A body of unknown length.
pub fn feed() -> (Feed, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let stream = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    (Feed(sender), Body::from_stream(stream))
}

/// What makes this response once, and panics if it is made twice.
pub fn once(response: impl IntoResponse + Send + 'static) -> impl Fn() -> Response + Send + Sync + 'static {
    let response = Mutex::new(Some(response.into_response()));
    move || response.lock().expect("not poisoned").take().expect("the handler ran twice")
}
