//! A browser without a screen: Chromium, which does what a person with a keyboard does. It is driven by WebDriver, JSON over
//! HTTP (<https://www.w3.org/TR/webdriver2/>), of which a few commands are all that it takes.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a page may take to come. A browser that starts on a busy machine is slow.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Keys that produce no character, as WebDriver names them.
pub const TAB: char = '\u{e004}';
/// Sends a form, or presses a button.
pub const ENTER: char = '\u{e007}';
/// Chooses the next of several radio buttons.
pub const DOWN: char = '\u{e015}';
/// Held while the next key is pressed.
pub const SHIFT: char = '\u{e008}';

/// What a browser is shown on.
#[derive(Clone, Copy, Debug)]
pub enum Screen {
    /// A window of a desktop, 1100 pixels wide.
    Desktop,
    /// A small phone that is held upright: 360 by 740 pixels.
    Phone,
}

/// A browser with one window and its own profile. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser.
    ///
    /// # Panics
    /// If Chromium or its driver is missing or does not start.
    pub fn start(screen: Screen) -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let (driver, port) = start_driver();
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let mut options = json!({
            "args": [
                "--headless=new", "--window-size=1100,900", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage",
                // The pages are the tests' own, and in a container there are no rights to make a sandbox.
                "--no-sandbox", "--no-proxy-server", profile,
            ],
        });
        if let Screen::Phone = screen {
            options["mobileEmulation"] = json!({ "deviceMetrics": { "width": 360, "height": 740, "pixelRatio": 2.0, "mobile": true, "touch": true } });
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let started = browser.command("POST", "/session", &wanted);
        browser.session = started["sessionId"].as_str().expect("the id of a session").to_owned();
        browser
    }

    /// Opens a page, and waits until it is there.
    pub fn open(&self, url: &str) {
        self.say("POST", "/url", &json!({ "url": url }));
    }

    /// Presses these keys, one after the other, wherever the focus is.
    pub fn press(&self, keys: impl IntoIterator<Item = char>) {
        let stroke = |key: char| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let strokes: Vec<_> = keys.into_iter().flat_map(stroke).collect();
        self.say("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    /// Types a text where the focus is.
    pub fn write(&self, text: &str) {
        self.press(text.chars());
    }

    /// Presses a key that leads to another page, and waits until that is there.
    ///
    /// # Panics
    /// If no other page comes.
    pub fn press_and_wait(&self, key: char) {
        self.run("window.before = true");
        self.press([key]);
        let start = Instant::now();
        while self.run("return window.before !== true && document.readyState === 'complete'") != json!(true) {
            assert!(start.elapsed() < TIMEOUT, "no other page came; this one says:\n{}", self.text("body"));
            sleep(Duration::from_millis(10));
        }
    }

    /// Presses Tab until the field or the button with this label has the focus. Each stop on the way must have a label, and show
    /// that it has the focus.
    ///
    /// # Panics
    /// If it cannot be reached, or a stop lacks either.
    pub fn tab_to(&self, label: &str) {
        let mut stops = Vec::new();
        while self.focused() != label {
            stops.push(self.focused());
            assert!(stops.len() < 40, "Tab does not lead to `{label}`, only to {stops:?}");
            self.press([TAB]);
            // Between the end of a page and its start, nothing on it has the focus.
            if self.run("return document.activeElement !== document.body") == json!(true) {
                let outline = self.run("return getComputedStyle(document.activeElement).outlineStyle");
                assert!(outline != json!("none"), "it does not show that `{}` has the focus", self.focused());
                assert!(!self.focused().is_empty(), "something without a label has the focus, after {stops:?}");
            }
        }
    }

    /// The label of what has the focus, or its text if it has no label.
    pub fn focused(&self) -> String {
        let script = "const e = document.activeElement; return (e.labels?.[0] ?? e).textContent.trim()";
        self.run(script).as_str().unwrap_or_default().to_owned()
    }

    /// The visible text of the first element that the selector finds.
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// The text that a screen reader adds to what has the focus.
    pub fn described(&self) -> String {
        let script =
            "return document.getElementById(document.activeElement.getAttribute('aria-describedby'))?.innerText ?? ''";
        self.run(script).as_str().unwrap_or_default().to_owned()
    }

    /// The title in the tab of the browser.
    pub fn title(&self) -> String {
        self.run("return document.title").as_str().unwrap_or_default().to_owned()
    }

    /// Runs a script that belongs to the test and not to the page, and gives back what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.say("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Whether the page is wider than the window, so that one would have to scroll there.
    pub fn scrolls_sideways(&self) -> bool {
        self.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth") == json!(true)
    }

    /// Shows pages as to a person who prefers dark ones.
    pub fn prefer_dark(&self) {
        let features = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Takes a picture of the whole page.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn screenshot(&self, file: &Path) {
        let shot = self.devtools("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let png = BASE64_STANDARD.decode(shot["data"].as_str().unwrap_or_default()).expect("a picture");
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder for the picture");
        std::fs::write(file, png).expect("a file for the picture");
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.say("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn say(&self, method: &str, command: &str, parameters: &Value) -> Value {
        self.command(method, &format!("/session/{}{command}", self.session), parameters)
    }

    fn command(&self, method: &str, path: &str, parameters: &Value) -> Value {
        let said = ask(self.port, method, path, parameters).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let value = said["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value:#}");
        value
    }
}

/// The driver ends the browser, and then is ended itself.
impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ask(self.port, "DELETE", &format!("/session/{}", self.session), &json!({}));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The driver chooses its own port, and says which.
fn start_driver() -> (Child, u16) {
    for _ in 0..10 {
        let mut driver = spawn();
        // Borrowed, so that the driver has somewhere to write to for as long as it runs.
        let lines = BufReader::new(driver.stdout.as_mut().expect("its output")).lines().map_while(Result::ok);
        let said =
            |line: String| line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok();
        if let Some(port) = lines.filter_map(said).next() {
            return (driver, port);
        }
        // It wants the same port of two protocols, and another process was faster with one of them.
        let _ = driver.wait();
    }
    panic!("`chromedriver` does not start; what it wrote is above");
}

fn spawn() -> Child {
    let spawned = Command::new("chromedriver")
        .arg("--port=0")
        // What a person presses in the terminal is not for the browser.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    match spawned {
        Ok(driver) => driver,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "`chromedriver` is missing, and this test needs a real browser. Install it, on Debian and Ubuntu with: apt-get \
             install chromium chromium-driver"
        ),
        Err(error) => panic!("`chromedriver` could not be started: {error}"),
    }
}

/// One command, over its own connection.
fn ask(port: u16, method: &str, path: &str, parameters: &Value) -> std::io::Result<Value> {
    let body = if method == "POST" { parameters.to_string() } else { String::new() };
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: \
         {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reader = BufReader::new(connection);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0)
            }
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_filled_in_with_the_keyboard() {
        let browser = Browser::start(Screen::Phone);
        browser.open("data:text/html,<meta name=viewport content='width=device-width'><label>Name <input></label><button>Go</button>");
        browser.tab_to("Name");
        browser.write("Ada");
        assert_eq!(browser.run("return document.querySelector('input').value"), json!("Ada"));
        browser.tab_to("Go");
        assert_eq!((browser.run("return innerWidth"), browser.scrolls_sideways()), (json!(360), false));
        browser.run("document.body.style.width = '400px'");
        assert!(browser.scrolls_sideways());
    }
}
