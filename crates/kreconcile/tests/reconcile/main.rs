//! The framework and the built-in controllers against a small server in memory.

mod addresses;
mod attachments;
mod autoscaler;
mod controllers;
mod disruption;
mod fake;
mod informer;
mod leader;
mod lifetimes;
mod lost_answers;
mod migration;
mod quota;
mod volumes;
