//! The runtimes as their users see them.

mod process;
mod simulated;
