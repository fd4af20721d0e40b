//! The framework and the built-in controllers against a small server in memory.

mod autoscaler;
mod controllers;
mod disruption;
mod fake;
mod informer;
mod leader;
mod lifetimes;
mod quota;
mod volumes;
