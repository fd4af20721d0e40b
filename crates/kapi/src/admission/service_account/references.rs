//! Which secrets a pod may refer to.

use ahash::HashSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::Value;

/// What containers of each kind are called in messages.
const CONTAINERS: [(&str, &str); 2] = [("initContainers", "init container"), ("containers", "container")];
const EPHEMERAL: (&str, &str) = ("ephemeralContainers", "ephemeral container");

/// Fields of a volume's source that name a secret (`VisitPodSecretNames` of upstream's `pkg/api/v1/pod`).
pub(crate) const VOLUME_SECRETS: [&str; 10] = [
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/secret/secretName",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
];

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Mirrors of nodes' own pods may refer to no account and no secret.
pub(super) fn of_mirror(spec: &Value) -> Result<(), &'static str> {
    if !text(spec, "/serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    let in_volumes = list(spec, "volumes").any(|volume| {
        let projected = volume.get("projected").into_iter().flat_map(|source| list(source, "sources"));
        let mut named = VOLUME_SECRETS.iter().map(|path| text(volume, path)).any(|name| !name.is_empty());
        named |= projected.into_iter().any(|source| source.get("secret").is_some_and(Value::is_object));
        named
    });
    let in_containers = CONTAINERS.iter().chain([&EPHEMERAL]).any(|(name, _)| {
        list(spec, name).any(|container| {
            list(container, "envFrom").any(|from| from.get("secretRef").is_some_and(Value::is_object))
                || list(container, "env")
                    .any(|env| env.pointer("/valueFrom/secretKeyRef").is_some_and(Value::is_object))
        })
    });
    if in_volumes || in_containers || list(spec, "imagePullSecrets").next().is_some() {
        return Err("a mirror pod may not reference secrets");
    }
    let mut sources = list(spec, "volumes")
        .filter_map(|volume| volume.get("projected"))
        .flat_map(|projected| list(projected, "sources"));
    if sources.any(|source| source.get("serviceAccountToken").is_some_and(Value::is_object)) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// A pod of an account that limits them may refer only to the account's secrets.
pub(super) fn of_pod(account: &ServiceAccount, spec: &Value) -> Result<(), String> {
    let name = account.metadata.name.as_deref().unwrap_or_default();
    let secrets = secrets(account);
    for volume in list(spec, "volumes").filter_map(|volume| volume.get("secret")) {
        let secret = text(volume, "/secretName");
        if !secrets.contains(secret) {
            return Err(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
            ));
        }
    }
    for kind in CONTAINERS {
        of_containers(account, spec, kind)?;
    }
    let pulls = account.image_pull_secrets.as_deref().unwrap_or_default();
    for (index, given) in list(spec, "imagePullSecrets").enumerate() {
        let secret = text(given, "/name");
        if !pulls.iter().any(|pull| pull.name == secret) {
            return Err(format!(
                "imagePullSecrets[{index}].name=\"{secret}\" is not allowed because service account {name} does not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

/// The same for containers that are added to a pod that runs.
pub(super) fn of_ephemeral_containers(account: &ServiceAccount, spec: &Value) -> Result<(), String> {
    of_containers(account, spec, EPHEMERAL)
}

fn secrets(account: &ServiceAccount) -> HashSet<&str> {
    account.secrets.iter().flatten().filter_map(|secret| secret.name.as_deref()).collect()
}

fn of_containers(account: &ServiceAccount, spec: &Value, kind: (&str, &str)) -> Result<(), String> {
    let (field, words) = kind;
    let account_name = account.metadata.name.as_deref().unwrap_or_default();
    let secrets = secrets(account);
    let refused = |container: &Value, how: &str, secret: &str| {
        let container = text(container, "/name");
        format!(
            "{words} {container} with {how} referencing secret.secretName=\"{secret}\" is not allowed because service account {account_name} does not reference that secret"
        )
    };
    for container in list(spec, field) {
        for env in list(container, "env") {
            let Some(source) = env.pointer("/valueFrom/secretKeyRef").filter(|source| source.is_object())
            else {
                continue;
            };
            let secret = text(source, "/name");
            if !secrets.contains(secret) {
                return Err(refused(container, &format!("envVar {}", text(env, "/name")), secret));
            }
        }
        for source in list(container, "envFrom").filter_map(|from| from.get("secretRef")) {
            let secret = text(source, "/name");
            if source.is_object() && !secrets.contains(secret) {
                return Err(refused(container, "envFrom", secret));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Messages of upstream's `plugin/pkg/admission/serviceaccount/admission.go`.
    #[test]
    fn only_the_accounts_secrets_may_be_used() {
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {"name": "robot"}, "secrets": [{"name": "mine"}], "imagePullSecrets": [{"name": "pull"}],
        }))
        .unwrap();
        let env = |secret: &str| json!([{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret}}}]}]);
        let from = |secret: &str| json!([{"name": "c", "envFrom": [{"secretRef": {"name": secret}}]}]);
        let not = "is not allowed because service account robot does not reference that";
        for (spec, expected) in [
            (
                json!({"volumes": [{"secret": {"secretName": "mine"}}, {"name": "e", "emptyDir": {}}]}),
                String::new(),
            ),
            (json!({"containers": env("mine"), "initContainers": from("mine")}), String::new()),
            (json!({"imagePullSecrets": [{"name": "pull"}]}), String::new()),
            (
                json!({"volumes": [{"secret": {"secretName": "x"}}]}),
                format!("volume with secret.secretName=\"x\" {not} secret"),
            ),
            (
                json!({"containers": env("x")}),
                format!("container c with envVar E referencing secret.secretName=\"x\" {not} secret"),
            ),
            (
                json!({"initContainers": from("x")}),
                format!("init container c with envFrom referencing secret.secretName=\"x\" {not} secret"),
            ),
            (
                json!({"imagePullSecrets": [{"name": "mine"}]}),
                format!("imagePullSecrets[0].name=\"mine\" {not} imagePullSecret"),
            ),
        ] {
            assert_eq!(of_pod(&account, &spec).err().unwrap_or_default(), expected, "{spec}");
        }
        let spec = json!({"ephemeralContainers": from("x")});
        let expected =
            format!("ephemeral container c with envFrom referencing secret.secretName=\"x\" {not} secret");
        assert_eq!(of_ephemeral_containers(&account, &spec), Err(expected));
        assert_eq!(of_pod(&account, &spec), Ok(()));
    }

    /// The same source.
    #[test]
    fn mirrors_refer_to_nothing() {
        let token =
            json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]});
        for (spec, expected) in [
            (json!({"volumes": [{"hostPath": {"path": "/"}}]}), Ok(())),
            (json!({"serviceAccountName": "a"}), Err("a mirror pod may not reference service accounts")),
            (
                json!({"volumes": [{"secret": {"secretName": "s"}}]}),
                Err("a mirror pod may not reference secrets"),
            ),
            (json!({"imagePullSecrets": [{"name": "s"}]}), Err("a mirror pod may not reference secrets")),
            (
                json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}),
                Err("a mirror pod may not reference secrets"),
            ),
            (token, Err("a mirror pod may not use ServiceAccountToken volume projections")),
        ] {
            assert_eq!(of_mirror(&spec), expected, "{spec}");
        }
    }
}
