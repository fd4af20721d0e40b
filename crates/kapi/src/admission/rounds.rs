//! The second round: what changed an object may have to be asked again after others have changed it (KEP-1872, upstream's
//! `admission/reinvocation.go`).

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;

/// The rounds of the changing half of the chain for one object.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    wanted: AtomicBool,
    second: AtomicBool,
    pub(crate) policies: Asked,
    pub(crate) webhooks: Asked,
}

impl Rounds {
    /// Somebody has changed the object: those before are asked again.
    pub(crate) fn want_another(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether this is the second round.
    pub(crate) fn is_second(&self) -> bool {
        self.second.load(Ordering::Relaxed)
    }

    /// Begins the second round, if one is wanted and this was the first.
    pub(crate) fn begin_another(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && !self.second.swap(true, Ordering::Relaxed)
    }
}

/// Whom one step has asked, of those that want to be asked again.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    left: Option<Value>,
    before: HashSet<String>,
    again: HashSet<String>,
}

impl Asked {
    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a second round: if others have changed the object since, everybody before is asked again.
    pub(crate) fn begin_second(&self, object: &Value) {
        if self.state(|state| state.left.as_ref() != Some(object)) {
            self.changed();
        }
    }

    /// The object as this step leaves it.
    pub(crate) fn leave(&self, object: &Value) {
        self.state(|state| state.left = Some(object.clone()));
    }

    /// The object has been changed: those asked before are asked again.
    pub(crate) fn changed(&self) {
        self.state(|state| {
            let before = std::mem::take(&mut state.before);
            state.again.extend(before);
        });
    }

    /// Remembers one that wants to be asked again.
    pub(crate) fn remember(&self, key: String) {
        self.state(|state| state.before.insert(key));
    }

    /// Whether one is asked in the second round.
    pub(crate) fn is_due(&self, key: &str) -> bool {
        self.state(|state| state.again.contains(key))
    }
}
