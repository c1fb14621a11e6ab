//! What the fingerprint takes of the request.

use idem_tests::{Ask, Setup, post as send, responding};

fn ask(body: &str) -> Ask {
    send("/").key("k").json(body)
}

/// Whether a retry with `other` gets the record that `body` left.
async fn same(setup: Setup, body: &str, other: &str) -> bool {
    let first = ask(body).to(&setup.app).await;
    first.assert_ran(200);
    let retry = ask(other).to(&setup.app).await;
    assert!(retry.status == 422 || retry.is_replay(), "{retry:?}");
    assert_eq!(setup.probe.runs(), 1);
    retry.is_replay()
}

async fn assert_same(setup: impl Fn() -> Setup, one: &str, two: &str, expected: bool) {
    assert_eq!(same(setup(), one, two).await, expected, "{one} then {two}");
    assert_eq!(same(setup(), two, one).await, expected, "{two} then {one}");
}

#[tokio::test]
async fn json_ignores_white_space_order_and_spelling() {
    for (one, two) in [
        (r#"{"a":1,"b":[1,2]}"#, " {\n\t\"b\" : [ 1, 2 ],\r\n \"a\" : 1 } "),
        (r#"{"a":{"y":1,"x":2}}"#, r#"{"a":{"x":2,"y":1}}"#),
        (r#""é""#, r#""\u00e9""#),
        ("1.0", "1"),
        ("1e2", "100"),
        ("[9007199254740991]", "[ 9007199254740991 ]"),
        ("123456789.012345", "1.23456789012345e8"),
    ] {
        assert_same(|| responding!([fingerprint = json], || "x"), one, two, true).await;
        assert_same(|| responding!([], || "x"), one, two, false).await;
    }
}

#[tokio::test]
async fn json_tells_apart_what_differs() {
    for (one, two) in [
        (r#"{"a":null}"#, "{}"),
        ("[1,2]", "[2,1]"),
        (r#"{"a":1}"#, r#"{"a":"1"}"#),
        (r#"{"a":1}"#, r#"{"A":1}"#),
        ("true", "\"true\""),
        ("0.1", "0.10000000000000001e1"),
        (r#""é""#, "\"e\u{301}\""),
        ("[]", "{}"),
        ("null", ""),
    ] {
        assert_same(|| responding!([fingerprint = json], || "x"), one, two, false).await;
    }
}

#[tokio::test]
async fn what_is_no_i_json_is_compared_byte_for_byte() {
    for (one, two) in [
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":1}"#),
        (r#"{"a":1,"a":2}"#, r#"{ "a":1,"a":2}"#),
        (r#"{"x":{"a":1,"a":2}}"#, r#"{"x":{"a":2,"a":1}}"#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"a":2,"\u0061":1}"#),
        ("9007199254740993", "9007199254740992"),
        ("9007199254740993", " 9007199254740993"),
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("1e999", "2e999"),
        ("10", "10.0000000000000000009"),
        ("0", "1e-400"),
        ("3.141592653589793", "3.141592653589793238462643383279"),
        ("not json", "not  json"),
        ("{", "{ "),
        ("{} {}", "{}  {}"),
        ("", " "),
        ("\"\\ud800\"", "\"\\ud801\""),
    ] {
        assert_same(|| responding!([fingerprint = json], || "x"), one, two, false).await;
    }
    for body in [r#"{"a":1,"a":2}"#, "9007199254740993", "not json", "", "[[[[", "\u{feff}{}"] {
        assert!(same(responding!([fingerprint = json], || "x"), body, body).await, "{body}");
    }
}

/// RFC 7493 draws the line at 2^53 - 1, since 2^53 is what 2^53 + 1 rounds to.
#[tokio::test]
async fn an_integer_beyond_what_readers_agree_on_is_compared_byte_for_byte_in_every_spelling() {
    for (one, two) in [
        ("9007199254740992", "9007199254740993.0"),
        ("9007199254740992", "9.007199254740993e15"),
        ("-9007199254740992", "-9007199254740993.0"),
        ("[9007199254740994.0]", "[9007199254740995.0]"),
    ] {
        assert_same(|| responding!([fingerprint = json], || "x"), one, two, false).await;
    }
}

#[tokio::test]
async fn json_as_deep_as_the_stack_is_no_trouble() {
    let deep = |depth| "[".repeat(depth) + &"]".repeat(depth);
    assert!(same(responding!([fingerprint = json], || "x"), &deep(100_000), &deep(100_000)).await);
    assert!(!same(responding!([fingerprint = json], || "x"), &deep(100_000), &deep(100_001)).await);
}

#[tokio::test]
async fn pointers_take_what_they_point_at_and_nothing_else() {
    let setup = || responding!([fingerprint = json("/a", "/b/0")], || "x");
    let base = r#"{"a":{"x":1},"b":[1,2],"c":1}"#;
    for (other, expected) in [
        (r#"{"b":[1,3,4],"a":{"x":1}}"#, true),
        (r#"{"a":{"x":1.0},"b":[1e0],"c":[]}"#, true),
        (r#"{"a":{"x":2},"b":[1,2],"c":1}"#, false),
        (r#"{"a":{"x":1},"b":[2,1],"c":1}"#, false),
        (r#"{"a":{"x":1},"b":[],"c":1}"#, false),
        (r#"{"a":{"x":1}}"#, false),
        (r#"{"a":1,"b":[{"x":1}]}"#, false),
        (r#"{"a":{"x":1},"b":[1,2],"c":1,"c":1}"#, false),
        ("no json", false),
    ] {
        assert_same(setup, base, other, expected).await;
    }
}

#[tokio::test]
async fn missing_differs_from_null_and_from_every_value_under_a_pointer() {
    let setup = || responding!([fingerprint = json("/a", "/b")], || "x");
    for (one, two) in
        [("{}", r#"{"a":null}"#), ("{}", r#"{"a":""}"#), (r#"{"a":1}"#, r#"{"b":1}"#), ("{}", r#"{"b":null}"#)]
    {
        assert_same(setup, one, two, false).await;
    }
    assert_same(setup, "{}", r#"{"c":1}"#, true).await;
}

#[tokio::test]
async fn pointers_with_escapes_and_spread_over_terms() {
    let setup = || responding!([fingerprint = json("/a~1b") + method + json("/m~0n")], || "x");
    assert_same(setup, r#"{"a/b":1,"m~n":2}"#, r#"{"m~n":2,"a/b":1,"x":0}"#, true).await;
    assert_same(setup, r#"{"a/b":1,"m~n":2}"#, r#"{"a/b":1,"m~n":3}"#, false).await;
    assert_same(setup, r#"{"a/b":1,"m~n":2}"#, r#"{"a/b":2,"m~n":2}"#, false).await;
}

#[tokio::test]
async fn the_empty_pointer_is_the_whole_document() {
    let setup = || responding!([fingerprint = json("")], || "x");
    assert_same(setup, r#"{"a":1}"#, r#"{ "a" : 1 }"#, true).await;
    assert_same(setup, r#"{"a":1}"#, r#"{"a":1,"b":1}"#, false).await;
}

#[tokio::test]
async fn a_declared_header_takes_part_with_all_its_values() {
    let setup = || responding!([fingerprint = body + header("Content-Type") + header("X-Version")], || "x");
    let base = || send("/").key("k").header("content-type", "text/plain").header("x-version", "1");
    let plain = || send("/").key("k").header("content-type", "text/plain");
    let others = [
        plain(),
        plain().header("x-version", "2"),
        base().header("x-version", "1"),
        base().header("x-version", ""),
        send("/").key("k").header("content-type", "text/html").header("x-version", "1"),
        send("/").key("k").header("content-type", "1").header("x-version", "text/plain"),
    ];
    for other in others {
        let setup = setup();
        let first = base().to(&setup.app).await;
        other.to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
        base().header("x-other", "1").to(&setup.app).await.assert_replay_of(&first);
        let swapped = send("/").key("k").header("x-version", "1").header("content-type", "text/plain");
        swapped.to(&setup.app).await.assert_replay_of(&first);
    }
}
