//! The examples of `idem`. Run one from the root of the workspace: `cargo run --example orders`.
