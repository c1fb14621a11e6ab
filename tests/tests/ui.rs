//! What the attribute says about mistakes, and that what it should take compiles.
//!
//! After a change of messages: `TRYBUILD=overwrite cargo test -p idem-tests --test ui`, then read the diff.

/// On one toolchain only: the texts of the compiler itself change between versions.
#[rustversion::attr(not(stable(1.95)), ignore = "blessed on another toolchain")]
#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("ui/pass/*.rs");
    cases.compile_fail("ui/*.rs");
    cases.compile_fail("ui/[!p]*/*.rs");
}
