//! The corpus of keys: what is malformed is 400 before any look-up. `required` and `min_key` too.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Connection, Probe, Server, Setup, post as send, responding};

#[idempotent(required)]
async fn order(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

#[idempotent]
async fn optional(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/", post(order)).route("/optional", post(optional)))
}

/// What becomes of a request with these header lines.
enum KeyOutcome {
    /// The handler runs.
    Runs,
    /// Refused by the runtime with this code.
    Refused(&'static str),
    /// Refused by hyper, before anything of ours.
    ByHyper,
}

use KeyOutcome::{ByHyper, Refused, Runs};

const MISSING: KeyOutcome = Refused("idempotency_key_missing");
const INVALID: KeyOutcome = Refused("idempotency_key_invalid");

/// Header lines, each with its line end, and what becomes of them.
fn corpus() -> Vec<(&'static str, Vec<u8>, KeyOutcome)> {
    let key = |value: &[u8]| [b"idempotency-key: ", value, b"\r\n"].concat();
    let long = |length: usize| key("k".repeat(length).as_bytes());
    vec![
        ("1 absent", b"".to_vec(), MISSING),
        ("2 empty", key(b""), INVALID),
        ("3 spaces", key(b"   "), INVALID),
        ("4 padded", key(b"  \t abc \t "), Runs),
        ("5 inner tab", key(b"a\tc"), INVALID),
        ("6 inner space", key(b"a c"), INVALID),
        ("6 inner space, quoted", key(b"\"a c\""), INVALID),
        ("7 quoted", key(b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\""), Runs),
        ("8 bare", key(b"8e03978e-40d5-43dd-bc93-6894a57f9324"), Runs),
        ("9 unterminated", key(b"\"abc"), INVALID),
        ("9 a quote alone", key(b"\""), INVALID),
        ("9 a quote at the end", key(b"abc\""), INVALID),
        ("9 a quote within", key(b"a\"b"), INVALID),
        ("10 bad escape", key(br#""a\x""#), INVALID),
        ("10 escape at the end", key(br#""a\"#), INVALID),
        ("10 escapes", key(br#""a\"b\\c""#), Runs),
        ("11 parameters", key(br#""abc";v=1"#), Runs),
        ("11 many parameters", key(br#""abc"; a; b="x;\",y"; c=?1;d=:YWJj:; *e=1.5"#), Runs),
        ("11 a parameter without a name", key(br#""abc";"#), INVALID),
        ("11 a parameter in upper case", key(br#""abc";V=1"#), INVALID),
        ("11 rubbish behind", key(br#""abc"d"#), INVALID),
        ("11 rubbish after a space", key(br#""abc" d"#), INVALID),
        ("11 a semicolon, bare", key(b"a;b"), INVALID),
        ("12 list", key(br#""a", "b""#), INVALID),
        ("13 twice the same", [key(b"a"), key(b"a")].concat(), INVALID),
        ("14 two", [key(b"a"), key(b"b")].concat(), INVALID),
        ("14 one of two empty", [key(b"a"), key(b"")].concat(), INVALID),
        ("14 two, in other cases", [key(b"a"), b"IDEMPOTENCY-KEY: a\r\n".to_vec()].concat(), INVALID),
        ("15 list, bare", key(b"a,a"), INVALID),
        ("15 a comma", key(b","), INVALID),
        ("16 quoted empty", key(b"\"\""), INVALID),
        ("17 token", key(b"abc"), Runs),
        ("18 integer", key(b"123"), Runs),
        ("19 boolean", key(b"?1"), Runs),
        ("20 byte sequence", key(b":YWJj:"), Runs),
        ("21 NUL", key(b"a\0b"), ByHyper),
        ("22 CR", key(b"a\rb"), ByHyper),
        ("24 CRLF and a header", key(b"a\r\nx-injected: 1"), Runs),
        ("25 folded", key(b"a\r\n b"), ByHyper),
        ("26 DEL", key(b"a\x7fb"), ByHyper),
        ("27 ESC", key(b"\x1b[31m"), ByHyper),
        ("28 0x80", key(b"\x80"), INVALID),
        ("29 UTF-8", key("é".as_bytes()), INVALID),
        ("29 UTF-8, quoted", key("\"é\"".as_bytes()), INVALID),
        ("30 overlong", key(b"\xc0\xaf"), INVALID),
        ("31 surrogate", key(b"\xed\xa0\x80"), INVALID),
        ("32 BOM", key(b"\xef\xbb\xbfabc"), INVALID),
        ("33 right to left", key("\u{202e}abc".as_bytes()), INVALID),
        ("34 decomposed", key("e\u{301}".as_bytes()), INVALID),
        ("34 no-break space", key("abc\u{a0}".as_bytes()), INVALID),
        ("35 percent", key(b"%0d%0aSet-Cookie:x"), Runs),
        ("36 lookup", key(b"${jndi:ldap://x}"), Runs),
        ("37 SQL", key(b"'OR/**/1=1--"), Runs),
        ("37 SQL with spaces", key(b"' OR 1=1--"), INVALID),
        ("38 braces", key(b"{a}{b}"), Runs),
        ("39 dots", key(b"../../etc"), Runs),
        ("40 star", key(b"*"), Runs),
        ("41 bar", key(b"a|b"), Runs),
        ("41 colon", key(b"a:b"), Runs),
        ("43 255 characters", long(255), Runs),
        ("43 255 quoted", key(format!("\"{}\"", "k".repeat(255)).as_bytes()), Runs),
        ("43 255 escaped", key(format!("\"{}\"", "\\\\".repeat(255)).as_bytes()), Runs),
        ("44 256 characters", long(256), INVALID),
        ("44 256 quoted", key(format!("\"{}\"", "k".repeat(256)).as_bytes()), INVALID),
        ("45 300", long(300), INVALID),
        ("46 20 thousand", long(20_000), INVALID),
        ("46 20 thousand of parameters", key(format!("\"a\"{}", ";p=1".repeat(5000)).as_bytes()), Runs),
        ("59 space before the colon", b"idempotency-key : a\r\n".to_vec(), ByHyper),
        ("60 underscore", b"Idempotency_Key: a\r\n".to_vec(), MISSING),
        ("61 mixed case", b"IdEmPoTeNcY-kEy: a\r\n".to_vec(), Runs),
    ]
}

async fn send_lines(server: &Server, lines: &[u8]) -> idem_tests::Reply {
    let mut client = Connection::open(server).await;
    // A server that refuses may close before it has read everything.
    let _ = client.try_send([b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n", lines, b"\r\n"].concat()).await;
    client.reply().await
}

#[tokio::test]
async fn each_form_of_the_corpus_runs_or_is_refused_before_any_look_up() {
    for (form, lines, then) in corpus() {
        let setup = setup();
        let server = setup.serve().await;
        let reply = send_lines(&server, &lines).await;
        let runs = usize::from(matches!(then, Runs));
        let code = match then {
            Runs => {
                assert_eq!(reply.status, 201, "{form}: {reply:?}");
                None
            }
            Refused(code) => {
                assert_eq!(reply.status, 400, "{form}: {reply:?}");
                Some(code.to_owned())
            }
            ByHyper => {
                assert_eq!(reply.status, 400, "{form}: {reply:?}");
                None
            }
        };
        assert_eq!(reply.code(), code, "{form}");
        assert_eq!((setup.probe.runs(), setup.store.usage().entries), (runs, runs), "{form}");
    }
}

/// 47: hyper's own limit on heads may respond first.
#[tokio::test]
async fn half_a_megabyte_of_key_is_refused() {
    let setup = setup();
    let server = setup.serve().await;
    let lines = [b"idempotency-key: ".to_vec(), vec![b'k'; 500_000], b"\r\n".to_vec()].concat();
    let reply = send_lines(&server, &lines).await;
    assert!(matches!(reply.status, 400 | 431), "{reply:?}");
    setup.assert_nothing_stored();
}

/// 23: hyper takes a bare line feed for the end of the header, as RFC 9112 allows.
#[tokio::test]
async fn a_line_feed_ends_the_key() {
    let setup = setup();
    let server = setup.serve().await;
    assert_eq!(send_lines(&server, b"idempotency-key: a\nx-injected: 1\r\n").await.status, 201);
    assert!(send("/").key("a").at(&server).await.is_replay(), "the key is `a`");
}

/// 68: a trailer is no header.
#[tokio::test]
async fn a_key_in_a_trailer_is_no_key() {
    let setup = setup();
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    let request =
        "POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nidempotency-key: a\r\n\r\n";
    client.send(request).await;
    client.reply().await.assert_refused(400, "idempotency_key_missing");
}

#[tokio::test]
async fn every_way_to_write_a_key_is_the_same_key() {
    for (bare, quoted) in [
        ("abc", r#""abc""#),
        ("abc", r#"  "abc"  "#),
        ("abc", r#""abc";v=1"#),
        ("abc", r#""abc"; expires="a;b""#),
        (r"a\b", r#""a\\b""#),
        ("8e03978e-40d5", r#""8e03978e-40d5""#),
    ] {
        let setup = setup();
        let first = send("/").key(bare).to(&setup.app).await;
        send("/").key(quoted).to(&setup.app).await.assert_replay_of(&first);
        assert_eq!(setup.probe.runs(), 1, "{quoted}");
    }
}

#[tokio::test]
async fn keys_that_differ_are_different() {
    let setup = setup();
    let keys = ["abc", "ABC", "abc.", "a:b", "a|b", r"a\b", r#""a\"b""#, "a%62c", "'abc'", "abc=", "\"abcd\""];
    for key in keys {
        send("/").key(key).to(&setup.app).await.assert_ran(201);
    }
    assert_eq!(setup.probe.runs(), keys.len());
}

#[tokio::test]
async fn without_the_key_an_endpoint_that_does_not_require_it_runs_each_time() {
    let setup = setup();
    for run in 1..=3 {
        send("/optional").to(&setup.app).await.assert_ran(201);
        assert_eq!(setup.probe.runs(), run);
    }
    setup.assert_nothing_stored();
    // But a malformed key is not no key.
    send("/optional").key("a b").to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
}

#[tokio::test]
async fn min_key_counts_characters_after_unquoting() {
    let setup = responding!([min_key = 8], || "x");
    for short in ["1234567", "\"1234567\"", r#""\"\"\"\"\"\"\"""#, "\"1\";p=12345678"] {
        send("/").key(short).to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
    }
    setup.assert_nothing_stored();
    for long in ["12345678", "\"abcdefgh\"", r#""\"\"\"\"\"\"\"\"""#] {
        send("/").key(long).to(&setup.app).await.assert_ran(200);
    }
}

#[tokio::test]
async fn a_header_of_another_name() {
    let setup = responding!([header = "X-Operation-ID", required], || "x");
    send("/").key("k").to(&setup.app).await.assert_refused(400, "idempotency_key_missing");
    let ask = send("/").header("x-operation-id", "k");
    ask.to(&setup.app).await.assert_ran(200);
    assert!(ask.to(&setup.app).await.is_replay());
}

/// What is wrong is said; what was sent is not repeated.
#[tokio::test]
async fn a_refusal_says_what_is_wrong_and_does_not_repeat_the_key() {
    let setup = setup();
    for (key, word) in [
        ("", "empty"),
        ("secret canary", "ASCII"),
        ("\"secret", "quote"),
        ("secret,canary", "more than one"),
        (&"secret".repeat(99), "255"),
    ] {
        let reply = send("/").key(key).to(&setup.app).await;
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(word) && detail.contains("idempotency-key"), "{detail}");
        assert!(!reply.text().contains("secret"), "{detail}");
    }
}
