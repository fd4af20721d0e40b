//! Claims of generic ephemeral volumes (KEP-1698).

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{Context, claim::controller_reference, pod_writes::error_message},
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// The controller `ephemeral-volume-controller`: makes the PersistentVolumeClaim of each ephemeral volume of a pod, owned by
/// the pod, and makes it again when somebody deletes it.
pub fn ephemeral_volume(context: &Context) -> Controller {
    const NAME: &str = "ephemeral-volume-controller";
    let pods = context.informers().of::<Pod>(Selection::all());
    let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
    let reconciler = EphemeralVolumes {
        resource: ResourceType::of::<Pod>(),
        requests: context.requests(NAME),
        recorder: context.recorder("ephemeral_volume"),
        pods: pods.clone(),
        claims: claims.clone(),
    };
    // A pod's volumes never change.
    let wants = Predicate::when(|change| {
        change.old.is_none() && change.new_as::<Pod>().is_some_and(|pod| volumes(&pod).next().is_some())
    });
    Controller::new(NAME, reconciler).on(Trigger::new(&pods, MapTo::Itself).when(wants)).on(Trigger::new(
        &claims,
        MapTo::Controller(ResourceType::of::<Pod>()),
    )
    .when(Predicate::when(|change| change.new.is_none())))
}

/// The ephemeral volumes of a pod that have a claim.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let all = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    all.filter(|volume| volume.ephemeral.is_some())
}

struct EphemeralVolumes {
    resource: ResourceType,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    requests: Requests,
    recorder: EventRecorder,
}

#[async_trait]
impl Reconciler for EphemeralVolumes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.pods.lister().get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        if stored.header().deletion.is_some() {
            return Ok(Action::Done);
        }
        for volume in volumes(&*stored.typed::<Pod>()?) {
            if let Err((why, error)) = self.make(&stored, volume).await {
                let about = Regarding::of(&stored, &self.resource);
                let message = format!("ephemeral volume {}: {why}", volume.name);
                self.recorder.record(&about, EventType::Warning, "FailedBinding", message);
                return Err(error);
            }
        }
        Ok(Action::Done)
    }
}

impl EphemeralVolumes {
    /// Makes the claim of a volume, unless it is there; an error with what to tell about it.
    async fn make(&self, pod: &Stored, volume: &Volume) -> Result<(), (String, ReconcileError)> {
        let header = pod.header();
        let name = format!("{}-{}", header.name, volume.name);
        if let Some(known) = self.claims.lister().get(&header.namespace, &name) {
            let ours = known.header().controller().is_some_and(|owner| owner.uid == header.uid);
            let why = format!(
                "PVC {0}/{name} was not created for pod {0}/{1} (pod is not owner)",
                header.namespace, header.name
            );
            return if ours { Ok(()) } else { Err((why.clone(), ReconcileError::other(why))) };
        }
        let body =
            body(pod, &self.resource, volume, &name).map_err(|error| (error.to_string(), error.into()))?;
        let path = self.claims.resource().path(&header.namespace, "");
        match self.requests.create::<Written>(&path, body.to_string()).await {
            Ok(_) => Ok(()),
            Err(error) if request::is_namespace_terminating(&error) => Ok(()),
            Err(error) => Err((format!("create PVC {name}: {}", error_message(&error)), error.into())),
        }
    }
}

/// The claim that a volume's template asks for.
fn body(
    pod: &Stored,
    resource: &ResourceType,
    volume: &Volume,
    name: &str,
) -> Result<Value, serde_json::Error> {
    let template = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref());
    let template = serde_json::to_value(template)?;
    let mut metadata = json!({
        "name": name,
        "namespace": &*pod.header().namespace,
        "ownerReferences": [controller_reference(resource, pod.header())],
    });
    for key in ["annotations", "labels"] {
        if let Value::Object(known) = &template["metadata"][key] {
            metadata[key] = Value::Object(known.clone());
        }
    }
    Ok(
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template["spec"]}),
    )
}
