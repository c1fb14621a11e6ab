//! `scripts/bench-stores` runs this.

fn main() -> Result<(), idem_benches::Failure> {
    idem_store_benches::cli::main()
}
