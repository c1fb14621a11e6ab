//! What is changed, and what a retry then gets.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use idem_axum::{Idempotency, MemoryStore, RefusalReason, StorageKey, Store, StoreError};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_tests::{Reply, Setup, post as send, within};
use tokio::sync::Notify;

use super::support_page::{SupportPage, TOKEN, page, pay, runtime, setup, torn_down};

const KEY: &[(&str, &str)] = &[("key", "k")];

/// The buttons of a page, but for the one that looks another key up.
fn buttons(page: &Reply) -> Vec<&str> {
    let steps = page.text().split("name=\"step\" value=\"").skip(1);
    let mut steps: Vec<_> = steps.map(|rest| rest.split_once('"').unwrap().0).collect();
    steps.pop_if(|last| *last == "look-up");
    steps
}

#[tokio::test]
async fn a_record_that_is_forgotten_runs_again() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    ask.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    assert_eq!(buttons(&support.send(KEY).await), ["forget"]);
    assert_eq!(support.audits(), ["look_up POST /pay done"]);
    let asked = support.send(&[("key", "k"), ("step", "forget")]).await;
    assert_eq!((asked.status, buttons(&asked)), (200, vec!["forget-now"]));
    assert!(ask.to(&setup.app).await.is_replay(), "to ask changes nothing");
    support.audits();

    let done = support.change(KEY, "forget").await;
    assert!(done.status == 200 && done.text().contains("Forgotten. The next request with this key runs again."));
    assert_eq!(support.audits(), ["look_up POST /pay done", "forget POST /pay done"]);
    assert_eq!(support.json(KEY).await.status, 404);
    ask.to(&setup.app).await.assert_ran(200);
    assert_eq!(setup.probe.runs(), 2);
}

fn settled(found: &str, audited: &str, more: &[(&str, &str)]) -> (Setup, Reply, Reply) {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    torn_down(&setup, &ask);
    runtime().block_on(async {
        ask.to(&setup.app).await.assert_refused(409, "idempotency_outcome_unknown");
        let support = SupportPage::over(&setup.idempotency);
        let shown = support.send(KEY).await;
        assert_eq!((shown.status, buttons(&shown)), (200, vec!["settle"]));
        let fields = [KEY, &[("settle", found)], more].concat();
        support.audits();
        let done = support.change(&fields, "settle").await;
        assert_eq!(done.status, 200, "{}", done.text());
        assert_eq!(support.audits(), ["look_up POST /pay done", &format!("{audited} POST /pay done")]);
        let retry = ask.to(&setup.app).await;
        (setup, done, retry)
    })
}

#[test]
fn it_happened_so_a_retry_is_told_so() {
    let (setup, done, retry) = settled("happened", "settle_happened", &[]);
    assert!(done.text().contains("Settled: it happened.") && done.text().contains("Not replayable"));
    retry.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(setup.probe.runs(), 1);
}

#[test]
fn it_happened_so_a_retry_gets_the_response_that_was_written_down() {
    let response = [("status", "201"), ("content_type", "text/plain; charset=utf-8"), ("body", "\r\npaid é\r\n")];
    let (setup, _, retry) = settled("response", "settle_response", &response);
    assert!(retry.is_replay());
    assert_eq!((retry.status, retry.text()), (201, "\npaid é\n"));
    assert_eq!(retry.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(setup.probe.runs(), 1);
}

#[test]
fn it_did_not_happen_so_a_retry_runs_it_again() {
    let (setup, done, retry) = settled("did-not-happen", "settle_did_not_happen", &[]);
    assert!(done.text().contains("Nothing under this key"));
    retry.assert_ran(200);
    assert_eq!(setup.probe.runs(), 2);
}

#[test]
fn a_response_that_cannot_be_sent_is_not_written_down() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    torn_down(&setup, &ask);
    runtime().block_on(async {
        let support = SupportPage::over(&setup.idempotency);
        let fields = |status| [("key", "k"), ("settle", "response"), ("status", status), ("body", "<kept>")];
        for status in ["", "100", "600", "ok"] {
            let asked = support.send(&[&fields(status)[..], &[("step", "settle")]].concat()).await;
            assert_eq!(buttons(&asked), ["settle"], "asked again");
            assert!(asked.text().contains("Write the status as a number") && asked.text().contains("&lt;kept&gt;"));
            let made = support.send(&[&fields(status)[..], &[("step", "settle-now")]].concat()).await;
            assert_eq!(made.status, 403);
        }
        let unsaid = support.send(&[("key", "k"), ("step", "settle")]).await;
        assert!(unsaid.text().contains("Choose what you found."));
        ask.to(&setup.app).await.assert_refused(409, "idempotency_outcome_unknown");
    });
}

#[test]
fn a_response_of_the_longest_length_fits_however_a_browser_writes_it() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    torn_down(&setup, &ask);
    runtime().block_on(async {
        let support = SupportPage::over(&setup.idempotency);
        for (line, status) in [("\r\n".repeat(1024 * 1024), 200), ("\"".repeat(1024 * 1024 + 1), 200)] {
            let fields = [("key", "k"), ("settle", "response"), ("status", "200"), ("body", line.as_str())];
            let asked = support.send(&[&fields[..], &[("step", "settle")]].concat()).await;
            assert_eq!(asked.status, status, "{}", &asked.text()[..200.min(asked.text().len())]);
            let long = asked.text().contains("The body is longer than 1 MiB.");
            assert_eq!(long, line.starts_with('"'));
        }
        let beyond = support.send(&[("key", "k"), ("body", &"x".repeat(3 * 1024 * 1024))]).await;
        assert_eq!(beyond.status, 413, "three bytes of the form each");
    });
}

#[tokio::test]
async fn what_is_in_flight_cannot_be_forgotten_or_settled() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    setup.probe.close();
    let (app, first) = (setup.app.clone(), ask.clone());
    let first = tokio::spawn(async move { first.to(&app).await });
    setup.probe.started(1).await;
    let support = SupportPage::over(&setup.idempotency);
    let shown = support.send(KEY).await;
    assert!(shown.text().contains("In flight") && shown.text().contains("POST /pay"));
    assert_eq!(buttons(&shown), ["look-up", "revoke"]);
    for step in ["forget", "settle"] {
        let asked = support.send(&[("key", "k"), ("step", step), ("settle", "happened")]).await;
        assert_eq!(buttons(&asked), ["look-up", "revoke"]);
    }
    support.audits();

    // A form that is written by hand gets no further.
    let started = support.json(KEY).await.json()["started_at"].as_str().unwrap().to_owned();
    assert!(started.ends_with('Z'));
    for step in ["forget-now", "settle-now"] {
        let refused = support
            .send(&[("key", "k"), ("step", step), ("settle", "did-not-happen"), ("seen", "in-flight-0-0")])
            .await;
        assert_eq!(refused.status, 409, "{}", refused.text());
        assert!(refused.text().contains("Nothing was changed"));
    }
    assert_eq!(
        support.audits(),
        ["look_up POST /pay done", "forget POST /pay refused", "settle_did_not_happen POST /pay refused"]
    );
    ask.to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    let first = first.await.unwrap();
    ask.to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn what_hangs_loses_its_key_and_is_settled() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    setup.probe.close();
    let (app, hung) = (setup.app.clone(), ask.clone());
    let hung = tokio::spawn(async move { hung.to(&app).await });
    setup.probe.started(1).await;
    let support = SupportPage::over(&setup.idempotency);
    let revoked = support.change(KEY, "revoke").await;
    assert!(revoked.status == 200 && revoked.text().contains("has lost this key"), "{}", revoked.text());
    assert_eq!(buttons(&revoked), ["settle"]);
    assert_eq!(support.audits(), ["look_up POST /pay done", "revoke POST /pay done"]);
    ask.to(&setup.app).await.assert_refused(409, "idempotency_outcome_unknown");
    let settled = support.change(&[KEY, &[("settle", "happened")]].concat(), "settle").await;
    assert_eq!(settled.status, 200, "{}", settled.text());
    setup.probe.open();
    hung.await.unwrap().assert_ran(200);
    ask.to(&setup.app).await.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(setup.probe.runs(), 1);
}

#[test]
fn unknown_outcomes_are_listed() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    let support = SupportPage::over(&setup.idempotency);
    let list = [("step", "unknown")];
    runtime().block_on(async {
        assert!(page().to(&support.app).await.text().contains("value=\"unknown\""), "the page offers it");
        let none = support.send(&list).await;
        assert!(none.status == 200 && none.text().contains("No unknown outcomes here"), "{}", none.text());
    });
    torn_down(&setup, &ask);
    runtime().block_on(async {
        send("/pay").key("other").to(&setup.app).await.assert_ran(200);
        let key = support.json(KEY).await.json()["key"].as_str().unwrap().to_owned();
        support.audits();
        let shown = support.send(&list).await;
        assert!(shown.text().contains("POST /pay") && shown.text().contains(&key), "{}", shown.text());
        let listed = support.json(&list).await.json();
        assert_eq!((listed["unknown"].as_array().unwrap().len(), &listed["next"]), (1, &serde_json::Value::Null));
        assert_eq!(
            (&listed["unknown"][0]["key"], &listed["unknown"][0]["endpoint"]),
            (&key.into(), &"POST /pay".into())
        );
        assert_eq!(support.audits(), ["list_unknown - done", "list_unknown - done"]);
    });
}

#[test]
fn a_function_in_the_list_is_said_not_to_be_looked_up_here() {
    let idempotency = Idempotency::in_memory();
    let support = SupportPage::over(&idempotency);
    let crashing = runtime();
    crashing.block_on(async {
        let (started, engine) = (Arc::new(Notify::new()), idempotency.clone());
        let starts = started.clone();
        let ship = async move || {
            starts.notify_one();
            pending::<Result<u8, RefusalReason>>().await
        };
        drop(tokio::spawn(async move { engine.once("ship", "k").run(ship).await }));
        within("the function to start", started.notified()).await;
    });
    drop(crashing);
    runtime().block_on(async {
        let listed = support.send(&[("step", "unknown")]).await;
        assert!(listed.text().contains("<code>once ship</code>"), "{}", listed.text());
        assert!(listed.text().contains("is no request, so its key cannot be looked up here"), "{}", listed.text());
        assert_eq!(support.send(KEY).await.status, 404);
    });
}

#[tokio::test]
async fn what_is_no_longer_what_one_saw_is_left_alone() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    ask.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let seen = support.seen(KEY, "forget").await;
    // Another operator was faster, and a retry ran.
    assert_eq!(support.change(KEY, "forget").await.status, 200);
    let stale = [("key", "k"), ("step", "forget-now"), ("seen", &seen)];
    support.audits();
    let refused = support.send(&stale).await;
    assert_eq!((refused.status, support.audits()), (409, vec!["forget - absent".to_owned()]));
    setup.clock.advance(Duration::from_secs(1));
    ask.to(&setup.app).await.assert_ran(200);
    let refused = support.send(&stale).await;
    assert_eq!((refused.status, support.audits()), (409, vec!["forget POST /pay refused".to_owned()]));
    assert!(refused.text().contains("the key's state has changed since you opened this page"));
    assert!(ask.to(&setup.app).await.is_replay());
    // An outcome that is known is not settled.
    let seen = support.seen(KEY, "forget").await;
    let settle = [("key", "k"), ("step", "settle-now"), ("settle", "did-not-happen"), ("seen", &seen)];
    assert_eq!(support.send(&settle).await.status, 409);
    assert!(ask.to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn a_later_run_within_the_same_instant_is_another_record() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    ask.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let seen = support.seen(KEY, "forget").await;
    assert_eq!(support.change(KEY, "forget").await.status, 200);
    // The clock is stopped.
    ask.to(&setup.app).await.assert_ran(200);
    let refused = support.send(&[("key", "k"), ("step", "forget-now"), ("seen", &seen)]).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(ask.to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn a_change_goes_on_and_is_audited_when_the_browser_leaves() {
    let store = Intercept::new(MemoryStore::new(), ForgetsLater::default());
    let idempotency = Idempotency::new(store.clone());
    let (app, _) = Setup::mount(&idempotency, Router::new().route("/pay", post(pay)));
    let ask = send("/pay").key("k");
    ask.to(&app).await.assert_ran(200);
    let support = SupportPage::over(&idempotency);
    let seen = support.seen(KEY, "forget").await;
    support.audits();

    let audited = Arc::new(Notify::new());
    let hooked = audited.clone();
    let hasty = SupportPage::with(&idempotency, |admin| admin.audit(move |_| hooked.notify_one()));
    let form = hasty.at_home(&[("key", "k"), ("step", "forget-now"), ("seen", &seen), ("token", TOKEN)]);
    let browser = tokio::spawn(async move { form.to(&hasty.app).await });
    within("the store to be asked", store.hooks.asked.notified()).await;
    browser.abort();
    assert!(browser.await.unwrap_err().is_cancelled());
    store.hooks.may_end.notify_one();
    within("the audit", audited.notified()).await;
    ask.to(&app).await.assert_ran(200);
}

/// What the form of a page carries of the state of the key that it shows.
fn carried(page: &Reply) -> String {
    let seen = page.text().split_once("name=\"seen\" value=\"").map(|(_, rest)| rest.split_once('"').unwrap().0);
    seen.unwrap_or_default().to_owned()
}

const CHANGED: &str = "the key's state has changed since you opened this page";

/// While a person finds out what became of an execution, another one leaves its outcome unknown.
#[test]
fn what_was_found_out_of_one_execution_is_not_asked_of_a_later_one() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    torn_down(&setup, &ask);
    let support = SupportPage::over(&setup.idempotency);
    let (opened, other) = runtime().block_on(async {
        let opened = support.send(KEY).await;
        let other = support.change(&[KEY, &[("settle", "did-not-happen")]].concat(), "settle").await;
        (opened, other)
    });
    assert_eq!(other.status, 200, "{}", other.text());
    torn_down(&setup, &ask);
    runtime().block_on(async {
        let seen = carried(&opened);
        let fields = [("key", "k"), ("step", "settle"), ("settle", "did-not-happen"), ("seen", &seen)];
        let asked = support.send(&fields).await;
        assert_eq!((asked.status, buttons(&asked)), (409, vec!["settle"]), "{}", asked.text());
        assert!(asked.text().contains(CHANGED), "{}", asked.text());
        // From the page that shows the later one it is.
        let fields = [("key", "k"), ("step", "settle"), ("settle", "did-not-happen"), ("seen", &carried(&asked))];
        assert_eq!(buttons(&support.send(&fields).await), ["settle-now"]);
    });
}

#[tokio::test]
async fn another_record_than_the_one_shown_is_not_asked_about() {
    let (setup, ask) = (setup(), send("/pay").key("k"));
    ask.to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    let opened = carried(&support.send(KEY).await);
    let forget = |seen: String| [("key", "k".to_owned()), ("step", "forget".to_owned()), ("seen", seen)];
    let ask_to_forget = async |seen: &str| {
        let fields = forget(seen.to_owned());
        support.send(&fields.each_ref().map(|(name, value)| (*name, value.as_str()))).await
    };
    assert_eq!(buttons(&ask_to_forget(&opened).await), ["forget-now"]);
    assert_eq!(support.change(KEY, "forget").await.status, 200);
    ask.to(&setup.app).await.assert_ran(200);
    let asked = ask_to_forget(&opened).await;
    assert_eq!((asked.status, buttons(&asked)), (409, vec!["forget"]), "{}", asked.text());
    assert!(asked.text().contains(CHANGED) && asked.text().contains("<dt>x-run</dt><dd><code>2</code>"));
    assert_eq!(buttons(&ask_to_forget(&carried(&asked)).await), ["forget-now"]);
}

/// The store takes its time to forget.
#[derive(Default)]
struct ForgetsLater {
    asked: Notify,
    may_end: Notify,
}

impl Hooks<MemoryStore> for ForgetsLater {
    async fn forget(&self, store: &MemoryStore, key: &StorageKey) -> Result<bool, StoreError> {
        self.asked.notify_one();
        self.may_end.notified().await;
        store.forget(key).await
    }
}
