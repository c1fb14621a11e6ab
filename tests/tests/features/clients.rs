//! Real clients read every replay and every refusal, whatever they were sending.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyKey, MemoryStore, Part, Policy, idempotent};
use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store, StoreError};
use idem_tests::support::{self, TestServer};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::Notify;

const WITHOUT_BODY: Policy = Policy::DEFAULT.fingerprint(&[Part::Method, Part::Path, Part::Query]);
const REQUIRED: Policy = WITHOUT_BODY.required();
const SMALL: Policy = WITHOUT_BODY.max_response(1);

#[derive(Clone, Default)]
struct Shop {
    runs: Arc<AtomicUsize>,
    started: Arc<Notify>,
    may_end: Arc<Notify>,
}

async fn length(body: Body) -> String {
    axum::body::to_bytes(body, usize::MAX).await.unwrap().len().to_string()
}

#[idempotent(policy = WITHOUT_BODY)]
async fn upload(State(shop): State<Shop>, body: Body) -> String {
    shop.runs.fetch_add(1, Ordering::SeqCst);
    length(body).await
}

#[idempotent(policy = WITHOUT_BODY)]
async fn upload_request(State(shop): State<Shop>, request: Request) -> String {
    shop.runs.fetch_add(1, Ordering::SeqCst);
    length(request.into_body()).await
}

#[idempotent(policy = WITHOUT_BODY)]
async fn another_version(body: Body) -> String {
    length(body).await
}

#[idempotent(policy = WITHOUT_BODY)]
async fn unread() -> &'static str {
    "unread"
}

#[idempotent(policy = REQUIRED)]
async fn required(body: Body) -> String {
    length(body).await
}

#[idempotent(policy = WITHOUT_BODY)]
async fn key_last(_key: IdempotencyKey) {}

#[idempotent]
async fn in_fingerprint(body: Body) -> String {
    length(body).await
}

#[idempotent(policy = SMALL)]
async fn too_large() -> &'static str {
    "larger than a byte"
}

#[idempotent(policy = WITHOUT_BODY)]
async fn waits(State(shop): State<Shop>) {
    shop.started.notify_one();
    shop.may_end.notified().await;
}

fn routes(shop: &Shop) -> Router {
    Router::new()
        .route("/upload", post(upload))
        .route("/request", post(upload_request))
        .route("/unread", post(unread))
        .route("/required", post(required))
        .route("/key-last", post(key_last))
        .route("/in-fingerprint", post(in_fingerprint))
        .route("/too-large", post(too_large))
        .route("/waits", post(waits))
        .with_state(shop.clone())
}

/// A store that is down, or whose owners are all gone.
struct Broken {
    down: bool,
}

struct NoClaim;

impl Store for Broken {
    type Claim = NoClaim;

    async fn begin(&self, _: &StorageKey, _: &Fingerprint, _: &BeginOptions) -> Result<Begin<NoClaim>, StoreError> {
        if self.down { Err(StoreError::unavailable("down")) } else { Ok(Begin::Abandoned(NoClaim)) }
    }

    async fn ended(&self, _: &StorageKey) {}

    async fn forget(&self, _: &StorageKey) -> Result<bool, StoreError> {
        Ok(false)
    }
}

impl Claim for NoClaim {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn complete(self, _: Record, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn release(self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Uploads a file to each URL, with each key, and prints the status and the replay header of each response.
const NODE_FETCH: &str = r"
const [file, ...cases] = process.argv.slice(1);
const body = require('fs').readFileSync(file);
(async () => {
    for (let i = 0; i < cases.length; i += 2) {
        const headers = cases[i + 1] ? { 'idempotency-key': cases[i + 1] } : {};
        const response = await fetch(cases[i], { method: 'POST', body, headers });
        await response.text();
        console.log(response.status, response.headers.get('idempotent-replayed') || '-');
    }
})().catch(error => { console.error(error); process.exit(1); });
";

/// With `expect`, the body is sent when the server asks for it.
const NODE_HTTP: &str = r"
const [expect, file, ...cases] = process.argv.slice(1);
const body = require('fs').readFileSync(file);
const http = require('http');
const upload = (url, key) => new Promise((resolve, reject) => {
    const headers = { 'content-length': body.length };
    if (key) headers['idempotency-key'] = key;
    if (expect) headers.expect = '100-continue';
    const request = http.request(url, { method: 'POST', headers, agent: false }, response => {
        response.resume();
        response.on('error', reject);
        response.on('end', () => resolve([response.statusCode, response.headers['idempotent-replayed'] || '-']));
    });
    request.on('error', reject);
    if (expect) { request.on('continue', () => request.end(body)); request.flushHeaders(); } else request.end(body);
});
(async () => {
    for (let i = 0; i < cases.length; i += 2) console.log(...await upload(cases[i], cases[i + 1]));
    process.exit(0);
})().catch(error => { console.error(error); process.exit(1); });
";

const NODE_HTTP2: &str = r"
const [file, ...cases] = process.argv.slice(1);
const body = require('fs').readFileSync(file);
const http2 = require('http2');
const upload = (url, key) => new Promise((resolve, reject) => {
    const { origin, pathname, search } = new URL(url);
    const session = http2.connect(origin);
    session.on('error', reject);
    const headers = { ':method': 'POST', ':path': pathname + search };
    if (key) headers['idempotency-key'] = key;
    const stream = session.request(headers);
    let result;
    stream.on('response', headers => { result = [headers[':status'], headers['idempotent-replayed'] || '-']; });
    stream.on('error', reject);
    stream.resume();
    stream.on('close', () => { session.close(); resolve(result); });
    stream.end(body);
});
(async () => {
    for (let i = 0; i < cases.length; i += 2) console.log(...await upload(cases[i], cases[i + 1]));
})().catch(error => { console.error(error); process.exit(1); });
";

const PYTHON_HTTP_CLIENT: &str = r"
import http.client, sys, urllib.parse
body = open(sys.argv[1], 'rb').read()
for url, key in zip(sys.argv[2::2], sys.argv[3::2]):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    path = parts.path + ('?' + parts.query if parts.query else '')
    connection.request('POST', path, body, {'idempotency-key': key} if key else {})
    response = connection.getresponse()
    response.read()
    print(response.status, response.headers.get('idempotent-replayed', '-'))
";

const PYTHON_REQUESTS: &str = r"
import sys
try:
    import requests
except ImportError:
    sys.exit('install it: pip install requests, or apt-get install python3-requests')
session = requests.Session()
session.trust_env = False
body = open(sys.argv[1], 'rb').read()
for url, key in zip(sys.argv[2::2], sys.argv[3::2]):
    response = session.post(url, data=body, headers={'idempotency-key': key} if key else {})
    print(response.status_code, response.headers.get('idempotent-replayed', '-'))
";

const CURL: &str = r#"
option=$1 file=$2; shift 2
while [ $# -gt 0 ]; do
    url=$1 key=$2; shift 2
    curl -q --noproxy '*' -sS -o /dev/null -w '%{http_code} %header{idempotent-replayed}\n' $option \
        -H 'Content-Type: application/octet-stream' ${key:+-H "Idempotency-Key: $key"} --data-binary "@$file" "$url" || exit
done
"#;

/// The name of a client, its program and its arguments before the file and the cases.
const CLIENTS: &[(&str, &str, &[&str])] = &[
    ("Node's fetch", "node", &["-e", NODE_FETCH]),
    ("Node's http.request", "node", &["-e", NODE_HTTP, ""]),
    ("Node's http.request with 100-continue", "node", &["-e", NODE_HTTP, "expect"]),
    ("Node's http2", "node", &["-e", NODE_HTTP2]),
    ("Python's http.client", "python3", &["-c", PYTHON_HTTP_CLIENT]),
    ("requests", "python3", &["-c", PYTHON_REQUESTS]),
    ("curl", "sh", &["-c", CURL, "curl", "-HExpect:"]),
    ("curl with 100-continue", "sh", &["-c", CURL, "curl", "-HExpect:100-continue"]),
    ("curl over HTTP/2", "sh", &["-c", CURL, "curl", "--http2-prior-knowledge"]),
];

struct Case {
    url: String,
    /// `*` is the number of the client.
    key: &'static str,
    response: &'static str,
}

/// Lets each client upload the file in each of the cases.
async fn assert_read(file: &Path, cases: &[Case]) {
    for (number, (name, program, arguments)) in CLIENTS.iter().enumerate() {
        let mut command = Command::new(program);
        command.args(*arguments).arg(file).stdin(Stdio::null()).kill_on_drop(true);
        command.args(cases.iter().flat_map(|case| [case.url.clone(), case.key.replace('*', &number.to_string())]));
        let output = tokio::time::timeout(5 * support::LONG, command.output()).await.expect("the client ends");
        let output = output.unwrap_or_else(|error| panic!("install {program}: {error}"));
        let (read, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let read: Vec<_> = read.lines().map(|line| line.trim_end_matches(['-', ' ']).to_owned()).collect();
        let mut wrong = String::new();
        for (index, case) in cases.iter().enumerate() {
            let read = read.get(index).map_or("nothing", String::as_str);
            if read != case.response {
                writeln!(wrong, "{} {:?}: {read}, not {}", case.url, case.key, case.response).unwrap();
            }
        }
        assert!(output.status.success() && wrong.is_empty(), "{name}, {}\n{wrong}{errors}", file.display());
    }
}

fn file(mebibytes: usize) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("upload-{}-{mebibytes}", std::process::id()));
    std::fs::write(&path, vec![b'x'; mebibytes << 20]).unwrap();
    path
}

async fn assert_all_are_read(mebibytes: usize) {
    let shop = Shop::default();
    let usual = TestServer::new(routes(&shop)).await;
    let version = Router::new().route("/upload", post(another_version));
    let changed = TestServer::over(usual.idempotency.clone(), version).await;
    let full = Idempotency::new(MemoryStore::builder().max_entries(1).build());
    let full = TestServer::over(full, routes(&shop)).await;
    let busy = Idempotency::builder(MemoryStore::new()).max_executions(1).build();
    let busy = TestServer::over(busy, routes(&shop)).await;
    let down = TestServer::over(Idempotency::new(Broken { down: true }), routes(&shop)).await;
    let gone = TestServer::over(Idempotency::new(Broken { down: false }), routes(&shop)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare = listener.local_addr().unwrap();
    let without_layer = routes(&shop);
    drop(tokio::spawn(async move { axum::serve(listener, without_layer).await.unwrap() }));

    for (served, path) in
        [(&usual, "/upload"), (&usual, "/request"), (&usual, "/unread"), (&usual, "/too-large"), (&full, "/upload")]
    {
        let key = path.trim_start_matches('/');
        let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\nconnection: close\r\n\r\n");
        let first = served.send(request.as_bytes()).await;
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    }
    let mut running = Vec::new();
    for served in [&usual, &busy] {
        running.push(served.connect().await);
        let request = b"POST /waits HTTP/1.1\r\nhost: a\r\nidempotency-key: running\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(running.last_mut().unwrap(), request).await.unwrap();
        shop.started.notified().await;
    }
    shop.runs.store(0, Ordering::SeqCst);

    let case = |address: std::net::SocketAddr, path: &str, key, response| Case {
        url: format!("http://{address}{path}"),
        key,
        response,
    };
    let cases = [
        case(usual.address, "/upload", "new-*", "200"),
        case(usual.address, "/upload", "new-*", "200 true"),
        case(usual.address, "/request", "request", "200 true"),
        case(usual.address, "/unread", "unread", "200 true"),
        case(usual.address, "/required", "", "400"),
        case(usual.address, "/key-last", "", "400"),
        case(usual.address, "/upload", "two words", "400"),
        case(usual.address, "/upload?other", "upload", "422"),
        case(usual.address, "/waits", "running", "409"),
        case(usual.address, "/too-large", "too-large", "409"),
        case(changed.address, "/upload", "upload", "409"),
        case(gone.address, "/upload", "a", "409"),
        case(down.address, "/upload", "a", "503"),
        case(full.address, "/upload", "b", "503"),
        case(busy.address, "/upload", "b", "503"),
        case(bare, "/upload", "a", "500"),
    ];
    let file = file(mebibytes);
    assert_read(&file, &cases).await;
    if mebibytes > 2 {
        // Over the limit of a body that is part of the fingerprint.
        assert_read(&file, &[case(usual.address, "/in-fingerprint", "c", "413")]).await;
    }
    std::fs::remove_file(file).unwrap();
    assert_eq!(shop.runs.load(Ordering::SeqCst), CLIENTS.len());
    shop.may_end.notify_waiters();
    for served in [&usual, &changed, &full, &busy, &down, &gone] {
        served.idempotency.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_upload_1_mib_read_every_replay_and_every_refusal() {
    assert_all_are_read(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_upload_8_mib_read_every_replay_and_every_refusal() {
    assert_all_are_read(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_upload_50_mib_read_every_replay_and_every_refusal() {
    assert_all_are_read(50).await;
}

// ---- The code of the guide's page for client authors. ----

const PAGE: &str = include_str!("../../../idem-axum/src/guide/clients.md");

/// Returns the code of the page in this language.
fn code(language: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("```{language}\n")).expect("the page has this language");
    rest.split_once("```").unwrap().0
}

#[idempotent(required)]
async fn pay(State(shop): State<Shop>, body: String) -> (StatusCode, String) {
    shop.runs.fetch_add(1, Ordering::SeqCst);
    (StatusCode::CREATED, body)
}

/// The first try gets no response, the second one is to come again, and the third one gets through.
async fn twice_lost(State(tries): State<Arc<AtomicUsize>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match tries.fetch_add(1, Ordering::SeqCst) % 3 {
        0 => panic!("the connection breaks"),
        1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3")]).into_response(),
        _ => response,
    }
}

/// Runs a program that prints the pauses that it would make, and what it read.
async fn printed(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(support::LONG, command.output()).await.expect("the client ends");
    let output = output.unwrap_or_else(|error| panic!("install {program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs the page's lines for curl, with more options, and returns what they print.
async fn curl_of_the_guide(served: &TestServer, options: &str) -> String {
    let payment = format!("payment-{}-{}.json", std::process::id(), served.address.port());
    let payment = Path::new(env!("CARGO_TARGET_TMPDIR")).join(payment);
    std::fs::write(&payment, r#"{"amount":5}"#).unwrap();
    let command = code("sh").replace("payment.json", payment.to_str().unwrap()).replace("$(uuidgen)", "a");
    let command = command.replace("https://api.example.com/payments", &format!("http://{}/", served.address));
    let command = command.replace("curl ", &format!("curl -q --noproxy '*' -sS {options} "));
    let read = printed("sh", &["-c", &command]).await;
    std::fs::remove_file(payment).unwrap();
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_the_guide_repeat_the_same_request_until_they_get_its_response() {
    let (shop, tries) = (Shop::default(), Arc::new(AtomicUsize::new(0)));
    let lost = from_fn_with_state(Arc::clone(&tries), twice_lost);
    let served = TestServer::new(Router::new().route("/", post(pay)).with_state(shop.clone()).layer(lost)).await;
    let url = format!("http://{}/", served.address);

    let python = format!(
        "{}\nimport sys\npauses = []\ntime.sleep = pauses.append\nresponse = pay(sys.argv[1], {{'amount': 5}})\n\
         print(*pauses, response.status, response.headers['Idempotent-Replayed'], response.read().decode())",
        code("python")
    );
    assert_eq!(printed("python3", &["-c", &python, &url]).await, r#"1 3 201 true {"amount": 5}"#);

    // Node 20 reads no types.
    let untyped = code("ts").replace(": string", "").replace(": object", "").replace(": Promise<Response>", "");
    let script = format!(
        "(() => {{ const pauses = [];\nconst setTimeout = (go, pause) => {{ pauses.push(pause / 1000); go(); }};\n{untyped}\n\
         pay(process.argv[1], {{ amount: 5 }}).then(async response => console.log(...pauses, response.status, \
         response.headers.get('idempotent-replayed'), await response.text())); }})();"
    );
    assert_eq!(printed("node", &["-e", &script, &url]).await, r#"1 3 201 true {"amount":5}"#);

    assert_eq!(curl_of_the_guide(&served, "").await, r#"{"amount":5}"#);

    assert_eq!((shop.runs.load(Ordering::SeqCst), tries.load(Ordering::SeqCst)), (3, 9));
}

/// Counts the refusals, and lets the handler end after the first one.
async fn end_once_refused(State(shop): State<Shop>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::CONFLICT {
        shop.runs.fetch_add(1, Ordering::SeqCst);
        shop.may_end.notify_one();
    }
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_repeats_after_a_409_if_it_is_told_to_fail() {
    let shop = Shop::default();
    let ends = from_fn_with_state(shop.clone(), end_once_refused);
    let served = TestServer::new(Router::new().route("/", post(waits)).with_state(shop.clone()).layer(ends)).await;
    let mut first = served.connect().await;
    let request = b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: a\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut first, request).await.unwrap();
    shop.started.notified().await;

    let options = "--fail -w '%{http_code} %header{idempotent-replayed}'";
    assert_eq!(curl_of_the_guide(&served, options).await, "200 true");
    assert!(shop.runs.load(Ordering::SeqCst) > 0, "it was refused first");
}
