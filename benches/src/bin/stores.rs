//! `scripts/bench-stores` runs this.

fn main() -> std::process::ExitCode {
    idem_benches::cli::told(idem_benches::stores::cli::main())
}
