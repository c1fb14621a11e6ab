//! The programs that imitate public APIs, as a user meets them: processes of their own, and the `curl` lines they print.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expected by failing")]

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

#[test]
fn telness_connect() {
    let orders = r#"{"count":1,"orders":[{"orderId":"ORD-1","product":"mobile-10gb","quantity":3}]}"#;
    check("telness_connect", &["201", "201", "409", "200", "200", "200"], orders);
}

#[test]
fn xcover() {
    let booking = r#"{"id":"XC-1","status":"CONFIRMED","partner":"ACME","policy_type":"parcel","price":"4.90"}"#;
    check("xcover", &["201", "409", "422", "200"], &format!(r#"{{"count":1,"results":[{booking}]}}"#));
}

#[test]
fn stripe_like() {
    let charge = |number: u32, status: &str| {
        format!(
            r#"{{"id":"ch_{number}","object":"charge","amount":2000,"currency":"eur","status":"{status}","description":null}}"#
        )
    };
    let charges = [charge(1, "succeeded"), charge(2, "pending"), charge(3, "succeeded")].join(",");
    let list =
        format!(r#"{{"object":"list","url":"/v1/charges","has_more":false,"total_count":3,"data":[{charges}]}}"#);
    check("stripe_like", &["200", "200", "400", "500", "500", "400", "200", "200"], &list);
}

#[test]
fn acp_checkout() {
    let session = r#"{"id":"cs_1","status":"completed","currency":"usd","line_items":[{"id":"tea","quantity":2}],"totals":[{"type":"total","amount":1000}],"order":{"id":"order_1","checkout_session_id":"cs_1","permalink_url":"https://shop.example/orders/cs_1"}}"#;
    check("acp_checkout", &["400", "201", "201", "422", "503", "200", "405", "200"], session);
}

#[test]
fn webhooks() {
    let done = r#"["welcomed cus_1","in_1 paid by cus_1","deployed 6113728f of acme/shop","parcel.delivered parcel-1 of acme","parcel.delivered parcel-1 of globex"]"#;
    let statuses = ["500", "200", "200", "200", "401", "200", "200", "200", "200", "200", "200"];
    check("webhooks", &statuses, done);
}

/// Runs the lines that the program prints, one after the other: their statuses, and the body of the last one.
#[track_caller]
fn check(name: &str, statuses: &[&str], last_body: &str) {
    let (_program, lines) = start(name, statuses.len());
    let responses: Vec<String> = lines.iter().map(|line| curl(line)).collect();
    let shown: Vec<&str> = responses.iter().map(|response| response.split(' ').nth(1).unwrap()).collect();
    assert_eq!(shown, statuses, "{responses:#?}");
    assert_eq!(responses.last().unwrap().split("\r\n\r\n").nth(1).unwrap(), last_body);
}

/// Starts the program on a free port, and gives the lines to try.
fn start(name: &str, count: usize) -> (Program, Vec<String>) {
    // Cargo puts examples beside the folder of the tests.
    let path = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples` first", path.display());
    let mut process = Command::new(path).env("PORT", "0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut program = Program { process, output };
    let lines = program.output.by_ref().map(Result::unwrap).filter(|line| line.starts_with("curl "));
    let lines = lines.take(count).collect();
    (program, lines)
}

/// Runs a printed line as it is, in a shell.
fn curl(line: &str) -> String {
    let found = Command::new("curl").arg("--version").output();
    assert!(found.is_ok(), "this test needs `curl`, as a user of the example does: apt-get install -y curl");
    let output = Command::new("sh").args(["-c", line]).env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Program {
    process: Child,
    /// Kept, so that the program can print.
    output: Lines<BufReader<ChildStdout>>,
}

/// If a test fails half-way, no program stays behind.
impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
