//! What is shown of a key: escaped, cut short if it is long, and never what is marked as sensitive.

use axum::Router;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use idem_admin::Admin;
use idem_axum::Idempotency;
use idem_tests::{Faults, Reply, Setup, post as send, responding};

use super::support_page::{SupportPage, page, setup};

const SCRIPT: &str = "</pre><script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;";
const ESCAPED: &str =
    "&lt;/pre&gt;&lt;script&gt;alert('x')&lt;/script&gt;&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;amp;";

async fn shown(setup: &Setup) -> Reply {
    send("/").key("k").to(&setup.app).await;
    SupportPage::over(&setup.idempotency).send(&[("key", "k")]).await
}

#[tokio::test]
async fn whatever_was_recorded_is_escaped() {
    let setup = responding!([], || ([("x-note", SCRIPT), ("content-type", "text/html")], SCRIPT));
    let page = shown(&setup).await;
    assert_eq!(page.text().matches(ESCAPED).count(), 2, "once in the header and once in the body:\n{}", page.text());
    assert!(!page.text().contains("<script") && !page.text().contains("<img"));
    // To a script it is given as it is, in JSON.
    let json = SupportPage::over(&setup.idempotency).json(&[("key", "k")]).await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    assert_eq!(json.json()["response"]["body"], SCRIPT);
}

#[tokio::test]
async fn whatever_was_typed_is_escaped() {
    let quoted = "\"'><script>alert(1)</script>\"";
    let fields =
        [("key", quoted), ("scope", "header"), ("header", "x\"><script>"), ("header_values", "</textarea><script>")];
    let setup = setup();
    let support = SupportPage::over(&setup.idempotency);
    for fields in [&fields[..1], &fields[..]] {
        for step in ["look-up", "forget", "settle"] {
            let page = support.send(&[fields, &[("step", step)]].concat()).await;
            assert!(!page.text().contains("<script") && page.text().contains("&lt;script&gt;"), "{}", page.text());
        }
    }
}

#[tokio::test]
async fn the_title_and_the_name_of_who_acts_are_escaped() {
    let admin = Admin::new(Idempotency::in_memory(), |_| Some("<script>".to_owned())).title("<script>");
    let page = page().to(&Router::new().nest("/keys", admin.router())).await;
    assert!(!page.text().contains("<script"), "{}", page.text());
    assert_eq!(page.text().matches("&lt;script&gt;").count(), 3, "{}", page.text());
}

#[tokio::test]
async fn a_long_body_is_cut_between_characters() {
    let setup = responding!([], || format!("{}é{}", "a".repeat(4095), "z".repeat(100_000)));
    let page = shown(&setup).await;
    assert!(page.text().contains("the first 4095 of 104097 bytes") && !page.text().contains("zzz"));
    assert!(page.text().len() < 30_000, "{}", page.text().len());
}

#[tokio::test]
async fn a_body_that_is_no_text_is_told_by_its_first_bytes() {
    let setup = responding!([], || (0..=255_u8).collect::<Vec<u8>>());
    let page = shown(&setup).await;
    assert!(
        page.text().contains("256 bytes that are no text") && page.text().contains("<pre>00 01 02 03 "),
        "{}",
        page.text()
    );
    let json = SupportPage::over(&setup.idempotency).json(&[("key", "k")]).await.json();
    assert_eq!((&json["response"]["body"], &json["response"]["body_bytes"]), (&serde_json::Value::Null, &256.into()));

    let empty = responding!([], || StatusCode::NO_CONTENT);
    assert!(shown(&empty).await.text().contains("It has no body."));
}

#[tokio::test]
async fn a_sensitive_header_is_not_shown() {
    let setup = responding!([], || {
        let mut response = "ok".into_response();
        let mut secret = HeaderValue::from_static("CANARY");
        secret.set_sensitive(true);
        response.headers_mut().append("x-secret", secret);
        response.headers_mut().append("x-odd", HeaderValue::from_bytes(b"\xff<").unwrap());
        response
    });
    let page = shown(&setup).await;
    assert!(page.text().contains("(sensitive, not shown)") && page.text().contains("\\xff&lt;"), "{}", page.text());
    let json = SupportPage::over(&setup.idempotency).json(&[("key", "k")]).await;
    assert!(!page.text().contains("CANARY") && !json.text().contains("CANARY"));
}

#[tokio::test]
async fn a_response_that_was_too_large_is_not_replayable() {
    let setup = responding!([max_response = "1KiB"], || "x".repeat(2000));
    let page = shown(&setup).await;
    assert!(page.text().contains("Not replayable") && page.text().contains("POST /") && page.text().contains("forget"));
    let json = SupportPage::over(&setup.idempotency).json(&[("key", "k")]).await.json();
    assert_eq!((&json["state"], &json["response"]), (&"not-replayable".into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn ages_are_by_the_clock_of_the_engine() {
    let setup = responding!([ttl = "2h"], || "ok");
    send("/").key("k").to(&setup.app).await;
    setup.clock.advance(std::time::Duration::from_secs(60 * 61));
    let page = SupportPage::over(&setup.idempotency).send(&[("key", "k")]).await;
    assert!(
        page.text().contains(" UTC</time>, 61 minutes ago") && page.text().contains(", in 59 minutes"),
        "{}",
        page.text()
    );
    send("/").key("k").to(&setup.app).await;
    assert!(SupportPage::over(&setup.idempotency).send(&[("key", "k")]).await.text().contains("<dd>once</dd>"));
    setup.clock.advance(std::time::Duration::from_secs(60 * 59));
    assert_eq!(SupportPage::over(&setup.idempotency).send(&[("key", "k")]).await.status, 404);
}

#[tokio::test]
async fn a_store_that_cannot_tell_is_no_miss() {
    let support = SupportPage::over(&Idempotency::new(Faults::default().over_a_shelf()));
    let page = support.send(&[("key", "k")]).await;
    assert_eq!((page.status, support.audits()), (503, vec!["look_up - failed".to_owned()]));
    assert!(page.text().contains("The store of this service cannot tell the state of a key."), "{}", page.text());
    let json = support.json(&[("key", "k")]).await;
    assert_eq!((json.status, json.header("content-type")), (503, Some("application/problem+json")));
}
