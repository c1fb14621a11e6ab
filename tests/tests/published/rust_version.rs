//! The oldest Rust that a crate names is one that its dependencies are content with, too.
//!
//! That the crates themselves are is checked only as far as clippy knows: its lint `incompatible_msrv` finds what the standard
//! library did not have yet, and nothing finds syntax that an older compiler does not take. For that, build with it.

use std::collections::{BTreeMap, BTreeSet};

use super::{CRATES, metadata};
use serde_json::Value;

type Version = (u32, u32);

fn version(package: &Value) -> Option<Version> {
    let mut parts = package["rust_version"].as_str()?.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn no_dependency_needs_a_newer_rust_than_the_crate_says() {
    let metadata = metadata();
    let packages: BTreeMap<_, _> =
        list(&metadata, "packages").iter().map(|package| (text(package, "id"), package)).collect();
    let nodes: BTreeMap<_, _> =
        list(&metadata["resolve"], "nodes").iter().map(|node| (text(node, "id"), node)).collect();
    let mut too_new = Vec::new();
    for name in CRATES {
        let (&id, package) = packages.iter().find(|(_, package)| package["name"] == name).unwrap();
        let ours = version(package).unwrap_or_else(|| panic!("{name} does not say which Rust it needs"));
        let (mut seen, mut next) = (BTreeSet::new(), vec![id]);
        while let Some(id) = next.pop() {
            if !seen.insert(id) {
                continue;
            }
            let package = packages[id];
            if version(package).is_some_and(|theirs| theirs > ours) {
                too_new.push(format!(
                    "{name} ({ours:?}): {} {}, {}",
                    package["name"], package["version"], package["rust_version"]
                ));
            }
            let is_built = |dependency: &&Value| list(dependency, "dep_kinds").iter().any(|kind| kind["kind"] != "dev");
            next.extend(list(nodes[id], "deps").iter().filter(is_built).map(|dependency| text(dependency, "pkg")));
        }
        assert!(name == "idem-macros" || seen.len() > 10, "{name} has dependencies: {seen:?}");
    }
    assert!(too_new.is_empty(), "dependencies that need a newer Rust:\n{}", too_new.join("\n"));
}
