//! The runtimes as their users see them.

mod agent;
mod fake;
mod process;
mod serve;
mod simulated;
mod spdy;
