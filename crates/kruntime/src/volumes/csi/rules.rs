//! What follows from the objects alone: names, paths, and who does what.

use std::path::{Path, PathBuf};

use k8s_openapi::api::{
    core::v1::{CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, SecretReference},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use sha2::{Digest as _, Sha256};

use super::proto::Texts;

/// The name of the plug-in in paths and names of volumes.
const PLUGIN: &str = "kubernetes.io/csi";
/// The folder of a pod's volumes that is the plug-in's.
pub(super) const FOLDER: &str = "kubernetes.io~csi";

/// A volume of a driver, whoever asked for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spec {
    /// The PersistentVolume's name, or that of the pod's own volume.
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// Whether it lives and dies with its pod (KEP-596).
    pub(crate) is_ephemeral: bool,
    pub(crate) read_only: bool,
    pub(super) fs_type: String,
    pub(super) attributes: Texts,
    pub(super) access_modes: Vec<String>,
    pub(super) mount_options: Vec<String>,
    pub(super) stage_secret: Option<SecretReference>,
    pub(super) publish_secret: Option<SecretReference>,
    pub(super) expand_secret: Option<SecretReference>,
    /// What the volume can hold, as the PersistentVolume says.
    pub(super) capacity: Option<String>,
}

impl Spec {
    /// The volume that a claim is bound to; `None` when it is no driver's. `read_only`: as the pod asks for it.
    ///
    /// # Errors
    /// For what is not done here.
    pub(crate) fn of_claim(volume: &PersistentVolume, read_only: bool) -> Result<Option<Self>, String> {
        let Some(spec) = volume.spec.as_ref() else { return Ok(None) };
        let Some(source) = spec.csi.as_ref() else { return Ok(None) };
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("volumes of the mode Block are not supported by this node".to_owned());
        }
        Ok(Some(Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            is_ephemeral: false,
            read_only,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
            capacity: spec.capacity.as_ref().and_then(|all| Some(all.get("storage")?.0.clone())),
        }))
    }

    /// A volume that stands in the pod itself.
    pub(super) fn inline(name: &str, source: &CSIVolumeSource, pod: &Pod) -> Self {
        let secret = source.node_publish_secret_ref.as_ref();
        Self {
            name: name.to_owned(),
            driver: source.driver.clone(),
            handle: inline_handle(pod.metadata.uid.as_deref().unwrap_or_default(), name),
            is_ephemeral: true,
            read_only: source.read_only.unwrap_or(false),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            publish_secret: secret.map(|secret| SecretReference {
                name: Some(secret.name.clone()),
                namespace: pod.metadata.namespace.clone(),
            }),
            ..Self::default()
        }
    }

    /// How the volume's life goes, in the words of `CSIDriver.spec.volumeLifecycleModes`.
    pub(super) fn mode(&self) -> &'static str {
        if self.is_ephemeral { "Ephemeral" } else { "Persistent" }
    }

    /// The first access mode; a volume of a pod's own is for one node.
    pub(super) fn access_mode(&self) -> &str {
        self.access_modes.first().map_or("ReadWriteOnce", String::as_str)
    }
}

/// The volume's name in a node's `status.volumesInUse`.
pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("{PLUGIN}/{driver}^{handle}")
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the VolumeAttachment of a volume and a node.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hash(&format!("{handle}{driver}{node}")))
}

fn inline_handle(uid: &str, name: &str) -> String {
    format!("csi-{}", hash(&format!("{uid}{name}")))
}

/// Where a volume is made ready for all pods of the node whose directory is `root`.
pub(super) fn staging_path(root: &Path, driver: &str, handle: &str) -> PathBuf {
    root.join("plugins").join(PLUGIN).join(driver).join(hash(handle)).join("globalmount")
}

/// Where it is made ready for the pod whose directory this is.
pub(super) fn target_path(pod_dir: &Path, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(FOLDER).join(name.replace('/', "~")).join("mount")
}

/// Whether volumes of the driver are attached before they are used. Yes, unless the driver says otherwise.
pub(super) fn must_attach(driver: Option<&CSIDriver>) -> bool {
    driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
}

/// Whether the driver has such volumes.
pub(super) fn check_mode(driver: Option<&CSIDriver>, spec: &Spec) -> Result<(), String> {
    let (mode, name) = (spec.mode(), &spec.driver);
    let Some(driver) = driver else {
        if spec.is_ephemeral {
            return Err(format!("volume mode {mode:?} not supported by driver {name} (no CSIDriver object)"));
        }
        return Ok(());
    };
    let modes = driver.spec.volume_lifecycle_modes.as_deref().filter(|modes| !modes.is_empty());
    let is_there = modes.map_or(!spec.is_ephemeral, |modes| modes.iter().any(|known| known == mode));
    if is_there {
        return Ok(());
    }
    let modes: Vec<String> = modes
        .map_or(vec!["Persistent".to_owned()], <[String]>::to_vec)
        .iter()
        .map(|one| format!("{one:?}"))
        .collect();
    Err(format!("volume mode {mode:?} not supported by driver {name} (only supports [{}])", modes.join(" ")))
}

/// Whether the volume is attached; else why not.
pub(super) fn check_attached(attachment: &VolumeAttachment, handle: &str) -> Result<(), String> {
    if attachment.metadata.deletion_timestamp.is_some() {
        return Err("volume attachment is being deleted".to_owned());
    }
    let status = attachment.status.as_ref();
    if status.is_some_and(|status| status.attached) {
        return Ok(());
    }
    if let Some(error) = status.and_then(|status| status.attach_error.as_ref()) {
        return Err(error.message.clone().unwrap_or_default());
    }
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    Err(format!("volume {handle} is not attached for volume attachment {name}"))
}

/// Whether the node gives the volume's files to the pod's group (KEP-1682).
pub(super) fn gives_to_group(policy: Option<&str>, spec: &Spec) -> bool {
    if spec.read_only {
        return false;
    }
    match policy {
        Some("None") => false,
        Some("File") => true,
        _ if spec.fs_type.is_empty() => false,
        _ => {
            let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
            spec.is_ephemeral || spec.access_modes.iter().any(once)
        }
    }
}

/// What a driver with `podInfoOnMount` is told of the pod.
pub(super) fn pod_info(pod: &Pod, spec: &Spec) -> Texts {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_ref());
    [
        ("pod.name", text(pod.metadata.name.as_ref())),
        ("pod.namespace", text(pod.metadata.namespace.as_ref())),
        ("pod.uid", text(pod.metadata.uid.as_ref())),
        ("serviceAccount.name", text(account)),
        ("ephemeral", spec.is_ephemeral.to_string()),
    ]
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
    .into()
}

/// What is to be done about the size of a volume's file system (KEP-284, KEP-1790).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// Nothing.
    None,
    /// It would have to grow, but is only read.
    ReadOnly,
    /// It is to grow to so many bytes.
    To(i64),
}

/// Whether the file system is smaller than its volume, and whoever made the volume larger has left the rest to the node.
pub(super) fn growth(spec: &Spec, claim: &PersistentVolumeClaim) -> Growth {
    let bytes = |text: &str| Some(kcore::Quantity::parse(text).ok()?.value());
    let status = claim.status.as_ref();
    let now = status.and_then(|status| bytes(&status.capacity.as_ref()?.get("storage")?.0));
    let wanted = spec.capacity.as_deref().and_then(bytes);
    let resizing = status.and_then(|status| status.allocated_resource_statuses.as_ref()?.get("storage"));
    let (Some(now), Some(wanted), Some(resizing)) = (now, wanted, resizing) else { return Growth::None };
    if now >= wanted || !matches!(resizing.as_str(), "NodeResizePending" | "NodeResizeInProgress") {
        return Growth::None;
    }
    if spec.read_only { Growth::ReadOnly } else { Growth::To(wanted) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn driver(spec: Value) -> Option<CSIDriver> {
        (!spec.is_null())
            .then(|| serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap())
    }

    #[test]
    fn names_are_upstreams() {
        // What `printf handledrivernode | sha256sum` says.
        let name = attachment_name("handle", "driver", "node");
        assert_eq!(name, format!("csi-{}", hash("handledrivernode")));
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let path = staging_path(Path::new("/root"), "driver", "abc");
        let parent = "/root/plugins/kubernetes.io/csi/driver/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(path, Path::new(parent).join("globalmount"));
        let target = target_path(Path::new("/root/pods/uid"), "pv/1");
        assert_eq!(target, Path::new("/root/pods/uid/volumes/kubernetes.io~csi/pv~1/mount"));
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
    }

    #[test]
    fn drivers_have_the_volumes_that_they_say() {
        // Upstream's `TestMounterSetUp` and `supportsVolumeLifecycleMode`.
        let cases = [
            (json!(null), false, Ok(())),
            (
                json!(null),
                true,
                Err("volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)"),
            ),
            (json!({}), false, Ok(())),
            (
                json!({}),
                true,
                Err("volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])"),
            ),
            (json!({"volumeLifecycleModes": ["Ephemeral"]}), true, Ok(())),
            (
                json!({"volumeLifecycleModes": ["Ephemeral"]}),
                false,
                Err("volume mode \"Persistent\" not supported by driver d (only supports [\"Ephemeral\"])"),
            ),
            (json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}), true, Ok(())),
        ];
        for (object, is_ephemeral, expected) in cases {
            let spec = Spec { driver: "d".to_owned(), is_ephemeral, ..Spec::default() };
            let found = check_mode(driver(object.clone()).as_ref(), &spec);
            assert_eq!(found, expected.map_err(str::to_owned), "{object}");
        }
        assert!(must_attach(None) && must_attach(driver(json!({})).as_ref()));
        assert!(!must_attach(driver(json!({"attachRequired": false})).as_ref()));
    }

    #[test]
    fn groups_are_given_by_policy() {
        // Upstream's `TestMounterSetUpWithFSGroup`.
        let rwo = vec!["ReadWriteOnce".to_owned()];
        let (rwx, rwop) = (vec!["ReadWriteMany".to_owned()], vec!["ReadWriteOncePod".to_owned()]);
        let by_default = Some("ReadWriteOnceWithFSType");
        let cases = [
            (None, "", &rwo, false),
            (None, "ext4", &rwo, true),
            (by_default, "ext4", &rwop, true),
            (by_default, "ext4", &rwx, false),
            (by_default, "ext4", &Vec::new(), false),
            (Some("File"), "", &rwx, true),
            (Some("None"), "ext4", &rwo, false),
        ];
        for (policy, fs_type, modes, expected) in cases {
            let mut spec =
                Spec { fs_type: fs_type.to_owned(), access_modes: modes.clone(), ..Spec::default() };
            assert_eq!(gives_to_group(policy, &spec), expected, "{policy:?} {fs_type} {modes:?}");
            spec.read_only = true;
            assert!(!gives_to_group(policy, &spec), "{policy:?} {fs_type} {modes:?}");
        }
        let inline = Spec { fs_type: "ext4".to_owned(), is_ephemeral: true, ..Spec::default() };
        assert!(gives_to_group(None, &inline));
    }

    #[test]
    fn attachments_are_believed_only_when_they_stay() {
        let deleted = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let cases = [
            (json!({"name": "a"}), json!({"attached": true}), Ok(())),
            (deleted, json!({"attached": true}), Err("volume attachment is being deleted")),
            (
                json!({"name": "a"}),
                json!({"attached": false}),
                Err("volume h is not attached for volume attachment a"),
            ),
            (json!({"name": "a"}), json!({"attached": false, "attachError": {"message": "no"}}), Err("no")),
        ];
        for (metadata, status, expected) in cases {
            let spec = json!({"attacher": "d", "nodeName": "n", "source": {}});
            let object = json!({"metadata": metadata, "spec": spec, "status": status});
            let object: VolumeAttachment = serde_json::from_value(object).unwrap();
            assert_eq!(check_attached(&object, "h"), expected.map_err(str::to_owned), "{status}");
        }
    }

    #[test]
    fn only_what_was_left_to_the_node_grows() {
        // Upstream's `TestNodeExpander` without the volumes of several nodes at once.
        let cases = [
            ("1Gi", "2Gi", "NodeResizePending", Growth::To(2 << 30)),
            ("1Gi", "2Gi", "NodeResizeInProgress", Growth::To(2 << 30)),
            ("1Gi", "2Gi", "NodeResizeInfeasible", Growth::None),
            ("1Gi", "2Gi", "ControllerResizeInProgress", Growth::None),
            ("1Gi", "2Gi", "", Growth::None),
            ("2Gi", "2048Mi", "NodeResizePending", Growth::None),
        ];
        for (now, wanted, resizing, expected) in cases {
            let mut status = json!({"capacity": {"storage": now}});
            if !resizing.is_empty() {
                status["allocatedResourceStatuses"] = json!({"storage": resizing});
            }
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            let mut spec = Spec { capacity: Some(wanted.to_owned()), ..Spec::default() };
            assert_eq!(growth(&spec, &claim), expected, "{now} {wanted} {resizing}");
            spec.read_only = true;
            let read_only = if expected == Growth::None { Growth::None } else { Growth::ReadOnly };
            assert_eq!(growth(&spec, &claim), read_only, "{now} {wanted} {resizing}");
        }
    }
}
