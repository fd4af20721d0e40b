//! ReplicationControllers: ReplicaSets of an older kind.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{
            PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
            ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kcore::selector::{LabelSelector, Operator, Requirement};

use crate::{
    controller::Controller,
    controllers::{
        Context,
        replica_set::{Replicating, replicating},
    },
};

/// The controller `replicationcontroller-controller`: makes and deletes pods until there are as many as each
/// ReplicationController asks for, adopts and releases them by selector, and keeps the status, all as
/// [`replica_set`](super::replica_set) does.
pub fn replication_controller(context: &Context) -> Controller {
    replicating::<ReplicationController>(
        context,
        "replicationcontroller-controller",
        "replication-controller",
    )
}

impl Replicating for ReplicationController {
    type Status = ReplicationControllerStatus;

    fn as_set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        let spec = self.spec.as_ref();
        let labels = spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone());
        let template =
            PodTemplateSpec { metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }), spec: None };
        Arc::new(ReplicaSet {
            metadata: ObjectMeta { generation: self.metadata.generation, ..ObjectMeta::default() },
            spec: ReplicaSetSpec {
                min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds),
                replicas: spec.and_then(|spec| spec.replicas),
                template: Some(template),
                ..ReplicaSetSpec::default()
            },
            status: self.status.as_ref().map(set_status),
        })
    }

    /// One that names no label selects nothing.
    fn selector(&self) -> Option<LabelSelector> {
        let labels = self.spec.as_ref()?.selector.as_ref().filter(|labels| !labels.is_empty())?;
        let one = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        };
        Some(LabelSelector::new(labels.iter().map(one)))
    }

    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }

    /// There is no field for the pods that are being deleted.
    fn status_of(status: ReplicaSetStatus) -> Self::Status {
        let condition = |known: ReplicaSetCondition| ReplicationControllerCondition {
            last_transition_time: known.last_transition_time,
            message: known.message,
            reason: known.reason,
            status: known.status.unwrap_or_default(),
            type_: known.type_.unwrap_or_default(),
        };
        ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        }
    }
}

/// What is kept of the old status: its conditions.
fn set_status(status: &ReplicationControllerStatus) -> ReplicaSetStatus {
    let condition = |known: &ReplicationControllerCondition| ReplicaSetCondition {
        last_transition_time: known.last_transition_time.clone(),
        message: known.message.clone(),
        reason: known.reason.clone(),
        status: Some(known.status.clone()),
        type_: Some(known.type_.clone()),
    };
    ReplicaSetStatus {
        conditions: status.conditions.as_ref().map(|all| all.iter().map(condition).collect()),
        ..ReplicaSetStatus::default()
    }
}
