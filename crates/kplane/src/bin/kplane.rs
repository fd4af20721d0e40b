//! The kplane command.
fn main() {}
