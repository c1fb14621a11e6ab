//! Real clients, as processes of their own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::{OnceCell, mpsc};

/// Longer than any client takes with all its retries, on a busy machine.
const LONGEST: Duration = Duration::from_secs(90);

/// Longer than it takes to get all packages, once.
const INSTALLATION: Duration = Duration::from_secs(600);

/// Returns a Python that has the packages of the clients, and installs them first if necessary. A test that limits how long its
/// client takes calls this before.
pub async fn python_with_packages() -> &'static Path {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    let python = PYTHON.get_or_init(|| async {
        let mut command = Command::new(root().join("scripts/python-env"));
        command.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-env"));
        output(command, "`sh` (and Python 3.10 or later)", INSTALLATION).await.trim_end().into()
    });
    python.await
}

/// Runs a client of `tests/clients` in Python, and returns what it prints: JSON, a line each.
pub async fn python(script: &str, arguments: &[&str]) -> Vec<Value> {
    run(Command::new(python_with_packages().await), "Python", script, arguments).await
}

/// Runs a client of `tests/clients` in Node, and returns what it prints: JSON, a line each.
pub async fn node(script: &str, arguments: &[&str]) -> Vec<Value> {
    run(Command::new("node"), "Node 20 or later", script, arguments).await
}

async fn run(mut command: Command, name: &str, script: &str, arguments: &[&str]) -> Vec<Value> {
    command.arg(root().join("tests/clients").join(script)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    // The servers are on this machine, whatever proxy there is for others.
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let printed = output(command, name, LONGEST).await;
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

async fn output(mut command: Command, name: &str, longest: Duration) -> String {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(longest, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => panic!("this test drives a real client, and needs {name}: install it ({error}: {command:?})"),
        Err(_) => panic!("{command:?} took longer than {longest:?}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).expect("it prints text")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The router, and the status of each of its responses, in order. A client that left gets none.
pub fn watched(app: Router) -> (Router, mpsc::UnboundedReceiver<u16>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let tell = move |response: Response| {
        // It is fine if the test has seen enough.
        let _ = sender.send(response.status().as_u16());
        async { response }
    };
    (app.layer(map_response(tell)), receiver)
}

/// The statuses of all responses so far.
pub fn statuses(responses: &mut mpsc::UnboundedReceiver<u16>) -> Vec<u16> {
    std::iter::from_fn(|| responses.try_recv().ok()).collect()
}
