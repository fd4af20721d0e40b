//! The checks that the restricted level adds (`pod-security-admission/policy/check_*.go`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    baseline::{PROFILES, added, any_proc_mount, seccomp as any_seccomp},
    checks::{Finding, Pod, bad, containers, name, plural, quoted, setters},
};

pub(super) fn privilege_escalation(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() {
        return None;
    }
    let (names, _) =
        bad(pod, |container, _| container["securityContext"]["allowPrivilegeEscalation"] != false);
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    if names.is_empty() { None } else { Finding::new("allowPrivilegeEscalation != false", detail) }
}

pub(super) fn capabilities(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() {
        return None;
    }
    let drops = |container: &Value| {
        let list = container["securityContext"]["capabilities"]["drop"].as_array().into_iter().flatten();
        list.into_iter().any(|name| name == "ALL")
    };
    let (keeping, _) = bad(pod, |container, _| !drops(container));
    let (adding, values) = bad(pod, |container, values| added(container, &["NET_BIND_SERVICE"], values));
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details
            .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let (who, what) = (containers(&adding), quoted(&values));
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { Finding::new("unrestricted capabilities", details.join("; ")) }
}

pub(super) fn proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    any_proc_mount(pod)
}

pub(super) fn volumes(pod: &Pod<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    const KNOWN: [&str; 21] = [
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "gitRepo",
        "nfs",
        "iscsi",
        "glusterfs",
        "rbd",
        "flexVolume",
        "cinder",
        "cephfs",
        "flocker",
        "fc",
        "azureFile",
        "vsphereVolume",
        "quobyte",
        "azureDisk",
        "photonPersistentDisk",
        "portworxVolume",
        "scaleIO",
        "storageos",
    ];
    let has = |volume: &Value, kind: &str| volume.get(kind).is_some_and(|source| !source.is_null());
    let all = pod.spec["volumes"].as_array().into_iter().flatten();
    let wrong: Vec<&Value> = all.filter(|volume| !ALLOWED.iter().any(|kind| has(volume, kind))).collect();
    if wrong.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = wrong
        .iter()
        .map(|volume| KNOWN.iter().find(|kind| has(volume, kind)).map_or("unknown", |kind| kind).to_owned())
        .collect();
    let names: Vec<String> = wrong.into_iter().map(name).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(&kinds)
    );
    Finding::new("restricted volume types", detail)
}

pub(super) fn non_root(pod: &Pod<'_>) -> Option<Finding> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.has_own_users() {
        return None;
    }
    let said = |of: &Value| of["securityContext"]["runAsNonRoot"].as_bool();
    let (explicit, _) = bad(pod, |container, _| said(container) == Some(false));
    if let Some(who) = setters(said(pod.spec) == Some(false), &explicit) {
        return Finding::new(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let (implicit, _) = bad(pod, |container, _| said(container).is_none() && said(pod.spec) != Some(true));
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit));
    if implicit.is_empty() { None } else { Finding::new(REASON, detail) }
}

pub(super) fn user(pod: &Pod<'_>) -> Option<Finding> {
    if pod.has_own_users() {
        return None;
    }
    let is_root = |of: &Value| of["securityContext"]["runAsUser"].as_i64() == Some(0);
    let (names, _) = bad(pod, |container, _| is_root(container));
    let who = setters(is_root(pod.spec), &names)?;
    Finding::new("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn seccomp(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() {
        return None;
    }
    if let Some(finding) = any_seccomp(pod) {
        return Some(finding);
    }
    let profile = |of: &Value| {
        let kind = of["securityContext"]["seccompProfile"]["type"].as_str();
        kind.is_some_and(|kind| PROFILES.contains(&kind))
    };
    if profile(pod.spec) {
        return None;
    }
    let (names, _) = bad(pod, |container, _| !profile(container));
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&names)
    );
    if names.is_empty() { None } else { Finding::new("seccompProfile", detail) }
}
