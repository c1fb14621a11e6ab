//! The clients' hosts: they retry with the same key until they know, and hang up when they lose patience.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use super::server::PORT;
use super::shop::{Shop, identity};
use crate::history::{Event, SERVER, SentResponse, latin1};
use idem_testkit::dice::Dice;

/// Something to be done once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order {
    pub path: &'static str,
    pub tenant: &'static str,
    pub key: String,
    pub body: String,
}

/// What a client learned of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It got a response; with the code of the refusal, if it was one.
    Response(Option<String>),
    /// Nothing: the connection broke, or the client hung up.
    Nothing,
}

/// What this client wants done, in order. A client that crashed starts again from the beginning, like one that reads its
/// outbox. Keys are shared between clients, now and then by mistake: with another body, or at another endpoint.
pub fn script(seed: u64, client: &str) -> Vec<Order> {
    const PATHS: [&str; 4] = ["/orders", "/payments", "/transfers", "/exports"];
    let mut dice = Dice::new(seed, client);
    let mut order = || {
        let number = dice.within(0..=3);
        let by_rights = PATHS[usize::try_from(number).unwrap_or_default()];
        let path = if dice.percent(10) { dice.pick(&PATHS) } else { by_rights };
        let amount = if dice.percent(15) { dice.within(2..=3) } else { 1 };
        let body = format!("{{\"item\":{number},\"amount\":{amount}}}");
        Order { path, tenant: dice.pick(&["acme", "umbrella"]), key: format!("k{number}"), body }
    };
    (0..6).map(|_| order()).collect()
}

/// A client on a host of the simulation.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: String,
    pub shop: Shop,
}

impl Client {
    /// Gets everything in its script done, or gives up.
    pub async fn work(self, life: u64, hasty: bool) {
        let mut dice = Dice::new(self.shop.seed, &format!("{} life {life}", self.name));
        for order in script(self.shop.seed, &self.name) {
            sleep(dice.millis(0..=800)).await;
            for _ in 0..10 {
                let patience = if hasty { dice.millis(20..=2500) } else { Duration::from_secs(10) };
                match self.ask(&order, patience).await {
                    Reply::Response(Some(code)) if code != "idempotency_key_mismatch" => {}
                    Reply::Response(_) => break,
                    Reply::Nothing => {}
                }
                sleep(dice.millis(10..=400)).await;
            }
        }
    }

    /// Sends a request, and writes down what came of it.
    pub async fn ask(&self, order: &Order, patience: Duration) -> Reply {
        let Order { path, tenant, key, body } = order;
        let id = self.shop.history.id();
        self.write(Event::Req { id, client: self.name.clone(), identity: identity(path, tenant, key, body) });
        let why = match timeout(patience, exchange(order, id)).await {
            Ok(Ok((headers, response))) => {
                let code = code(&headers, &response.body);
                let replayed = headers.contains_key("idempotent-replayed");
                self.write(Event::Resp { id, replayed, code: code.clone(), response });
                return Reply::Response(code);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "hung up".to_owned(),
        };
        self.write(Event::Lost { id, why });
        Reply::Nothing
    }

    fn write(&self, event: Event) {
        self.shop.history.write((self.shop.now)(), event);
    }
}

/// The code of a refusal, which is problem details.
fn code(headers: &HeaderMap, body: &str) -> Option<String> {
    if headers.get("content-type")? != "application/problem+json" {
        return None;
    }
    let problem: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(problem.get("code")?.as_str()?.to_owned())
}

/// One request over its own connection. Dropped, it hangs up.
async fn exchange(order: &Order, id: u64) -> Result<(HeaderMap, SentResponse), Box<dyn std::error::Error>> {
    let stream = TcpStream::connect((SERVER, PORT)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(order.path)
        .header("host", SERVER)
        .header("x-attempt", id)
        .header("x-tenant", order.tenant)
        .header("authorization", order.tenant)
        .header("idempotency-key", &order.key)
        .body(Full::new(Bytes::from(order.body.clone())))?;
    let exchange = pin!(async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        // The date is the only thing that a seed does not repeat.
        let headers = parts.headers.iter().filter(|(name, _)| *name != "date");
        let headers = headers.map(|(name, value)| (name.to_string(), latin1(value.as_bytes()))).collect();
        let response = SentResponse { status: parts.status.as_u16(), headers, body: latin1(&body) };
        Ok::<_, hyper::Error>((parts.headers, response))
    });
    Ok(match select(exchange, pin!(connection)).await {
        Either::Left((exchanged, _)) => exchanged?,
        Either::Right((_, exchange)) => exchange.await?,
    })
}
