//! Volumes of CSI drivers are attached to the nodes whose pods need them, and detached again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kcore::{Clock, Stored};
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{
        Context,
        node_lifecycle::{PODS_BY_NODE, pods_by_node},
        protection,
    },
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod decide;

pub use decide::UNMOUNT_WAIT_MAX;
use decide::{Detach, NodeState, Step};

const BY_VOLUME: &str = "attachments-by-volume";
const BY_NODE: &str = "attachments-by-node";
const PODS_BY_CLAIM: &str = "pods-by-claim";

/// The controller `persistentvolume-attach-detach-controller`: makes a VolumeAttachment for each volume of a CSI driver on each node
/// with a pod that uses it, which the driver's `external-attacher` carries out, and deletes it when no pod is left. What is
/// attached stands in the node's `status.volumesAttached`.
///
/// Nodes take part that have the annotation `volumes.kubernetes.io/controller-managed-attach-detach`. A volume leaves a node
/// when the node says that it no longer uses it; after [`UNMOUNT_WAIT_MAX`] also without that from a node that is not ready, and
/// at once from one with the taint `node.kubernetes.io/out-of-service`. A volume for one node at a time waits until it has left
/// the other one. Volumes of kinds that were once built in (KEP-625) are not translated.
pub fn attach_detach(context: &Context) -> Controller {
    const NAME: &str = "persistentvolume-attach-detach-controller";
    let informers = context.informers();
    let reconciler = Attachments {
        resource: ResourceType::of::<Pod>(),
        requests: context.requests(NAME),
        recorder: context.recorder("attachdetach-controller"),
        clock: Arc::clone(context.clock()),
        force: context.settings.force_detach,
        unneeded: Mutex::default(),
        refused: Mutex::default(),
        pods: informers.of(Selection::all()),
        claims: informers.of(Selection::all()),
        volumes: informers.of(Selection::all()),
        nodes: informers.of(Selection::all()),
        attachments: informers.of(Selection::all()),
        drivers: informers.of(Selection::all()),
    };
    let reconciler = Arc::new(reconciler);
    reconciler.pods.add_index(pods_by_node());
    reconciler.pods.add_index(Index::new(PODS_BY_CLAIM, |pod, emit| {
        let mut claims = Vec::new();
        protection::claims_of(pod, &mut claims);
        claims.iter().for_each(|claim| emit(&claim.to_string()));
    }));
    reconciler.attachments.add_index(Index::new(BY_VOLUME, |attachment, emit| {
        if let Some(volume) = volume_of(attachment) {
            emit(&volume);
        }
    }));
    reconciler.attachments.add_index(Index::new(BY_NODE, |attachment, emit| {
        if let Ok(typed) = attachment.typed::<VolumeAttachment>() {
            emit(&typed.spec.node_name);
        }
    }));
    let (of_pod, of_node) = (Arc::clone(&reconciler), Arc::clone(&reconciler));
    Controller::new(NAME, Arc::clone(&reconciler))
        .reads(&reconciler.drivers)
        .on(Trigger::new(&reconciler.volumes, MapTo::Itself))
        .on(Trigger::new(
            &reconciler.attachments,
            MapTo::each(|attachment, keys| keys.extend(volume_of(attachment).map(ObjectKey::cluster))),
        ))
        .on(Trigger::new(
            &reconciler.claims,
            MapTo::each(|claim, keys| keys.extend(bound(claim).map(ObjectKey::cluster))),
        ))
        .on(Trigger::new(&reconciler.pods, MapTo::each(move |pod, keys| of_pod.volumes_of(pod, keys))))
        .on(Trigger::new(&reconciler.nodes, MapTo::each(move |node, keys| of_node.around(node, keys)))
            .when(Predicate::when(|change| matters(&change.old) != matters(&change.new))))
}

/// The part of a node that decides about volumes.
fn matters(node: &Option<Arc<Stored>>) -> Option<(bool, NodeState, Vec<String>, Vec<String>)> {
    let node = node.as_ref()?.typed::<Node>().ok()?;
    let status = node.status.as_ref();
    let used = status.and_then(|status| status.volumes_in_use.clone()).unwrap_or_default();
    let attached = status.and_then(|status| status.volumes_attached.clone()).unwrap_or_default();
    let attached = attached.into_iter().map(|volume| volume.name).collect();
    Some((decide::is_managed(&node), NodeState::of(Some(&node), ""), used, attached))
}

/// The volume that an attachment is of; those of volumes without an object of their own are somebody else's.
fn volume_of(attachment: &Stored) -> Option<String> {
    attachment.typed::<VolumeAttachment>().ok()?.spec.source.persistent_volume_name.clone()
}

/// The volume that a claim has.
fn bound(claim: &Stored) -> Option<String> {
    let claim = claim.typed::<PersistentVolumeClaim>().ok()?;
    claim.spec.as_ref()?.volume_name.clone().filter(|name| !name.is_empty())
}

/// The driver of a volume and its handle there.
fn source(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some((&csi.driver, &csi.volume_handle))
}

/// The name of a volume in the status of nodes.
fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of the attachment of a volume to a node (upstream's `getAttachmentName`).
fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{handle}{driver}{node}").as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

struct Attachments {
    resource: ResourceType,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    attachments: Informer<VolumeAttachment>,
    drivers: Informer<CSIDriver>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    force: bool,
    /// Since when an attachment has not been needed, by its name. Counted anew after a restart, as upstream does.
    unneeded: Mutex<HashMap<String, Timestamp, RandomState>>,
    /// By volume, the nodes whose pods were told that it is elsewhere: they are told once.
    refused: Mutex<HashMap<String, BTreeSet<String>, RandomState>>,
}

/// A volume in a decision.
struct Volume<'a> {
    name: &'a str,
    driver: &'a str,
    handle: &'a str,
    unique_name: String,
}

impl Attachments {
    /// The volumes that a pod's claims have.
    fn volumes_of(&self, pod: &Stored, keys: &mut Vec<ObjectKey>) {
        if pod.header().field("spec.nodeName").is_some_and(|node| node.is_empty()) {
            return;
        }
        let mut claims = Vec::new();
        protection::claims_of(pod, &mut claims);
        let claims = claims.iter().filter_map(|key| self.claims.lister().get(&key.namespace, &key.name));
        keys.extend(claims.filter_map(|claim| bound(&claim)).map(ObjectKey::cluster));
    }

    /// The volumes that are attached to a node, or may have to be.
    fn around(&self, node: &Stored, keys: &mut Vec<ObjectKey>) {
        let name = &*node.header().name;
        let attached = self.attachments.lister().by_index(BY_NODE, name);
        keys.extend(attached.iter().filter_map(|one| volume_of(one)).map(ObjectKey::cluster));
        for pod in self.pods.lister().by_index(PODS_BY_NODE, name) {
            self.volumes_of(&pod, keys);
        }
    }

    /// The pods that need a volume, by their node.
    fn users(&self, volume: &Stored) -> Result<BTreeMap<String, Vec<Arc<Stored>>>, ReconcileError> {
        let mut users: BTreeMap<String, Vec<Arc<Stored>>> = BTreeMap::new();
        let typed = volume.typed::<PersistentVolume>()?;
        let Some(claimed) = typed.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
            return Ok(users);
        };
        let (namespace, name) =
            (claimed.namespace.as_deref().unwrap_or_default(), claimed.name.as_deref().unwrap_or_default());
        let Some(claim) = self.claims.lister().get(namespace, name) else { return Ok(users) };
        let fits = claimed.uid.as_deref() == Some(&*claim.header().uid)
            && bound(&claim).as_deref() == Some(&*volume.header().name);
        let phase = claim.typed::<PersistentVolumeClaim>()?;
        let phase = phase.status.as_ref().and_then(|status| status.phase.as_deref());
        if !fits || phase != Some("Bound") {
            return Ok(users);
        }
        for pod in self.pods.lister().by_index(PODS_BY_CLAIM, &format!("{namespace}/{name}")) {
            let typed = pod.typed::<Pod>()?;
            let node = typed.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            let managed = || self.nodes.get("", &node).is_some_and(|node| decide::is_managed(&node));
            if !node.is_empty() && !decide::is_over(&typed) && managed() {
                users.entry(node).or_default().push(pod);
            }
        }
        Ok(users)
    }

    fn tell(&self, pods: &[Arc<Stored>], kind: EventType, reason: &'static str, message: &str) {
        for pod in pods {
            let about = Regarding::of(pod, &self.resource);
            self.recorder.record(&about, kind, reason, message.to_owned());
        }
    }

    async fn attach(
        &self,
        volume: &Volume<'_>,
        node: &str,
        pods: &[Arc<Stored>],
    ) -> Result<(), ReconcileError> {
        let resource = self.attachments.resource();
        let body = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": {"name": attachment_name(volume.driver, volume.handle, node)},
            "spec": {"attacher": volume.driver, "nodeName": node, "source": {"persistentVolumeName": volume.name}},
        });
        match self.requests.create::<Written>(&resource.path("", ""), body.to_string()).await {
            Err(error) if !request::is_already_exists(&error) => {
                let why = format!("AttachVolume.Attach failed for volume \"{}\" : {error}", volume.name);
                self.tell(pods, EventType::Warning, "FailedAttachVolume", &why);
                Err(error.into())
            }
            _ => Ok(()),
        }
    }

    /// Reports an attachment that is needed: to the node once it has been carried out, and to the pods.
    async fn follow(
        &self,
        volume: &Volume<'_>,
        attachment: &VolumeAttachment,
        pods: &[Arc<Stored>],
    ) -> Result<(), ReconcileError> {
        let Some(status) = &attachment.status else { return Ok(()) };
        if status.attached && attachment.metadata.deletion_timestamp.is_none() {
            if self.report(&attachment.spec.node_name, &volume.unique_name, true).await? {
                let told = format!("AttachVolume.Attach succeeded for volume \"{}\" ", volume.name);
                self.tell(pods, EventType::Normal, "SuccessfulAttachVolume", &told);
            }
        } else if let Some(error) = &status.attach_error {
            let why = error.message.as_deref().unwrap_or_default();
            let why = format!("AttachVolume.Attach failed for volume \"{}\" : {why}", volume.name);
            self.tell(pods, EventType::Warning, "FailedAttachVolume", &why);
        }
        Ok(())
    }

    /// Adds a volume to what a node's status says is attached, or takes it off; whether that was needed.
    async fn report(&self, node: &str, unique_name: &str, attached: bool) -> Result<bool, ReconcileError> {
        let Some(stored) = self.nodes.lister().get("", node) else { return Ok(false) };
        let typed = stored.typed::<Node>()?;
        let known = typed.status.as_ref().and_then(|status| status.volumes_attached.clone());
        let mut known = known.unwrap_or_default();
        if known.iter().any(|volume| volume.name == unique_name) == attached {
            return Ok(false);
        }
        known.retain(|volume| volume.name != unique_name);
        let mut list: Vec<Value> = known.iter().map(|volume| json!(volume)).collect();
        if attached {
            list.push(json!({"name": unique_name, "devicePath": ""}));
        }
        let list = if list.is_empty() { Value::Null } else { list.into() };
        let patch = json!({
            "metadata": {"uid": &*stored.header().uid, "resourceVersion": stored.revision().to_string()},
            "status": {"volumesAttached": list},
        });
        let path = format!("{}/status", self.nodes.resource().path("", node));
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Ok(_) => Ok(true),
            Err(error) if request::is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the pods on a node that a volume is elsewhere, with those that have it there.
    fn refuse(
        &self,
        volume: &Volume<'_>,
        pods: &[Arc<Stored>],
        others: &[String],
        users: &BTreeMap<String, Vec<Arc<Stored>>>,
    ) {
        let using: Vec<&Arc<Stored>> = others.iter().filter_map(|node| users.get(node)).flatten().collect();
        for pod in pods {
            let namespace = &pod.header().namespace;
            let own: Vec<&str> = using
                .iter()
                .filter(|other| other.header().namespace == *namespace)
                .map(|other| &*other.header().name)
                .collect();
            let foreign = using.len() - own.len();
            let why = match (own.is_empty(), foreign) {
                (true, 0) => {
                    "Volume is already exclusively attached to one node and can't be attached to another"
                        .to_owned()
                }
                (true, _) => format!("Volume is already used by {foreign} pod(s) in different namespaces"),
                (false, 0) => format!("Volume is already used by pod(s) {}", own.join(", ")),
                (false, _) => format!(
                    "Volume is already used by pod(s) {} and {foreign} pod(s) in different namespaces",
                    own.join(", ")
                ),
            };
            let message = format!("Multi-Attach error for volume \"{}\" {why}", volume.name);
            self.tell(std::slice::from_ref(pod), EventType::Warning, "FailedAttachVolume", &message);
        }
    }

    /// Brings a volume off a node that does not need it.
    async fn detach(
        &self,
        unique_name: &str,
        attachment: &VolumeAttachment,
    ) -> Result<Action, ReconcileError> {
        let name = attachment.metadata.name.clone().unwrap_or_default();
        if attachment.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let now = self.clock.now();
        let since = {
            let mut unneeded = self.unneeded.lock().unwrap_or_else(PoisonError::into_inner);
            *unneeded.entry(name.clone()).or_insert(now)
        };
        let node = &*attachment.spec.node_name;
        let state = NodeState::of(self.nodes.get("", node).as_deref(), unique_name);
        let decision = decide::detach(state, since, now, self.force);
        if let Detach::Wait(left) = decision {
            // A change of the node tells when it is needed no longer.
            return Ok(if left.is_zero() { Action::Done } else { Action::After(left) });
        }
        // The node must not begin to use what it sees attached while it is being detached.
        self.report(node, unique_name, false).await?;
        if decision == Detach::Verified && self.is_in_use(node, unique_name).await? {
            self.report_again(node, unique_name).await?;
            return Err(ReconcileError::other(format!(
                "volume {unique_name} is still in use by node {node}, according to Node status"
            )));
        }
        let path = self.attachments.resource().path("", &name);
        let how = DeleteHow { uid: attachment.metadata.uid.clone(), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => {
                self.forget(&name);
                Ok(Action::Done)
            }
        }
    }

    /// Keeps which nodes a volume is refused to, and gives those that don't know yet.
    fn newly_refused(&self, volume: &str, nodes: BTreeSet<String>) -> BTreeSet<String> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.is_empty() {
            refused.remove(volume);
            return nodes;
        }
        let before = refused.insert(volume.to_owned(), nodes.clone()).unwrap_or_default();
        nodes.difference(&before).cloned().collect()
    }

    fn forget(&self, attachment: &str) {
        self.unneeded.lock().unwrap_or_else(PoisonError::into_inner).remove(attachment);
    }

    /// Asks the server itself whether a node uses a volume.
    async fn is_in_use(&self, node: &str, unique_name: &str) -> Result<bool, ReconcileError> {
        match self.requests.get::<Node>(&self.nodes.resource().path("", node)).await {
            Ok(node) => Ok(NodeState::of(Some(&node), unique_name).in_use),
            Err(error) if request::is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Undoes a report: the informer still has the node as it was before, so the server's own is changed.
    async fn report_again(&self, node: &str, unique_name: &str) -> Result<(), ReconcileError> {
        let path = self.nodes.resource().path("", node);
        let now: Value = self.requests.get(&path).await?;
        let mut list = now["status"]["volumesAttached"].as_array().cloned().unwrap_or_default();
        if list.iter().any(|volume| volume["name"] == unique_name) {
            return Ok(());
        }
        list.push(json!({"name": unique_name, "devicePath": ""}));
        let patch = json!({
            "metadata": {"resourceVersion": now["metadata"]["resourceVersion"]},
            "status": {"volumesAttached": list},
        });
        self.requests.patch::<Written>(&format!("{path}/status"), PatchKind::Merge, &patch).await?;
        Ok(())
    }

    /// A volume that is gone while an attachment of it is left: the node's status still says what it was called.
    fn name_by_status(&self, attachment: &VolumeAttachment) -> String {
        let (driver, node) = (&attachment.spec.attacher, &attachment.spec.node_name);
        let prefix = unique_name(driver, "");
        let status = self.nodes.get("", node).and_then(|node| node.status.clone()).unwrap_or_default();
        let names = status.volumes_attached.unwrap_or_default().into_iter().map(|volume| volume.name);
        let mut names = names.chain(status.volumes_in_use.unwrap_or_default());
        let is_it = |name: &String| {
            let handle = name.strip_prefix(&prefix);
            handle.map(|handle| attachment_name(driver, handle, node)) == attachment.metadata.name
        };
        names.find(is_it).unwrap_or_default()
    }
}

#[async_trait]
impl Reconciler for Attachments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let attachments = self.attachments.by_index(BY_VOLUME, &key.name);
        let attached: BTreeMap<String, &VolumeAttachment> =
            attachments.iter().map(|one| (one.spec.node_name.clone(), &**one)).collect();
        let stored = self.volumes.lister().get("", &key.name);
        let typed = stored.as_ref().map(|stored| stored.typed::<PersistentVolume>()).transpose()?;
        let Some((stored, typed)) = stored.zip(typed) else {
            let mut action = Action::Done;
            for attachment in attached.values() {
                let name = self.name_by_status(attachment);
                action = action.or_sooner(self.detach(&name, attachment).await?);
            }
            return Ok(action);
        };
        let Some((driver, handle)) = source(&typed) else { return Ok(Action::Done) };
        let needless = |driver: Arc<CSIDriver>| driver.spec.attach_required == Some(false);
        if self.drivers.get("", driver).is_some_and(needless) {
            return Ok(Action::Done);
        }
        let volume = Volume { name: &key.name, driver, handle, unique_name: unique_name(driver, handle) };
        let users = self.users(&stored)?;
        let steps = decide::steps(users.keys().map(String::as_str), &attached, decide::is_shared(&typed));
        let elsewhere = steps.iter().filter(|(_, step)| matches!(step, Step::Refuse(_)));
        let to_tell = self.newly_refused(&key.name, elsewhere.map(|(node, _)| node.clone()).collect());
        let mut action = Action::Done;
        for (node, step) in steps {
            let pods = users.get(&node).map(Vec::as_slice).unwrap_or_default();
            match (step, attached.get(&node)) {
                (Step::Attach, _) => self.attach(&volume, &node, pods).await?,
                (Step::Keep, Some(attachment)) => {
                    self.forget(attachment.metadata.name.as_deref().unwrap_or_default());
                    self.follow(&volume, attachment, pods).await?;
                }
                (Step::Refuse(others), _) if to_tell.contains(&node) => {
                    self.refuse(&volume, pods, &others, &users);
                }
                (Step::Release, Some(attachment)) => {
                    action = action.or_sooner(self.detach(&volume.unique_name, attachment).await?);
                }
                _ => {}
            }
        }
        Ok(action)
    }
}
