//! A service that describes itself, read by programs that do nothing else.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/described.rs"]
mod program;

use std::path::Path;

use serde_json::json;

use crate::System;
use crate::clients::python;

#[tokio::test]
async fn validators_find_nothing_and_a_tester_gets_only_what_is_described() {
    let system = System::serve(|idempotency| program::app(idempotency).expect("an operation for each endpoint")).await;
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idem-axum/src/policies/schema.json");
    let url = format!("http://{}", system.server.address);
    let mut seen = python("described.py", &[&url, schema.to_str().expect("a path of text")]).await;
    let cases = seen[0]["cases"].take();
    let expected = json!({"endpoints": 2, "disputed": [], "passed": true, "cases": null});
    assert_eq!(seen, [expected], "{}", seen[0]["said"].as_str().unwrap_or_default());
    assert!(cases.as_u64() >= Some(50), "it called the service: {cases}");
}
