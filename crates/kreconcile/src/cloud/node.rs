//! What the place knows of a node's machine (`cloud-provider/controllers/node`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use kcore::Stored;
use serde_json::{Value, json};

use super::{InstanceMetadata, Instances};
use crate::{
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// The taint of a node that nothing is known of yet: no pod goes there before this controller has taken it off.
pub const UNINITIALIZED_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// How often the addresses of each node are looked up (`--node-status-update-frequency`).
pub const NODE_ADDRESSES_PERIOD: Duration = Duration::from_secs(300);
/// The kubelet says here which of its addresses is to come first.
const PROVIDED_ADDRESS: &str = "alpha.kubernetes.io/provided-node-ip";

/// Labels in their old and their new form; the old one counts.
const LABELS: [(&str, &str); 3] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// The controller `cloud-node-controller`: gives a node that has the taint [`UNINITIALIZED_TAINT`] its provider's id, its labels and
/// addresses, takes the taint off, and looks after its addresses from then on.
pub fn cloud_node(context: &Context, instances: Arc<dyn Instances>) -> Controller {
    const NAME: &str = "cloud-node-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let reconciler = CloudNodes {
        resource: ResourceType::of::<Node>(),
        nodes: nodes.clone(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        instances,
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&nodes, MapTo::Itself))
}

fn is_uninitialized(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == UNINITIALIZED_TAINT)
}

/// New forms of labels that differ from the old ones.
fn labels_to_mend(node: &Node) -> BTreeMap<&'static str, String> {
    let Some(labels) = &node.metadata.labels else { return BTreeMap::new() };
    let differs = LABELS.iter().filter_map(|(old, new)| {
        let value = labels.get(*old)?;
        (labels.get(*new) != Some(value)).then(|| (*new, value.clone()))
    });
    differs.collect()
}

/// Whether a label's key is Kubernetes' own: upstream looks for `(^|\.)(kubernetes|k8s)\.io/` anywhere in it.
fn is_reserved(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|own| domain.strip_suffix(own).is_some_and(|before| before.is_empty() || before.ends_with('.')))
}

/// The labels that a node gets from what is known of its machine.
fn labels_of(node: &Node, metadata: &InstanceMetadata) -> BTreeMap<String, String> {
    let empty = BTreeMap::new();
    let has = node.metadata.labels.as_ref().unwrap_or(&empty);
    let known = [&metadata.zone, &metadata.region, &metadata.instance_type];
    let pairs = LABELS.iter().zip(known).filter(|(_, value)| !value.is_empty());
    let mut labels: BTreeMap<String, String> = pairs
        .flat_map(|((old, new), value)| [(*old, value), (*new, value)])
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    let more = metadata.labels.iter().filter(|(key, _)| !is_reserved(key) && !has.contains_key(key));
    labels.extend(more.cloned());
    labels
}

/// Puts the address that the kubelet asks for before the others of its type; of each other type that it is not of, all stay.
///
/// # Errors
/// When the provider doesn't know the address.
fn prefer(provided: &str, addresses: Vec<NodeAddress>) -> Result<Vec<NodeAddress>, String> {
    let Some(found) = addresses.iter().find(|address| address.address == provided).cloned() else {
        return Err(format!("failed to get node address from cloud provider that matches ip: {provided}"));
    };
    // Every type under which the address is known has that one alone; other types keep all of theirs.
    let types: Vec<String> =
        addresses.iter().filter(|one| one.address == found.address).map(|one| one.type_.clone()).collect();
    let mut chosen: Vec<NodeAddress> = types
        .iter()
        .map(|type_| NodeAddress { type_: type_.clone(), address: found.address.clone() })
        .collect();
    chosen.extend(addresses.into_iter().filter(|one| !types.contains(&one.type_)));
    Ok(chosen)
}

/// The addresses that a node is to have; `None` when those that it has are right.
fn addresses(node: &Node, given: &[NodeAddress]) -> Result<Option<Vec<NodeAddress>>, String> {
    if given.is_empty() {
        return Ok(None);
    }
    let has = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
    let mut wanted = given.to_vec();
    if !wanted.iter().any(|address| address.type_ == "Hostname") {
        wanted.extend(has.iter().filter(|address| address.type_ == "Hostname").cloned());
    }
    let annotations = node.metadata.annotations.as_ref();
    if let Some(provided) = annotations.and_then(|annotations| annotations.get(PROVIDED_ADDRESS)) {
        wanted = prefer(provided, wanted)?;
    }
    Ok((wanted != has).then_some(wanted))
}

struct CloudNodes {
    resource: ResourceType,
    nodes: Informer<Node>,
    requests: Requests,
    recorder: EventRecorder,
    instances: Arc<dyn Instances>,
}

#[async_trait]
impl Reconciler for CloudNodes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.nodes.lister().get("", &key.name) else { return Ok(Action::Done) };
        let node = stored.typed::<Node>()?;
        let path = self.resource.path("", &key.name);
        if !is_uninitialized(&node) {
            let labels = labels_to_mend(&node);
            if !labels.is_empty() {
                self.patch(&path, &stored, json!({"metadata": {"labels": labels}})).await?;
                return Ok(Action::Done);
            }
            if let Some(metadata) = self.metadata(&node).await? {
                self.write_addresses(&path, &stored, &node, &metadata).await?;
            }
            return Ok(Action::After(NODE_ADDRESSES_PERIOD));
        }
        let Some(mut metadata) = self.metadata(&node).await? else { return Ok(Action::Done) };
        let has = node.spec.as_ref().and_then(|spec| spec.provider_id.clone()).unwrap_or_default();
        if metadata.provider_id.is_empty() {
            if has.is_empty() {
                let why = format!("cloud provider does not set node provider ID for node {}", key.name);
                return Err(ReconcileError::other(why));
            }
            metadata.provider_id.clone_from(&has);
        }
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let taints: Vec<Value> =
            taints.filter(|taint| taint.key != UNINITIALIZED_TAINT).map(|taint| json!(taint)).collect();
        let mut patch =
            json!({"metadata": {"labels": labels_of(&node, &metadata)}, "spec": {"taints": taints}});
        if has.is_empty() {
            patch["spec"]["providerID"] = json!(metadata.provider_id);
        }
        // The addresses come first: once the taint is off, pods go there.
        self.write_addresses(&path, &stored, &node, &metadata).await?;
        self.patch(&path, &stored, patch).await?;
        let about = Regarding::of(&stored, &self.resource);
        self.recorder.record(&about, EventType::Normal, "Synced", "Node synced successfully");
        Ok(Action::After(NODE_ADDRESSES_PERIOD))
    }
}

impl CloudNodes {
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, ReconcileError> {
        self.instances.metadata(node).await.map_err(|error| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            ReconcileError::other(format!("failed to get instance metadata for node {name}: {error}"))
        })
    }

    /// Changes a node; what is written is right for any revision of it, but for the taints.
    async fn patch(&self, path: &str, stored: &Stored, mut patch: Value) -> Result<(), ReconcileError> {
        if patch["spec"]["taints"].is_array() {
            // The addresses may have been written in between, but the taints of another revision may be other ones.
            patch["metadata"]["uid"] = json!(&*stored.header().uid);
            let now: Value = self.requests.get(path).await?;
            let without = |taints: &Value| -> Vec<Value> {
                let all = taints.as_array().into_iter().flatten();
                all.filter(|taint| taint["key"] != UNINITIALIZED_TAINT).cloned().collect()
            };
            patch["spec"]["taints"] = json!(without(&now["spec"]["taints"]));
            patch["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
        }
        self.requests.patch::<Written>(path, PatchKind::Merge, &patch).await?;
        Ok(())
    }

    async fn write_addresses(
        &self,
        path: &str,
        stored: &Stored,
        node: &Node,
        metadata: &InstanceMetadata,
    ) -> Result<(), ReconcileError> {
        match addresses(node, &metadata.addresses) {
            Ok(None) => Ok(()),
            Ok(Some(addresses)) => {
                let patch =
                    json!({"metadata": {"uid": &*stored.header().uid}, "status": {"addresses": addresses}});
                self.requests.patch::<Written>(&format!("{path}/status"), PatchKind::Merge, &patch).await?;
                Ok(())
            }
            Err(why) => {
                tracing::warn!(node = %stored.header().name, why, "a node's addresses can't be updated");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    /// Cases of upstream's `Test_reconcileNodeLabels`.
    #[test]
    fn new_forms_of_labels_follow_the_old_ones() {
        let [(zone, new_zone), (region, new_region), _] = LABELS;
        for (labels, expected) in [
            (json!({zone: "a", region: "b"}), json!({new_zone: "a", new_region: "b"})),
            (json!({zone: "a", new_zone: "a"}), json!({})),
            (json!({zone: "a", new_zone: "wrong"}), json!({new_zone: "a"})),
            (json!({new_zone: "a"}), json!({})),
            (json!({}), json!({})),
        ] {
            let node = node(json!({"metadata": {"labels": labels}}));
            assert_eq!(json!(labels_to_mend(&node)), expected, "{labels}");
        }
    }

    /// Cases of `Test_syncNode` and of the rules of `getNodeModifiersFromCloudProvider`.
    #[test]
    fn labels_come_from_the_machine() {
        let metadata = InstanceMetadata {
            zone: "z".into(),
            instance_type: "t".into(),
            labels: [
                ("example.com/a", "new"),
                ("example.com/b", "1"),
                ("x.k8s.io/c", "1"),
                ("kubernetes.io/d", "1"),
                ("notk8s.io/e", "1"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
            ..InstanceMetadata::default()
        };
        let labels = labels_of(&node(json!({"metadata": {"labels": {"example.com/a": "old"}}})), &metadata);
        let expected = json!({
            "failure-domain.beta.kubernetes.io/zone": "z", "topology.kubernetes.io/zone": "z",
            "beta.kubernetes.io/instance-type": "t", "node.kubernetes.io/instance-type": "t",
            "example.com/b": "1", "notk8s.io/e": "1",
        });
        assert_eq!(json!(labels), expected);
    }

    /// Cases of `TestNodeAddressesChangeDetected`, `Test_updateNodeAddress` and `TestGetNodeAddressesFromNodeIP`.
    #[test]
    fn addresses_come_from_the_machine() {
        let list = |pairs: &[(&str, &str)]| -> Vec<NodeAddress> {
            let one = |(type_, address): &(&str, &str)| NodeAddress {
                type_: (*type_).into(),
                address: (*address).into(),
            };
            pairs.iter().map(one).collect()
        };
        let has = [("InternalIP", "10.0.0.1"), ("Hostname", "n")];
        type Case<'a> =
            (&'a [(&'a str, &'a str)], Option<&'a str>, Result<Option<&'a [(&'a str, &'a str)]>, ()>);
        let cases: &[Case<'_>] = &[
            (&[], None, Ok(None)),
            (&[("InternalIP", "10.0.0.1")], None, Ok(None)),
            (&[("InternalIP", "10.0.0.2")], None, Ok(Some(&[("InternalIP", "10.0.0.2"), ("Hostname", "n")]))),
            (
                &[("InternalIP", "10.0.0.1"), ("Hostname", "m")],
                None,
                Ok(Some(&[("InternalIP", "10.0.0.1"), ("Hostname", "m")])),
            ),
            (
                &[("InternalIP", "10.0.0.2"), ("InternalIP", "10.0.0.1"), ("ExternalIP", "1.1.1.1")],
                Some("10.0.0.1"),
                Ok(Some(&[("InternalIP", "10.0.0.1"), ("ExternalIP", "1.1.1.1"), ("Hostname", "n")])),
            ),
            (&[("InternalIP", "10.0.0.2")], Some("10.0.0.1"), Err(())),
        ];
        for (given, provided, expected) in cases {
            let annotations = provided.map(|ip| json!({PROVIDED_ADDRESS: ip}));
            let node =
                node(json!({"metadata": {"annotations": annotations}, "status": {"addresses": list(&has)}}));
            let seen = addresses(&node, &list(given)).map_err(drop);
            assert_eq!(seen, expected.map(|wanted| wanted.map(list)), "{given:?} {provided:?}");
        }
    }
}
