//! Who owns the claims of a StatefulSet's pods (KEP-1847): the set, the pod or nobody, by the retention policy.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde_json::{Value, json};

use super::decide;

/// What happens to claims: `true` deletes them, `false` keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retention {
    pub(super) delete_when_set_goes: bool,
    pub(super) delete_when_scaled: bool,
}

impl Retention {
    pub(super) fn of(set: &StatefulSet) -> Self {
        let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
        Self {
            delete_when_set_goes: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            delete_when_scaled: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
}

/// Somebody who may own a claim.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: &'a ObjectMeta,
}

impl Candidate<'_> {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// By name and kind, whatever the uid.
    fn is_named_by(&self, owner: &OwnerReference) -> bool {
        owner.api_version == self.api_version
            && owner.kind == self.kind
            && Some(&owner.name) == self.metadata.name.as_ref()
    }

    fn is_stale_in(&self, owners: &[OwnerReference]) -> bool {
        let named = owners.iter().find(|owner| self.is_named_by(owner));
        named.is_some_and(|owner| owner.uid != self.uid())
    }

    fn owns(&self, owners: &[OwnerReference]) -> bool {
        owners.iter().any(|owner| owner.uid == self.uid())
    }

    fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_owned(),
            kind: self.kind.to_owned(),
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

fn owners_of(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

fn candidates<'a>(set: &'a StatefulSet, pod: &'a Pod) -> (Candidate<'a>, Candidate<'a>) {
    (
        Candidate { api_version: "apps/v1", kind: "StatefulSet", metadata: &set.metadata },
        Candidate { api_version: "v1", kind: "Pod", metadata: &pod.metadata },
    )
}

/// Whether somebody else manages the claim although the policy wants set or pod to.
pub(super) fn has_other_controller(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    if Retention::of(set) == Retention::default() {
        return false;
    }
    let (set, pod) = candidates(set, pod);
    owners_of(claim).iter().any(|owner| {
        if set.is_named_by(owner) {
            owner.uid != set.uid()
        } else if pod.is_named_by(owner) {
            owner.uid != pod.uid()
        } else {
            owner.controller == Some(true)
        }
    })
}

/// Whether a pod that is to be made would get a claim that is about to go with an earlier pod of its name.
pub(super) fn is_stale(claim: &PersistentVolumeClaim, pod_name: &str) -> bool {
    let named = owners_of(claim).iter();
    named.into_iter().any(|owner| owner.api_version == "v1" && owner.kind == "Pod" && owner.name == pod_name)
}

/// The owners that a claim should have; `None` when it has them, or must not be touched.
pub(super) fn owners_wanted(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
) -> Option<Vec<OwnerReference>> {
    let known = owners_of(claim);
    let (by_set, by_pod) = candidates(set, pod);
    if by_set.is_stale_in(known) || by_pod.is_stale_in(known) {
        return None;
    }
    let others = known.iter().filter(|owner| !by_set.is_named_by(owner) && !by_pod.is_named_by(owner));
    let mut owners: Vec<OwnerReference> = others.cloned().collect();
    let owned = by_set.owns(known) || by_pod.owns(known);
    if has_other_controller(claim, set, pod) {
        return owned.then_some(owners);
    }
    let retention = Retention::of(set);
    let in_range = decide::is_in_range(set, pod);
    let pod_owns = retention.delete_when_scaled && !in_range;
    let set_owns = retention.delete_when_set_goes && !pod_owns;
    let no_controller = known.iter().any(|owner| {
        (owner.uid == by_set.uid() || owner.uid == by_pod.uid()) && owner.controller != Some(true)
    });
    if !no_controller && by_set.owns(known) == set_owns && by_pod.owns(known) == pod_owns {
        return None;
    }
    owners.extend(pod_owns.then(|| by_pod.reference()));
    owners.extend(set_owns.then(|| by_set.reference()));
    Some(owners)
}

/// The claims of the pod with this ordinal, as bodies of create requests, with their names.
pub(super) fn bodies(set: &StatefulSet, ordinal: i32) -> Vec<(String, Value)> {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let body = |template: &PersistentVolumeClaim| {
        let name = name(template, set_name, ordinal);
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
        let mut body = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": set.metadata.namespace, "labels": labels},
            "spec": template.spec,
        });
        if let Some(annotations) = &template.metadata.annotations {
            body["metadata"]["annotations"] = json!(annotations);
        }
        if let Some(finalizers) = &template.metadata.finalizers {
            body["metadata"]["finalizers"] = json!(finalizers);
        }
        (name, body)
    };
    templates.map(body).collect()
}

/// The name of the claim that a pod has of a template.
pub(super) fn name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    format!("{}-{set}-{ordinal}", template.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "S"},
            "spec": {"replicas": 2, "selector": {}, "template": {},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled}},
        }))
        .unwrap()
    }

    fn owner(letter: char) -> Value {
        let (api, kind, name, uid, controller) = match letter {
            's' => ("apps/v1", "StatefulSet", "web", "S", true),
            'n' => ("apps/v1", "StatefulSet", "web", "S", false),
            'z' => ("apps/v1", "StatefulSet", "web", "old", true),
            'p' => ("v1", "Pod", "web-5", "P5", true),
            'q' => ("v1", "Pod", "web-1", "P1", true),
            'o' => ("v1", "ConfigMap", "x", "X", false),
            _ => ("v1", "ConfigMap", "x", "X", true),
        };
        json!({"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": controller, "blockOwnerDeletion": true})
    }

    /// Upstream's `isClaimOwnerUpToDate` and `updateClaimOwnerRefForSetAndPod`: policies, the pod's ordinal, the owners
    /// as letters, and the owners wanted; `=` when nothing is to be done.
    #[test]
    fn claims_are_owned_as_the_policy_says() {
        let cases = [
            ("Retain", "Retain", 1, "", "="),
            ("Retain", "Retain", 1, "s", ""),
            ("Retain", "Retain", 1, "so", "o"),
            ("Retain", "Retain", 1, "c", "="),
            ("Delete", "Retain", 1, "", "s"),
            ("Delete", "Retain", 1, "s", "="),
            ("Delete", "Retain", 1, "n", "s"),
            ("Delete", "Retain", 5, "p", "s"),
            ("Retain", "Delete", 1, "", "="),
            ("Retain", "Delete", 5, "", "p"),
            ("Retain", "Delete", 1, "q", ""),
            ("Delete", "Delete", 5, "s", "p"),
            ("Delete", "Delete", 1, "q", "s"),
            ("Delete", "Delete", 1, "c", "="),
            ("Delete", "Delete", 1, "cs", "c"),
            ("Delete", "Delete", 1, "z", "="),
        ];
        for (deleted, scaled, ordinal, owners, expected) in cases {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": {"ownerReferences": owners.chars().map(owner).collect::<Vec<_>>()}
            }))
            .unwrap();
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"name": format!("web-{ordinal}"), "uid": format!("P{ordinal}")}}),
            )
            .unwrap();
            let seen = owners_wanted(&claim, &set(deleted, scaled), &pod);
            let expected: Option<Vec<OwnerReference>> = (expected != "=").then(|| {
                expected.chars().map(|letter| serde_json::from_value(owner(letter)).unwrap()).collect()
            });
            assert_eq!(seen, expected, "{deleted} {scaled} {ordinal} {owners:?}");
        }
    }

    #[test]
    fn claims_are_named_after_template_set_and_ordinal() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "db"}}, "spec": {}}]},
        }))
        .unwrap();
        let bodies = bodies(&set, 3);
        assert_eq!(bodies[0].0, "data-web-3");
        assert_eq!(bodies[0].1["metadata"]["labels"], json!({"app": "web", "tier": "db"}));
    }
}
