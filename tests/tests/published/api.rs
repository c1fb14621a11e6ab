//! The public API of each crate, as it was last agreed to, and the crates whose types are part of it.

use std::collections::BTreeSet;
use std::fs;

use super::{CRATES, described, snapshot};

/// Documentation alone, which is there for rustdoc alone, and a suite that says of itself that it is not stable.
const NOT_PROMISED: [&str; 2] = ["idem_axum::guide", "idem_runtime::conformance::"];

/// A line that goes or changes breaks a user's build, once the crates are published: it takes a new version. A line that
/// comes is a promise. After a change that is meant: `BLESS=1 cargo test -p idem-tests --test published`, then read the diff.
///
/// On one toolchain only: rustdoc's JSON and what it says of the standard library change between versions.
#[rustversion::attr(not(stable(1.95)), ignore = "blessed on another toolchain")]
#[test]
fn the_public_api_is_what_was_agreed_to() {
    let folder = described();
    let mut changes = String::new();
    for name in CRATES {
        let json = folder.join(name.replace('-', "_")).with_extension("json");
        let api = public_api::Builder::from_rustdoc_json(json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .build()
            .unwrap();
        let lines = api.items().map(|item| format!("{item}\n"));
        let now: String = lines.filter(|line| !NOT_PROMISED.iter().any(|name| line.contains(name))).collect();
        let path = snapshot(name);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, now).unwrap();
            continue;
        }
        let agreed = fs::read_to_string(&path).unwrap_or_default();
        let set = |text: &'_ str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let (before, after) = (set(&agreed), set(&now));
        changes.extend(before.difference(&after).map(|line| format!("{name} - {line}\n")));
        changes.extend(after.difference(&before).map(|line| format!("{name} + {line}\n")));
    }
    assert!(
        changes.is_empty(),
        "the public API has changed:\n\n{changes}\nIf that is meant, write it down and read the difference:\n    \
         BLESS=1 cargo test -p idem-tests --test published\n"
    );
}

/// A type of another crate in a signature ties our version to that crate's: its next major version is one of ours as well.
#[test]
fn the_public_api_has_types_of_no_other_crates_than_these() {
    let allowed: [(&str, &[&str]); 6] = [
        ("idem-admin", &["axum", "http", "idem_runtime"]),
        ("idem-axum", &["axum", "axum_core", "http", "tower_layer", "tower_service", "idem_runtime", "utoipa"]),
        ("idem-macros", &[]),
        ("idem-redis", &["bytes", "redis", "idem_runtime"]),
        // `once` takes and returns values that serde reads and writes.
        ("idem-runtime", &["bytes", "serde_core"]),
        (
            "idem-sqlx",
            &["axum_core", "bytes", "http", "idem_runtime", "serde_core", "sqlx_core", "sqlx_postgres", "sqlx_sqlite"],
        ),
    ];
    for (name, allowed) in allowed {
        let api = fs::read_to_string(snapshot(name)).unwrap();
        let own = name.replace('-', "_");
        let known = |root: &str| root == own || ["alloc", "core", "std", "proc_macro"].contains(&root);
        let found: BTreeSet<&str> = roots(&api).filter(|root| !known(root)).collect();
        assert_eq!(found, allowed.iter().copied().collect(), "crates whose types are in the public API of {name}");
    }
}

/// The crates at the beginning of the paths in `api`.
fn roots(api: &str) -> impl Iterator<Item = &str> {
    let part = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let paths = api.split(move |character| !part(character));
    let root = |path: &'_ str| path.split_once("::").map_or(0, |(root, _)| root.len());
    paths.map(move |path| &path[..root(path)]).filter(|root| root.starts_with(|first: char| first.is_ascii_lowercase()))
}

#[test]
fn a_crate_is_found_wherever_its_path_is() {
    let api = "pub fn a::f(&self, b::C<d::E<'_>>) -> <S as g::H>::I where T: S::J + std::k";
    assert_eq!(roots(api).collect::<Vec<_>>(), ["a", "b", "d", "g", "std"]);
}
