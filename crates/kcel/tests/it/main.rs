//! Behaviour as tables: expression to value, message or cost. Each table names the public source of what it expects.

mod authorization;
mod costs;
mod data;
mod devices;
mod errors;
mod language;
mod libraries;
mod mutation;
mod policy;
mod properties;
