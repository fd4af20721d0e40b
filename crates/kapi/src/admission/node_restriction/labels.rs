//! Which labels a node may give itself (KEP-279): none of Kubernetes' own but those that agents of nodes set, so that no node
//! can draw pods to itself.

use std::collections::BTreeSet;

use serde_json::Value;

const OWN: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Labels of these domains are free for nodes, too.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels that say what may run on a node.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

fn within(domain: &str, parent: &str) -> bool {
    domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let kubernetes = ["kubernetes.io", "k8s.io"].iter().any(|parent| within(domain, parent));
    let own = OWN.contains(&label) || OWN_DOMAINS.iter().any(|parent| within(domain, parent));
    within(domain, RESTRICTED) || (kubernetes && !own)
}

/// The labels that differ and may not, in order, as messages list them.
pub(super) fn forbidden(object: &Value, old: &Value) -> String {
    let (new, before) = (&object["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys = [new, before].into_iter().filter_map(Value::as_object).flat_map(|labels| labels.keys());
    let changed = keys.filter(|key| new.get(key.as_str()) != before.get(key.as_str()));
    let found: BTreeSet<&str> = changed.map(String::as_str).filter(|key| is_forbidden(key)).collect();
    found.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Labels of upstream's `admission_test.go` (`setAllLabels`, `setForbiddenCreateLabels`).
    #[test]
    fn labels_that_steer_pods_are_not_for_nodes() {
        for (label, expected) in [
            ("mine", false),
            ("example.com/a", false),
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("kubelet.kubernetes.io/a", false),
            ("foo.kubelet.kubernetes.io/a", false),
            ("foo.node.kubernetes.io/a", false),
            ("node.kubernetes.io/instance-type", false),
            ("node-restriction.kubernetes.io/a", true),
            ("foo.node-restriction.kubernetes.io/a", true),
            ("kubernetes.io/a", true),
            ("k8s.io/a", true),
            ("foo.k8s.io/a", true),
            ("notk8s.io/a", false),
            ("node-role.kubernetes.io/control-plane", true),
        ] {
            assert_eq!(is_forbidden(label), expected, "{label}");
        }
    }

    #[test]
    fn only_what_changes_counts() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        let (plain, labelled) = (node(json!({})), node(json!({"k8s.io/b": "1", "k8s.io/a": "1", "x": "1"})));
        assert_eq!(forbidden(&labelled, &labelled), "");
        assert_eq!(forbidden(&labelled, &plain), "k8s.io/a, k8s.io/b");
        assert_eq!(forbidden(&plain, &labelled), "k8s.io/a, k8s.io/b");
        assert_eq!(forbidden(&labelled, &Value::Null), "k8s.io/a, k8s.io/b");
    }
}
