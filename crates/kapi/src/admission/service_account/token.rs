//! The volume with a token of the account, the cluster's authority and the namespace (KEP-1205), and where it is mounted.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::meta;

/// What the volume's name begins with; a pod that has such a volume gets no other.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Where clients look for it. A container that has something mounted there keeps it.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and seven seconds by which the API server knows tokens of this volume (`WarnOnlyBoundTokenExpirationSeconds`).
const EXPIRATION_SECONDS: u32 = 3607;

/// Puts the volume into a pod and mounts it into all of its containers but ephemeral ones, as upstream.
pub(super) fn mount(spec: &mut Value) {
    let known = spec["volumes"].as_array().into_iter().flatten();
    let known = known.filter_map(|volume| volume["name"].as_str());
    let known = known.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = known.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", meta::suffix()));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            needed |= mount_into(container, &name);
        }
    }
    if needed && known.is_none() {
        push(spec, "volumes", named(&VOLUME, &name));
    }
}

/// Whether the container has got the mount.
fn mount_into(container: &mut Value, volume: &str) -> bool {
    let mut mounts = container["volumeMounts"].as_array().into_iter().flatten();
    let has = mounts.any(|mount| mount["mountPath"] == MOUNT_PATH);
    let mount = || named(&MOUNT, volume);
    !has && push(container, "volumeMounts", mount())
}

/// Adds to a list that may be missing; whether there was a place for it. What is no list is left to validation.
fn push(object: &mut Value, name: &str, value: Value) -> bool {
    let Some(map) = object.as_object_mut() else { return false };
    let list = map.entry(name).or_insert(Value::Null);
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut().map(|list| list.push(value)).is_some()
}

/// What every pod gets but for the name: made once, as a copy costs a third of making it.
static VOLUME: LazyLock<Value> = LazyLock::new(|| {
    json!({"name": "", "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
});
static MOUNT: LazyLock<Value> =
    LazyLock::new(|| json!({"name": "", "readOnly": true, "mountPath": MOUNT_PATH}));

/// A copy with this name.
fn named(template: &Value, name: &str) -> Value {
    let mut value = template.clone();
    value["name"] = Value::from(name);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases follow upstream's `plugin/pkg/admission/serviceaccount/admission.go`, `mountServiceAccountToken`.
    #[test]
    fn the_volume_goes_where_none_is() {
        let at = |path: &str| json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": path}]});
        for (spec, mounts, volumes) in [
            (json!({"containers": [{"name": "c"}]}), vec![1], 1),
            (json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}), vec![1, 1], 1),
            (json!({"containers": [at("/other")]}), vec![2], 1),
            (json!({"containers": [at(MOUNT_PATH)]}), vec![1], 0),
            (json!({"containers": [at(MOUNT_PATH), {"name": "d"}]}), vec![1, 1], 1),
            (
                json!({"containers": [{"name": "c"}], "volumes": [{"name": "kube-api-access-mine"}]}),
                vec![1],
                1,
            ),
            (json!({"containers": [{"name": "c"}], "volumes": [{"name": "data"}]}), vec![1], 2),
            (json!({"ephemeralContainers": [{"name": "e"}]}), vec![0], 0),
        ] {
            let mut made = spec.clone();
            mount(&mut made);
            let lists = ["initContainers", "containers", "ephemeralContainers"];
            let containers = lists.iter().flat_map(|list| made[*list].as_array().into_iter().flatten());
            let count = |value: &Value| value.as_array().map_or(0, Vec::len);
            let found: Vec<_> = containers.map(|container| count(&container["volumeMounts"])).collect();
            assert_eq!((found, count(&made["volumes"])), (mounts, volumes), "{spec}");
            // Once more changes nothing.
            let once = made.clone();
            mount(&mut made);
            assert_eq!(made, once);
        }
    }
}
