//! The table of what went wrong for others names tests that exist.

use std::fs;
use std::path::Path;

fn read(folder: &Path, files: &mut Vec<String>, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, files, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.file_name().expect("a name").to_string_lossy().into_owned());
            text.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_test_that_the_table_of_peers_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut sources) = (Vec::new(), String::new());
    for folder in [
        "tests",
        "../proofs",
        "../idem-runtime/src/engine",
        "../idem-runtime/src/memory",
        "../idem-runtime/src/conformance",
    ] {
        read(&root.join(folder), &mut files, &mut sources);
    }
    let table: Vec<_> = include_str!("../peers.md").lines().filter(|line| line.starts_with("| ")).collect();
    assert!(table.len() > 40, "{}", table.len());
    for line in table {
        let tests = line.rsplit('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2);
        for test in tests.filter(|test| !test.starts_with("idem-") && *test != "proofs") {
            let name = test.rsplit("::").next().unwrap_or_default();
            let known = match name {
                "*" => files.contains(&format!("{}.rs", test.trim_end_matches("::*"))),
                // A function, or the first word of a macro's line.
                _ => {
                    sources.contains(&format!("fn {name}("))
                        || sources.contains(&format!(" {name}: "))
                        || sources.contains(&format!("fn {name}<"))
                }
            };
            assert!(known, "there is no test {test}: {line}");
        }
    }
}
