//! Claims that ask for more than their volume has (KEP-1790, KEP-284).

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeClaimStatus},
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::json;

use super::{
    super::{
        pod_state::stored_time,
        volume_binder::matching::{PROVISIONED_BY, annotation, capacity, is_bound_to, requested, storage},
    },
    Expanded, Shared,
};
use crate::{
    change::Change,
    events::{EventType, Regarding},
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{PatchKind, Written},
};

const WAITS_FOR_NODE: &str =
    "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

/// Whether a claim asks for more than it has.
pub(super) fn may_grow(change: &Change) -> bool {
    change.new_as::<PersistentVolumeClaim>().is_some_and(|claim| asks_for_more(&claim))
}

fn asks_for_more(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let bound = status.and_then(|status| status.phase.as_deref()) == Some("Bound");
    let has = storage(status.and_then(|status| status.capacity.as_ref()));
    let pending = status.and_then(|status| status.allocated_resource_statuses.as_ref());
    let on_node =
        pending.and_then(|all| all.get("storage")).is_some_and(|state| state.starts_with("NodeResize"))
            && storage(status.and_then(|status| status.allocated_resources.as_ref())) >= requested(claim);
    bound && !on_node && requested(claim) > has
}

/// How far a claim's growth has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begun,
    Done(Expanded),
}

/// The status of a claim that grows to what it asks for.
fn grown(claim: &PersistentVolumeClaim, stage: Stage, now: Timestamp) -> PersistentVolumeClaimStatus {
    let mut status = claim.status.clone().unwrap_or_default();
    let size = Quantity(requested(claim).to_string());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|known| !matches!(&*known.type_, "Resizing" | "FileSystemResizePending"));
    let mut condition = |kind: &str, message: Option<&str>| {
        let known = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let since = known.into_iter().find(|known| known.type_ == kind && known.status == "True");
        conditions.push(PersistentVolumeClaimCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            message: message.map(ToOwned::to_owned),
            last_transition_time: Some(
                since
                    .and_then(|known| known.last_transition_time.clone())
                    .unwrap_or_else(|| stored_time(now)),
            ),
            ..PersistentVolumeClaimCondition::default()
        });
    };
    let pending = match stage {
        Stage::Begun => {
            condition("Resizing", None);
            Some("ControllerResizeInProgress")
        }
        Stage::Done(Expanded::NodePending) => {
            condition("FileSystemResizePending", Some(WAITS_FOR_NODE));
            Some("NodeResizePending")
        }
        Stage::Done(Expanded::Entirely) => {
            status.capacity.get_or_insert_with(BTreeMap::new).insert("storage".to_owned(), size.clone());
            None
        }
    };
    status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
    status.allocated_resources.get_or_insert_with(BTreeMap::new).insert("storage".to_owned(), size);
    let states = status.allocated_resource_statuses.get_or_insert_with(BTreeMap::new);
    match pending {
        Some(state) => states.insert("storage".to_owned(), state.to_owned()),
        None => states.remove("storage"),
    };
    status.allocated_resource_statuses = status.allocated_resource_statuses.filter(|all| !all.is_empty());
    status
}

pub(super) struct Growing(pub(super) Arc<Shared>);

#[async_trait]
impl Reconciler for Growing {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let all = &self.0;
        let Some(stored) = all.claims.lister().get(&key.namespace, &key.name) else {
            return Ok(Action::Done);
        };
        let claim = stored.typed::<PersistentVolumeClaim>()?;
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = all.volumes.get("", name) else { return Ok(Action::Done) };
        let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(all.provisioner.name());
        if !ours || !is_bound_to(&volume, &claim) || !asks_for_more(&claim) {
            return Ok(Action::Done);
        }
        let about = Regarding::of(&stored, &all.claim_resource);
        let path = all.claim_resource.path(&key.namespace, &key.name);
        let begun = grown(&claim, Stage::Begun, all.clock.now());
        let old = claim.status.as_ref();
        let written = all.requests.write_status(&path, stored.revision(), old, &begun).await?;
        let revision = if written == 0 { stored.revision() } else { written };
        let message = format!("External resizer is resizing volume {name}");
        all.recorder.record(&about, EventType::Normal, "Resizing", message);
        let size = requested(&claim);
        let expanded = match all.provisioner.expand(&volume, size.value()).await {
            Ok(expanded) => expanded,
            Err(error) => {
                let resizer = all.provisioner.name();
                let message = format!("resize volume {name:?} by resizer {resizer:?} failed: {error}");
                all.recorder.record(&about, EventType::Warning, "VolumeResizeFailed", message);
                return Err(ReconcileError::other(error));
            }
        };
        if capacity(&volume) < size {
            let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version},
                "spec": {"capacity": {"storage": size.to_string()}}});
            let path = all.volume_resource.path("", name);
            all.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await?;
        }
        let done = grown(&claim, Stage::Done(expanded), all.clock.now());
        all.requests.write_status(&path, revision, Some(&begun), &done).await?;
        let (reason, message) = match expanded {
            Expanded::Entirely => ("VolumeResizeSuccessful", "Resize volume succeeded"),
            Expanded::NodePending => {
                ("FileSystemResizeRequired", "Require file system resize of volume on node")
            }
        };
        all.recorder.record(&about, EventType::Normal, reason, message);
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(request: &str, status: &Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "status": status,
            "spec": {"resources": {"requests": {"storage": request}}}}))
        .unwrap()
    }

    /// The conditions of KEP-284 and the states of KEP-1790.
    #[test]
    fn a_claim_says_how_far_it_has_grown() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let old = claim("2Gi", &json!({"phase": "Bound", "capacity": {"storage": "1Gi"}}));
        assert!(asks_for_more(&old));
        assert!(!asks_for_more(&claim("1Gi", &json!({"phase": "Bound", "capacity": {"storage": "1Gi"}}))));
        assert!(!asks_for_more(&claim("2Gi", &json!({"phase": "Pending"}))));
        let cases = [
            (Stage::Begun, "1Gi", Some("Resizing"), Some("ControllerResizeInProgress"), true),
            (Stage::Done(Expanded::Entirely), "2Gi", None, None, false),
            (
                Stage::Done(Expanded::NodePending),
                "1Gi",
                Some("FileSystemResizePending"),
                Some("NodeResizePending"),
                false,
            ),
        ];
        for (stage, size, condition, state, again) in cases {
            let status = serde_json::to_value(grown(&old, stage, now)).unwrap();
            assert_eq!(status["capacity"]["storage"], size, "{stage:?}");
            assert_eq!(status["allocatedResources"]["storage"], "2Gi");
            assert_eq!(status["conditions"][0]["type"].as_str(), condition, "{stage:?}");
            assert_eq!(status["allocatedResourceStatuses"]["storage"].as_str(), state, "{stage:?}");
            assert_eq!(asks_for_more(&claim("2Gi", &status)), again, "{stage:?}");
        }
    }
}
