//! Which node's pods refer to what: pods by their node, and what they refer to, each with its users.

use std::sync::Arc;

use ahash::{HashMap, HashSet};
use serde_json::Value;

use super::references::{Kind, of_pod};

type Name = Box<str>;

/// A thing in a namespace.
type Place = (Kind, Name, Name);

/// The pods that are on nodes, and what they use.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// By the pod's key, `namespace/name`.
    pods: HashMap<Name, Pod>,
    /// How many pods of each node refer to a thing.
    users: HashMap<Place, HashMap<Arc<str>, usize>>,
    /// The keys of a node's pods.
    nodes: HashMap<Arc<str>, HashSet<Name>>,
}

#[derive(Debug)]
struct Pod {
    node: Arc<str>,
    uid: Name,
    /// Whether what it refers to may still change: claims are made for it.
    grows: bool,
    uses: Box<[(Kind, Name)]>,
}

impl Graph {
    /// Whether the state of this pod needs no look: what a pod refers to is fixed when it has its node.
    pub(super) fn knows(&self, key: &str, node: &str, uid: &str) -> bool {
        let known = self.pods.get(key);
        known.is_some_and(|pod| !pod.grows && *pod.node == *node && *pod.uid == *uid)
    }

    /// Takes a pod on a node over.
    pub(super) fn set(&mut self, key: &str, node: &str, uid: &str, pod: &Value) {
        self.remove(key);
        let (namespace, _) = key.split_once('/').unwrap_or(("", key));
        let node =
            self.nodes.get_key_value(node).map_or_else(|| Arc::from(node), |(node, _)| Arc::clone(node));
        let uses: Box<[(Kind, Name)]> = of_pod(pod).into_iter().collect();
        for (kind, name) in &uses {
            let place = (*kind, Name::from(namespace), name.clone());
            *self.users.entry(place).or_default().entry(Arc::clone(&node)).or_default() += 1;
        }
        self.nodes.entry(Arc::clone(&node)).or_default().insert(key.into());
        let grows = pod["spec"]["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty())
            || pod["status"]["extendedResourceClaimStatus"].is_object();
        self.pods.insert(key.into(), Pod { node, uid: uid.into(), grows, uses });
    }

    /// Forgets a pod.
    pub(super) fn remove(&mut self, key: &str) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        let (namespace, _) = key.split_once('/').unwrap_or(("", key));
        for (kind, name) in pod.uses {
            let place = (kind, Name::from(namespace), name);
            let Some(nodes) = self.users.get_mut(&place) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.users.remove(&place);
            }
        }
        if let Some(keys) = self.nodes.get_mut(&pod.node) {
            keys.remove(key);
            if keys.is_empty() {
                self.nodes.remove(&pod.node);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a pod of the node refers to this.
    pub(super) fn uses(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let place = (kind, Name::from(namespace), Name::from(name));
        self.users.get(&place).is_some_and(|nodes| nodes.contains_key(node))
    }

    /// Whether the pod is on the node.
    pub(super) fn runs(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(format!("{namespace}/{name}").as_str()).is_some_and(|pod| *pod.node == *node)
    }

    /// The claims of the node's pods: namespace and name.
    pub(super) fn claims(&self, node: &str) -> HashSet<(Name, Name)> {
        let keys = self.nodes.get(node).into_iter().flatten();
        let pods = keys.filter_map(|key| Some((key.split_once('/')?.0, self.pods.get(key)?)));
        let claims = pods.flat_map(|(namespace, pod)| {
            let claims = pod.uses.iter().filter(|(kind, _)| *kind == Kind::Claim);
            claims.map(move |(_, name)| (Name::from(namespace), name.clone()))
        });
        claims.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(secrets: &[u8]) -> Value {
        let secrets: Vec<Value> = secrets.iter().map(|secret| json!({"name": secret.to_string()})).collect();
        json!({"spec": {"imagePullSecrets": secrets}})
    }

    proptest! {
        /// The naive model: a node may read what one of the pods that are on it now refers to.
        #[test]
        fn what_is_used_is_what_pods_say_now(
            steps in prop::collection::vec(
                (0u8..4, prop::option::of(0u8..3), prop::collection::vec(0u8..4, 0..3)), 1..40),
        ) {
            let mut graph = Graph::default();
            let mut model: HashMap<u8, (u8, Vec<u8>)> = HashMap::default();
            for (step, (key, node, secrets)) in steps.into_iter().enumerate() {
                let name = format!("ns/{key}");
                match node {
                    Some(node) => {
                        graph.set(&name, &node.to_string(), &step.to_string(), &pod(&secrets));
                        model.insert(key, (node, secrets));
                    }
                    None => {
                        graph.remove(&name);
                        model.remove(&key);
                    }
                }
                for node in 0u8..3 {
                    for secret in 0u8..4 {
                        let expected = model.values().any(|(on, used)| *on == node && used.contains(&secret));
                        let found = graph.uses(&node.to_string(), Kind::Secret, "ns", &secret.to_string());
                        prop_assert_eq!(found, expected);
                        prop_assert!(!graph.uses(&node.to_string(), Kind::Secret, "other", &secret.to_string()));
                    }
                }
            }
            for key in 0u8..4 {
                graph.remove(&format!("ns/{key}"));
            }
            prop_assert!(graph.users.is_empty() && graph.nodes.is_empty() && graph.pods.is_empty());
        }
    }

    #[test]
    fn a_pod_on_its_node_is_read_once() {
        let mut graph = Graph::default();
        graph.set("ns/a", "n", "1", &pod(&[1]));
        assert!(graph.knows("ns/a", "n", "1"));
        assert!(
            !graph.knows("ns/a", "n", "2")
                && !graph.knows("ns/a", "m", "1")
                && !graph.knows("ns/b", "n", "1")
        );
        graph.set("ns/b", "n", "1", &json!({"spec": {"resourceClaims": [{"name": "c"}]}}));
        assert!(!graph.knows("ns/b", "n", "1"), "its claim is still to be made");
        assert!(graph.runs("n", "ns", "b") && !graph.runs("m", "ns", "b"));
    }
}
