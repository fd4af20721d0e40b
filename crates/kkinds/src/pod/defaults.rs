//! Defaults of pods and templates that depend on other fields (`pkg/apis/core/v1/defaults.go`).

use kschema::fields::{child, items_mut, set_default};
use serde_json::{Value, json};

use crate::check::{Look, quantity};

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Fills in a specification, wherever it stands.
pub(crate) fn of_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            if !container.is_object() {
                continue;
            }
            let policy = pull_policy(container.text("image"));
            set_default(container, "imagePullPolicy", policy);
            if let Some(resources) = container.get_mut("resources") {
                round_up(resources);
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources") {
        round_up(resources);
    }
    round_up_list(spec, "overhead");
    for volume in items_mut(spec, "volumes") {
        // A volume that names no source is an empty directory.
        if volume
            .as_object()
            .is_some_and(|map| map.iter().all(|(key, value)| key == "name" || value.is_null()))
        {
            volume["emptyDir"] = json!({});
        }
        if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
            let policy = pull_policy(image.text("reference"));
            set_default(image, "pullPolicy", policy);
        }
    }
    // `serviceAccount` is the old name of `serviceAccountName`; both are always written.
    let keys = ["serviceAccountName", "serviceAccount"];
    let account =
        keys.iter().find_map(|key| spec.some_text(key).filter(|name| !name.is_empty()).map(str::to_owned));
    if let Some(account) = account {
        for key in keys {
            if spec.text(key) != account {
                spec[key] = json!(account);
            }
        }
    }
}

/// Fills in a pod: what is not filled in in templates, as pods made from them get it anyway.
pub(crate) fn of_pod(object: &mut Value) {
    let spec = child(object, "spec");
    of_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    if spec.has("resources") {
        huge_page_limits(spec);
        pod_requests(spec);
    }
    set_default(spec, "enableServiceLinks", true);
    if spec.flag("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for container in items_mut(spec, list) {
                for port in items_mut(container, "ports") {
                    if port.int("hostPort") == 0 && port.is_object() {
                        port["hostPort"] = json!(port.int("containerPort"));
                    }
                }
            }
        }
    }
    addresses(object);
}

/// `podIP` is the first of `podIPs`; a client may give either.
fn addresses(object: &mut Value) {
    if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
        let entry = |ip: &str| json!({"ip": ip});
        first_of(status, "podIP", "podIPs", entry, |entry| entry.text("ip"));
    }
}

/// Keeps a field that once was alone and the list that has followed it in step: where both are given and differ, the old
/// field counts.
pub(crate) fn first_of(
    holder: &mut Value,
    one: &str,
    list: &str,
    entry: impl Fn(&str) -> Value,
    text: impl Fn(&Value) -> &str,
) {
    let first = holder.list(list).first().map(|first| text(first).to_owned());
    let single = holder.text(one).to_owned();
    match first {
        Some(first) if single.is_empty() => holder[one] = json!(first),
        Some(first) if first == single => {}
        _ if !single.is_empty() => holder[list] = json!([entry(&single)]),
        _ => {}
    }
}

/// Amounts are kept in thousandths, rounded up (`SetDefaults_ResourceList`).
fn round_up(resources: &mut Value) {
    round_up_list(resources, "limits");
    round_up_list(resources, "requests");
}

/// [`round_up`] for one list of amounts.
pub(crate) fn round_up_list(holder: &mut Value, key: &str) {
    for (_, value) in holder.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten() {
        // The canonical form of anything finer has one of these units.
        if value.as_str().is_some_and(|text| text.ends_with(['u', 'n'])) {
            let text = format!("{}m", quantity::amount(value).milli());
            *value = json!(quantity::amount(&json!(text)).to_string());
        }
    }
}

/// A limit without a request means that the request is the limit.
fn requests_from_limits(container: &mut Value) {
    let missing: Vec<(String, Value)> = match container.get("resources") {
        Some(resources) => {
            let asked = |name: &str| resources.get("requests").is_some_and(|requests| requests.has(name));
            let limits = resources.map("limits").filter(|(name, _)| !asked(name));
            limits.map(|(name, limit)| (name.to_owned(), limit.clone())).collect()
        }
        None => return,
    };
    if !missing.is_empty() {
        let requests = child(child(container, "resources"), "requests");
        for (name, limit) in missing {
            requests[name] = limit;
        }
    }
}

/// Huge pages that containers ask for are the pod's (KEP-2837).
fn huge_page_limits(spec: &mut Value) {
    let resources = &spec["resources"];
    if resources.count("limits") + resources.count("requests") == 0 {
        return;
    }
    let given = |kind: &str, name: &str| resources.get(kind).is_some_and(|list| list.has(name));
    let missing: Vec<(String, String)> = quantity::of_containers(spec, "limits")
        .into_iter()
        .filter(|(name, _)| {
            quantity::is_huge_pages(name) && !given("requests", name) && !given("limits", name)
        })
        .map(|(name, sum)| (name.to_owned(), sum.to_string()))
        .collect();
    set_amounts(spec, "limits", missing);
}

/// What a limited pod does not ask for itself is what its containers ask for, or else the limit (KEP-2837).
fn pod_requests(spec: &mut Value) {
    let resources = &spec["resources"];
    if resources.count("limits") == 0 {
        return;
    }
    let given = |name: &str| resources.get("requests").is_some_and(|list| list.has(name));
    let sums = quantity::of_containers(spec, "requests");
    let mut missing: Vec<(String, String)> = sums
        .iter()
        .filter(|(name, _)| !given(name) && quantity::is_pod_level(name) && quantity::may_overcommit(name))
        .map(|(name, sum)| ((*name).to_owned(), sum.to_string()))
        .collect();
    for (name, limit) in resources.map("limits") {
        let found = given(name) || missing.iter().any(|(other, _)| other == name);
        if !found && quantity::is_pod_level(name) {
            missing.push((name.to_owned(), limit.as_str().unwrap_or_default().to_owned()));
        }
    }
    set_amounts(spec, "requests", missing);
}

fn set_amounts(spec: &mut Value, kind: &str, amounts: Vec<(String, String)>) {
    if !amounts.is_empty() {
        let list = child(child(spec, "resources"), kind);
        for (name, amount) in amounts {
            list[name] = json!(amount);
        }
    }
}

/// An image that may change under its name is pulled always.
fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// Whether an image's reference can be read and names the tag `latest`, or neither tag nor digest
/// (`github.com/distribution/reference`).
fn is_latest(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match name[slash..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    is_repository(name) && tag.map_or(digest.is_none(), |tag| tag == "latest")
}

fn is_repository(name: &str) -> bool {
    let domain = |first: &str| {
        first == "localhost"
            || first.contains(['.', ':'])
            || first.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let path = match name.split_once('/') {
        Some((first, rest)) if domain(first) => rest,
        _ => name,
    };
    path.split('/').all(|part| {
        let bytes = part.as_bytes();
        let low = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        bytes.first().is_some_and(low)
            && bytes.last().is_some_and(low)
            && bytes.iter().all(|byte| low(byte) || matches!(byte, b'.' | b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `pkg/util/parsers/parsers_test.go`.
    #[test]
    fn images_without_tag_or_digest_are_the_latest() {
        for (image, latest) in [
            ("root", true),
            ("root:tag", false),
            ("root:latest", true),
            ("root@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", false),
            ("root:latest@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", true),
            ("user/repo", true),
            ("url:5000/repo", true),
            ("url:5000/repo:tag", false),
            ("ROOT", false),
            ("http://root", false),
            ("", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
