//! What pods and volumes refer to, and so what the node that runs them may read (`VisitPodSecretNames`,
//! `VisitPodConfigmapNames` and `VisitPVSecretNames` of upstream's `pkg/api/v1`).

use ahash::HashSet;
use serde_json::Value;

use crate::admission::VOLUME_SECRETS;

/// What a pod may refer to, always in its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ResourceClaim,
    ServiceAccount,
}

/// The annotation of pods that stand for a node's own ones. A node can make such a pod, so it opens nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where a volume names secrets that nodes read, and whether it may leave out their namespace, which is then the claim's.
const PERSISTENT_VOLUME_SECRETS: [(&str, bool); 10] = [
    ("/cephfs/secretRef", true),
    ("/cinder/secretRef", false),
    ("/flexVolume/secretRef", true),
    ("/rbd/secretRef", true),
    ("/scaleIO/secretRef", true),
    ("/iscsi/secretRef", true),
    ("/storageos/secretRef", false),
    ("/csi/nodePublishSecretRef", false),
    ("/csi/nodeStageSecretRef", false),
    ("/csi/nodeExpandSecretRef", false),
];

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// All that a pod refers to.
pub(super) fn of_pod(pod: &Value) -> HashSet<(Kind, Box<str>)> {
    let mut found = HashSet::default();
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return found;
    }
    let mut add = |kind: Kind, name: &str| {
        if !name.is_empty() {
            found.insert((kind, Box::from(name)));
        }
    };
    let spec = &pod["spec"];
    add(Kind::ServiceAccount, text(spec, "/serviceAccountName"));
    list(spec, "imagePullSecrets").for_each(|secret| add(Kind::Secret, text(secret, "/name")));
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    for container in containers.into_iter().flat_map(|key| list(spec, key)) {
        for env in list(container, "env") {
            add(Kind::Secret, text(env, "/valueFrom/secretKeyRef/name"));
            add(Kind::ConfigMap, text(env, "/valueFrom/configMapKeyRef/name"));
        }
        for from in list(container, "envFrom") {
            add(Kind::Secret, text(from, "/secretRef/name"));
            add(Kind::ConfigMap, text(from, "/configMapRef/name"));
        }
    }
    for volume in list(spec, "volumes") {
        VOLUME_SECRETS.iter().for_each(|path| add(Kind::Secret, text(volume, path)));
        add(Kind::ConfigMap, text(volume, "/configMap/name"));
        for source in list(&volume["projected"], "sources") {
            add(Kind::Secret, text(source, "/secret/name"));
            add(Kind::ConfigMap, text(source, "/configMap/name"));
        }
        add(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName"));
        if volume["ephemeral"].is_object() {
            add(Kind::Claim, &format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")));
        }
    }
    for claim in list(spec, "resourceClaims") {
        add(Kind::ResourceClaim, text(claim, "/resourceClaimName"));
        if !text(claim, "/resourceClaimTemplateName").is_empty() {
            let made =
                list(&pod["status"], "resourceClaimStatuses").find(|made| made["name"] == claim["name"]);
            made.into_iter().for_each(|made| add(Kind::ResourceClaim, text(made, "/resourceClaimName")));
        }
    }
    add(Kind::ResourceClaim, text(&pod["status"], "/extendedResourceClaimStatus/resourceClaimName"));
    found
}

/// Whether a volume is bound to this claim.
pub(super) fn is_of_claim(volume: &Value, namespace: &str, claim: &str) -> bool {
    let reference = &volume["spec"]["claimRef"];
    reference["namespace"] == namespace && reference["name"] == claim
}

/// Whether a node that uses a volume needs this secret for it.
pub(super) fn volume_names_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    let spec = &volume["spec"];
    let of_claim = text(spec, "/claimRef/namespace");
    let is = |own: &str, secret: &str| {
        let own = if own.is_empty() { of_claim } else { own };
        secret == name && own == namespace && !secret.is_empty()
    };
    if is(text(spec, "/azureFile/secretNamespace"), text(spec, "/azureFile/secretName")) {
        return true;
    }
    PERSISTENT_VOLUME_SECRETS.iter().filter_map(|(path, lax)| Some((spec.pointer(path)?, lax))).any(
        |(reference, lax)| {
            let own = text(reference, "/namespace");
            (*lax || !own.is_empty()) && is(own, text(reference, "/name"))
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each place of upstream's visitors (`pkg/api/v1/pod/util_test.go`) in a pod of its own.
    #[test]
    fn every_place_is_looked_at() {
        let in_env = |from: Value| json!({"spec": {"containers": [{"env": [{"valueFrom": from}]}]}});
        let from = |from: Value| json!({"spec": {"initContainers": [{"envFrom": [from]}]}});
        let volume = |volume: Value| json!({"metadata": {"name": "p"}, "spec": {"volumes": [volume]}});
        let named = json!({"name": "x"});
        for (pod, expected) in [
            (json!({"spec": {"serviceAccountName": "x"}}), Kind::ServiceAccount),
            (json!({"spec": {"imagePullSecrets": [named]}}), Kind::Secret),
            (in_env(json!({"secretKeyRef": named})), Kind::Secret),
            (in_env(json!({"configMapKeyRef": named})), Kind::ConfigMap),
            (from(json!({"secretRef": named})), Kind::Secret),
            (from(json!({"configMapRef": named})), Kind::ConfigMap),
            (volume(json!({"azureFile": {"secretName": "x"}})), Kind::Secret),
            (volume(json!({"rbd": {"secretRef": named}})), Kind::Secret),
            (volume(json!({"csi": {"nodePublishSecretRef": named}})), Kind::Secret),
            (volume(json!({"configMap": named})), Kind::ConfigMap),
            (volume(json!({"projected": {"sources": [{"secret": named}]}})), Kind::Secret),
            (volume(json!({"projected": {"sources": [{"configMap": named}]}})), Kind::ConfigMap),
            (volume(json!({"persistentVolumeClaim": {"claimName": "x"}})), Kind::Claim),
            (
                json!({"spec": {"resourceClaims": [{"name": "a", "resourceClaimName": "x"}]}}),
                Kind::ResourceClaim,
            ),
            (
                json!({
                    "spec": {"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "t"}]},
                    "status": {"resourceClaimStatuses": [{"name": "a", "resourceClaimName": "x"}]},
                }),
                Kind::ResourceClaim,
            ),
        ] {
            assert_eq!(of_pod(&pod), HashSet::from_iter([(expected, Box::from("x"))]), "{pod}");
            let mut mirror = pod;
            mirror["metadata"]["annotations"][MIRROR] = json!("1");
            assert!(of_pod(&mirror).is_empty(), "{mirror}");
        }
        let ephemeral = of_pod(&volume(json!({"name": "v", "ephemeral": {}})));
        assert_eq!(ephemeral, HashSet::from_iter([(Kind::Claim, Box::from("p-v"))]));
    }

    #[test]
    fn secrets_of_volumes_are_those_that_nodes_need() {
        let secret = json!({"namespace": "n", "name": "s"});
        for (source, expected) in [
            (json!({"csi": {"nodePublishSecretRef": secret}}), true),
            (json!({"csi": {"controllerPublishSecretRef": secret}}), false),
            (json!({"csi": {"nodeStageSecretRef": {"name": "s"}}}), false),
            (json!({"rbd": {"secretRef": {"name": "s"}}}), true),
            (json!({"rbd": {"secretRef": {"name": "s", "namespace": "other"}}}), false),
            (json!({"azureFile": {"secretName": "s"}}), true),
            (json!({"azureFile": {"secretName": "s", "secretNamespace": "other"}}), false),
        ] {
            let mut volume = json!({"spec": source});
            volume["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"});
            assert_eq!(volume_names_secret(&volume, "n", "s"), expected, "{volume}");
        }
    }
}
