//! The built-in network.
