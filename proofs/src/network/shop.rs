//! The endpoints of the simulation, and the handlers that write down what they do.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::stream::unfold;
use http::request::Parts;
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use tokio::time::sleep;

use super::inline::{Inline, run_inline};
use crate::history::{Event, History, RequestIdentity, SentResponse, latin1};
use idem_testkit::dice::Dice;

/// What is between a retry and the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// The attribute.
    Idempotent,
    /// Nothing.
    Bare,
    /// A middleware that does everything right but one: the handler runs inside the future of the request.
    Inline,
}

/// What a request is by the policies below. The client and the body come to it separately.
pub fn identity(path: &str, tenant: &str, key: &str, body: &str) -> RequestIdentity {
    // Without a declared scope the key has no owner, and the caller takes part in the fingerprint.
    let (scope, fp) = match path {
        "/transfers" => ("", format!("{path} {body} {tenant}")),
        _ => (tenant, format!("{path} {body}")),
    };
    RequestIdentity { tenant: tenant.to_owned(), scope: scope.to_owned(), key: key.to_owned(), fp }
}

/// What the bodies work with.
#[derive(Clone, Debug)]
pub struct Shop {
    pub history: History,
    pub seed: u64,
    /// Tells the time that goes into the history.
    pub now: fn() -> Duration,
}

/// The headers that say which request this is.
struct RequestHeaders {
    req: u64,
    path: String,
    tenant: String,
    key: String,
}

impl<S: Sync> FromRequestParts<S> for RequestHeaders {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let header = |name| parts.headers.get(name).map_or_else(String::new, |value| latin1(value.as_bytes()));
        let req = header("x-attempt").parse().unwrap_or_default();
        let path = parts.uri.path().to_owned();
        Ok(Self { req, path, tenant: header("x-tenant"), key: header("idempotency-key") })
    }
}

#[idempotent(required, scope = header("X-Tenant"))]
async fn order(State(shop): State<Shop>, headers: RequestHeaders, body: Bytes) -> Response {
    shop.work(headers, body).await
}

#[idempotent(required, scope = header("X-Tenant"), in_flight = wait("5s"))]
async fn payment(State(shop): State<Shop>, headers: RequestHeaders, body: Bytes) -> Response {
    shop.work(headers, body).await
}

#[idempotent(required)]
async fn transfer(State(shop): State<Shop>, headers: RequestHeaders, body: Bytes) -> Response {
    shop.work(headers, body).await
}

#[idempotent(required, scope = header("X-Tenant"), in_flight = wait("5s"))]
async fn export(State(shop): State<Shop>, headers: RequestHeaders, body: Bytes) -> Response {
    shop.stream(headers, body).await
}

async fn bare(State(shop): State<Shop>, headers: RequestHeaders, body: Bytes) -> Response {
    shop.work(headers, body).await
}

/// A handler that has started.
struct Run {
    exec: u64,
    dice: Dice,
    response: SentResponse,
    frames: Vec<Bytes>,
}

impl Shop {
    /// The application over this engine.
    pub fn app(self, protection: Protection, idempotency: &Idempotency) -> Router {
        let routes = match protection {
            Protection::Idempotent => Router::new()
                .route("/orders", post(order))
                .route("/payments", post(payment))
                .route("/transfers", post(transfer))
                .route("/exports", post(export))
                .layer(IdempotencyLayer::new(idempotency.clone())),
            Protection::Bare => Self::unprotected(),
            Protection::Inline => Self::unprotected().layer(from_fn_with_state(Arc::<Inline>::default(), run_inline)),
        };
        routes.with_state(self)
    }

    fn unprotected() -> Router<Self> {
        let paths = ["/orders", "/payments", "/transfers", "/exports"];
        paths.into_iter().fold(Router::new(), |router, path| router.route(path, post(bare)))
    }

    async fn work(self, headers: RequestHeaders, body: Bytes) -> Response {
        let mut run = self.start(&headers, &body);
        self.effects(&mut run).await;
        let response = respond(&run.response, Body::from(run.frames.concat()));
        self.write(Event::End { exec: run.exec, response: run.response });
        response
    }

    /// As [`work`](Self::work), with a response that flows while the body still works.
    async fn stream(self, headers: RequestHeaders, body: Bytes) -> Response {
        let mut run = self.start(&headers, &body);
        self.effects(&mut run).await;
        let (shop, response) = (self, run.response.clone());
        let frames = unfold((shop, run, 0), |(shop, mut run, next)| async move {
            let Some(frame) = run.frames.get(next).cloned() else {
                shop.write(Event::End { exec: run.exec, response: run.response });
                return None;
            };
            sleep(run.dice.millis(0..=300)).await;
            Some((Ok::<_, Infallible>(frame), (shop, run, next + 1)))
        });
        respond(&response, Body::from_stream(frames))
    }

    fn start(&self, headers: &RequestHeaders, body: &[u8]) -> Run {
        let RequestHeaders { req, path, tenant, key } = headers;
        let exec = self.history.id();
        let mut dice = Dice::new(self.seed, &format!("execution {exec}"));
        let canary = format!("canary-{:016x}", dice.roll());
        let frames = [Bytes::from(canary.clone()), Bytes::from_iter(0..=255), Bytes::from_static(b" the end")].to_vec();
        let headers = [
            ("content-type", "application/octet-stream"),
            ("link", "<a>"),
            ("link", "<b>"),
            ("set-cookie", "session=1"),
            ("x-execution", &canary),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let status = dice.pick(&[200, 201, 202, 404, 500]);
        let response = SentResponse { status, headers, body: latin1(&frames.concat()) };
        let identity = identity(path, tenant, key, &latin1(body));
        self.write(Event::Start { exec, req: *req, identity, canary });
        Run { exec, dice, response, frames }
    }

    /// Two effects with time before, between and after them, now and then none at all.
    async fn effects(&self, run: &mut Run) {
        let at_once = run.dice.percent(10);
        for n in 1..=3 {
            if !at_once {
                sleep(run.dice.millis(0..=800)).await;
            }
            if n < 3 {
                self.write(Event::Effect { exec: run.exec, n });
            }
        }
    }

    fn write(&self, event: Event) {
        self.history.write((self.now)(), event);
    }
}

fn respond(sent: &SentResponse, body: Body) -> Response {
    let mut response = Response::builder().status(sent.status);
    for (name, value) in &sent.headers {
        response = response.header(name, value);
    }
    response.body(body).expect("a response that can be made")
}
