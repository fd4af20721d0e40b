//! The webhooks and policies that are registered now, compiled.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use kstore::{Range, Revision, Snapshot};
use serde_json::Value;

use super::{
    matching::GROUP,
    policy::{Binding, Policy},
    webhook::Webhook,
};
use crate::{
    objects::{Objects, stored},
    registry::Resource,
};

/// A policy with the bindings that bring it to bear.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) policy: Arc<Policy>,
    pub(crate) bindings: Vec<Arc<Binding>>,
}

/// Everything that is asked, in the order in which it is asked.
#[derive(Debug, Default)]
pub(crate) struct Current {
    pub(crate) validating_policies: Vec<Bound>,
    pub(crate) mutating_policies: Vec<Bound>,
    pub(crate) validating_webhooks: Vec<Arc<Webhook>>,
    pub(crate) mutating_webhooks: Vec<Arc<Webhook>>,
}

impl Current {
    /// Whether anything may be asked about objects of this resource.
    fn concerns(&self, resource: &Resource) -> bool {
        let policies = self.validating_policies.iter().chain(&self.mutating_policies);
        let hooks = self.validating_webhooks.iter().chain(&self.mutating_webhooks);
        policies.map(|bound| &bound.policy.constraints).any(|constraints| constraints.concerns(resource))
            || hooks.map(|hook| &hook.constraints).any(|constraints| constraints.concerns(resource))
    }
}

/// What is made of one object, kept as long as the object stays as it is.
type Made<T> = BTreeMap<String, (u64, T)>;

#[derive(Default)]
struct State {
    revisions: [Revision; 6],
    policies: [Made<Arc<Policy>>; 2],
    bindings: [Made<Arc<Binding>>; 2],
    hooks: [Made<Vec<Arc<Webhook>>>; 2],
}

/// Follows the objects that register webhooks and policies. Before each use it is looked whether something has been committed
/// since the last one (an atomic load), and if so whether to one of the six tables; what has changed is compiled, once per
/// revision of an object. So what has just been registered counts for the next request.
pub(crate) struct Registered {
    resources: [Option<Arc<Resource>>; 6],
    seen: AtomicU64,
    state: Mutex<State>,
    current: ArcSwap<Current>,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("current", &self.current.load()).finish_non_exhaustive()
    }
}

const PLURALS: [&str; 6] = [
    "validatingadmissionpolicies",
    "mutatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
];

impl Registered {
    pub(crate) fn new(objects: &Objects) -> Self {
        Self {
            resources: PLURALS.map(|plural| objects.registry().find(GROUP, "v1", plural)),
            seen: AtomicU64::new(0),
            state: Mutex::default(),
            current: ArcSwap::default(),
        }
    }

    /// What is registered now.
    pub(crate) fn current(&self, objects: &Objects) -> Arc<Current> {
        self.sync(objects);
        self.current.load_full()
    }

    /// Whether this holds of what is registered now.
    pub(crate) fn any(&self, objects: &Objects, holds: impl Fn(&Current) -> bool) -> bool {
        self.sync(objects);
        holds(&self.current.load())
    }

    /// Whether anything may be asked about objects of this resource.
    pub(crate) fn concerns(&self, objects: &Objects, resource: &Resource) -> bool {
        self.sync(objects);
        self.current.load().concerns(resource)
    }

    fn sync(&self, objects: &Objects) {
        let snapshot = objects.snapshot();
        let revision = snapshot.revision().get();
        if self.seen.load(Ordering::Acquire) >= revision {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for (index, resource) in self.resources.iter().enumerate() {
            let Some(resource) = resource else { continue };
            let newest = snapshot.table_revision(resource.table);
            if newest > state.revisions[index] {
                state.follow(index, resource, &snapshot);
                state.revisions[index] = newest;
                changed = true;
            }
        }
        if changed {
            self.current.store(Arc::new(state.current()));
        }
        self.seen.fetch_max(revision, Ordering::AcqRel);
    }
}

/// Makes anew what has changed of a table.
fn renew<T: Clone>(made: &mut Made<T>, resource: &Resource, snapshot: &Snapshot, make: impl Fn(&Value) -> T) {
    let mut now = Made::new();
    for entry in snapshot.range(resource.table, Range::all()) {
        let object = stored(&resource.def, &entry);
        let name = object.header().name.to_string();
        let kept = made.remove(&name).filter(|(revision, _)| *revision == object.revision());
        // What can't be read registers nothing.
        let kept = kept.or_else(|| Some((object.revision(), make(&object.value().ok()?))));
        now.extend(kept.map(|kept| (name, kept)));
    }
    *made = now;
}

impl State {
    fn follow(&mut self, index: usize, resource: &Resource, snapshot: &Snapshot) {
        let which = index % 2;
        match index / 2 {
            0 => renew(&mut self.policies[which], resource, snapshot, |object| Arc::new(Policy::new(object))),
            1 => {
                renew(&mut self.bindings[which], resource, snapshot, |object| Arc::new(Binding::new(object)))
            }
            _ => renew(&mut self.hooks[which], resource, snapshot, Webhook::all),
        }
    }

    fn current(&self) -> Current {
        let bound = |which: usize| {
            let policies = self.policies[which].iter().map(|(name, (_, policy))| {
                let bindings = self.bindings[which].values().map(|(_, binding)| binding);
                let bindings = bindings.filter(|binding| binding.policy == *name).cloned().collect();
                Bound { policy: Arc::clone(policy), bindings }
            });
            policies.filter(|bound| !bound.bindings.is_empty()).collect::<Vec<_>>()
        };
        let hooks =
            |which: usize| self.hooks[which].values().flat_map(|(_, hooks)| hooks.iter().cloned()).collect();
        Current {
            validating_policies: bound(0),
            mutating_policies: bound(1),
            validating_webhooks: hooks(0),
            mutating_webhooks: hooks(1),
        }
    }
}
