//! draft-ietf-httpapi-idempotency-key-header-07, section by section, over HTTP/1.1 and HTTP/2.
//!
//! The default policy is the draft's, with a key that is optional; `required` is all that a resource adds that requires one.

use std::time::Duration;

use axum::extract::State;
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use idem_axum::{Policy, Refusal, idempotent};
use idem_tests::{Ask, Connection, H2, Probe, Reply, Server, Setup, get as read, post as send};
use serde::Deserialize;
use serde_json::json;

const UUID: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NANOSECOND: Duration = Duration::from_nanos(1);

#[idempotent(required)]
async fn pay(State(probe): State<Probe>, Json(payment): Json<Payment>) -> Receipt {
    receipt(&probe, &payment).await
}

#[idempotent(required, fingerprint = json("/amount"))]
async fn pay_amount(State(probe): State<Probe>, Json(payment): Json<Payment>) -> Receipt {
    receipt(&probe, &payment).await
}

#[idempotent]
async fn pay_optional(State(probe): State<Probe>, Json(payment): Json<Payment>) -> Receipt {
    receipt(&probe, &payment).await
}

/// The response of the operation: whether it worked, and, for the number of its run, which operation it was.
type Receipt = (StatusCode, [(HeaderName, String); 1], String);

async fn receipt(probe: &Probe, payment: &Payment) -> Receipt {
    let run = probe.run().await;
    let status = match payment.card.as_str() {
        "declined" => StatusCode::PAYMENT_REQUIRED,
        "unlucky" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::CREATED,
    };
    (status, [(LOCATION, format!("/payments/{run}"))], format!("payment {run}"))
}

#[derive(Deserialize)]
struct Payment {
    #[serde(rename = "amount")]
    _amount: u32,
    card: String,
}

/// A resource that publishes its policy, and says in its errors where.
const PUBLISHED: Policy = Policy::DEFAULT.required().ttl(DAY).errors(with_link);

fn with_link(refusal: &Refusal) -> Response {
    let mut response = refusal.problem();
    let link = HeaderValue::from_static("</idempotency>; rel=\"describedby\"; type=\"text/plain\"");
    response.headers_mut().insert(LINK, link);
    response
}

#[idempotent(policy = PUBLISHED)]
async fn pay_published(State(probe): State<Probe>, Json(payment): Json<Payment>) -> Receipt {
    receipt(&probe, &payment).await
}

async fn documentation() -> String {
    let (header, required, ttl) = (PUBLISHED.header_name(), PUBLISHED.is_required(), PUBLISHED.time_to_live());
    format!("header {header}, required {required}, expires after {} seconds", ttl.as_secs())
}

fn routes() -> Router<Probe> {
    Router::new()
        .route("/payments", post(pay))
        .route("/payments/by-amount", post(pay_amount))
        .route("/payments/optional", post(pay_optional))
        .route("/payments/published", post(pay_published))
        .route("/idempotency", get(documentation))
}

#[derive(Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

/// The resource, and a client of one version of HTTP.
struct Exchange {
    setup: Setup,
    server: Server,
    client: Client,
}

impl Exchange {
    async fn over(version: Version) -> Self {
        let setup = Setup::of(routes());
        let server = setup.serve().await;
        let client = Client::connect(&server, version).await;
        Self { setup, server, client }
    }

    async fn ask(&mut self, ask: Ask) -> Reply {
        self.client.ask(&ask).await
    }

    /// A new operation: it runs, and the response is its own.
    async fn assert_runs(&mut self, ask: Ask) -> Reply {
        let runs = self.setup.probe.runs();
        let reply = self.ask(ask).await;
        reply.assert_ran(201);
        assert_eq!(reply.text(), format!("payment {}", runs + 1));
        reply
    }

    /// The result of `first`, and nothing ran.
    async fn assert_replays(&mut self, ask: Ask, first: &Reply) {
        let runs = self.setup.probe.runs();
        self.ask(ask).await.assert_replay_of(first);
        assert_eq!(self.setup.probe.runs(), runs);
    }

    /// Problem details, and nothing ran.
    async fn assert_refuses(&mut self, ask: Ask, status: u16, code: &str) -> Reply {
        let runs = self.setup.probe.runs();
        let reply = self.ask(ask).await;
        reply.assert_refused(status, code);
        assert_eq!(self.setup.probe.runs(), runs);
        reply
    }
}

enum Client {
    Http1(Connection),
    Http2(H2),
}

impl Client {
    async fn connect(server: &Server, version: Version) -> Self {
        match version {
            Version::Http1 => Self::Http1(Connection::open(server).await),
            Version::Http2 => Self::Http2(H2::open(server).await),
        }
    }

    async fn ask(&mut self, ask: &Ask) -> Reply {
        match self {
            Self::Http1(connection) => ask.over(connection).await,
            Self::Http2(connection) => connection.ask(ask).await,
        }
    }
}

fn payment() -> Ask {
    send("/payments").json(r#"{"amount":20,"card":"visa"}"#)
}

fn larger_payment() -> Ask {
    send("/payments").json(r#"{"amount":90,"card":"visa"}"#)
}

macro_rules! over_each_version {
    ($($case:ident)*) => {
        mod http_1_1 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Http1).await; })*
        }
        mod http_2 {
            $(#[tokio::test] async fn $case() { super::$case(super::Version::Http2).await; })*
        }
    };
}

over_each_version! {
    the_key_is_a_structured_field_string
    escapes_are_part_of_the_syntax_and_not_of_the_key
    parameters_are_ignored
    a_list_is_refused
    two_lines_are_refused
    a_malformed_value_is_refused
    the_bare_form_is_the_same_key
    another_key_is_another_operation
    a_key_expires
    replays_do_not_put_the_expiry_off
    the_fingerprint_is_of_the_entire_payload
    the_fingerprint_may_be_of_selected_elements
    the_policy_is_published_and_errors_link_to_it
    a_client_may_send_a_key_where_none_is_required
    a_first_request_is_processed_normally
    a_retry_after_success_gets_the_first_result
    a_retry_after_an_error_gets_the_first_result
    a_concurrent_retry_is_a_conflict
    a_retry_may_come_over_another_version
    a_missing_key_is_400_where_one_is_required
    another_payload_is_422
    another_payload_is_422_while_the_first_is_processed
    a_corrected_request_goes_through_after_a_missing_key
    a_corrected_request_goes_through_after_a_malformed_key
    a_corrected_request_goes_through_after_another_payload
    a_conflict_needs_no_correction
    a_request_that_was_rejected_before_it_ran_can_be_corrected
    a_malformed_key_is_never_looked_up
    another_client_does_not_get_the_result
}

/// 2.1 Syntax: "an Item Structured Header. Its value MUST be a String".
async fn the_key_is_a_structured_field_string(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let quoted = || payment().key("\"8e03978e-40d5-43e8-bc93-6894a57f9324\"");
    let first = exchange.assert_runs(quoted()).await;
    exchange.assert_replays(quoted(), &first).await;
}

/// 2.1 Syntax, RFC 8941 section 3.3.3: `\"` and `\\` are the two escapes.
async fn escapes_are_part_of_the_syntax_and_not_of_the_key(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(r#""a\\b""#)).await;
    exchange.assert_replays(payment().key(r"a\b"), &first).await;
    exchange.assert_runs(payment().key(r#""a\"b""#)).await;
    for bad in [r#""a\b""#, r#""a\""#, r#""a"b""#] {
        exchange.assert_refuses(payment().key(bad), 400, "idempotency_key_invalid").await;
    }
}

/// 2.1 Syntax, RFC 8941 section 3.1.2: an item may have parameters, and the draft defines none.
async fn parameters_are_ignored(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key("\"abc\"")).await;
    for same in ["\"abc\";v=1", "\"abc\"; v=\"x, y\";w", "\"abc\";other=?0"] {
        exchange.assert_replays(payment().key(same), &first).await;
    }
    exchange.assert_refuses(payment().key("\"abc\";"), 400, "idempotency_key_invalid").await;
}

/// 2.1 Syntax: an item is not a list.
async fn a_list_is_refused(version: Version) {
    let mut exchange = Exchange::over(version).await;
    for list in ["\"a\", \"b\"", "\"a\",\"a\"", "a, b", "\"a\";v=1, \"b\""] {
        let refused = exchange.assert_refuses(payment().key(list), 400, "idempotency_key_invalid").await;
        assert!(refused.text().contains("there is more than one key"), "{refused:?}");
    }
}

/// 2.1 Syntax: an item is one value, so it is not on two lines, even if they are equal.
async fn two_lines_are_refused(version: Version) {
    let mut exchange = Exchange::over(version).await;
    for (one, other) in [("\"a\"", "\"b\""), ("\"a\"", "\"a\"")] {
        let refused = exchange.assert_refuses(payment().key(one).key(other), 400, "idempotency_key_invalid").await;
        assert!(refused.text().contains("there is more than one key"), "{refused:?}");
    }
}

/// 2.1 Syntax: what is no String is no key.
async fn a_malformed_value_is_refused(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let too_long = format!("\"{}\"", "x".repeat(256));
    let values: [&[u8]; 8] =
        [b"", b"\"\"", b"\"abc", b"\"a\"b", b"\"a b\"", "\"é\"".as_bytes(), b"\"\xff\"", too_long.as_bytes()];
    for value in values {
        let ask = payment().header("idempotency-key", value);
        exchange.assert_refuses(ask, 400, "idempotency_key_invalid").await;
    }
    exchange.assert_runs(payment().key(&format!("\"{}\"", "x".repeat(255)))).await;
}

/// 2.1 Syntax. More than the draft asks for: many clients send the key without quotes, and mean the same.
async fn the_bare_form_is_the_same_key(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    exchange.assert_replays(payment().key(&format!("\"{UUID}\"")), &first).await;
}

/// 2.2 Uniqueness of Idempotency Key: the key, and not the payload, says which operation it is.
async fn another_key_is_another_operation(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let one = exchange.assert_runs(payment().key("\"one\"")).await;
    let two = exchange.assert_runs(payment().key("\"two\"")).await;
    exchange.assert_runs(payment().key("\"TWO\"")).await;
    exchange.assert_replays(payment().key("\"one\""), &one).await;
    exchange.assert_replays(payment().key("\"two\""), &two).await;
}

/// 2.3 Idempotency Key Validity and Expiry: to the nanosecond the key is known, and then it is new.
async fn a_key_expires(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    exchange.setup.clock.advance(DAY - NANOSECOND);
    exchange.assert_replays(payment().key(UUID), &first).await;
    exchange.assert_refuses(larger_payment().key(UUID), 422, "idempotency_key_mismatch").await;
    exchange.setup.clock.advance(NANOSECOND);
    let again = exchange.assert_runs(larger_payment().key(UUID)).await;
    exchange.assert_replays(larger_payment().key(UUID), &again).await;
}

/// 2.3 Idempotency Key Validity and Expiry: it counts from the first result.
async fn replays_do_not_put_the_expiry_off(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    for _ in 0..3 {
        exchange.setup.clock.advance(DAY / 4);
        exchange.assert_replays(payment().key(UUID), &first).await;
    }
    exchange.setup.clock.advance(DAY / 4);
    exchange.assert_runs(payment().key(UUID)).await;
}

/// 2.4 Idempotency Fingerprint: "Checksum of the entire request payload".
async fn the_fingerprint_is_of_the_entire_payload(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    for other in
        [r#"{"amount":20, "card":"visa"}"#, r#"{"card":"visa","amount":20}"#, r#"{"amount":20,"card":"visa"} "#]
    {
        let ask = send("/payments").json(other).key(UUID);
        exchange.assert_refuses(ask, 422, "idempotency_key_mismatch").await;
    }
    exchange.assert_replays(payment().key(UUID), &first).await;
}

/// 2.4 Idempotency Fingerprint: "Checksum of selected element(s) in the request payload".
async fn the_fingerprint_may_be_of_selected_elements(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let by_amount = |body| send("/payments/by-amount").json(body).key(UUID);
    let first = exchange.assert_runs(by_amount(r#"{"amount":20,"card":"visa"}"#)).await;
    exchange.assert_replays(by_amount(r#"{ "card": "other", "amount": 20 }"#), &first).await;
    let other = by_amount(r#"{"amount":90,"card":"visa"}"#);
    exchange.assert_refuses(other, 422, "idempotency_key_mismatch").await;
}

/// 2.5 Responsibilities: a resource publishes a "specification" that includes "expiration related policy", and 2.7 Error
/// Handling: an error may have a `Link` to it. The policy is a constant, so what is published is what holds.
async fn the_policy_is_published_and_errors_link_to_it(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let published =
        |amount: u32| send("/payments/published").json(&json!({"amount": amount, "card": "visa"}).to_string());
    let first = exchange.assert_runs(published(20).key(UUID)).await;
    assert_eq!(first.header("link"), None);
    let missing = exchange.assert_refuses(published(20), 400, "idempotency_key_missing").await;
    let mismatch = exchange.assert_refuses(published(90).key(UUID), 422, "idempotency_key_mismatch").await;
    for refused in [missing, mismatch] {
        let link = refused.header("link").expect("a link");
        assert_eq!(link, "</idempotency>; rel=\"describedby\"; type=\"text/plain\"");
        let documentation = exchange.ask(read(&link[1..link.find('>').expect("a link")])).await;
        assert_eq!(documentation.text(), "header idempotency-key, required true, expires after 86400 seconds");
    }
    exchange.setup.clock.advance(Duration::from_secs(86_400));
    exchange.assert_runs(published(20).key(UUID)).await;
}

/// 2.5 Responsibilities: a client may send a key if it does not know that the resource respects it.
async fn a_client_may_send_a_key_where_none_is_required(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let optional = || send("/payments/optional").json(r#"{"amount":20,"card":"visa"}"#);
    let first = exchange.assert_runs(optional().key(UUID)).await;
    exchange.assert_replays(optional().key(UUID), &first).await;
    exchange.assert_runs(optional()).await;
    exchange.assert_runs(optional()).await;
}

/// 2.6 Idempotency Enforcement, first time request.
async fn a_first_request_is_processed_normally(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    assert_eq!(first.header("location"), Some("/payments/1"));
    assert_eq!(first.header("cache-control"), None);
}

/// 2.6 Idempotency Enforcement, retry: "the result of the previously completed operation, success ..."
async fn a_retry_after_success_gets_the_first_result(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    for _ in 0..3 {
        exchange.assert_replays(payment().key(UUID), &first).await;
    }
    assert_eq!(exchange.setup.probe.runs(), 1);
}

/// 2.6 Idempotency Enforcement, retry: "... or an error".
async fn a_retry_after_an_error_gets_the_first_result(version: Version) {
    let mut exchange = Exchange::over(version).await;
    for (card, status) in [("declined", 402), ("unlucky", 500)] {
        let ask = || send("/payments").json(&json!({"amount": 20, "card": card}).to_string()).key(card);
        let first = exchange.ask(ask()).await;
        first.assert_ran(status);
        exchange.assert_replays(ask(), &first).await;
    }
    assert_eq!(exchange.setup.probe.runs(), 2);
}

/// 2.6 Idempotency Enforcement, concurrent request, and 2.7 Error Handling: 409 with a problem description.
async fn a_concurrent_retry_is_a_conflict(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = start(&exchange, version, payment().key(UUID)).await;
    for _ in 0..3 {
        let refused = exchange.assert_refuses(payment().key(UUID), 409, "idempotency_key_locked").await;
        assert_problem(&refused, "Request in progress", "A request with this key is being processed.");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    exchange.setup.probe.open();
    let first = first.await.expect("no panic");
    first.assert_ran(201);
    exchange.assert_replays(payment().key(UUID), &first).await;
}

/// 2.6 Idempotency Enforcement, retry: the way it comes is no part of a request.
async fn a_retry_may_come_over_another_version(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    let other = match version {
        Version::Http1 => Version::Http2,
        Version::Http2 => Version::Http1,
    };
    exchange.client = Client::connect(&exchange.server, other).await;
    exchange.assert_replays(payment().key(UUID), &first).await;
}

/// 2.7 Error Handling: a missing key is 400 if one is required.
async fn a_missing_key_is_400_where_one_is_required(version: Version) {
    let mut exchange = Exchange::over(version).await;
    for ask in [payment(), payment().header("x-idempotency-key", UUID)] {
        let refused = exchange.assert_refuses(ask, 400, "idempotency_key_missing").await;
        assert_problem(&refused, "Idempotency key missing", "This endpoint needs the header `idempotency-key`");
    }
}

/// 2.2 Uniqueness of Idempotency Key: it "MUST NOT be reused ... with a different request payload", and 2.7 Error Handling:
/// that is 422.
async fn another_payload_is_422(version: Version) {
    let mut exchange = Exchange::over(version).await;
    exchange.assert_runs(payment().key(UUID)).await;
    let refused = exchange.assert_refuses(larger_payment().key(UUID), 422, "idempotency_key_mismatch").await;
    assert_problem(&refused, "Idempotency key used for another request", "This key was used for a different request.");
    let another_resource = send("/payments/optional").json(r#"{"amount":20,"card":"visa"}"#).key(UUID);
    exchange.assert_refuses(another_resource, 422, "idempotency_key_mismatch").await;
}

/// 2.7 Error Handling: 422, and not 409, which would tell the client to send the same again.
async fn another_payload_is_422_while_the_first_is_processed(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = start(&exchange, version, payment().key(UUID)).await;
    exchange.assert_refuses(larger_payment().key(UUID), 422, "idempotency_key_mismatch").await;
    exchange.setup.probe.open();
    first.await.expect("no panic").assert_ran(201);
}

/// 2.7 Error Handling: "Clients MUST correct the requests".
async fn a_corrected_request_goes_through_after_a_missing_key(version: Version) {
    let mut exchange = Exchange::over(version).await;
    exchange.assert_refuses(payment(), 400, "idempotency_key_missing").await;
    let first = exchange.assert_runs(payment().key(UUID)).await;
    exchange.assert_replays(payment().key(UUID), &first).await;
}

/// 2.7 Error Handling: "Clients MUST correct the requests".
async fn a_corrected_request_goes_through_after_a_malformed_key(version: Version) {
    let mut exchange = Exchange::over(version).await;
    exchange.assert_refuses(payment().key("\"abc"), 400, "idempotency_key_invalid").await;
    let first = exchange.assert_runs(payment().key("\"abc\"")).await;
    exchange.assert_replays(payment().key("\"abc\""), &first).await;
    // The error is the request's, not the key's: the malformed one is still refused.
    exchange.assert_refuses(payment().key("\"abc"), 400, "idempotency_key_invalid").await;
}

/// 2.7 Error Handling: with the first payload, or with another key.
async fn a_corrected_request_goes_through_after_another_payload(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = exchange.assert_runs(payment().key("\"one\"")).await;
    exchange.assert_refuses(larger_payment().key("\"one\""), 422, "idempotency_key_mismatch").await;
    exchange.assert_replays(payment().key("\"one\""), &first).await;
    exchange.assert_runs(larger_payment().key("\"two\"")).await;
}

/// 2.7 Error Handling: "with the exception of 409 where no correction is required".
async fn a_conflict_needs_no_correction(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let first = start(&exchange, version, payment().key(UUID)).await;
    exchange.assert_refuses(payment().key(UUID), 409, "idempotency_key_locked").await;
    exchange.setup.probe.open();
    let first = first.await.expect("no panic");
    exchange.assert_replays(payment().key(UUID), &first).await;
}

/// 2.7 Error Handling, other errors: if nothing ran, there is no result to keep.
async fn a_request_that_was_rejected_before_it_ran_can_be_corrected(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let rejected = [
        (send("/payments").json("{"), 400),
        (send("/payments").json(r#"{"amount":20}"#), 422),
        (send("/payments").body(r#"{"amount":20,"card":"visa"}"#), 415),
    ];
    for (index, (ask, status)) in rejected.into_iter().enumerate() {
        let key = format!("\"key-{index}\"");
        let runs = exchange.setup.probe.runs();
        for _ in 0..2 {
            let reply = exchange.ask(ask.clone().key(&key)).await;
            reply.assert_ran(status);
            assert_eq!(exchange.setup.probe.runs(), runs);
        }
        exchange.assert_runs(payment().key(&key)).await;
    }
}

/// 5 Security Considerations: "Always validate the key ... before processing any request".
async fn a_malformed_key_is_never_looked_up(version: Version) {
    let mut exchange = Exchange::over(version).await;
    for key in ["\"abc", "a,b", "\"' OR 1=1--\"", "a\u{202e}b"] {
        exchange.assert_refuses(payment().key(key), 400, "idempotency_key_invalid").await;
    }
    exchange.setup.assert_nothing_stored();
}

/// 5 Security Considerations: data leaks, and a look-up that takes the client into account.
async fn another_client_does_not_get_the_result(version: Version) {
    let mut exchange = Exchange::over(version).await;
    let of = |token: &str| payment().key("\"1\"").header("authorization", token);
    let first = exchange.assert_runs(of("Bearer one")).await;
    for other in [of("Bearer two"), payment().key("\"1\"")] {
        exchange.assert_refuses(other, 422, "idempotency_key_mismatch").await;
    }
    exchange.assert_replays(of("Bearer one"), &first).await;
}

/// Starts a request that runs until the gate opens.
async fn start(exchange: &Exchange, version: Version, ask: Ask) -> tokio::task::JoinHandle<Reply> {
    exchange.setup.probe.close();
    let mut client = Client::connect(&exchange.server, version).await;
    let first = tokio::spawn(async move { client.ask(&ask).await });
    exchange.setup.probe.started(1).await;
    first
}

/// The members of RFC 9457, and one for programs.
#[track_caller]
fn assert_problem(refused: &Reply, title: &str, detail: &str) {
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    let problem = refused.json();
    let code = problem["code"].as_str().expect("a code");
    assert_eq!(problem["type"], format!("urn:problem-type:{code}"));
    assert_eq!(problem["title"], title);
    assert_eq!(problem["status"], refused.status);
    let text = problem["detail"].as_str().expect("a detail");
    assert!(text.starts_with(detail), "{text}");
    assert_eq!(problem.as_object().map(serde_json::Map::len), Some(5), "{problem}");
}
