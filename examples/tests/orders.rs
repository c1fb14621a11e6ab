//! `orders` as a user meets it: the process, and the `curl` lines that it prints.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what it expected by failing")]

use std::env;
use std::io::{BufRead, BufReader, Lines, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;

/// What `curl` shows for each line that the service prints, in order, without `date`.
const RESPONSES: [&str; 8] = [
    r#"HTTP/1.1 201 Created
content-type: application/json
content-length: 34

{"id":1,"item":"tea","quantity":2}"#,
    r#"HTTP/1.1 201 Created
content-type: application/json
cache-control: no-store
idempotent-replayed: true
content-length: 34

{"id":1,"item":"tea","quantity":2}"#,
    r#"HTTP/1.1 422 Unprocessable Entity
content-type: application/problem+json
content-length: 297

{"type":"urn:problem-type:idempotency_key_mismatch","title":"Idempotency key used for another request","status":422,"detail":"This key was used for a different request. Nothing was done. Retry with exactly the same request, or use a new key for a new operation.","code":"idempotency_key_mismatch"}"#,
    r#"HTTP/1.1 400 Bad Request
content-type: application/problem+json
content-length: 364

{"type":"urn:problem-type:idempotency_key_invalid","title":"Idempotency key invalid","status":400,"detail":"The header `idempotency-key` is not a valid key: the key has a character that is not visible ASCII. Nothing was done. Send one key of 1 to 255 visible ASCII characters, in quotes if it has a comma, a semicolon or a quote.","code":"idempotency_key_invalid"}"#,
    r#"HTTP/1.1 422 Unprocessable Entity
content-type: text/plain; charset=utf-8
content-length: 102

Failed to deserialize the JSON body into the target type: missing field `quantity` at line 1 column 17"#,
    r#"HTTP/1.1 201 Created
content-type: application/json
content-length: 37

{"id":2,"item":"coffee","quantity":1}"#,
    r#"HTTP/1.1 201 Created
content-type: application/json
content-length: 34

{"id":3,"item":"tea","quantity":2}"#,
    r#"HTTP/1.1 200 OK
content-type: application/json
content-length: 130

{"count":3,"orders":[{"id":1,"item":"tea","quantity":2},{"id":2,"item":"coffee","quantity":1},{"id":3,"item":"tea","quantity":2}]}"#,
];

#[test]
fn the_printed_lines_do_what_they_say() {
    let (mut service, lines) = Service::over("memory");
    let shown: Vec<String> = lines.iter().map(|line| curl(line)).collect();
    assert_eq!(shown, RESPONSES);

    let status = service.stop();
    assert!(status.success(), "{status}");
    let last_words: Vec<String> = service.output.by_ref().map(Result::unwrap).filter(|line| !line.is_empty()).collect();
    assert_eq!(
        last_words,
        [
            "Stopping: new requests are not taken any more.",
            "No request is open. Handlers still running: 0; waiting for them.",
            "Drained: every handler that started has run to its end.",
        ]
    );
}

#[cfg(feature = "stores")]
#[tokio::test]
async fn over_redis_the_printed_lines_do_the_same_and_a_restart_forgets_nothing() {
    let redis = Redis::start().await;
    does_the_same_and_remembers(&redis.url());
}

#[cfg(feature = "stores")]
#[tokio::test]
async fn over_postgres_the_printed_lines_do_the_same_and_a_restart_forgets_nothing() {
    let postgres = Postgres::quick().await;
    does_the_same_and_remembers(&postgres.url());
}

#[cfg(feature = "stores")]
#[test]
fn over_sqlite_the_printed_lines_do_the_same_and_a_restart_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    does_the_same_and_remembers(&format!("sqlite://{}", folder.path().join("orders.db").display()));
}

#[cfg(feature = "stores")]
fn does_the_same_and_remembers(store: &str) {
    let (mut service, lines) = Service::over(store);
    assert_eq!(service.has_migrated, !store.starts_with("redis"), "a store with a table says what became of it");
    let shown: Vec<String> = lines.iter().map(|line| curl(line)).collect();
    assert_eq!(shown, RESPONSES);
    assert!(service.stop().success());

    let (_service, lines) = Service::over(store);
    assert_eq!(curl(&lines[0]), RESPONSES[1], "what the process before had recorded");
}

#[cfg(feature = "stores")]
#[test]
fn a_store_that_cannot_be_used_is_a_message() {
    let said = |store: &str| refusal_to_start("0", store);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let redis = said(&format!("redis://:secret@{closed}"));
    assert!(redis.starts_with("STORE cannot be used: could not reach Redis, nothing was written; "), "{redis}");
    let postgres = said(&format!("postgres://user:secret@{closed}/orders"));
    assert!(
        postgres.starts_with("STORE cannot be used: the store was not opened: no connection to the database ("),
        "{postgres}"
    );
    let sqlite = said("sqlite:///no/such/folder/orders.db");
    assert!(sqlite.starts_with("STORE cannot be used: the store was not opened: "), "{sqlite}");
    let other = said("mysql://user:secret@localhost");
    assert_eq!(other, "STORE is not a store. Try memory, redis://.., postgres://.. or sqlite://path.\n");
    for said in [redis, postgres, sqlite, other] {
        assert_eq!((said.lines().count(), said.contains("secret")), (1, false), "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_a_message() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let said = refusal_to_start(&address.port().to_string(), "memory");
    assert!(said.starts_with(&format!("Cannot listen on {address}: ")), "{said}");
    assert!(said.ends_with(" Choose another port: PORT=3001 cargo run --example orders\n"), "{said}");
    assert_eq!(refusal_to_start("http", "memory"), "PORT is `http`, which is not a port. Try PORT=3001.\n");
}

/// The endpoint of the README is the one that runs here.
#[test]
fn the_readme_shows_this_endpoint() {
    let source = include_str!("../orders.rs");
    let from = source.find("#[idempotent(").unwrap();
    let endpoint = &source[from..from + source[from..].find("\n}\n").unwrap()];
    assert!(include_str!("../../README.md").contains(endpoint), "README.md lacks:\n{endpoint}");
}

struct Service {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    has_migrated: bool,
}

impl Service {
    /// Starts the service on a free port, and gives the lines to try.
    fn over(store: &str) -> (Self, Vec<String>) {
        let mut process = orders("0", store).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut service = Self { process, output, has_migrated: false };
        let mut lines = Vec::new();
        for line in service.output.by_ref().map(Result::unwrap) {
            service.has_migrated |= line.contains("migrated");
            if !line.starts_with("curl ") {
                continue;
            }
            // The last of them reads the orders, and sends nothing.
            let last = !line.contains(" -d ");
            lines.push(line);
            if last {
                break;
            }
        }
        (service, lines)
    }

    /// Presses ctrl-c.
    fn stop(&mut self) -> ExitStatus {
        let kill = format!("kill -INT {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        self.process.wait().unwrap()
    }
}

/// If a test fails half-way, no service stays behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn refusal_to_start(port: &str, store: &str) -> String {
    let mut process = orders(port, store).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(1));
    said
}

/// Cargo puts examples beside the folder of the tests.
fn orders(port: &str, store: &str) -> Command {
    let mut path: PathBuf = env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/orders");
    assert!(path.exists(), "{} is not built: run `cargo build --examples` first", path.display());
    let mut command = Command::new(path);
    command.env("PORT", port).env("STORE", store).stdin(Stdio::null());
    command
}

/// Runs a printed line as it is, in a shell.
fn curl(line: &str) -> String {
    let found = Command::new("curl").arg("--version").output();
    assert!(
        found.is_ok(),
        "this test needs `curl`, as a user of the example does: install it (apt-get install -y curl)"
    );
    let output = Command::new("sh").args(["-c", line]).env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
    shown.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}
