//! What a handler did, and when: counters to be waited for, and a gate for the bodies to wait at.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::watch;

use crate::within;

/// A clone for each body. The gate is open at first.
#[derive(Clone)]
pub struct Probe(Arc<Inner>);

struct Inner {
    entered: Counter,
    over: Counter,
    left: Counter,
    started: Counter,
    ended: Counter,
    cut: Counter,
    open: watch::Sender<bool>,
}

struct Counter(&'static str, watch::Sender<usize>);

impl Counter {
    fn new(name: &'static str) -> Self {
        Self(name, watch::Sender::new(0))
    }

    fn add(&self) -> usize {
        self.1.send_modify(|count| *count += 1);
        *self.1.borrow()
    }

    fn count(&self) -> usize {
        *self.1.borrow()
    }

    async fn reaches(&self, wanted: usize) {
        let mut count = self.1.subscribe();
        let reached = within(&format!("{wanted} {}", self.0), count.wait_for(|count| *count >= wanted));
        drop(reached.await.expect("the counter lives"));
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

impl Probe {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            entered: Counter::new("requests entered"),
            over: Counter::new("requests over"),
            left: Counter::new("requests dropped by the server"),
            started: Counter::new("handlers started"),
            ended: Counter::new("handlers ended"),
            cut: Counter::new("bodies cut short"),
            open: watch::Sender::new(true),
        }))
    }

    /// To be called by a body: counts, waits at the gate, and gives back the number of this run.
    pub async fn run(&self) -> usize {
        let run = self.0.started.add();
        let mut guard = OnDrop(Some(|| _ = self.0.cut.add()));
        drop(self.0.open.subscribe().wait_for(|open| *open).await.expect("the gate lives"));
        guard.0 = None;
        self.0.ended.add();
        run
    }

    /// From now on handlers wait at the gate.
    pub fn close(&self) {
        self.0.open.send_replace(false);
    }

    /// Lets the handlers continue.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    pub fn runs(&self) -> usize {
        self.0.started.count()
    }

    pub fn finished(&self) -> usize {
        self.0.ended.count()
    }

    /// Until `wanted` bodies have started.
    pub async fn started(&self, wanted: usize) {
        self.0.started.reaches(wanted).await;
    }

    /// Until `wanted` bodies have run past the gate.
    pub async fn ended(&self, wanted: usize) {
        self.0.ended.reaches(wanted).await;
    }

    /// Until `wanted` bodies were dropped at the gate.
    pub async fn cut(&self, wanted: usize) {
        self.0.cut.reaches(wanted).await;
    }

    /// Until `wanted` requests have arrived at the router.
    pub async fn entered(&self, wanted: usize) {
        self.0.entered.reaches(wanted).await;
    }

    /// Until `wanted` requests got a response or were dropped.
    pub async fn over(&self, wanted: usize) {
        self.0.over.reaches(wanted).await;
    }

    /// Until the server has dropped `wanted` requests before they got a response: it noticed that the client is gone.
    pub async fn left(&self, wanted: usize) {
        self.0.left.reaches(wanted).await;
    }

    /// The middleware that sees requests come and go.
    pub(crate) async fn watch(State(probe): State<Self>, request: Request, next: Next) -> Response {
        probe.0.entered.add();
        let _over = OnDrop(Some(|| _ = probe.0.over.add()));
        let mut left = OnDrop(Some(|| _ = probe.0.left.add()));
        let response = next.run(request).await;
        left.0 = None;
        response
    }
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}
