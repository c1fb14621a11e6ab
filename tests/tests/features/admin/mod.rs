//! The page for support, black box over the router: what it finds, what it changes, whom it refuses, and what it writes down.
//! What it is like to use is tested in a browser, in `examples/tests/admin.rs`.

mod audits;
mod changes;
mod guard;
mod scopes;
mod shown;
mod stores;
mod support_page;
