//! What is written down, and what is not.

use idem_admin::{Action, Audit, AuditResult};
use idem_tests::{Logs, Setup, post as send, responding};
use std::sync::{Arc, Mutex};

use super::support_page::{SupportPage, TOKEN, form};

fn with_canaries() -> Setup {
    responding!([scope = header("X-Tenant")], || ([("x-token", "HEADER-canary")], "BODY-canary"))
}

const FIELDS: &[(&str, &str)] =
    &[("key", "KEY-canary"), ("scope", "header"), ("header", "x-tenant"), ("header_values", "TENANT-canary")];

#[tokio::test]
async fn every_look_up_and_every_change_is_logged_without_the_key() {
    let (logs, _guard) = Logs::capture();
    let setup = with_canaries();
    send("/").key("KEY-canary").header("x-tenant", "TENANT-canary").to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let shown = support.json(FIELDS).await;
    let key = shown.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(key.len(), 8);
    support.change(FIELDS, "forget").await;
    support.send(&[("key", "KEY-canary, KEY-canary")]).await;
    let text = logs.text();
    let audits: Vec<_> =
        text.lines().filter(|line| line.contains(" INFO ") && line.contains("idem_admin::audit:")).collect();
    assert_eq!(audits.len(), 3, "{text}");
    for (line, action) in audits.iter().zip(["look_up", "look_up", "forget"]) {
        for part in [
            format!("action={action} "),
            format!("key={key} "),
            "actor=\"ada\"".into(),
            "POST /".into(),
            "result=done".into(),
        ] {
            assert!(line.contains(&part), "{part}: {line}");
        }
    }
    for canary in ["KEY-canary", "TENANT-canary", "BODY-canary", "HEADER-canary", TOKEN] {
        let line = text.lines().find(|line| line.contains(canary));
        assert!(line.is_none(), "`{canary}` is logged: {line:?}");
    }
}

#[tokio::test]
async fn the_hook_gets_what_is_logged() {
    let setup = with_canaries();
    let audits = Arc::<Mutex<Vec<Audit>>>::default();
    let hooked = audits.clone();
    let support = SupportPage::with(&setup.idempotency, |admin| {
        admin.audit(move |audit| hooked.lock().unwrap().push(audit.clone()))
    });
    support.send(FIELDS).await;
    send("/").key("KEY-canary").header("x-tenant", "TENANT-canary").to(&setup.app).await.assert_ran(200);
    support.change(FIELDS, "forget").await;
    let audits = audits.lock().unwrap();
    let told: Vec<_> = audits.iter().map(|audit| (audit.action, audit.endpoint.as_deref(), audit.result)).collect();
    assert_eq!(
        told,
        [
            (Action::LookUp, None, AuditResult::Absent),
            (Action::LookUp, Some("POST /"), AuditResult::Done),
            (Action::Forget, Some("POST /"), AuditResult::Done),
        ]
    );
    assert!(audits.iter().all(|audit| audit.key == audits[0].key && audit.actor == "ada"));
    assert!(!format!("{audits:?}").contains("canary"));
}

#[tokio::test]
async fn a_name_cannot_forge_a_line() {
    let (logs, _guard) = Logs::capture();
    let setup = with_canaries();
    let actor = |_: &axum::http::request::Parts| Some("eve\n2026 INFO idem_admin::audit: actor=\"ada\"".to_owned());
    let admin = idem_admin::Admin::new(setup.idempotency.clone(), actor);
    super::support_page::form(FIELDS).to(&axum::Router::new().nest("/keys", admin.router())).await;
    let text = logs.text();
    assert_eq!(text.lines().filter(|line| line.contains("idem_admin::audit:")).count(), 1, "{text}");
}

#[tokio::test]
async fn a_hook_that_panics_breaks_the_page_and_nothing_else() {
    let setup = with_canaries();
    let request = send("/").key("KEY-canary").header("x-tenant", "TENANT-canary");
    request.to(&setup.app).await.assert_ran(200);
    let seen = SupportPage::over(&setup.idempotency).seen(FIELDS, "forget").await;
    let panics = |audit: &Audit| assert!(audit.action == Action::LookUp, "the hook panics");
    let support = SupportPage::with(&setup.idempotency, |admin| admin.audit(panics));
    let page = support.send(&[FIELDS, &[("step", "forget-now"), ("seen", &seen)]].concat()).await;
    assert_eq!(page.status, 500);
    assert!(page.text().contains("it is not known whether it was made"));
    assert_eq!(SupportPage::over(&setup.idempotency).json(FIELDS).await.status, 404);
}

#[tokio::test]
async fn a_hook_that_panics_at_a_look_up_is_told_to_the_caller() {
    let setup = with_canaries();
    let request = send("/").key("KEY-canary").header("x-tenant", "TENANT-canary");
    request.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::with(&setup.idempotency, |admin| admin.audit(|_| panic!("the hook panics")));
    let page = support.send(FIELDS).await;
    assert_eq!(page.status, 500);
    assert!(!page.text().contains("BODY-canary"), "what could not be written down is not shown");
    let json = support.json(FIELDS).await;
    assert_eq!((json.status, json.header("content-type")), (500, Some("application/problem+json")));
    // Neither at a change that is refused.
    let refused = form(&[FIELDS, &[("step", "forget-now")]].concat()).to(&support.app).await;
    assert_eq!(refused.status, 500);
    assert!(refused.text().contains("Nothing was changed"), "{}", refused.text());
}

#[tokio::test]
async fn a_change_that_is_not_let_through_is_audited() {
    let setup = with_canaries();
    send("/").key("KEY-canary").header("x-tenant", "TENANT-canary").to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let key = support.json(FIELDS).await.json()["key"].as_str().unwrap().to_owned();
    support.audits();
    let (logs, _guard) = Logs::capture();
    let now = [FIELDS, &[("step", "forget-now")]].concat();
    let evil = form(&now).header("sec-fetch-site", "cross-site").to(&support.app).await;
    let bare = form(&now).to(&support.app).await;
    let settle = [FIELDS, &[("step", "settle-now"), ("settle", "did-not-happen")]].concat();
    let settle = form(&settle).to(&support.app).await;
    let odd =
        form(&[("key", "a b"), ("step", "forget-now")]).header("sec-fetch-site", "cross-site").to(&support.app).await;
    let wrong = support.send(&[("key", "a b"), ("step", "forget-now")]).await;
    assert_eq!([evil.status, bare.status, settle.status, odd.status, wrong.status], [403, 403, 403, 403, 400]);
    assert_eq!(
        support.audits(),
        [
            "forget - refused",
            "forget - refused",
            "settle_did_not_happen - refused",
            "forget - refused",
            "forget - refused"
        ]
    );
    let text = logs.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("idem_admin::audit:")).collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[..3].iter().all(|line| line.contains(&format!("key={key} "))), "{text}");
    assert!(lines[3..].iter().all(|line| !line.contains("key=")), "{text}");
    assert!(!text.contains("canary") && !text.contains("a b"), "{text}");

    let reader = SupportPage::with(&setup.idempotency, idem_admin::Admin::read_only);
    assert_eq!(reader.send(&now).await.status, 403);
    assert_eq!(reader.audits(), ["forget - refused"]);
}
