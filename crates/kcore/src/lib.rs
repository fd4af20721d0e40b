//! The vocabulary that kplane's crates share: what an object's header is, how a selector matches, what an error
//! looks like, where the time comes from, and how a watch is handed over inside one process.
//!
//! A newcomer starts at [`object::Stored`], the form in which an object travels between the API server and everything
//! that reads it. This crate does no I/O, spawns nothing, and knows neither a store nor HTTP.
//!
//! ```
//! use kcore::{Quantity, selector::LabelSelector};
//!
//! let selector = LabelSelector::parse("app in (web, api), !canary")?;
//! assert!(selector.matches_pairs([("app", "web")]));
//! assert_eq!(Quantity::parse("1500m")?.milli(), 1500);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod clock;
pub mod cron;
pub mod json;
pub mod kind;
pub mod local;
pub mod object;
pub mod pattern;
pub mod quantity;
pub mod quote;
pub mod selector;
pub mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use clock::{Clock, SystemClock, TokioClock};
pub use kind::{Gvk, Gvr};
pub use object::{Header, Labels, OwnerRef, Stored};
pub use quantity::Quantity;
pub use status::Status;
