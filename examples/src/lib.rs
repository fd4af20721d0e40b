//! The examples are in `examples/`; `README.md` gives the order to read them in.

/// What the guide says runs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/write-a-scheduler.md")]
pub struct WriteAScheduler;

/// What the guide says runs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/what-if.md")]
pub struct WhatIf;
