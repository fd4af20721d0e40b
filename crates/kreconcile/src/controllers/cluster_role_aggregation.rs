//! ClusterRoles whose rules are those of others.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::{
    controller::Controller,
    controllers::{Context, pod_state::label_selector},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

const NAME: &str = "clusterrole-aggregation-controller";

/// The controller `clusterrole-aggregation-controller`: gives each ClusterRole with an `aggregationRule` the rules of the
/// roles that its selectors match, by server-side apply, so that the rules are its own field.
pub fn cluster_role_aggregation(context: &Context) -> Controller {
    let roles = context.informers().of::<ClusterRole>(Selection::all());
    let reconciler = Aggregation {
        resource: ResourceType::of::<ClusterRole>(),
        written: Expectations::new(roles.lister().clone()),
        requests: context.requests(NAME),
        roles: roles.clone(),
    };
    // There are few roles, and any of them may matter to any other.
    let all = roles.clone();
    let aggregated = MapTo::Keys(Arc::new(move |_, keys| {
        let wanted = all.list().into_iter().filter(|role| role.aggregation_rule.is_some());
        keys.extend(wanted.filter_map(|role| role.metadata.name.as_deref().map(ObjectKey::cluster)));
    }));
    Controller::new(NAME, reconciler).on(Trigger::new(&roles, aggregated))
}

struct Aggregation {
    resource: ResourceType,
    roles: Informer<ClusterRole>,
    written: Expectations,
    requests: Requests,
}

#[async_trait]
impl Reconciler for Aggregation {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(role) = self.roles.get("", &key.name) else {
            self.written.forget(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let mut others = self.roles.list();
        others.sort_by(|one, two| one.metadata.name.cmp(&two.metadata.name));
        let Some(rules) = aggregate(&role, &others) else { return Ok(Action::Done) };
        let body = json!({
            "apiVersion": self.resource.api_version(),
            "kind": self.resource.kind,
            "metadata": {"name": &*key.name},
            "rules": rules,
        });
        let path = format!("{}?fieldManager={NAME}&force=true", self.resource.path("", &key.name));
        let written = self.requests.patch::<Written>(&path, PatchKind::Apply, &body).await?;
        self.written.wrote(key, written.revision());
        Ok(Action::Done)
    }
}

/// The rules that a role has to have, of all roles in the order of their names: selector by selector, each rule once.
/// `None` when it has them, or takes none.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in role.aggregation_rule.as_ref()?.cluster_role_selectors.iter().flatten() {
        let selector = label_selector(selector)?;
        let labels = |other: &ClusterRole| other.metadata.labels.clone().unwrap_or_default();
        let others = all.iter().filter(|other| other.metadata.name != role.metadata.name);
        let chosen = others.filter(|other| {
            selector.matches_pairs(labels(other).iter().map(|(key, value)| (&**key, &**value)))
        });
        for rule in chosen.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// A role with these labels, whose rules each allow one verb.
    fn role(name: &str, labels: Value, verbs: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> = verbs.iter().map(|verb| json!({"verbs": [verb]})).collect();
        let role = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        Arc::new(serde_json::from_value(role).unwrap())
    }

    /// The cases of upstream's `TestSyncClusterRole`, and more.
    #[test]
    fn rules_are_those_of_the_selected_roles() {
        let all = [
            role("a", json!({"foo": "bar"}), &["get", "list"]),
            role("b", json!({"foo": "bar", "x": "y"}), &["list", "watch"]),
            role("c", json!({"x": "y"}), &["delete"]),
            role("hammer", json!({"foo": "bar"}), &["never"]),
        ];
        let selectors = |list: &[(&str, &str)]| {
            let each = |(key, value): &(&str, &str)| json!({"matchLabels": {*key: *value}});
            json!({"clusterRoleSelectors": list.iter().map(each).collect::<Vec<_>>()})
        };
        let cases = [
            (Value::Null, vec!["own"], None),
            (selectors(&[("foo", "none")]), vec![], None),
            (selectors(&[("foo", "none")]), vec!["own"], Some(vec![])),
            (selectors(&[("foo", "bar")]), vec![], Some(vec!["get", "list", "watch"])),
            (selectors(&[("foo", "bar")]), vec!["get", "list", "watch"], None),
            (selectors(&[("foo", "bar")]), vec!["list", "get", "watch"], Some(vec!["get", "list", "watch"])),
            (selectors(&[("x", "y"), ("foo", "bar")]), vec![], Some(vec!["list", "watch", "delete", "get"])),
        ];
        for (rule, verbs, expected) in cases {
            let mut hammer = (*role("hammer", json!({"foo": "bar"}), &verbs)).clone();
            hammer.aggregation_rule = serde_json::from_value(rule.clone()).unwrap();
            let seen = aggregate(&hammer, &all);
            let verb = |rule: &PolicyRule| rule.verbs.join(",");
            let seen = seen.map(|rules| rules.iter().map(verb).collect::<Vec<_>>());
            let expected = expected.map(|verbs| verbs.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(seen, expected, "{rule} for {verbs:?}");
        }
    }
}
