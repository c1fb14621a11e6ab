//! What the registry shows of each crate, and what is in its package.

use super::{CRATES, cargo, metadata};

#[test]
fn each_crate_can_be_found_and_has_its_licences_in_its_package() {
    let metadata = metadata();
    for name in CRATES {
        let package = metadata["packages"].as_array().unwrap().iter().find(|package| package["name"] == name).unwrap();
        assert!(package["description"].is_string() && package["license"].is_string(), "{name}");
        // The registry refuses a sixth.
        let keywords = package["keywords"].as_array().unwrap();
        assert!((1..=5).contains(&keywords.len()) && keywords[0] == "idempotency", "{name}: {keywords:?}");
        assert!(!package["categories"].as_array().unwrap().is_empty(), "{name}");
        let listed = cargo(&["package", "--list", "--allow-dirty", "--offline", "--package", name]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap();
        for file in ["LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"] {
            assert!(listed.lines().any(|line| line == file), "{name} has no {file}:\n{listed}");
        }
    }
}
