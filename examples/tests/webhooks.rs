//! `webhooks` over sockets, with deliveries as the senders sign them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../webhooks.rs"]
mod program;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use idem_axum::{Idempotency, ManualClock, MemoryStore};
use sha2::Sha256;
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use self::program::{ACME, App, GITHUB, GLOBEX, Rejected, STRIPE, verify_github, verify_stripe};

const DELIVERIES: usize = 20;

struct Receiver {
    address: SocketAddr,
    app: App,
    idempotency: Idempotency,
    clock: ManualClock,
    serving: AbortHandle,
}

impl Receiver {
    async fn start() -> Self {
        let (app, clock) = (App::demo().unwrap(), ManualClock::new());
        let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = program::app(idempotency.clone(), app.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Self { address, app, idempotency, clock, serving }
    }

    async fn done(&self) -> Vec<String> {
        self.app.shop.lock().await.done.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A delivery, with its signature.
#[derive(Clone, Debug)]
struct Delivery {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
}

impl Reply {
    fn is_replay(&self) -> bool {
        self.head.contains("\r\nidempotent-replayed: true\r\n")
    }
}

impl Delivery {
    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    /// Delivers it over a new connection.
    async fn to(&self, receiver: &Receiver) -> Reply {
        self.to_address(receiver.address).await
    }

    async fn to_address(&self, address: SocketAddr) -> Reply {
        let mut request = format!("POST {} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n", self.path);
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{}", self.body.len(), self.body);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = String::new();
        stream.read_to_string(&mut read).await.unwrap();
        let (head, _) = read.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: format!("{head}\r\n") }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn sign(secret: &str, message: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn stripe_at(time: u64, body: &str) -> Delivery {
    let signature = format!("t={time},v1={}", sign(STRIPE, &format!("{time}.{body}")));
    Delivery { path: "/webhooks/stripe".into(), headers: vec![("stripe-signature", signature)], body: body.into() }
}

fn stripe(body: &str) -> Delivery {
    stripe_at(now(), body)
}

fn github(id: &str, after: &str) -> Delivery {
    let body = format!(r#"{{"after":"{after}","repository":{{"full_name":"acme/shop"}}}}"#);
    let signature = format!("sha256={}", sign(GITHUB, &body));
    let headers =
        vec![("x-github-event", "push".into()), ("x-github-delivery", id.into()), ("x-hub-signature-256", signature)];
    Delivery { path: "/webhooks/github".into(), headers, body }
}

fn standard_at(time: u64, sender: &str, secret: &str, id: &str) -> Delivery {
    let body = r#"{"type":"parcel.delivered","data":{"id":"parcel-1"}}"#;
    let signature = Webhook::new(secret).unwrap().sign(id, time.try_into().unwrap(), body.as_bytes()).unwrap();
    let headers =
        vec![("webhook-id", id.to_owned()), ("webhook-timestamp", time.to_string()), ("webhook-signature", signature)];
    Delivery { path: format!("/webhooks/standard/{sender}"), headers, body: body.into() }
}

fn standard(sender: &str, secret: &str, id: &str) -> Delivery {
    standard_at(now(), sender, secret, id)
}

const CREATED: &str = r#"{"id":"evt_2","type":"customer.created","data":{"object":{"id":"cus_1"}}}"#;
const PAID: &str = r#"{"id":"evt_1","type":"invoice.paid","data":{"object":{"id":"in_1","customer":"cus_1"}}}"#;

/// One delivery of each sender, with what it does.
fn one_of_each() -> [(Delivery, &'static str); 3] {
    [
        (stripe(CREATED), "welcomed cus_1"),
        (github("72d3162e", "6113728f"), "deployed 6113728f of acme/shop"),
        (standard("acme", ACME, "msg_1"), "parcel.delivered parcel-1 of acme"),
    ]
}

#[tokio::test]
async fn a_delivery_that_succeeded_is_200_and_does_not_run_again() {
    for (delivery, effect) in one_of_each() {
        let receiver = Receiver::start().await;
        let first = delivery.to(&receiver).await;
        assert_eq!((first.status, first.is_replay()), (200, false), "{first:?}");
        for _ in 0..3 {
            let again = delivery.to(&receiver).await;
            assert_eq!((again.status, again.is_replay()), (200, true), "{again:?}");
        }
        assert_eq!(receiver.done().await, [effect]);
    }
}

/// A sender signs each attempt with its own time, and may write the same event in another way.
#[tokio::test]
async fn a_redelivery_that_was_signed_again_is_the_same_delivery() {
    let receiver = Receiver::start().await;
    for delivery in [stripe_at(now() - 60, CREATED), stripe(CREATED), stripe(&CREATED.replace("\"id\"", " \"id\""))] {
        assert_eq!(delivery.to(&receiver).await.status, 200);
    }
    for time in [now() - 60, now()] {
        assert_eq!(standard_at(time, "acme", ACME, "msg_1").to(&receiver).await.status, 200);
    }
    assert_eq!(receiver.done().await, ["welcomed cus_1", "parcel.delivered parcel-1 of acme"]);
}

#[tokio::test]
async fn a_forged_delivery_is_401_and_leaves_the_key_free() {
    for (delivery, effect) in one_of_each() {
        let receiver = Receiver::start().await;
        let (name, signature) = match &*delivery.path {
            "/webhooks/stripe" => ("stripe-signature", format!("t={},v1=", now())),
            "/webhooks/github" => ("x-hub-signature-256", "sha256=".to_owned()),
            _ => ("webhook-signature", "v1,".to_owned()),
        };
        let forged = [
            // Of another secret, cut off, no hexadecimal, nothing, missing.
            delivery.clone().with_header(name, &format!("{signature}{}", sign("another secret", &delivery.body))),
            delivery.clone().with_header(name, &format!("{signature}6113")),
            delivery.clone().with_header(name, &format!("{signature}ä")),
            delivery.clone().with_header(name, ""),
            delivery.clone().without_header(name),
            // The signature of another body.
            Delivery { body: delivery.body.replace('1', "3"), ..delivery.clone() },
        ];
        for forged in &forged {
            let reply = forged.to(&receiver).await;
            assert_eq!(reply.status, 401, "{forged:?}");
        }
        assert!(receiver.done().await.is_empty());
        assert_eq!(receiver.idempotency.executions(), 0);

        let genuine = delivery.to(&receiver).await;
        assert_eq!((genuine.status, genuine.is_replay()), (200, false), "{genuine:?}");
        // Neither does a forged duplicate get to see the record.
        for forged in &forged {
            assert_eq!(forged.to(&receiver).await.status, 401, "{forged:?}");
        }
        assert_eq!(receiver.done().await, [effect]);
    }
}

/// What is signed and is no event is not recorded either: the sender may have been mended before it delivers again.
#[tokio::test]
async fn a_delivery_that_is_no_event_is_400_and_leaves_the_key_free() {
    let receiver = Receiver::start().await;
    assert_eq!(stripe(r#"{"id":"evt_2"}"#).to(&receiver).await.status, 400);
    assert_eq!(stripe(CREATED).to(&receiver).await.status, 200);
    let unnamed = github("72d3162e", "6113728f").without_header("x-github-delivery");
    assert_eq!(unnamed.to(&receiver).await.status, 400);
    // Without an id it would run unprotected, so it is refused.
    let empty = CREATED.replace("evt_2", "");
    assert_eq!(stripe(&empty).to(&receiver).await.status, 400);
    assert_eq!(github("", "6113728f").to(&receiver).await.status, 400);
    assert_eq!(receiver.done().await, ["welcomed cus_1"]);
}

#[tokio::test]
async fn a_delivery_that_is_too_old_is_401_and_leaves_the_key_free() {
    let receiver = Receiver::start().await;
    for time in [now() - 3600, now() + 3600] {
        for delivery in [stripe_at(time, CREATED), standard_at(time, "acme", ACME, "msg_1")] {
            assert_eq!(delivery.to(&receiver).await.status, 401, "{delivery:?}");
        }
    }
    assert_eq!(stripe(CREATED).to(&receiver).await.status, 200);
    assert_eq!(standard("acme", ACME, "msg_1").to(&receiver).await.status, 200);
    assert_eq!(receiver.done().await.len(), 2);
}

/// The id is a header that the signature covers, and there must be exactly one: neither line decides alone.
#[tokio::test]
async fn two_ids_are_refused() {
    let receiver = Receiver::start().await;
    let mut delivery = standard("acme", ACME, "msg_1");
    delivery.headers.push(("webhook-id", "msg_2".into()));
    assert_eq!(delivery.to(&receiver).await.status, 400);
    assert_eq!(receiver.done().await, [""; 0]);
}

#[tokio::test]
async fn twenty_deliveries_at_once_run_once() {
    for (delivery, effect) in one_of_each() {
        let receiver = Receiver::start().await;
        // The one that runs is held until the other nineteen have their responses, or wait for it.
        let shop = receiver.app.shop.lock().await;
        let mut deliveries = JoinSet::new();
        let waits = delivery.path == "/webhooks/stripe";
        let mut replies = Vec::new();
        for _ in 0..DELIVERIES {
            let (delivery, address) = (delivery.clone(), receiver.address);
            deliveries.spawn(async move { delivery.to_address(address).await });
        }
        if !waits {
            while replies.len() < DELIVERIES - 1 {
                replies.push(deliveries.join_next().await.unwrap().unwrap());
            }
            for reply in &replies {
                assert_eq!(reply.status, 409, "{reply:?}");
                assert!(reply.head.contains("\r\nretry-after: 1\r\n"), "{reply:?}");
            }
        }
        while receiver.idempotency.executions() == 0 {
            tokio::task::yield_now().await;
        }
        drop(shop);
        let rest = deliveries.join_all().await;
        assert!(rest.iter().all(|reply| reply.status == 200), "{rest:?}");
        assert_eq!(rest.iter().filter(|reply| !reply.is_replay()).count(), 1, "{rest:?}");
        assert_eq!(delivery.to(&receiver).await.status, 200, "what the sender of a 409 gets when it retries");
        assert_eq!(receiver.done().await, [effect]);
    }
}

#[tokio::test]
async fn a_delivery_that_failed_with_500_runs_again() {
    let receiver = Receiver::start().await;
    for _ in 0..2 {
        let failed = stripe(PAID).to(&receiver).await;
        assert_eq!((failed.status, failed.is_replay()), (500, false), "{failed:?}");
    }
    assert_eq!(stripe(CREATED).to(&receiver).await.status, 200);
    let redelivered = stripe(PAID).to(&receiver).await;
    assert_eq!((redelivered.status, redelivered.is_replay()), (200, false), "{redelivered:?}");
    assert!(stripe(PAID).to(&receiver).await.is_replay());
    assert_eq!(receiver.done().await, ["welcomed cus_1", "in_1 paid by cus_1"]);
}

/// Twenty attempts of an event that fails: one runs after the other, and each gets the error, so each is delivered again.
#[tokio::test]
async fn of_twenty_failing_deliveries_at_once_none_is_acknowledged() {
    let receiver = Receiver::start().await;
    let mut deliveries = JoinSet::new();
    for _ in 0..DELIVERIES {
        let address = receiver.address;
        deliveries.spawn(async move { stripe(PAID).to_address(address).await.status });
    }
    assert_eq!(deliveries.join_all().await, [500; DELIVERIES]);
}

#[tokio::test]
async fn the_same_id_of_two_senders_never_meets() {
    let receiver = Receiver::start().await;
    let deliveries = [
        standard("acme", ACME, "1"),
        standard("globex", GLOBEX, "1"),
        github("1", "6113728f"),
        stripe(&CREATED.replace("evt_2", "1")),
    ];
    for delivery in &deliveries {
        let first = delivery.to(&receiver).await;
        assert_eq!((first.status, first.is_replay()), (200, false), "{first:?}");
    }
    for delivery in &deliveries {
        assert!(delivery.to(&receiver).await.is_replay());
    }
    assert_eq!(receiver.done().await.len(), deliveries.len());
    // The secret of one is not that of the other.
    assert_eq!(standard("acme", GLOBEX, "2").to(&receiver).await.status, 401);
    assert_eq!(standard("initech", ACME, "2").to(&receiver).await.status, 401);
}

/// An intercepted delivery is genuine for as long as its time is accepted. Another spelling of the path is no other sender.
#[tokio::test]
async fn another_spelling_of_the_path_is_the_same_sender() {
    let receiver = Receiver::start().await;
    let delivery = standard("acme", ACME, "msg_1");
    assert_eq!(delivery.to(&receiver).await.status, 200);
    for path in ["/webhooks/standard/%61cme", "/webhooks/standard/acme?again", "/webhooks/standard/ac%6De"] {
        let spelled = Delivery { path: path.to_owned(), ..delivery.clone() };
        assert!(spelled.to(&receiver).await.is_replay(), "{path}");
    }
    let again = Delivery { path: "/webhooks/stripe?again".to_owned(), ..stripe(CREATED) };
    assert_eq!(stripe(CREATED).to(&receiver).await.status, 200);
    assert!(again.to(&receiver).await.is_replay());
    assert_eq!(receiver.done().await.len(), 2);
}

#[tokio::test]
async fn an_id_is_remembered_for_seven_days() {
    const NANOSECOND: Duration = Duration::from_nanos(1);
    let receiver = Receiver::start().await;
    assert_eq!(stripe(CREATED).to(&receiver).await.status, 200);
    receiver.clock.advance(Duration::from_secs(7 * 86_400) - NANOSECOND);
    assert!(stripe(CREATED).to(&receiver).await.is_replay());
    receiver.clock.advance(NANOSECOND);
    assert!(!stripe(CREATED).to(&receiver).await.is_replay());
}

/// From GitHub's documentation, "Testing the webhook payload validation".
#[test]
fn the_signature_that_github_documents_is_taken() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(verify_github("It's a Secret to Everybody", signature, b"Hello, World!"), Ok(()));
    assert_eq!(verify_github("It's a Secret to Everybody", signature, b"Hello, World?"), Err(Rejected::Forged));
}

/// The signature is from Stripe's SDK for Python, 16.1.0: `WebhookSignature._compute_signature`.
#[test]
fn the_signature_of_stripes_sdk_is_taken_within_its_tolerance() {
    const TIME: u64 = 1_795_858_000;
    let signature = "e7110dc0e2e368a78a1f3b65014cde14516362aed2094b7e5758e3d2c3295380";
    let verify =
        |secret, header: &str, seconds| verify_stripe(secret, header, PAID.as_bytes(), Duration::from_secs(seconds));
    let header = format!("t={TIME},v1={signature}");
    for seconds in [TIME - 300, TIME, TIME + 300] {
        assert_eq!(verify("whsec_test", &header, seconds), Ok(()));
    }
    for seconds in [TIME - 301, TIME + 301, 0, u64::MAX] {
        assert_eq!(verify("whsec_test", &header, seconds), Err(Rejected::Stale));
    }
    // While a secret is replaced there are several. A scheme that is not `v1` does not count.
    let (old, v0) = ("00".repeat(32), format!("t={TIME},v0={signature}"));
    assert_eq!(verify("whsec_test", &format!("t={TIME},v1={old},v1={signature},v0={old}"), TIME), Ok(()));
    for forged in
        [&v0, "", "t=", &format!("v1={signature}"), &format!("t={TIME}"), &format!("t={}1,v1={signature}", TIME)]
    {
        assert_eq!(verify("whsec_test", forged, TIME), Err(Rejected::Forged), "{forged}");
    }
    assert_eq!(verify("whsec_other", &header, TIME), Err(Rejected::Forged));
}
