//! What a pod refers to in the API, in the words of upstream's `HasAPIObjectReference`.

use serde_json::Value;

/// Kinds of volumes that are objects, or need one.
const VOLUMES: [(&str, &str); 14] = [
    ("configMap", "configmaps (via configmap volumes)"),
    ("secret", "secrets (via secret volumes)"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("azureFile", "secrets (via azureFile volumes)"),
    ("cephfs", "secrets (via cephfs volumes)"),
    ("cinder", "secrets (via cinder volumes)"),
    ("flexVolume", "secrets (via flexVolume volumes)"),
    ("rbd", "secrets (via rbd volumes)"),
    ("scaleIO", "secrets (via scaleIO volumes)"),
    ("iscsi", "secrets (via iscsi volumes)"),
    ("storageos", "secrets (via storageos volumes)"),
];
/// Kinds of volumes of which one field only is a reference.
const ONLY_WITH: [(&str, &str); 6] = [
    ("cephfs", "secretRef"),
    ("cinder", "secretRef"),
    ("flexVolume", "secretRef"),
    ("rbd", "secretRef"),
    ("iscsi", "secretRef"),
    ("storageos", "secretRef"),
];
const SOURCES: [(&str, &str); 5] = [
    ("configMap", "configmaps (via projected volumes)"),
    ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The first object of the API that `pod` refers to; `None` when it stands for itself.
pub(super) fn of(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    for key in ["serviceAccountName", "serviceAccount"] {
        if spec[key].as_str().is_some_and(|name| !name.is_empty()) {
            return Some("serviceaccounts");
        }
    }
    if !items(&spec["imagePullSecrets"]).is_empty() {
        return Some("secrets");
    }
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    for container in lists.iter().flat_map(|list| items(&spec[*list])) {
        let from = items(&container["env"]).iter().map(|variable| &variable["valueFrom"]);
        for (source, secret, config_map) in from
            .map(|source| (source, "secretKeyRef", "configMapKeyRef"))
            .chain(items(&container["envFrom"]).iter().map(|source| (source, "secretRef", "configMapRef")))
        {
            if source[secret].is_object() {
                return Some("secrets");
            }
            if source[config_map].is_object() {
                return Some("configmaps");
            }
        }
    }
    if !items(&spec["resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    items(&spec["volumes"]).iter().find_map(|volume| {
        let own = VOLUMES.iter().find(|(key, _)| {
            let only_with = ONLY_WITH.iter().find(|(other, _)| other == key);
            volume[*key].is_object() && only_with.is_none_or(|(_, field)| volume[*key][*field].is_object())
        });
        let projected = items(&volume["projected"]["sources"]).iter();
        let mut projected =
            projected.flat_map(|source| SOURCES.iter().filter(|(key, _)| source[*key].is_object()));
        own.or_else(|| projected.next()).map(|(_, what)| *what)
    })
}
