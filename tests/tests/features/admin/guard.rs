//! Whom the page refuses, and what it tells browsers.

use http::HeaderValue;
use idem_admin::Admin;
use idem_tests::{Ask, Logs, Reply, Setup, get, post as send};

use super::support_page::{SupportPage, TOKEN, form, page, setup};

/// A record, and the form that would forget it, but for the proofs of where it comes from.
async fn ready() -> (Setup, Ask, SupportPage, Vec<(&'static str, String)>) {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    ask.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let seen = support.seen(&[("key", "k")], "forget").await;
    support.audits();
    let fields = vec![("key", "k".to_owned()), ("step", "forget-now".to_owned()), ("seen", seen)];
    (setup, ask, support, fields)
}

fn filled(fields: &[(&'static str, String)], token: &str) -> Ask {
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    fields.push(("token", token));
    form(&fields)
}

fn cookie(value: &str) -> String {
    format!("idem-admin={value}")
}

#[tokio::test]
async fn without_a_name_nothing_is_seen() {
    let (setup, ask, support, fields) = ready().await;
    let anonymous =
        |ask: Ask| Ask { headers: ask.headers.into_iter().filter(|(name, _)| name != "x-employee").collect(), ..ask };
    let change = filled(&fields, TOKEN).header("cookie", cookie(TOKEN)).header("sec-fetch-site", "same-origin");
    let json = form(&[("key", "k")]).header("accept", "application/json");
    for ask in [page(), form(&[("key", "k")]), json, change] {
        let refused = anonymous(ask).to(&support.app).await;
        assert_eq!((refused.status, refused.header("cache-control")), (403, Some("no-store")));
        assert_eq!(refused.text(), "You are not signed in, as far as this page knows, so it shows nothing.\n");
    }
    assert!(support.audits().is_empty());
    assert!(ask.to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn a_blank_name_is_none() {
    let (_, _, support, _) = ready().await;
    let (logs, _guard) = Logs::capture();
    for name in ["", " ", "\t "] {
        let mut ask = form(&[("key", "k")]);
        ask.headers.retain(|(name, _)| name != "x-employee");
        let refused = ask.header("x-employee", name).to(&support.app).await;
        assert_eq!(refused.status, 403, "{name:?}");
    }
    assert!(support.audits().is_empty());
    // Anyone can cause it, so it is no error.
    assert!(logs.text().contains(" WARN ") && !logs.text().contains("ERROR"), "{}", logs.text());
}

#[tokio::test]
async fn a_change_needs_a_form_of_this_page_sent_from_this_page() {
    let (setup, ask, support, fields) = ready().await;
    let other = "f".repeat(32);
    let form = |token: &str| filled(&fields, token);
    let home = |ask: Ask| ask.header("sec-fetch-site", "same-origin");
    let refused = [
        ("no proof", form(TOKEN)),
        ("no cookie", home(form(TOKEN))),
        ("no token", home(form("")).header("cookie", cookie(TOKEN))),
        ("another token", home(form(&other)).header("cookie", cookie(TOKEN))),
        ("an empty cookie", home(form("")).header("cookie", cookie(""))),
        ("a cookie that is none", home(form("x")).header("cookie", cookie("x"))),
        ("no word of where from", form(TOKEN).header("cookie", cookie(TOKEN))),
    ];
    let elsewhere = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.example"),
        ("origin", "https://support.example.evil.example"),
        ("origin", "https://support.example:8443"),
        ("origin", "null"),
        ("origin", "support.example"),
    ];
    let elsewhere = elsewhere.map(|(name, value)| {
        (value, form(TOKEN).header("cookie", cookie(TOKEN)).header("host", "support.example").header(name, value))
    });
    for (why, form) in refused.into_iter().chain(elsewhere) {
        let reply = form.to(&support.app).await;
        assert_eq!(reply.status, 403, "{why}");
        assert!(reply.text().contains("nothing was changed") || reply.text().contains("nothing changed"), "{why}");
        assert_eq!(support.audits(), ["forget - refused"], "{why}");
        assert!(ask.to(&setup.app).await.is_replay(), "{why}");
    }
    // What the browser knows of the address counts for more than what a proxy made of it.
    let proven = form(TOKEN).header("cookie", cookie(TOKEN)).header("host", "backend:3000");
    let reply = proven
        .header("origin", "https://support.example")
        .header("sec-fetch-site", "same-origin")
        .to(&support.app)
        .await;
    assert_eq!((reply.status, support.audits()), (200, vec!["forget POST /pay done".to_owned()]));
}

#[tokio::test]
async fn without_sec_fetch_site_the_origin_must_be_the_host() {
    let (_, _, support, fields) = ready().await;
    let form = filled(&fields, TOKEN).header("cookie", cookie(TOKEN)).header("host", "Support.example:81");
    let reply = form.header("origin", "http://support.example:81").to(&support.app).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test]
async fn another_site_cannot_have_a_key_looked_up_either() {
    let (_, _, support, _) = ready().await;
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
        let reply = form(&[("key", "k")]).header("host", "support.example").header(name, value).to(&support.app).await;
        assert_eq!(reply.status, 403);
        assert!(!reply.text().contains("Recorded"));
    }
    assert!(support.audits().is_empty());
}

#[tokio::test]
async fn a_page_for_look_ups_changes_nothing() {
    let (setup, ask, _, fields) = ready().await;
    let support = SupportPage::with(&setup.idempotency, Admin::read_only);
    let shown = support.send(&[("key", "k")]).await;
    assert!(shown.text().contains("Recorded") && !shown.text().contains("Forget"));
    for step in ["forget", "settle"] {
        let shown = support.send(&[("key", "k"), ("step", step), ("settle", "happened")]).await;
        assert!(shown.status == 200 && shown.text().contains("Recorded"), "{step}");
        assert!(
            !shown.text().contains("-now") && !shown.text().contains("Forget"),
            "{step} is offered: {}",
            shown.text()
        );
    }
    let change = filled(&fields, TOKEN).header("cookie", cookie(TOKEN)).header("sec-fetch-site", "same-origin");
    let reply = change.to(&support.app).await;
    assert_eq!(reply.status, 403);
    assert!(reply.text().contains("for look-ups only"));
    assert!(ask.to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn a_key_in_an_address_is_not_looked_up() {
    let (_, _, support, _) = ready().await;
    let reply = get("/keys?key=k&step=look-up").header("x-employee", "ada").to(&support.app).await;
    assert_eq!((reply.status, support.audits().len()), (200, 0));
    assert!(!reply.text().contains("Recorded") && !reply.text().contains("value=\"k\""));
    assert!(
        !reply.text().contains("method=\"get\"") && !reply.text().contains("action="),
        "forms go to where they are"
    );
}

fn assert_sealed(reply: &Reply) {
    let policy = reply.header("content-security-policy").unwrap();
    for rule in ["default-src 'none'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!policy.contains("script-src") && !policy.contains("unsafe-"), "{policy}");
    assert_eq!(reply.header("x-frame-options"), Some("DENY"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("same-origin"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn every_response_keeps_others_out() {
    let (_, _, support, fields) = ready().await;
    let unsent = filled(&fields, TOKEN).header("sec-fetch-site", "cross-site");
    let json = |key| form(&[("key", key)]).header("accept", "application/json");
    let asks = [
        (page(), 200),
        (form(&[("key", "k")]), 200),
        (form(&[("key", "nothing")]), 404),
        (form(&[("key", "a b")]), 400),
        (form(&[("key", "k"), ("step", "<script>")]), 422),
        (unsent, 403),
        (json("k"), 200),
        (json("nothing"), 404),
        (json("a b"), 400),
    ];
    for (ask, status) in asks {
        let reply = ask.to(&support.app).await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_sealed(&reply);
    }
    // A form that cannot be read, as a script is told.
    for (ask, status) in [
        (form(&[("key", "k"), ("step", "<script>")]), 422),
        (Ask { headers: vec![("x-employee".into(), "ada".into())], ..form(&[("key", "k")]) }, 415),
    ] {
        let reply = ask.header("accept", "application/json").to(&support.app).await;
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/problem+json")));
        assert_eq!(reply.json()["status"], status);
        assert_sealed(&reply);
    }
}

#[tokio::test]
async fn the_style_and_the_token_are_new_for_each_browser() {
    let (_, _, support, _) = ready().await;
    let first = page().to(&support.app).await;
    let second = page().to(&support.app).await;
    let token = |reply: &Reply| {
        let cookie = reply.header("set-cookie").unwrap().to_owned();
        assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
        let token = cookie.strip_prefix("idem-admin=").unwrap()[..32].to_owned();
        assert!(reply.text().contains(&format!("name=\"token\" value=\"{token}\"")));
        token
    };
    assert_ne!(token(&first), token(&second));
    let nonce = |reply: &Reply| {
        let policy = reply.header("content-security-policy").unwrap().to_owned();
        let nonce = policy.split_once("'nonce-").unwrap().1[..32].to_owned();
        assert!(reply.text().contains(&format!("<style nonce=\"{nonce}\">")));
        nonce
    };
    assert_ne!(nonce(&first), nonce(&second));
    // A browser keeps its token, so that its other tabs keep working; a script gets none.
    let again = page().header("cookie", cookie(&token(&first))).to(&support.app).await;
    assert_eq!(again.header("set-cookie"), None);
    assert!(again.text().contains(&token(&first)));
    let forged = page().header("cookie", HeaderValue::from_static("idem-admin=\"><script>")).to(&support.app).await;
    assert!(forged.header("set-cookie").is_some() && !forged.text().contains("<script>"));
    assert_eq!(
        form(&[("key", "k")]).header("accept", "application/json").to(&support.app).await.header("set-cookie"),
        None
    );
}
