//! Set-up and checks: `cargo xtask <command>`.
fn main() {}
