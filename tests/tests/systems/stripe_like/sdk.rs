//! "Its SDK generates a key for each POST, and retries on connection errors, 409 and 5xx with the same key, unless
//! `Stripe-Should-Retry` says otherwise. The SDK, pointed at the example, must never cause a second charge."

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::map_request;
use idem_axum::Idempotency;
use idem_testkit::dice::Dice;
use idem_tests::{End, Fault, Proxy, Server, within};
use serde_json::{Value, json};

use super::program::{self, Bank};
use super::{made, serve};
use crate::clients::{python, python_with_packages, statuses, watched};

const CALLS: u64 = 240;
/// How long the client waits, in seconds, and responses that come before and after its end.
const TIMEOUT: &str = "2";
const IN_TIME: Fault = Fault::Late(Duration::from_millis(50));
const TOO_LATE: Fault = Fault::Late(Duration::from_millis(2500));
const EVERY_FAULT: [Fault; 9] = [
    Fault::Unreached(End::Close),
    Fault::Unreached(End::Reset),
    Fault::HungUp,
    Fault::Lost(End::Close),
    Fault::Lost(End::Reset),
    Fault::TornHead(End::Close),
    Fault::TornHead(End::Reset),
    IN_TIME,
    TOO_LATE,
];

/// What happens to the attempts of each call, known by its amount, in order. What comes after them goes through.
struct Faults(BTreeMap<u64, Vec<Fault>>);

/// The faults that have not happened yet.
type RemainingFaults = Arc<Mutex<BTreeMap<u64, Vec<Fault>>>>;

impl Faults {
    /// One or two for each call of one half, drawn by lot, and none for the other half.
    fn for_half_of(calls: u64) -> Self {
        let seed = std::env::var("SEED").map_or(0x5eed, |seed| seed.parse().expect("SEED is a number"));
        println!("SEED={seed} repeats these faults");
        let mut dice = Dice::new(seed, "faults");
        let mut amounts: Vec<u64> = (1..=calls).collect();
        for last in (1..amounts.len()).rev() {
            amounts.swap(last, usize::try_from(dice.within(0..=last as u64)).expect("an index"));
        }
        amounts.truncate(amounts.len() / 2);
        let mut draw = |amount| {
            let first = dice.pick(&EVERY_FAULT);
            // A response that comes in time ends the call.
            let second = (first != IN_TIME && dice.percent(50)).then(|| dice.pick(&EVERY_FAULT));
            (amount, std::iter::once(first).chain(second).collect())
        };
        Self(amounts.into_iter().map(&mut draw).collect())
    }

    /// How many attempts reach the bank for certain, although their caller sees no response.
    fn lost(&self) -> usize {
        let lost = |&&fault: &&Fault| fault == TOO_LATE || matches!(fault, Fault::Lost(_) | Fault::TornHead(_));
        self.0.values().flatten().filter(lost).count()
    }

    /// A proxy to the server that makes them happen, and what is left of them.
    async fn between(self, server: &Server) -> (Proxy, RemainingFaults) {
        let left = RemainingFaults::new(Mutex::new(self.0));
        let faults = left.clone();
        let plan = move |request: &str| {
            let (_, params) = request.split_once("\r\n\r\n").expect("a body");
            let amount = params.split('&').find_map(|param| param.strip_prefix("amount=")).expect("an amount");
            let amount = amount.parse().expect("a number");
            let mut faults = faults.lock().expect("not poisoned");
            let next = faults.get_mut(&amount)?.remove(0);
            faults.retain(|_, faults| !faults.is_empty());
            Some(next)
        };
        (Proxy::start(server, plan).await, left)
    }
}

/// Makes the calls, meets every fault, and gives back what each caller sees.
async fn call((proxy, left): (Proxy, RemainingFaults), calls: u64, more: &[&str]) -> Vec<Value> {
    let (url, calls) = (format!("http://{}", proxy.address), calls.to_string());
    let mut arguments = vec![&*url, "--calls", &calls, "--threads", "16", "--timeout", TIMEOUT];
    arguments.extend(more);
    let seen = python("stripe_client.py", &arguments).await;
    assert_eq!(*left.lock().expect("not poisoned"), BTreeMap::new(), "faults that did not happen");
    seen
}

/// Every call got a charge, and no charge is another call's.
#[track_caller]
fn assert_each_has_its_own(seen: &[Value], calls: u64, charges: &[Value]) {
    let mut ids = BTreeSet::new();
    for (call, amount) in seen.iter().zip(1..) {
        assert_eq!((&call["asked"], &call["amount"]), (&json!(amount), &json!(amount)), "{call}");
        let id = call["id"].as_str().expect("a charge");
        assert!(ids.insert(id), "{id} is the response of two calls");
        let charge = charges.iter().find(|charge| charge["id"] == id).unwrap_or_else(|| panic!("{id} was never made"));
        assert_eq!(charge["amount"], amount, "{call}");
    }
    assert_eq!(seen.len() as u64, calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_charges_as_calls_though_half_of_them_meet_faults() {
    let system = serve(&Bank::default()).await;
    let faults = Faults::for_half_of(CALLS);
    assert_eq!(faults.0.len() as u64, CALLS / 2);
    let drawn: BTreeSet<String> = faults.0.values().flatten().map(|fault| format!("{fault:?}")).collect();
    assert_eq!(drawn.len(), EVERY_FAULT.len(), "every fault is among them: {drawn:?}");
    assert!(faults.lost() as u64 > CALLS / 5, "{}", faults.lost());

    let faulty = faults.between(&system.server).await;
    let seen = call(faulty, CALLS, &[]).await;
    let charges = made(&system.server).await;
    assert_eq!(charges.len() as u64, CALLS, "a charge for each call");
    assert_each_has_its_own(&seen, CALLS, &charges);
}

/// The test above bites: the same faults, and an endpoint that sees no keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_there_are_more_charges_than_calls() {
    let bank = Bank::default();
    let no_keys = map_request(|mut request: Request| async {
        request.headers_mut().remove("idempotency-key");
        request
    });
    let server = Server::start(program::app(Idempotency::in_memory(), bank).layer(no_keys)).await;
    let faults = Faults::for_half_of(CALLS);
    let lost = faults.lost();

    let faulty = faults.between(&server).await;
    let seen = call(faulty, CALLS, &[]).await;
    let charges = made(&server).await;
    assert_each_has_its_own(&seen, CALLS, &charges);
    println!("{} charges for {CALLS} calls, {lost} lost responses", charges.len());
    assert!(charges.len() >= seen.len() + lost);
}

/// The SDK does not retry if a response breaks off in its body. Its caller can, with a key that it chose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_its_own_key_survives_a_torn_body() {
    let system = serve(&Bank::default()).await;
    let torn = |amount| (amount, vec![Fault::TornBody(if amount % 2 == 0 { End::Close } else { End::Reset })]);
    let faulty = Faults((1..=32).map(torn).collect()).between(&system.server).await;
    let seen = call(faulty, 32, &["--keys", "order"]).await;
    assert!(seen.iter().all(|call| call["repeated"] == 1), "{seen:?}");
    let charges = made(&system.server).await;
    assert_eq!(charges.len(), 32);
    assert_each_has_its_own(&seen, 32, &charges);
}

#[tokio::test]
async fn it_retries_a_409_until_the_first_attempt_is_done() {
    let bank = Bank::default();
    let (app, mut responses) = watched(program::app(Idempotency::in_memory(), bank.clone()));
    let server = Server::start(app).await;
    let url = format!("http://{}", server.address);

    python_with_packages().await;
    // It loses its patience with the first attempt, and the charge is made once another has been told to wait.
    let busy = bank.0.lock().await;
    let conflict = async {
        assert_eq!(within("the first response", responses.recv()).await, Some(409));
        drop(busy);
    };
    let arguments = [&*url, "--first", "2000", "--timeout", "1"];
    let (seen, ()) = tokio::join!(python("stripe_client.py", &arguments), conflict);
    assert_eq!(seen, [json!({"asked": 2000, "repeated": 0, "id": "ch_1", "amount": 2000})]);
    assert_eq!(statuses(&mut responses), [200]);
    assert_eq!(made(&server).await.len(), 1);
}

#[tokio::test]
async fn it_stops_at_a_recorded_500() {
    let (app, mut responses) = watched(program::app(Idempotency::in_memory(), Bank::default()));
    let server = Server::start(app).await;
    let url = format!("http://{}", server.address);
    let seen = python("stripe_client.py", &[&url, "--first", "2000", "--source", "tok_bankLost"]).await;
    let message = "The bank was asked for the charge, and did not reply.";
    assert_eq!(seen, [json!({"asked": 2000, "repeated": 0, "error": "APIError", "status": 500, "message": message})]);
    // It retried the first one, and the second one told it not to; eight more would have come otherwise.
    assert_eq!(statuses(&mut responses), [500, 500]);
    assert_eq!(made(&server).await.len(), 1);
}

#[tokio::test]
async fn its_caller_sees_an_idempotency_error() {
    let (app, mut responses) = watched(program::app(Idempotency::in_memory(), Bank::default()));
    let server = Server::start(app).await;
    let url = format!("http://{}", server.address);
    let charge = ["--first", "2000", "--keys", "order"];
    let made_once = python("stripe_client.py", &[&[&*url], &charge[..]].concat()).await;
    assert_eq!(made_once[0]["id"], "ch_1");
    let changed = python("stripe_client.py", &[&[&*url], &charge[..], &["--source", "tok_visa"]].concat()).await;
    assert_eq!((&changed[0]["error"], &changed[0]["status"]), (&json!("IdempotencyError"), &json!(400)));
    // It does not retry one either.
    assert_eq!(statuses(&mut responses), [200, 400]);
    assert_eq!(made(&server).await.len(), 1);
}
