//! Tests that cross crates, and what they share with the examples beside them.

pub mod faults;
