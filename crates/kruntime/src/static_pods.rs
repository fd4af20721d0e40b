//! Static pods: pods that a node has from files of its own, whether there is an API server or not ("Create static Pods" in Kubernetes'
//! documentation).
//!
//! A node with [`NodeConfig::static_pods`](crate::NodeConfig) reads that file, or the files of that directory, every [`CHECK_EVERY`]. A pod
//! that is new in them is run, one that is no longer there is ended, and one that is changed is replaced: its uid is that of its contents.
//! Through the API such a pod shows as its *mirror*, which the node makes, and makes again when somebody deletes it. A file that can't be
//! used is told of by an event of the node and in the log, once for each state of it; the pod that it had before is ended, as upstream
//! does it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Toleration};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod references;

/// How often the files are read (upstream's `fileCheckFrequency`).
pub const CHECK_EVERY: Duration = Duration::from_secs(20);
/// The longest manifest that is read.
pub const MANIFEST_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// How many files of a directory are read; more than these are told of and left.
pub const MANIFESTS_MAX: usize = 500;

/// Where a pod comes from: `file` here.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// The contents' digest, which is the uid.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// When it was seen first.
pub(crate) const SEEN: &str = "kubernetes.io/config.seen";
/// On mirrors: the digest of what they mirror.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Why a file is no static pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It can't be read.
    #[error("the file can't be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is longer than [`MANIFEST_BYTES_MAX`].
    #[error("the file has more than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    /// It is neither YAML nor JSON, or not a pod of v1.
    #[error("couldn't parse as pod: {0}")]
    Parse(String),
    /// It is a pod that can't be.
    #[error("invalid pod: {0}")]
    Invalid(String),
    /// It refers to an object of the API, which the node would have to read for it.
    #[error("static pods may not reference {0}")]
    Refers(&'static str),
}

/// What the files gave.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The pods by namespace and name.
    pub(crate) pods: BTreeMap<(String, String), Pod>,
    /// The files that gave none, and why.
    pub(crate) bad: BTreeMap<String, String>,
}

/// Reads a file, or all files of a directory that don't begin with a dot, in the order of their names. A place that isn't there has
/// no pods. Blocks.
///
/// # Errors
/// When the place is there and can't be read at all.
pub(crate) fn read(place: &Path, node: &str) -> std::io::Result<Found> {
    let mut found = Found::default();
    let meta = match std::fs::metadata(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        meta => meta?,
    };
    let mut paths = Vec::new();
    if meta.is_dir() {
        for entry in std::fs::read_dir(place)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort();
    } else {
        paths.push(place.to_owned());
    }
    for (number, path) in paths.iter().enumerate() {
        let shown = path.display().to_string();
        if number >= MANIFESTS_MAX {
            found.bad.insert(shown, format!("there are more than {MANIFESTS_MAX} files"));
            continue;
        }
        match std::fs::metadata(path) {
            // A folder within the folder is not looked into.
            Ok(meta) if meta.is_dir() => continue,
            Ok(meta) if !meta.is_file() => {
                found.bad.insert(shown, "it is neither a directory nor a file".to_owned());
                continue;
            }
            _ => {}
        }
        match read_file(path).and_then(|bytes| parse(&bytes, &shown, node)) {
            Ok(pod) => {
                let key = key(&pod);
                if let Some(other) = found.pods.insert(key.clone(), pod) {
                    let hash = other.metadata.uid.unwrap_or_default();
                    let why = format!("it replaces the pod {}/{} ({hash}) of an earlier file", key.0, key.1);
                    found.bad.insert(shown, why);
                }
            }
            Err(error) => {
                found.bad.insert(shown, error.to_string());
            }
        }
    }
    Ok(found)
}

fn read_file(path: &Path) -> Result<Vec<u8>, ManifestError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX { Err(ManifestError::TooLong) } else { Ok(bytes) }
}

/// A pod's namespace and name.
pub(crate) fn key(pod: &Pod) -> (String, String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

/// The static pod that a file's contents describe on this node: its name ends with the node's, its uid is a digest of node, file and contents,
/// it is bound to the node, and no taint ends it.
///
/// What an API server would check of a pod is checked here only as far as it takes to run it; the API server checks the rest when it is
/// given the mirror.
///
/// # Errors
/// When the contents are no pod, or one that can't be static.
pub fn parse(bytes: &[u8], source: &str, node: &str) -> Result<Pod, ManifestError> {
    let parse = |error: &dyn std::fmt::Display| ManifestError::Parse(error.to_string());
    let text = std::str::from_utf8(bytes).map_err(|error| parse(&error))?;
    // JSON is YAML, too.
    let value: Value = serde_saphyr::from_str(text).map_err(|error| parse(&error))?;
    for (key, expected) in [("apiVersion", "v1"), ("kind", "Pod")] {
        if value[key] != expected {
            return Err(ManifestError::Parse(format!("{key} is {}, not {expected:?}", value[key])));
        }
    }
    if let Some(what) = references::of(&value) {
        return Err(ManifestError::Refers(what));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| parse(&error))?;
    check(&pod)?;
    let meta = &mut pod.metadata;
    if meta.uid.as_deref().unwrap_or_default().is_empty() {
        let mut digest = Sha256::new();
        digest.update(format!("host:{node}file:{source}"));
        digest.update(bytes);
        // As long as the digests of upstream's kubelet.
        meta.uid = Some(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect());
    }
    meta.name = Some(format!("{}-{}", meta.name.as_deref().unwrap_or_default(), node.to_lowercase()));
    if meta.namespace.as_deref().unwrap_or_default().is_empty() {
        meta.namespace = Some("default".to_owned());
    }
    // None of these is a file's to say.
    meta.owner_references = None;
    meta.finalizers = None;
    meta.deletion_timestamp = None;
    meta.resource_version = None;
    let annotations = meta.annotations.get_or_insert_default();
    annotations.remove(MIRROR);
    annotations.insert(HASH.to_owned(), meta.uid.clone().unwrap_or_default());
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    pod.status = None;
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    let always = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&always) {
        tolerations.push(always);
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        default_container(container);
    }
    Ok(pod)
}

/// The defaults of the API that the node would otherwise take another way.
fn default_container(container: &mut Container) {
    if container.image_pull_policy.is_none() {
        let image = container.image.as_deref().unwrap_or_default();
        let name = image.rsplit('/').next().unwrap_or_default();
        let is_latest = !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
        container.image_pull_policy = Some(if is_latest { "Always" } else { "IfNotPresent" }.to_owned());
    }
    // Limits stand for requests that aren't there.
    if let Some(resources) = &mut container.resources
        && let Some(limits) = &resources.limits
    {
        let requests = resources.requests.get_or_insert_default();
        for (name, amount) in limits {
            requests.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    }
}

fn check(pod: &Pod) -> Result<(), ManifestError> {
    let invalid = |why: String| Err(ManifestError::Invalid(why));
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !kcore::selector::is_dns_subdomain(name) {
        return invalid(format!("metadata.name: {name:?} is not a lowercase RFC 1123 subdomain"));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if !namespace.is_empty() && !kcore::selector::is_dns_label(namespace) {
        return invalid(format!("metadata.namespace: {namespace:?} is not a lowercase RFC 1123 label"));
    }
    // It becomes the name of directories.
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if uid.len() > 63 || !uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return invalid(format!("metadata.uid: {uid:?} is not made of letters, digits and hyphens"));
    }
    let Some(spec) = pod.spec.as_ref().filter(|spec| !spec.containers.is_empty()) else {
        return invalid("spec.containers: Required value".to_owned());
    };
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        return invalid("spec.ephemeralContainers: Forbidden: cannot be set on create".to_owned());
    }
    let mut names: Vec<&str> = Vec::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        if !kcore::selector::is_dns_label(&container.name) {
            return invalid(format!("the container's name {:?} is not an RFC 1123 label", container.name));
        }
        if names.contains(&container.name.as_str()) {
            return invalid(format!("there are two containers {:?}", container.name));
        }
        names.push(&container.name);
        if container.image.as_deref().unwrap_or_default().is_empty() {
            return invalid(format!("the container {:?} has no image", container.name));
        }
    }
    Ok(())
}

/// Notes when the pod was seen first.
pub(crate) fn note_seen(pod: &mut Pod, now: Timestamp) {
    let seen = now.to_string();
    pod.metadata.annotations.get_or_insert_default().entry(SEEN.to_owned()).or_insert(seen);
}

/// The mirror of a static pod, owned by the node with this uid.
pub(crate) fn mirror(pod: &Pod, node: &str, node_uid: &str) -> Result<Value, serde_json::Error> {
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.to_owned(), hash);
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.metadata.name, "namespace": pod.metadata.namespace,
            "labels": pod.metadata.labels, "annotations": annotations,
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true},
            ],
        },
        "spec": serde_json::to_value(&pod.spec)?,
    }))
}

/// Whether a pod is some static pod's mirror.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR))
}

/// Whether `mirror` shows this static pod, and nobody deletes it.
pub(crate) fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    let hash = mirror.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR));
    mirror.metadata.deletion_timestamp.is_none() && hash == pod.metadata.uid.as_ref()
}

#[cfg(test)]
mod tests;
