//! The README as a new user follows it: a crate that knows nothing of this workspace, with the README's dependencies and its
//! code, and the README's `curl` lines against the server that comes of it.
#![cfg(unix)]

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::Duration;

const README: &str = include_str!("../../README.md");
/// Where the README's server listens. The test takes a free port instead, and that is all it changes.
const ADDRESS: &str = "127.0.0.1:3000";

/// A fenced block: the words after the fence, and the lines.
struct Block {
    info: &'static str,
    text: &'static str,
}

fn blocks(text: &'static str) -> Vec<Block> {
    // Text and fenced blocks take turns.
    let mut pieces = text.split("```").skip(1);
    let mut blocks = Vec::new();
    while let Some(block) = pieces.next() {
        let (info, text) = block.split_once('\n').unwrap();
        blocks.push(Block { info, text });
        pieces.next();
    }
    blocks
}

/// The manifest of a user: the README's lines, and `idem-axum` as the comment beside it says.
fn manifest() -> String {
    let workspace = root().display().to_string();
    let lines: String = blocks(README).iter().filter(|block| block.info == "toml").map(|block| block.text).collect();
    let from_clone = |line: &str| match line.strip_prefix("idem-axum = \"0.1\" # until the first release: ") {
        Some(dependency) => {
            format!("idem-axum = {}\n", dependency.replace("<your clone of this repository>", &workspace))
        }
        None => format!("{line}\n"),
    };
    let dependencies: String = lines.lines().map(from_clone).collect();
    assert!(dependencies.contains(&workspace), "README.md does not say how to depend on a clone:\n{lines}");
    package("new-user", &dependencies)
}

/// A manifest. The last table makes it a workspace, as it would be outside this folder.
fn package(name: &str, dependencies: &str) -> String {
    let package = format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"");
    format!("{package}\n\n{dependencies}\n[lints.rust]\nwarnings = \"deny\"\n\n[workspace]\n")
}

/// The crate, with the README's server.
fn write_crate(folder: &Path, address: &str) {
    // What an earlier version of this test wrote is no part of the crate.
    let _ = fs::remove_dir_all(folder.join("src"));
    fs::create_dir_all(folder.join("src")).unwrap();
    write(&folder.join("Cargo.toml"), &manifest());
    let servers: Vec<_> = blocks(README).into_iter().filter(|block| block.info.starts_with("rust,no_run")).collect();
    let [Block { text, .. }] = servers[..] else {
        panic!("README.md shows one program, and it shows {}", servers.len())
    };
    assert!(text.contains(ADDRESS), "the server is at the address of the `curl` lines");
    write(&folder.join("src/main.rs"), &text.replace(ADDRESS, address));
}

/// Writes only what is new, so that nothing is built again without need.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return;
    }
    fs::write(path, text).unwrap();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The target folder of the workspace. The crates here are built in it too, so that a dependency is built once if all of them use
/// the same features of it.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// How the workspace builds some dependencies: otherwise they, and all that depends on them, would be built again.
const OPTIMIZED: [(&str, u8); 3] = [("sha2", 3), ("tokio", 1), ("hyper", 1)];

/// Without the network if what is needed is there: the versions are those of the workspace.
fn cargo(folder: &Path, arguments: &[&str]) -> Output {
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(folder).args(arguments).args(more);
        for (name, level) in OPTIMIZED {
            command.arg("--config").arg(format!("profile.dev.package.{name}.opt-level={level}"));
        }
        command.env("CARGO_TARGET_DIR", target()).env("CARGO_PROFILE_DEV_DEBUG", "0").output().unwrap()
    };
    let offline = run(&["--offline"]);
    if offline.status.success() { offline } else { run(&[]) }
}

/// The `curl` lines, each with what the README shows beneath it.
fn calls() -> Vec<(String, String)> {
    let text: String = blocks(README).iter().filter(|block| block.info == "console").map(|block| block.text).collect();
    let mut calls: Vec<(String, String)> = Vec::new();
    for step in text.split("$ ").filter(|step| step.starts_with("curl ")) {
        let mut lines = step.lines();
        let mut command = String::new();
        for line in lines.by_ref() {
            command.push_str(line.trim_end_matches('\\'));
            if !line.ends_with('\\') {
                break;
            }
        }
        calls.push((command, lines.collect::<Vec<_>>().join("\n")));
    }
    calls
}

struct Server(Child);

impl Server {
    fn start(program: &Path, address: &str) -> Self {
        let mut server = Self(Command::new(program).spawn().unwrap());
        loop {
            match TcpStream::connect(address) {
                Ok(_) => return server,
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}"),
            }
            // It prints nothing, so there is nothing to wait for but its port.
            assert!(server.0.try_wait().unwrap().is_none(), "the server ended before it listened");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Presses ctrl-c.
    fn stop(mut self) {
        let kill = format!("kill -INT {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// If a test fails half-way, no server is left.
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn curl(line: &str) -> String {
    let line = line.replacen("curl ", "curl -sS ", 1);
    let output = Command::new("sh").args(["-c", &line]).env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n").trim_end().to_owned()
}

#[test]
fn a_new_user_gets_what_the_readme_shows() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-user");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    write_crate(&folder, &address);
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let built = cargo(&folder, &["build"]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let calls = calls();
    assert!(calls.len() >= 2, "README.md has lost its `curl` lines");
    let server = Server::start(&target().join("debug/new-user"), &address);
    for (line, shown) in calls {
        assert!(line.contains(ADDRESS), "{line}");
        assert_eq!(curl(&line.replace(ADDRESS, &address)), shown, "{line}");
    }
    server.stop();
}

/// The pages of the guide with code.
const PAGES: [(&str, &str); 15] = [
    ("apis", include_str!("../../idem-axum/src/guide/apis.md")),
    ("axum", include_str!("../../idem-axum/src/guide/axum.md")),
    ("clients", include_str!("../../idem-axum/src/guide/clients.md")),
    ("crashes", include_str!("../../idem-axum/src/guide/crashes.md")),
    ("exactly_once", include_str!("../../idem-axum/src/guide/exactly_once.md")),
    ("fingerprints", include_str!("../../idem-axum/src/guide/fingerprints.md")),
    ("jobs", include_str!("../../idem-axum/src/guide/jobs.md")),
    ("layers", include_str!("../../idem-axum/src/guide/layers.md")),
    ("migrating", include_str!("../../idem-axum/src/guide/migrating.md")),
    ("operating", include_str!("../../idem-axum/src/guide/operating.md")),
    ("publishing", include_str!("../../idem-axum/src/guide/publishing.md")),
    ("recording", include_str!("../../idem-axum/src/guide/recording.md")),
    ("scopes", include_str!("../../idem-axum/src/guide/scopes.md")),
    ("stores", include_str!("../../idem-axum/src/guide/stores.md")),
    ("testing", include_str!("../../idem-axum/src/guide/testing.md")),
];

/// What a reader of the guide depends on, beside `idem-axum`.
const OF_THE_READER: &str = r#"
axum = "0.8"
axum-extra = { version = "0.12", features = ["typed-header", "typed-routing"] }
http-body-util = "0.1"
serde = { version = "1", features = ["derive"] }
serde_json = { version = "1", features = ["arbitrary_precision"] }
sqlx = { version = "0.9", default-features = false, features = ["postgres", "runtime-tokio"] }
tokio = { version = "1", features = ["full"] }
tower = { version = "0.5", features = ["util"] }
tower-http = { version = "0.6", features = ["catch-panic", "compression-gzip", "limit", "timeout"] }
tower-sessions = "0.14"
"#;

/// A block as a module with `main`, by the rules of rustdoc: a line after `# ` is hidden, and without `main` all of it is in one.
fn module(name: &str, text: &str) -> String {
    let shown = |line: &str| match line.trim_start() {
        "#" => String::new(),
        hidden if hidden.starts_with("# ") => hidden[2..].to_owned(),
        _ => line.to_owned(),
    };
    let code: String = text.lines().map(|line| shown(line) + "\n").collect();
    let code = if code.contains("fn main(") {
        code.replace("async fn main(", "pub async fn main(").replace("\nfn main(", "\npub fn main(")
    } else {
        format!("pub fn main() {{\n{code}\n}}")
    };
    format!("mod {name} {{\n{code}\n}}\n")
}

/// Fingerprints do not depend on a feature of `serde_json` that any crate of a build may enable, as this one does. Some of the
/// texts in the tests of `idem-axum/src/request/json.rs`, and of the values in those of `idem-runtime/src/functions/`.
const NUMBERS: &str = r##"
mod numbers {
    use axum::{Router, body::Body, http::Request, routing::post};
    use idem_axum::{Idempotency, IdempotencyLayer, RefusalReason, idempotent};
    use tower::ServiceExt;

    #[idempotent(fingerprint = json)]
    async fn whole() {}
    #[idempotent(fingerprint = json("/a"))]
    async fn part() {}

    #[tokio::main(flavor = "current_thread")]
    pub async fn main() {
        let idempotency = Idempotency::in_memory();
        let routes = Router::new().route("/whole", post(whole)).route("/part", post(part));
        let app: Router = routes.layer(IdempotencyLayer::new(idempotency.clone()));
        let status = async |path: &str, key: &str, body: &str| {
            let request = Request::post(path).header("Idempotency-Key", key).body(Body::from(body.to_owned())).unwrap();
            app.clone().oneshot(request).await.unwrap().status()
        };
        for path in ["/whole", "/part"] {
            for (body, expected) in [("5", 200), ("5.0", 200), ("5e0", 200), ("6", 422), ("\"5\"", 422)] {
                let body = format!("{{\"a\": {body}}}");
                assert_eq!(status(path, path, &body).await, expected, "{path} {body}");
            }
        }
        // These have a canonical form, so their spelling does not count.
        for (key, [text, other]) in [
            ["10.00000000000000000000", "10"],
            ["0e-400", "-0.0"],
            ["[1E5, 2.5e-3]", "[100000, 0.0025]"],
            ["123456789.012345", "123456789.0123450"],
        ].into_iter().enumerate() {
            for body in [text, other] {
                assert_eq!(status("/whole", &format!("same-{key}"), body).await, 200, "{body}");
            }
        }
        // Readers disagree on these, so each byte counts.
        for (key, text) in [
            "9007199254740992",
            "9007199254740993.0",
            "123456789012345678901234567890",
            "1e400",
            "3.141592653589793238462643383279",
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"$serde_json::private::Number":1}"#,
            r#"[{"\u0024serde_json::private::Number":"1"},2]"#,
            r#"[{"a":1,"$serde_json::private::Number":"1"},2]"#,
        ].into_iter().enumerate() {
            let key = format!("bytes-{key}");
            for (body, expected) in [(text.to_owned(), 200), (text.to_owned(), 200), (format!("{text} "), 422)] {
                assert_eq!(status("/whole", &key, &body).await, expected, "{body}");
            }
        }
        let once = async |key: &str, value: serde_json::Value| {
            let run = async || Ok::<_, RefusalReason>(());
            idempotency.once("numbers", key).fingerprint(&value).run(run).await.is_ok()
        };
        let pairs: [(&str, [serde_json::Value; 2], bool); 6] = [
            ("integer", [9_007_199_254_740_993_u64.into(), 9_007_199_254_740_992_u64.into()], false),
            ("largest", [u64::MAX.into(), (u64::MAX - 1).into()], false),
            ("smallest", [i64::MIN.into(), (i64::MIN + 1).into()], false),
            ("text", [(1_u64 << 53).into(), (1_u64 << 53).to_string().into()], true),
            ("no text", [((1_u64 << 53) - 1).into(), ((1_u64 << 53) - 1).to_string().into()], false),
            ("fraction", [10.0.into(), 10.into()], true),
        ];
        for (key, [one, other], expected) in pairs {
            assert!(once(key, one.clone()).await && once(key, one).await, "{key}");
            assert_eq!(once(key, other).await, expected, "{key}");
        }
        let wide = idempotency.once("numbers", "wide").fingerprint(&u128::MAX);
        let refused = wide.run(async || Ok::<_, RefusalReason>(())).await;
        assert!(matches!(refused, Err(RefusalReason::FingerprintFailed(_))), "{refused:?}");
    }
}
"##;

const ENDED_WELL: &str = "fn ended_well(ended: impl std::process::Termination) {
    assert_eq!(format!(\"{:?}\", ended.report()), format!(\"{:?}\", std::process::ExitCode::SUCCESS));
}";

#[test]
fn a_reader_runs_the_code_of_the_guide_in_a_new_crate() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reader");
    fs::create_dir_all(folder.join("src")).unwrap();
    let idem = format!(
        "idem-axum = {{ path = {:?}, features = [\"cached\"] }}\nidem-sqlx = {{ path = {:?}, features = [\"axum\", \"postgres\"] }}",
        root().join("idem-axum"),
        root().join("idem-sqlx"),
    );
    write(&folder.join("Cargo.toml"), &package("reader", &format!("[dependencies]\n{idem}{OF_THE_READER}")));
    let (mut modules, mut calls) = (NUMBERS.to_owned(), "    numbers::main();\n".to_owned());
    for (page, text) in PAGES {
        let code = blocks(text).into_iter().filter(|block| block.info == "rust");
        for (number, block) in code.enumerate() {
            let name = format!("{page}_{number}");
            modules.push_str(&module(&name, block.text));
            calls.push_str(&format!("    ended_well({name}::main());\n"));
        }
        assert!(modules.contains(&format!("mod {page}_0 ")), "{page} has no code");
    }
    let program = format!("#![allow(unused)]\n{modules}{ENDED_WELL}\nfn main() {{\n{calls}}}\n");
    write(&folder.join("src/main.rs"), &program);
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let ran = cargo(&folder, &["run"]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// The targets of the links in a file of Markdown.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Whether a heading of a page has this anchor, as rustdoc makes it.
fn has_anchor(page: &str, anchor: &str) -> bool {
    let of = |heading: &str| {
        let letters = heading.to_lowercase().replace(' ', "-");
        letters.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect::<String>()
    };
    page.lines().any(|line| line.starts_with('#') && of(line.trim_start_matches('#').trim()) == anchor)
}

#[test]
fn every_link_of_the_readme_leads_somewhere() {
    let (mut pages, mut files) = (0, 0);
    for link in links(README) {
        let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
        if let Some(page) = target.strip_prefix("https://docs.rs/idem-axum/latest/idem_axum/guide/") {
            let Some(name) = page.strip_suffix('/') else { continue };
            let text = fs::read_to_string(root().join(format!("idem-axum/src/guide/{name}.md")));
            let text = text.unwrap_or_else(|error| panic!("{link}: {error}"));
            assert!(anchor.is_empty() || has_anchor(&text, anchor), "{link}");
            pages += 1;
        } else if !target.starts_with("https://") {
            assert!(root().join(target).exists(), "{link}");
            files += 1;
        }
    }
    // The registry shows these without the files beside them.
    for store in ["idem-redis", "idem-sqlx"] {
        let text = fs::read_to_string(root().join(store).join("README.md")).unwrap();
        assert!(links(&text).all(|link| link.starts_with("https://")), "{store}/README.md has a relative link");
    }
    assert!(pages > 5 && files > 3, "{pages} pages of the guide, {files} files");
}

#[test]
fn the_list_of_examples_has_each_with_its_feature() {
    let list = fs::read_to_string(root().join("examples/README.md")).unwrap();
    let row = |name: &str| list.lines().find(|line| line.split(['`', ' ']).any(|word| word == name));
    let manifest = fs::read_to_string(root().join("examples/Cargo.toml")).unwrap();
    let examples: Vec<_> = manifest.split("[[example]]\n").skip(1).collect();
    for example in &examples {
        let value = |key| example.lines().find_map(|line| line.strip_prefix(key));
        let name = value("name = ").unwrap().trim_matches('"');
        let row = row(name).unwrap_or_else(|| panic!("examples/README.md lacks {name}"));
        if let Some(feature) = value("required-features = ") {
            let flag = format!("--features {}", feature.trim_matches(['[', ']', '"']));
            assert!(row.contains(&flag), "{row} lacks {flag}");
        }
    }
    assert!(examples.len() > 10, "{manifest}");
    assert!(links(&list).all(|link| root().join("examples").join(link).exists()), "{list}");
}
