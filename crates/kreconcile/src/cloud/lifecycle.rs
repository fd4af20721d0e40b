//! Nodes whose machines are gone or switched off (`cloud-provider/controllers/nodelifecycle`).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kcore::{Stored, clock::format_time};
use serde_json::{Value, json};

use super::{InstanceState, Instances};
use crate::{
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// The taint of a node whose machine is switched off; its effect is `NoSchedule`.
pub const SHUTDOWN_TAINT: &str = "node.cloudprovider.kubernetes.io/shutdown";

/// The controller `cloud-node-lifecycle-controller`: deletes nodes that are not ready and whose machine is no more, and taints those
/// whose machine is switched off. Nodes that are not ready are looked at every
/// [`node_monitor_period`](crate::controllers::Settings::node_monitor_period).
pub fn cloud_node_lifecycle(context: &Context, instances: Arc<dyn Instances>) -> Controller {
    const NAME: &str = "cloud-node-lifecycle-controller";
    let nodes = context.informers().of::<Node>(Selection::all());
    let reconciler = Lifecycle {
        resource: ResourceType::of::<Node>(),
        nodes: nodes.clone(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        period: context.node_monitor_period(),
        instances,
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&nodes, MapTo::Itself))
}

/// What is to be done about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Delete,
    Taint,
    Untaint,
}

/// Whether a node says that it is ready.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_tainted(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == SHUTDOWN_TAINT)
}

/// Decides about a node, with the state of its machine if it is not ready and that is known.
fn step(node: &Node, state: Option<InstanceState>) -> Step {
    match (is_ready(node), state) {
        (true, _) if is_tainted(node) => Step::Untaint,
        (false, Some(InstanceState::Gone)) => Step::Delete,
        (false, Some(InstanceState::ShutDown)) if !is_tainted(node) => Step::Taint,
        _ => Step::Nothing,
    }
}

struct Lifecycle {
    resource: ResourceType,
    nodes: Informer<Node>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn kcore::Clock>,
    period: Duration,
    instances: Arc<dyn Instances>,
}

#[async_trait]
impl Reconciler for Lifecycle {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.nodes.lister().get("", &key.name) else { return Ok(Action::Done) };
        let node = stored.typed::<Node>()?;
        let ready = is_ready(&node);
        let state = if ready {
            None
        } else {
            match self.instances.state(&node).await {
                Ok(state) => Some(state),
                Err(error) => {
                    tracing::warn!(node = %key.name, %error, "the state of a machine is not known");
                    return Ok(Action::After(self.period));
                }
            }
        };
        match step(&node, state) {
            Step::Nothing => {}
            Step::Delete => self.delete(&stored, &key.name).await?,
            Step::Taint => self.write_taints(&stored, &node, true).await?,
            Step::Untaint => self.write_taints(&stored, &node, false).await?,
        }
        Ok(if ready { Action::Done } else { Action::After(self.period) })
    }
}

impl Lifecycle {
    async fn delete(&self, stored: &Stored, name: &str) -> Result<(), ReconcileError> {
        let about = Regarding::of(stored, &self.resource);
        let message = format!("Deleting node {name} because it does not exist in the cloud provider");
        self.recorder.record(&about, EventType::Normal, "DeletingNode", message);
        let how = DeleteHow { uid: Some(stored.header().uid.to_string()), ..DeleteHow::default() };
        match self.requests.delete(&self.resource.path("", name), &how).await {
            Err(error) if !request::is_not_found(&error) => {
                let message = format!("Failed deleting node {name}: {error}");
                self.recorder.record(&about, EventType::Warning, "DeletingNodeFailed", message);
                Err(error.into())
            }
            _ => Ok(()),
        }
    }

    async fn write_taints(&self, stored: &Stored, node: &Node, add: bool) -> Result<(), ReconcileError> {
        let known = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let mut taints: Vec<Value> =
            known.filter(|taint| taint.key != SHUTDOWN_TAINT).map(|taint| json!(taint)).collect();
        if add {
            let now = format_time(self.clock.now());
            taints.push(json!({"key": SHUTDOWN_TAINT, "effect": "NoSchedule", "timeAdded": now}));
        }
        let patch = json!({"metadata": {"resourceVersion": stored.revision().to_string()}, "spec": {"taints": taints}});
        let path = self.resource.path("", &stored.header().name);
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of upstream's `node_lifecycle_controller_test.go` (`Test_NodesDeleted`, `Test_NodesShutdown`).
    #[test]
    fn what_becomes_of_nodes() {
        use InstanceState::{Gone, Running, ShutDown};
        let taint = json!([{"key": SHUTDOWN_TAINT, "effect": "NoSchedule"}]);
        let none = json!([]);
        for (ready, taints, state, expected) in [
            (Some("True"), &none, None, Step::Nothing),
            (Some("True"), &taint, None, Step::Untaint),
            (Some("True"), &none, Some(Gone), Step::Nothing),
            (Some("False"), &none, Some(Gone), Step::Delete),
            (Some("Unknown"), &taint, Some(Gone), Step::Delete),
            (None, &none, Some(Gone), Step::Delete),
            (Some("False"), &none, Some(ShutDown), Step::Taint),
            (Some("Unknown"), &taint, Some(ShutDown), Step::Nothing),
            (Some("False"), &none, Some(Running), Step::Nothing),
            (Some("False"), &taint, Some(Running), Step::Nothing),
        ] {
            let conditions: Vec<Value> =
                ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
            let node =
                json!({"metadata": {}, "spec": {"taints": taints}, "status": {"conditions": conditions}});
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(step(&node, state), expected, "{ready:?} {taints} {state:?}");
        }
    }
}
