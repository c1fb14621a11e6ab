//! The tables that lead to tests (`peers.md`, the guide's page `deployments`, and the one of promises in CONTRIBUTING) name what
//! exists.

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
        "../benches/tests",
        "../testkit",
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

#[test]
fn every_test_that_the_guide_of_deployments_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let mut tests = 0;
    for line in include_str!("../../idem-axum/src/guide/deployments.md").lines().filter(|line| line.starts_with("| ")) {
        for group in line.rsplit('|').nth(1).unwrap_or_default().split("; ") {
            let [file, tests_of_file @ ..] = &named(group)[..] else { continue };
            if !file.ends_with(".rs") {
                continue;
            }
            let sources = ["idem-redis/tests/store", "idem-redis/tests", "idem-sqlx/tests/store", ""]
                .map(|folder| fs::read_to_string(root.join(folder).join(file)));
            let source = sources.into_iter().flatten().next().unwrap_or_else(|| panic!("there is no {file}: {line}"));
            for test in tests_of_file {
                assert!(source.contains(test), "there is no test {test} in {file}: {line}");
                tests += 1;
            }
        }
    }
    assert!(tests > 10, "{tests}");
}

/// The paths in the table of promises in CONTRIBUTING, by the promise.
fn promises() -> Vec<(&'static str, Vec<&'static str>)> {
    let lines = include_str!("../../CONTRIBUTING.md").lines();
    let table = lines.skip_while(|line| !line.starts_with("| promise |")).skip(2);
    let rows = table.take_while(|line| line.starts_with("| "));
    let row = |line: &'static str| {
        let (promise, paths) = line.trim_start_matches("| ").split_once(" | ").unwrap_or_default();
        (promise, paths.split('`').skip(1).step_by(2).collect())
    };
    rows.map(row).collect()
}

#[test]
fn every_path_in_the_table_of_promises_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let promises = promises();
    assert_eq!(promises.len(), 8, "{promises:?}");
    for (promise, paths) in promises {
        assert!(paths.len() > 2, "without code, tests or proofs: {promise}");
        for path in paths {
            let found = root.join(path);
            assert!(
                if path.ends_with('/') { found.is_dir() } else { found.is_file() },
                "{promise}: there is no {path}"
            );
        }
    }
}

#[test]
fn every_guarantee_of_the_readme_has_its_folder_of_tests_in_the_table() {
    let guarantee = |line: &'static str| {
        let (number, text) = line.split_once(". **")?;
        let title = text.split_once(".**")?.0;
        number.parse::<usize>().ok().map(|number| format!("{number}. {title}"))
    };
    let guarantees: Vec<_> = include_str!("../../README.md").lines().filter_map(guarantee).collect();
    assert_eq!(guarantees.len(), 6, "{guarantees:?}");
    let promises = promises();
    let named: Vec<_> = promises.iter().map(|(promise, _)| *promise).take(6).collect();
    assert_eq!(named, guarantees);
    let folders =
        promises.iter().flat_map(|(_, paths)| paths).filter_map(|path| path.strip_prefix("tests/tests/promises/"));
    let mut named: Vec<_> = folders.map(|folder| folder.trim_end_matches('/').to_owned()).collect();
    let of_promises = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises");
    let folders = fs::read_dir(of_promises).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut folders: Vec<_> = folders
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    named.sort();
    folders.sort();
    assert_eq!(named, folders);
}

/// A file that no `mod` names is not compiled, and its tests never run.
#[test]
fn every_file_of_promises_and_features_is_a_module() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (folder, main) in [
        ("promises", include_str!("promises/main.rs")),
        ("features", include_str!("features/main.rs")),
        ("features/admin", include_str!("features/admin/mod.rs")),
    ] {
        let (mut files, mut text) = (Vec::new(), String::new());
        read(&tests.join(folder), &mut files, &mut text);
        for file in files {
            let module = file.trim_end_matches(".rs");
            let declared = main.contains(&format!("mod {module};")) || ["main", "mod"].contains(&module);
            let of_admin = folder == "features" && tests.join("features/admin").join(&file).exists();
            assert!(declared || of_admin, "{folder}/main.rs does not name {file}");
        }
    }
}

#[test]
fn every_text_of_an_event_in_the_guide_is_logged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut files, mut sources) = (Vec::new(), String::new());
    for folder in ["idem-admin", "idem-axum", "idem-redis", "idem-runtime", "idem-sqlx"] {
        read(&root.join(folder).join("src"), &mut files, &mut sources);
    }
    let table = include_str!("../../idem-axum/src/guide/observing.md").lines();
    let rows = table.filter(|line| line.starts_with("| `ERROR`") || line.starts_with("| `WARN`"));
    let code = rows.flat_map(|line| line.split('`').skip(1).step_by(2));
    let texts: Vec<_> = code.filter(|code| code.split(' ').count() > 4).collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    for text in texts {
        assert!(sources.contains(&format!("\"{text}\"")), "no event says `{text}`");
    }
}
