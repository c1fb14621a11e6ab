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

fn blocks() -> Vec<Block> {
    // Text and fenced blocks take turns.
    let mut pieces = README.split("```").skip(1);
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
    let lines: String = blocks().iter().filter(|block| block.info == "toml").map(|block| block.text).collect();
    let from_clone = |line: &str| match line.strip_prefix("idem-axum = \"0.1\" # until the first release: ") {
        Some(dependency) => {
            format!("idem-axum = {}\n", dependency.replace("<your clone of this repository>", &workspace))
        }
        None => format!("{line}\n"),
    };
    let dependencies: String = lines.lines().map(from_clone).collect();
    assert!(dependencies.contains(&workspace), "README.md does not say how to depend on a clone:\n{lines}");
    // The last table makes it a workspace of its own, as it would be outside this folder.
    format!("[package]\nname = \"new-user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{dependencies}\n[workspace]\n")
}

/// The crate, with the README's server.
fn write_crate(folder: &Path, address: &str) {
    fs::create_dir_all(folder.join("src")).unwrap();
    write(&folder.join("Cargo.toml"), &manifest());
    let servers: Vec<_> = blocks().into_iter().filter(|block| block.info.starts_with("rust,no_run")).collect();
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

/// Without the network if what is needed is there: the versions are those of the workspace.
fn cargo(folder: &Path, arguments: &[&str]) -> Output {
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(folder).args(arguments).args(more);
        command.env("CARGO_TARGET_DIR", folder.join("target")).env("CARGO_PROFILE_DEV_DEBUG", "0");
        command.env("RUSTFLAGS", "-D warnings").output().unwrap()
    };
    let offline = run(&["--offline"]);
    if offline.status.success() { offline } else { run(&[]) }
}

/// The `curl` lines, each with what the README shows beneath it.
fn calls() -> Vec<(String, String)> {
    let text: String = blocks().iter().filter(|block| block.info == "console").map(|block| block.text).collect();
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
    let output = Command::new("sh").args(["-c", &format!("{line} -sS")]).env("NO_PROXY", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
    let timeless = |line: &str| if line.starts_with("date: ") { "date: ..".to_owned() } else { line.to_owned() };
    shown.lines().map(timeless).collect::<Vec<_>>().join("\n")
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
    let server = Server::start(&folder.join("target/debug/new-user"), &address);
    for (line, shown) in calls {
        assert!(line.contains(ADDRESS), "{line}");
        assert_eq!(curl(&line.replace(ADDRESS, &address)), shown, "{line}");
    }
    server.stop();
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
