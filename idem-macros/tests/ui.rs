//! What the attribute says about mistakes.
//!
//! After a change of messages: `TRYBUILD=overwrite cargo test -p idem-macros --test ui`, then read the diff.

/// On one toolchain only: the texts of the compiler itself change between versions.
#[rustversion::attr(not(stable(1.95)), ignore = "blessed on another toolchain")]
#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    // A case that passes would make trybuild compile one case after the other: those are in `accepted`.
    cases.compile_fail("tests/ui/*/*.rs");
}
