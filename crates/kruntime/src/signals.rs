//! What a node has left: where [`eviction`](crate::eviction) gets its figures from.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use crate::eviction::{Figure, Signal};

#[cfg(target_os = "linux")]
mod machine;

#[cfg(target_os = "linux")]
pub use machine::MachineSignals;

/// Measures a node.
///
/// The agent asks every ten seconds, for each node that has
/// [`EvictionOptions`](crate::eviction::EvictionOptions), and never twice at once for one of them.
#[async_trait]
pub trait NodeSignals: Debug + Send + Sync + 'static {
    /// What is left now. A signal that is not measured is left out: nothing is said and done about it.
    async fn figures(&self) -> BTreeMap<Signal, Figure>;
}

const _: Option<&dyn NodeSignals> = None;

/// Figures that somebody sets: for simulated nodes and for tests. Without any, the node is short of nothing.
#[derive(Debug, Default)]
pub struct SetSignals {
    figures: Mutex<BTreeMap<Signal, Figure>>,
}

impl SetSignals {
    /// So much of `capacity` is left of it from now on.
    pub fn set(&self, signal: Signal, available: u64, capacity: u64) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.insert(signal, Figure { available, capacity });
    }

    /// Nothing is known of it any more.
    pub fn clear(&self, signal: Signal) {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).remove(&signal);
    }
}

#[async_trait]
impl NodeSignals for SetSignals {
    async fn figures(&self) -> BTreeMap<Signal, Figure> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
