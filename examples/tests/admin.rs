//! The page for support as a person meets it who has only a keyboard: in a real browser, on a desktop and on a phone.
//!
//! Pictures of the pages are left in `target/screenshots/`, to see what they look like.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what it expected by failing")]

use std::env;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use idem_testkit::browser::{Browser, DOWN, ENTER, Screen, TAB};

#[test]
fn a_record_is_looked_up_and_forgotten_with_the_keyboard() {
    let mut service = Service::start();
    let browser = service.visit(Screen::Desktop);
    picture(&browser, "desktop-start");

    // The key has the focus already, and Enter sends the form.
    assert_eq!(browser.focused(), "Key");
    assert!(browser.described().starts_with("What the client sent"));
    browser.write("order 1");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Key", "back where it went wrong");
    assert_eq!(browser.described(), "This cannot be a key: the key has a character that is not visible ASCII.");
    picture(&browser, "desktop-mistake");
    browser.run("document.activeElement.select()");
    browser.write("\"order-1\"");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Recorded", "the focus is where something new is");
    let shown = browser.text("section");
    for part in ["POST /orders", "never", "201 Created", "application/json", r#"{"id":1,"item":"tea"}"#] {
        assert!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
    assert!(browser.title().starts_with("Recorded – "));
    picture(&browser, "desktop-recorded");
    assert_eq!(service.audit(), "audit: support look_up key # POST /orders: done");

    browser.tab_to("Forget …");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Forget this key?");
    assert!(browser.text("section").contains("runs again, from the start"));
    picture(&browser, "desktop-forget");
    assert_eq!(service.audit(), "audit: support look_up key # POST /orders: done");
    browser.tab_to("Cancel");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Recorded", "nothing was changed");
    assert_eq!(service.audit(), "audit: support look_up key # POST /orders: done");

    browser.tab_to("Forget …");
    browser.press_and_wait(ENTER);
    service.audit();
    browser.tab_to("Forget it: a retry runs again");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Nothing under this key");
    assert!(browser.text("[role=status]").starts_with("Forgotten."), "{}", browser.text("section"));
    assert_eq!(service.audit(), "audit: support forget key # POST /orders: done");
    picture(&browser, "desktop-forgotten");

    let order = service.order("order-1");
    assert!(order.starts_with("HTTP/1.1 201 ") && !order.contains("idempotent-replayed"), "it ran again: {order}");
}

#[test]
fn an_unknown_outcome_is_settled_with_the_keyboard() {
    let mut service = Service::start();
    assert!(service.order("order-3").contains("idempotency_outcome_unknown"));
    let browser = service.visit(Screen::Desktop);
    browser.write("order-3");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Outcome unknown");
    picture(&browser, "desktop-unknown");
    service.audit();

    browser.press([TAB]);
    assert_eq!(browser.focused(), "It happened", "the first choice comes first");
    browser.press([DOWN]);
    assert_eq!(browser.focused(), "It happened, and this is the response");
    // What is wrong is said beside the field, and that has the focus.
    browser.tab_to("Settle …");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Status");
    assert_eq!(browser.text(".wrong"), "Write the status as a number from 200 to 599, such as 201.");
    assert_eq!(browser.described(), browser.text(".wrong"));
    service.audit();
    browser.write("201");
    browser.tab_to("Type of the body");
    browser.write("application/json");
    browser.tab_to("Body");
    browser.write(r#"{"id":3,"item":"coffee"}"#);
    picture(&browser, "desktop-response");
    browser.tab_to("Settle …");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Did it happen, with this response?");
    assert!(browser.text("pre").contains(r#"{"id":3,"item":"coffee"}"#));
    picture(&browser, "desktop-settle");
    service.audit();
    browser.tab_to("It happened: a retry gets this response");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Recorded");
    assert!(browser.text("[role=status]").starts_with("Settled: it happened."));
    assert_eq!(service.audit(), "audit: support settle_response key # POST /orders: done");
    picture(&browser, "desktop-settled");

    let order = service.order("order-3");
    assert!(order.starts_with("HTTP/1.1 201 ") && order.contains("idempotent-replayed: true"), "{order}");
    assert!(order.contains("content-type: application/json\r\n"), "{order}");
    assert!(order.ends_with(r#"{"id":3,"item":"coffee"}"#), "{order}");
}

#[test]
fn whose_key_it_is_is_said_with_the_keyboard() {
    let mut service = Service::start();
    let browser = service.visit(Screen::Desktop);
    browser.write("closing-1");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Nothing under this key", "in no scope");
    assert_eq!(service.audit(), "audit: support look_up key # -: absent");
    picture(&browser, "desktop-absent");

    browser.tab_to("No particular caller’s");
    browser.press([DOWN, DOWN]);
    assert_eq!(browser.focused(), "A caller’s, by a header of the request");
    browser.tab_to("Name of the header");
    browser.write("X-Shop");
    browser.press([TAB]);
    browser.write("berlin");
    picture(&browser, "desktop-scope");
    browser.tab_to("Look up");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Recorded");
    assert!(browser.text("section").contains("POST /closings"));
    // What was asked for is still there, for the next look-up.
    assert_eq!(browser.run("return document.querySelector('#header-values').value"), "berlin");
    assert_eq!(browser.run("return location.search + location.hash"), "", "and nothing of it in the address");
}

#[test]
fn a_recorded_body_cannot_do_anything_to_the_page() {
    let service = Service::start();
    let browser = service.visit(Screen::Desktop);
    browser.write("order-2");
    browser.press_and_wait(ENTER);
    assert!(browser.text("pre").contains("<script>document.title = 'taken over'</script>"), "it is shown as it is");
    assert!(browser.title().starts_with("Recorded – "), "{}", browser.title());
    assert_eq!(browser.run("return document.scripts.length"), 0);
    picture(&browser, "desktop-hostile");

    // Even if it were not escaped: the page lets no script run, in whatever way it gets there.
    browser.run(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true'; document.body.append(script);
         document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">');
         await new Promise(done => setTimeout(done, 100))",
    );
    assert_eq!(browser.run("return window.ran === true"), false);
}

#[test]
fn on_a_phone_nothing_is_wider_than_the_screen() {
    let mut service = Service::start();
    let browser = service.visit(Screen::Phone);
    assert_eq!(browser.run("return [innerWidth, innerHeight]"), serde_json::json!([360, 740]));
    let check = |name: &str| {
        assert!(!browser.scrolls_sideways(), "{name} is wider than a phone");
        let sizes = "return [...document.querySelectorAll('button, input[type=text], .choice')].filter(e => e.checkVisibility())
            .map(e => e.offsetHeight)";
        let sizes = browser.run(sizes);
        let large = sizes.as_array().unwrap().iter().all(|size| size.as_u64() >= Some(36));
        assert!(large, "{name} has something too small for a thumb: {sizes}");
        picture(&browser, &format!("phone-{name}"));
    };
    check("start");
    for (key, name) in [("order-1", "recorded"), ("order-2", "hostile"), ("nothing", "absent"), ("order-3", "unknown")]
    {
        browser.open(&service.page);
        browser.write(key);
        browser.press_and_wait(ENTER);
        check(name);
        service.audit();
    }
    browser.tab_to("It happened");
    browser.press([DOWN, DOWN]);
    browser.tab_to("Settle …");
    browser.press_and_wait(ENTER);
    assert_eq!(browser.focused(), "Did it not happen?");
    check("settle");
    service.audit();
    browser.tab_to("It did not happen: a retry may run it again");
    browser.press_and_wait(ENTER);
    assert_eq!(service.audit(), "audit: support settle_did_not_happen key # POST /orders: done");
    check("settled");
    assert!(service.order("order-3").starts_with("HTTP/1.1 201 "), "it ran");

    browser.open(&service.page);
    browser.write(&"k".repeat(255));
    browser.press_and_wait(ENTER);
    check("long-key");
    browser.prefer_dark();
    check("dark");
}

#[test]
fn without_the_password_there_is_no_page() {
    let service = Service::start();
    let response = curl(&["-i", &service.address("/support/keys")]);
    assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
}

fn picture(browser: &Browser, name: &str) {
    let target = env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    browser.screenshot(&target.join("screenshots").join(format!("{name}.png")));
}

/// The example, in a separate process.
struct Service {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    /// The page, with the name and the password that the browser sends.
    page: String,
}

impl Service {
    fn start() -> Self {
        // Cargo puts examples beside the folder of the tests.
        let mut path: PathBuf = env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.push("examples/admin");
        assert!(path.exists(), "{} is not built: run `cargo build --examples` first", path.display());
        let mut process =
            Command::new(path).env("PORT", "0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let page = output.by_ref().map(Result::unwrap).find_map(|line| {
            let address = line.split_once("http://")?.1.split_once(". ")?.0.to_owned();
            Some(format!("http://support:tea@{address}"))
        });
        let page = page.expect("the address of the page");
        let last = output.by_ref().map(Result::unwrap).find(|line| line.is_empty());
        assert!(last.is_some(), "the example ended");
        output.by_ref().find(|line| line.as_ref().unwrap().is_empty()).unwrap().unwrap();
        Self { process, output, page }
    }

    fn visit(&self, screen: Screen) -> Browser {
        let browser = Browser::start(screen);
        browser.open(&self.page);
        browser
    }

    /// The next line that was audited, with `#` for the hash of the key.
    fn audit(&mut self) -> String {
        let line = self.output.next().unwrap().unwrap();
        let (before, after) = line.split_once(" key ").unwrap();
        let (hash, after) = after.split_once(' ').unwrap();
        assert!(hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
        format!("{before} key # {after}")
    }

    fn address(&self, path: &str) -> String {
        let host = self.page.split_once('@').unwrap().1.split_once('/').unwrap().0;
        format!("http://{host}{path}")
    }

    /// A client's order of coffee under this key.
    fn order(&self, key: &str) -> String {
        let key = format!("Idempotency-Key: {key}");
        let json = "Content-Type: application/json";
        let item = if key.ends_with('1') { r#"{"item":"tea"}"# } else { r#"{"item":"coffee"}"# };
        curl(&["-i", "-H", &key, "-H", json, "-d", item, &self.address("/orders")])
    }
}

/// If a test fails half-way, no service stays behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").arg("-sS").args(arguments).env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
