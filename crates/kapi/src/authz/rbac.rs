//! Role-based access control (`rbac.authorization.k8s.io`): what roles allow to whom they are bound. Nothing is denied; what no
//! rule allows is left to others.

mod covers;
mod policy;
mod rule;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use kstore::{Entry, EventKind, Range, Revision, Snapshot};
use serde_json::Value;

use self::policy::{Policy, Verbs, grant};
pub(crate) use self::{covers::compact, rule::Quoted};
pub use self::{
    covers::{PERMISSIONS_MAX, missing},
    rule::PolicyRule,
};
use super::{Authorizer, Reason, Rules, Verdict};
use crate::{authn::UserInfo, objects::Objects, registry::Resource, request::RequestInfo};

/// The group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// Allows what the roles in the store allow (upstream's `plugin/pkg/auth/authorizer/rbac`).
///
/// The roles and bindings are kept compiled and found by subject. Before each decision it is looked whether something has
/// been committed since the last one (an atomic load), and the events of the four tables are taken over: a role that has just
/// been made counts for the next request, and a write costs what it changes, not what there is.
pub struct Rbac {
    objects: Arc<Objects>,
    tables: Vec<Table>,
    /// The revision of the store up to which the tables have been looked at.
    seen: AtomicU64,
    state: RwLock<State>,
}

struct Table {
    resource: Arc<Resource>,
    holds: Holds,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Roles,
    Bindings,
}

#[derive(Default)]
struct State {
    policy: Policy,
    /// By the order of the tables, the revision up to which each has been taken over.
    revisions: Vec<Revision>,
}

impl fmt::Debug for Rbac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rbac").finish_non_exhaustive()
    }
}

impl Rbac {
    /// An authorizer by the roles among these objects.
    #[must_use]
    pub fn new(objects: Arc<Objects>) -> Self {
        let kinds = [
            ("clusterroles", Holds::Roles),
            ("roles", Holds::Roles),
            ("clusterrolebindings", Holds::Bindings),
            ("rolebindings", Holds::Bindings),
        ];
        let tables = kinds.into_iter().filter_map(|(plural, holds)| {
            Some(Table { resource: objects.registry().find(GROUP, "v1", plural)?, holds })
        });
        let tables: Vec<Table> = tables.collect();
        let revisions = vec![Revision::ZERO; tables.len()];
        let state = RwLock::new(State { policy: Policy::default(), revisions });
        Self { tables, seen: AtomicU64::new(0), state, objects }
    }

    /// Whether a rule allows this to the user, with the reason; what is missing is the reason of a refusal.
    pub fn decide(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        self.sync();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut missing = BTreeSet::new();
        let verb = Verbs::of(&request.verb);
        let allowed = state.policy.find(user, &request.namespace, |binding, role| match role {
            Ok(role) => role.allows(request, verb).then(|| grant(binding, user)),
            Err(role) => {
                missing.insert(role.to_string());
                None
            }
        });
        match allowed {
            Some(grant) => Verdict::Allow(Reason::shown(Arc::new(grant))),
            None if missing.is_empty() => Verdict::NoOpinion(Reason::none()),
            None => Verdict::NoOpinion(format!("RBAC: {}", aggregate(&missing)).into()),
        }
    }

    /// All rules that hold for the user in a namespace (empty: for the cluster alone), and which roles could not be found.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.sync();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut rules = Vec::new();
        let mut missing = BTreeSet::new();
        let mut seen = Vec::new();
        let _: Option<()> = state.policy.find(user, namespace, |binding, found| {
            if !seen.contains(&Arc::as_ptr(binding)) {
                seen.push(Arc::as_ptr(binding));
                match found {
                    Ok(found) => rules.extend_from_slice(&found.rules),
                    Err(role) => _ = missing.insert(role.to_string()),
                }
            }
            None
        });
        let error = (!missing.is_empty()).then(|| aggregate(&missing));
        Rules { rules, incomplete: false, error }
    }

    /// The rules of a role that a binding in this namespace refers to; `None` if it is not there.
    pub(crate) fn role(&self, namespace: &str, kind: &str, name: &str) -> Option<Vec<PolicyRule>> {
        self.sync();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.policy.role(namespace, kind, name).ok().map(|role| role.rules.to_vec())
    }

    /// Takes over what has changed in the tables.
    fn sync(&self) {
        let snapshot = self.objects.snapshot();
        let revision = snapshot.revision().get();
        if self.seen.load(Ordering::Acquire) >= revision {
            return;
        }
        let behind = |revisions: &[Revision]| {
            let tables = self.tables.iter().zip(revisions);
            let mut newer = tables.map(|(table, at)| snapshot.table_revision(table.resource.table) > *at);
            newer.any(|newer| newer)
        };
        // Most writes are not of roles: then nobody waits for anybody.
        let current = !behind(&self.state.read().unwrap_or_else(PoisonError::into_inner).revisions);
        if !current {
            let state = &mut *self.state.write().unwrap_or_else(PoisonError::into_inner);
            for (table, at) in self.tables.iter().zip(&mut state.revisions) {
                let newest = snapshot.table_revision(table.resource.table);
                if newest > *at {
                    table.follow(&snapshot, *at, &mut state.policy);
                    *at = newest;
                }
            }
        }
        self.seen.fetch_max(revision, Ordering::AcqRel);
    }
}

impl Table {
    /// Brings the policy from the state at `after` to that of the snapshot.
    fn follow(&self, snapshot: &Snapshot, after: Revision, policy: &mut Policy) {
        let table = self.resource.table;
        let events = if after == Revision::ZERO { None } else { snapshot.events(table, after).ok() };
        if let Some(events) = events {
            for event in events {
                match event.kind {
                    EventKind::Put => self.put(&event.entry, policy),
                    EventKind::Delete => self.remove(event.entry.key(), policy),
                }
            }
            return;
        }
        // The past is gone, or was never read: everything is taken over anew.
        policy.clear(self.holds == Holds::Roles, self.resource.def.namespaced);
        for entry in snapshot.range(table, Range::all()) {
            self.put(&entry, policy);
        }
    }

    fn place<'k>(&self, key: &'k [u8]) -> (&'k str, &'k str) {
        let key = std::str::from_utf8(key).unwrap_or_default();
        if self.resource.def.namespaced { key.split_once('/').unwrap_or(("", key)) } else { ("", key) }
    }

    fn put(&self, entry: &Entry, policy: &mut Policy) {
        let (namespace, name) = self.place(entry.key());
        // What can't be read allows nothing.
        let object: Value = serde_json::from_slice(entry.value()).unwrap_or_default();
        match self.holds {
            Holds::Roles => policy.set_role(namespace, name, &object),
            Holds::Bindings => policy.set_binding(namespace, name, &object),
        }
    }

    fn remove(&self, key: &[u8], policy: &mut Policy) {
        let (namespace, name) = self.place(key);
        match self.holds {
            Holds::Roles => policy.remove_role(namespace, name),
            Holds::Bindings => policy.remove_binding(namespace, name),
        }
    }
}

/// Several errors as one text, as upstream's `NewAggregate`.
pub(crate) fn aggregate<'a>(errors: impl IntoIterator<Item = &'a String>) -> String {
    let errors: Vec<&str> = errors.into_iter().map(String::as_str).collect();
    if let [one] = errors[..] { one.to_owned() } else { format!("[{}]", errors.join(", ")) }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        self.decide(user, request)
    }

    async fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.rules_for(user, namespace)
    }
}
