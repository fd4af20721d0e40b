//! Makes volumes for claims that name its provisioner, makes them larger, and deletes them when nobody has them any more.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kcore::Clock;
use serde_json::{Value, json};

use super::{
    Context,
    together::Together,
    volume_binder::{
        claim_key, is_delayed,
        matching::{
            BETA_STORAGE_PROVISIONER, PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER, annotation,
            claim_class,
        },
        volume_by_claim,
    },
};
use crate::{
    controller::Controller,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    manager::Runnable,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod growing;
mod local;
#[cfg(test)]
mod tests;

pub use local::{LOCAL_PROVISIONER, LocalProvisioner};

/// Keeps a volume until its storage is gone (KEP-2644).
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// What a volume is to be made for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ProvisionRequest<'a> {
    /// The claim: how much, which access modes, which `volumeMode`.
    pub claim: &'a PersistentVolumeClaim,
    /// Its class, with the parameters.
    pub class: &'a StorageClass,
    /// The name that the volume will have: `pvc-` and the claim's uid, so the same whenever it is tried.
    pub volume_name: &'a str,
    /// The node that the scheduler chose for the claim's first consumer; `None` unless the class waits for it.
    pub node: Option<&'a str>,
}

/// Why a volume could not be made or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// It is tried again.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It can't be made on the node that was chosen; the scheduler is asked for another one.
    #[error("{0}")]
    OtherNode(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ProvisionError {
    /// Wraps any error.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

/// What is left to do when storage has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expanded {
    /// Nothing: whoever uses the volume has all of it.
    Entirely,
    /// The file system has to grow too, on a node.
    NodePending,
}

/// Makes and deletes the storage behind volumes.
///
/// [`provisioner`](self::provisioner()) calls it for claims whose class names it, and writes the objects. Calls for
/// different claims overlap; calls for one claim never do. All methods may be called again after they succeeded, because
/// what they did could not be written down: making what is there, and deleting what is not, succeeds. An error is told by an
/// event and tried again with a back-off. See [`LocalProvisioner`] for an example.
#[async_trait]
pub trait Provisioner: Send + Sync + 'static {
    /// The name that storage classes know it by, such as `example.com/disks`; the same all the time.
    fn name(&self) -> &str;

    /// Makes storage. The answer has the source of the volume, and its `nodeAffinity` if not every node reaches it; other
    /// fields are filled from claim and class where they are empty.
    ///
    /// # Errors
    /// See [`ProvisionError`].
    async fn provision(&self, request: &ProvisionRequest<'_>)
    -> Result<PersistentVolumeSpec, ProvisionError>;

    /// Deletes the storage of a volume that [`provision`](Self::provision) made.
    ///
    /// # Errors
    /// See [`ProvisionError`].
    async fn delete(&self, volume: &PersistentVolume) -> Result<(), ProvisionError>;

    /// Makes the storage of a volume at least so many bytes large; it never shrinks.
    ///
    /// # Errors
    /// See [`ProvisionError`].
    async fn expand(&self, volume: &PersistentVolume, bytes: i64) -> Result<Expanded, ProvisionError>;
}

const _: Option<&dyn Provisioner> = None;

/// A controller that has `provisioner` make volumes, by the contract that the sidecar of a CSI driver keeps: it serves
/// claims that the [`volume_binder`](super::volume_binder()) has given its name (`volume.kubernetes.io/storage-provisioner`),
/// with classes that wait for a consumer once there is a node; volumes are named `pvc-` and the claim's uid and come bound
/// to the claim; those that are released with the policy `Delete` are deleted, storage first; and when a claim asks for more
/// than its volume has, the volume grows.
///
/// `name` is the controller's name; there may be several, with different provisioners.
///
/// ```no_run
/// # fn example(context: &kreconcile::controllers::Context) {
/// use std::sync::Arc;
/// use kreconcile::controllers::{LocalProvisioner, provisioner};
///
/// let disks = Arc::new(LocalProvisioner::new("/var/lib/volumes"));
/// let controller = provisioner(context, "local-volume-provisioner", disks);
/// # }
/// ```
pub fn provisioner(
    context: &Context,
    name: &'static str,
    provisioner: Arc<dyn Provisioner>,
) -> impl Runnable + use<> {
    let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
    let volumes = context.informers().of::<PersistentVolume>(Selection::all());
    volumes.add_index(volume_by_claim());
    let classes = context.informers().of::<StorageClass>(Selection::all());
    let all = Arc::new(Shared {
        claim_resource: ResourceType::of::<PersistentVolumeClaim>(),
        volume_resource: ResourceType::of::<PersistentVolume>(),
        requests: context.requests(name),
        recorder: context.recorder(provisioner.name()),
        clock: Arc::clone(context.clock()),
        claims: claims.clone(),
        volumes: volumes.clone(),
        classes: classes.clone(),
        provisioner,
    });
    let mine = Arc::clone(&all);
    let waits = Predicate::when(move |change| {
        change.new_as::<PersistentVolumeClaim>().is_some_and(|claim| asks(&claim, mine.provisioner.name()))
    });
    let released = Arc::clone(&all);
    let to_delete = Predicate::when(move |change| {
        change
            .new_as::<PersistentVolume>()
            .is_some_and(|volume| is_to_be_deleted(&volume, released.provisioner.name()))
    });
    let making = Controller::new(name, Making(Arc::clone(&all)))
        .on(Trigger::new(&claims, MapTo::Itself).when(waits))
        .reads(&volumes)
        .reads(&classes);
    let growing = Controller::new(name, growing::Growing(Arc::clone(&all)))
        .on(Trigger::new(&claims, MapTo::Itself).when(Predicate::when(growing::may_grow)))
        .reads(&volumes);
    let deleting =
        Controller::new(name, Deleting(all)).on(Trigger::new(&volumes, MapTo::Itself).when(to_delete));
    Together::new(name, [making, growing, deleting])
}

struct Shared {
    claim_resource: ResourceType,
    volume_resource: ResourceType,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    provisioner: Arc<dyn Provisioner>,
}

/// Whether a claim waits for a volume of this provisioner.
fn asks(claim: &PersistentVolumeClaim, provisioner: &str) -> bool {
    let names = [STORAGE_PROVISIONER, BETA_STORAGE_PROVISIONER];
    let asked = names.iter().find_map(|key| annotation(&claim.metadata, key));
    let unbound =
        claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty());
    unbound && claim.metadata.deletion_timestamp.is_none() && asked == Some(provisioner)
}

/// The node to make the volume for, and whether it is time to make it.
fn node_of<'a>(claim: &'a PersistentVolumeClaim, class: &StorageClass) -> Option<Option<&'a str>> {
    let node = annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty());
    if is_delayed(class) { node.map(Some) } else { Some(None) }
}

/// Whether nobody has a volume of this provisioner any more.
fn is_to_be_deleted(volume: &PersistentVolume, provisioner: &str) -> bool {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let kept = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let deleted = volume.metadata.deletion_timestamp.is_some();
    annotation(&volume.metadata, PROVISIONED_BY) == Some(provisioner)
        && policy == Some("Delete")
        && (phase == Some("Released") || (phase == Some("Failed") && deleted))
        && (!deleted || kept)
}

/// The volume for a claim, of what the provisioner says of it.
fn volume_of(
    request: &ProvisionRequest<'_>,
    provisioner: &str,
    made: PersistentVolumeSpec,
) -> Result<Value, serde_json::Error> {
    let (claim, class) = (request.claim, request.class);
    let asked = claim.spec.clone().unwrap_or_default();
    let requests = || asked.resources.as_ref().and_then(|resources| resources.requests.clone());
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned());
    let annotations = json!({PROVISIONED_BY: provisioner});
    let finalizers = (policy == "Delete").then(|| vec![FINALIZER]);
    let spec = PersistentVolumeSpec {
        access_modes: made.access_modes.or(asked.access_modes),
        capacity: made.capacity.or_else(|| {
            requests().map(|all| all.into_iter().filter(|(name, _)| name == "storage").collect())
        }),
        claim_ref: Some(claim_reference(&claim.metadata)),
        mount_options: made.mount_options.or_else(|| class.mount_options.clone()),
        persistent_volume_reclaim_policy: Some(policy),
        storage_class_name: Some(claim_class(claim).to_owned()),
        volume_mode: made.volume_mode.or(asked.volume_mode),
        volume_attributes_class_name: made
            .volume_attributes_class_name
            .or(asked.volume_attributes_class_name),
        ..made
    };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": request.volume_name, "annotations": annotations, "finalizers": finalizers},
        "spec": serde_json::to_value(spec)?,
    }))
}

fn claim_reference(metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

struct Making(Arc<Shared>);

#[async_trait]
impl Reconciler for Making {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let all = &self.0;
        let Some(stored) = all.claims.lister().get(&key.namespace, &key.name) else {
            return Ok(Action::Done);
        };
        let claim = stored.typed::<PersistentVolumeClaim>()?;
        if !asks(&claim, all.provisioner.name()) {
            return Ok(Action::Done);
        }
        let about = Regarding::of(&stored, &all.claim_resource);
        let Some(class) = all.classes.get("", claim_class(&claim)) else {
            return Err(ReconcileError::other(format!("class {:?} is not there", claim_class(&claim))));
        };
        let Some(node) = node_of(&claim, &class) else { return Ok(Action::Done) };
        let volume_name = format!("pvc-{}", stored.header().uid);
        if all.volumes.lister().get("", &volume_name).is_some() {
            return Ok(Action::Done);
        }
        let message = format!("External provisioner is provisioning volume for claim \"{key}\"");
        all.recorder.record(&about, EventType::Normal, "Provisioning", message);
        let request = ProvisionRequest { claim: &claim, class: &class, volume_name: &volume_name, node };
        let made = match all.provisioner.provision(&request).await {
            Ok(made) => made,
            Err(error) => {
                let name = class.metadata.name.as_deref().unwrap_or_default();
                let message = format!("failed to provision volume with StorageClass {name:?}: {error}");
                all.recorder.record(&about, EventType::Warning, "ProvisioningFailed", message);
                if matches!(error, ProvisionError::OtherNode(_)) {
                    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: null}}});
                    let path = all.claim_resource.path(&key.namespace, &key.name);
                    all.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await?;
                }
                return Err(ReconcileError::other(error));
            }
        };
        let body = volume_of(&request, all.provisioner.name(), made)?;
        let collection = all.volume_resource.path("", "");
        match all.requests.create::<Written>(&collection, body.to_string()).await {
            Err(error) if !request::is_already_exists(&error) => Err(error.into()),
            _ => {
                let message = format!("Successfully provisioned volume {volume_name}");
                all.recorder.record(&about, EventType::Normal, "ProvisioningSucceeded", message);
                Ok(Action::Done)
            }
        }
    }
}

struct Deleting(Arc<Shared>);

#[async_trait]
impl Reconciler for Deleting {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let all = &self.0;
        let Some(stored) = all.volumes.lister().get("", &key.name) else { return Ok(Action::Done) };
        let volume = stored.typed::<PersistentVolume>()?;
        if !is_to_be_deleted(&volume, all.provisioner.name()) {
            return Ok(Action::Done);
        }
        // Storage that is deleted does not come back: what the informer says is not enough.
        let path = all.volume_resource.path("", &key.name);
        let live = match all.requests.get::<PersistentVolume>(&path).await {
            Ok(live) => live,
            Err(error) if request::is_not_found(&error) => return Ok(Action::Done),
            Err(error) => return Err(error.into()),
        };
        if !is_to_be_deleted(&live, all.provisioner.name()) || self.is_claimed(&live) {
            return Ok(Action::Done);
        }
        if let Err(error) = all.provisioner.delete(&live).await {
            let about = Regarding::of(&stored, &all.volume_resource);
            all.recorder.record(&about, EventType::Warning, "VolumeFailedDelete", error.to_string());
            return Err(ReconcileError::other(error));
        }
        let how = DeleteHow { uid: live.metadata.uid.clone(), ..DeleteHow::default() };
        match all.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
        self.let_go(&path).await
    }
}

impl Deleting {
    /// Whether the claim that the volume is bound to is there all the same.
    fn is_claimed(&self, volume: &PersistentVolume) -> bool {
        let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
        let claim = claim_key(volume).and_then(|key| self.0.claims.get(&key.namespace, &key.name));
        claim.is_some_and(|claim| {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            claim.metadata.uid.as_deref() == uid && name == volume.metadata.name.as_deref()
        })
    }

    /// Takes the finalizer off.
    async fn let_go(&self, path: &str) -> Result<Action, ReconcileError> {
        let live = match self.0.requests.get::<PersistentVolume>(path).await {
            Ok(live) => live,
            Err(error) if request::is_not_found(&error) => return Ok(Action::Done),
            Err(error) => return Err(error.into()),
        };
        let mut finalizers = live.metadata.finalizers.unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if finalizers.len() == before {
            return Ok(Action::Done);
        }
        let patch = json!({"metadata": {
            "resourceVersion": live.metadata.resource_version,
            "finalizers": finalizers,
        }});
        match self.0.requests.patch::<Written>(path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }
}
