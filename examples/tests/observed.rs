//! `observed` as an operator meets it: the process, what it tells Prometheus, what it logs, and the dashboard.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expected by failing")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use idem_axum::metrics::{ALL, Kind};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../observed/dashboard.json");

/// Long enough for a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

#[test]
fn every_name_in_the_dashboard_is_scraped_and_every_metric_is_described() {
    let service = Service::start();
    assert_eq!(service.pay(Some("a"), r#"{"cents":700}"#), 200);
    assert_eq!(service.pay(Some("a"), r#"{"cents":700}"#), 200, "a replay");
    assert_eq!(service.pay(Some("a"), r#"{"cents":800}"#), 422);
    assert_eq!(service.pay(None, r#"{"cents":900}"#), 200);
    assert_eq!(service.send_for_status("/refunds", None, r#"{"cents":900}"#), 200);
    let slow = r#"{"cents":1,"takes_ms":60000}"#;
    let _open = service.send("POST", "/payments", Some("slow"), slow);
    service.scrape_until("idempotency_executions_in_flight 1");
    assert_eq!(service.pay(Some("slow"), slow), 409);

    // The memory store tells what it holds several times a second, and this last.
    service.scrape_until("idempotency_memory_expiry_lag_seconds 0");
    let scraped = service.scrape_until("idempotency_memory_entries 2");
    for line in [
        r#"idempotency_executions_total{endpoint="POST /payments"} 2"#,
        r#"idempotency_replays_total{endpoint="POST /payments"} 1"#,
        r#"idempotency_refusals_total{endpoint="POST /payments",code="idempotency_key_mismatch"} 1"#,
        r#"idempotency_refusals_total{endpoint="POST /payments",code="idempotency_key_locked"} 1"#,
        r#"idempotency_unprotected_total{endpoint="POST /payments",reason="key_missing"} 1"#,
        r#"idempotency_shadow_total{endpoint="POST /refunds",would="idempotency_key_missing"} 1"#,
        r#"idempotency_handler_seconds_count{endpoint="POST /payments"} 1"#,
        r#"idempotency_store_errors_total{store="MemoryStore",operation="complete"} 0"#,
    ] {
        assert!(scraped.lines().any(|found| found == line), "no line `{line}` in\n{scraped}");
    }

    let series: BTreeSet<&str> = scraped
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !name.is_empty())
        .collect();
    let shown = names_in_dashboard();
    for name in &shown {
        assert!(series.contains(name.as_str()), "the dashboard shows `{name}`, which is not scraped: {series:?}");
    }
    for metric in ALL {
        let help = format!("# HELP {} {}", metric.name, metric.description);
        assert!(scraped.lines().any(|line| line == help), "not described: {help}\n{scraped}");
        let kind = format!("{:?}", metric.kind).to_lowercase();
        assert!(scraped.contains(&format!("# TYPE {} {kind}\n", metric.name)), "{}", metric.name);
        let on =
            |name: &String| *name == metric.name || metric.kind == Kind::Histogram && name.starts_with(metric.name);
        assert!(shown.iter().any(on), "`{}` is not on the dashboard", metric.name);
    }

    let log = service.stop();
    for said in [
        "idempotency{endpoint=POST /payments key=",
        r#"outcome="executed""#,
        r#"outcome="replayed""#,
        r#"outcome="refused""#,
        r#"outcome="shadow""#,
        r#"code="idempotency_key_mismatch""#,
        "paying",
    ] {
        assert!(log.contains(said), "`{said}` is not in the log:\n{log}");
    }
}

#[test]
fn every_endpoint_can_be_chosen_in_the_dashboard() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let endpoint = variables.iter().find(|variable| variable["name"] == "endpoint").unwrap();
    let query = endpoint["query"]["query"].as_str().unwrap();
    assert_eq!(endpoint["definition"], query);
    // One in shadow mode has no executions, and one without a layer has refusals alone.
    let (start, end) = query.split('"').nth(1).and_then(|pattern| pattern.split_once(".+")).expect("a pattern");
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Counter && metric.labels.contains(&"endpoint")) {
        assert!(metric.name.starts_with(start) && metric.name.ends_with(end), "`{}` is not in {query}", metric.name);
    }
}

/// The names of metrics in all expressions of all panels, with the endings that histograms have.
fn names_in_dashboard() -> BTreeSet<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(expressions.len() > 15, "{expressions:?}");
    let names =
        expressions.iter().flat_map(|expression| expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    names.filter(|name| name.starts_with("idempotency_")).map(str::to_owned).collect()
}

struct Service {
    process: Child,
    address: String,
}

impl Service {
    /// Starts the service on a free port.
    fn start() -> Self {
        // Cargo puts examples beside the folder of the tests.
        let mut path: PathBuf = env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.push("examples/observed");
        assert!(path.exists(), "{} is not built: run `cargo build --examples` first", path.display());
        let mut process = Command::new(path)
            .env("PORT", "0")
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.as_mut().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the service says where it is");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        // The rest of the welcome, so that nothing of it stays in this reader.
        while !line.contains("/metrics") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0);
        }
        Self { process, address }
    }

    fn send(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONGEST)).unwrap();
        let key = key.map_or_else(String::new, |key| format!("idempotency-key: {key}\r\n"));
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{key}", self.address);
        let length = body.len();
        write!(stream, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        stream
    }

    /// The status of the response.
    fn pay(&self, key: Option<&str>, body: &str) -> u16 {
        self.send_for_status("/payments", key, body)
    }

    fn send_for_status(&self, path: &str, key: Option<&str>, body: &str) -> u16 {
        let mut response = String::new();
        self.send("POST", path, key, body).read_to_string(&mut response).unwrap();
        response.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn scrape(&self) -> String {
        let mut response = String::new();
        self.send("GET", "/metrics", None, "").read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        response.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Scrapes until this line is there.
    fn scrape_until(&self, wanted: &str) -> String {
        let began = Instant::now();
        loop {
            let scraped = self.scrape();
            if scraped.lines().any(|line| line == wanted) {
                return scraped;
            }
            assert!(began.elapsed() < LONGEST, "waited in vain for `{wanted}`:\n{scraped}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the process, and gives what it has logged.
    fn stop(mut self) -> String {
        self.process.kill().unwrap();
        let mut log = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

/// If a test fails half-way, no service stays behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
