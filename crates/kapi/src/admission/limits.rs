//! Pods and claims keep to the limits of their namespace (upstream's `plugin/pkg/admission/limitranger`).

use std::collections::BTreeMap;

use async_trait::async_trait;
use kcore::Quantity;
use kstore::Revision;
use serde_json::{Map, Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::{error::ApiResult, objects::stored};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Upstream's `LimitRanger`: containers get the requests and limits that the namespace's LimitRanges have as defaults; then
/// containers, pods and claims must keep to the minima, maxima and ratios.
#[derive(Clone, Copy, Debug)]
pub struct LimitRanger;

/// What is limited of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limited {
    Pod,
    Claim,
}

fn limited(request: &AdmissionRequest<'_>) -> Option<Limited> {
    let def = &request.resource.def;
    if !def.group.is_empty() || request.operation == Operation::Delete {
        return None;
    }
    if request.old.is_some_and(|old| old["metadata"]["deletionTimestamp"].is_string()) {
        return None;
    }
    match (def.plural.as_str(), request.subresource, request.operation) {
        ("pods", "", Operation::Create) | ("pods", "resize", Operation::Update) => Some(Limited::Pod),
        ("persistentvolumeclaims", "", _) => Some(Limited::Claim),
        _ => None,
    }
}

/// The limits of the LimitRanges in the namespace, range by range.
fn ranges(request: &AdmissionRequest<'_>) -> Vec<Vec<Value>> {
    let Some(resource) = request.objects.registry().find("", "v1", "limitranges") else {
        return Vec::new();
    };
    let snapshot = request.objects.snapshot();
    if snapshot.table_revision(resource.table) == Revision::ZERO {
        return Vec::new();
    }
    let found = snapshot.range(resource.table, super::in_namespace(request));
    let limits = found.filter_map(|entry| {
        let range = stored(&resource.def, &entry).value().ok()?;
        range["spec"]["limits"].as_array().cloned()
    });
    limits.collect()
}

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &str {
        "LimitRanger"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let kind = &request.resource.def;
        (phase == Phase::Validate || kind.plural == "pods")
            && matches!(request.operation, Operation::Create | Operation::Update)
            && kind.group.is_empty()
            && matches!(&*kind.plural, "pods" | "persistentvolumeclaims")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        if limited(request) == Some(Limited::Pod) && object["spec"].is_object() {
            ranges(request).iter().for_each(|limits| give_defaults(limits, object));
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let Some(limited) = limited(request) else {
            return Ok(());
        };
        for limits in ranges(request) {
            let errors: Vec<String> =
                limits.iter().flat_map(|limit| faults(limited, limit, object)).collect();
            if !errors.is_empty() {
                let mut seen = Vec::new();
                errors.into_iter().for_each(|error| {
                    if !seen.contains(&error) {
                        seen.push(error)
                    }
                });
                return Err(Asked::new(request, object).forbidden(&crate::authz::aggregate(&seen)).into());
            }
        }
        Ok(())
    }
}

/// Gives each container what the range has as defaults, and says so in an annotation.
fn give_defaults(limits: &[Value], pod: &mut Value) {
    let mut defaults: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for limit in limits.iter().filter(|limit| limit["type"] == "Container") {
        for (from, to) in [("defaultRequest", "requests"), ("default", "limits")] {
            let amounts = limit[from].as_object().into_iter().flatten();
            defaults
                .entry(to)
                .or_default()
                .extend(amounts.map(|(key, amount)| (key.clone(), amount.clone())));
        }
    }
    let mut said = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| container.is_object()) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (kind, word) in [("requests", "request"), ("limits", "limit")] {
                let set = set_missing(container, kind, defaults.get(kind));
                if !set.is_empty() {
                    said.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let meta = kschema::fields::child(pod, "metadata");
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        kschema::fields::child(meta, "annotations")[ANNOTATION] = json!(text);
    }
}

fn set_missing(container: &mut Value, kind: &str, defaults: Option<&Map<String, Value>>) -> Vec<String> {
    let given = &container["resources"][kind];
    let missing = defaults.into_iter().flatten().filter(|(key, _)| given.get(key.as_str()).is_none());
    let missing: Vec<(String, Value)> = missing.map(|(key, amount)| (key.clone(), amount.clone())).collect();
    let mut set = Vec::new();
    for (key, amount) in missing {
        let resources = kschema::fields::child(container, "resources");
        kschema::fields::child(resources, kind)[key.as_str()] = amount;
        set.push(key);
    }
    set.sort();
    set
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(list: &Value) -> Amounts {
    let read =
        |(key, amount): (&String, &Value)| Some((key.clone(), Quantity::parse(amount.as_str()?).ok()?));
    list.as_object().into_iter().flatten().filter_map(read).collect()
}

/// What something uses: its requests and limits.
type Usage = (Amounts, Amounts);

fn usage_of(resources: &Value) -> Usage {
    (amounts(&resources["requests"]), amounts(&resources["limits"]))
}

fn faults(limited: Limited, limit: &Value, object: &Value) -> Vec<String> {
    let kind = limit["type"].as_str().unwrap_or_default();
    let list = |key: &str| object["spec"][key].as_array().into_iter().flatten();
    match (limited, kind) {
        (Limited::Pod, "Container") => list("containers")
            .chain(list("initContainers"))
            .flat_map(|container| broken(kind, limit, &usage_of(&container["resources"])))
            .collect(),
        (Limited::Pod, "Pod") => broken(kind, limit, &pod_usage(object)),
        (Limited::Claim, "PersistentVolumeClaim") => {
            let (requests, _) = usage_of(&object["spec"]["resources"]);
            let minima = amounts(&limit["min"]).into_iter();
            let minima =
                minima.filter_map(|(name, bound)| minimum(kind, &name, bound, &requests, &Amounts::new()));
            let maxima = amounts(&limit["max"]).into_iter().filter_map(|(name, bound)| {
                let head = format!("maximum {name} usage per {kind} is {bound}");
                match requests.get(&name) {
                    None => Some(format!("{head}.  No request is specified")),
                    Some(asked) if *asked > bound => Some(format!("{head}, but request is {asked}")),
                    Some(_) => None,
                }
            });
            minima.chain(maxima).collect()
        }
        _ => Vec::new(),
    }
}

fn minimum(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {bound}");
    let Some(asked) = requests.get(name) else {
        return Some(format!("{head}.  No request is specified"));
    };
    if *asked < bound {
        return Some(format!("{head}, but request is {asked}"));
    }
    limits.get(name).filter(|limit| **limit < bound).map(|limit| format!("{head}, but limit is {limit}"))
}

fn maximum(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let head = format!("maximum {name} usage per {kind} is {bound}");
    let Some(limit) = limits.get(name) else {
        return Some(format!("{head}.  No limit is specified"));
    };
    if *limit > bound {
        return Some(format!("{head}, but limit is {limit}"));
    }
    requests.get(name).filter(|asked| **asked > bound).map(|asked| format!("{head}, but request is {asked}"))
}

#[allow(clippy::cast_precision_loss, reason = "upstream compares ratios as floating-point numbers")]
fn ratio(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {bound}");
    let Some(asked) = requests.get(name).filter(|asked| !asked.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limits.get(name).filter(|limit| !limit.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let found = limit.milli() as f64 / asked.milli() as f64;
    (found * 1000.0 > bound.milli() as f64).then(|| format!("{head}, but provided ratio is {found:.6}"))
}

/// What a limit says of this usage.
fn broken(kind: &str, limit: &Value, (requests, limits): &Usage) -> Vec<String> {
    type Rule = fn(&str, &str, Quantity, &Amounts, &Amounts) -> Option<String>;
    let rules: [(&str, Rule); 3] = [("min", minimum), ("max", maximum), ("maxLimitRequestRatio", ratio)];
    let found = rules.iter().flat_map(|(key, rule)| {
        let bounds = amounts(&limit[key]).into_iter();
        bounds.filter_map(|(name, bound)| rule(kind, &name, bound, requests, limits))
    });
    found.collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = most.entry(name.clone()).or_insert(*amount);
        if *amount > *known {
            *known = *amount;
        }
    }
}

/// What a pod uses as a whole: its containers together, or one that runs before them if that needs more (KEP-753), unless
/// the pod says it itself (KEP-2837).
fn pod_usage(pod: &Value) -> Usage {
    let spec = &pod["spec"];
    let of = |key: &str| {
        let list = |key: &str| spec[key].as_array().into_iter().flatten();
        let mut sum = Amounts::new();
        list("containers").for_each(|container| add(&mut sum, &amounts(&container["resources"][key])));
        let (mut sidecars, mut first) = (Amounts::new(), Amounts::new());
        for container in list("initContainers") {
            let own = amounts(&container["resources"][key]);
            let mut now = sidecars.clone();
            add(&mut now, &own);
            if container["restartPolicy"] == "Always" {
                add(&mut sum, &own);
                sidecars.clone_from(&now);
            }
            raise(&mut first, &now);
        }
        raise(&mut sum, &first);
        let whole = amounts(&spec["resources"][key]).into_iter();
        sum.extend(whole.filter(|(name, _)| ["cpu", "memory"].contains(&name.as_str())));
        sum
    };
    (of("requests"), of("limits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(requests: &Value, limits: &Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
    }

    /// Expected results: `limitranger/admission_test.go`.
    #[test]
    fn pods_are_held_against_limits() {
        let none = json!({});
        for (limit, requests, limits, expected) in [
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                json!({"cpu": "100m"}),
                none.clone(),
                vec![],
            ),
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                json!({"cpu": "40m"}),
                none.clone(),
                vec!["minimum cpu usage per Container is 50m, but request is 40m"],
            ),
            (
                json!({"type": "Container", "min": {"memory": "50Mi"}}),
                none.clone(),
                none.clone(),
                vec!["minimum memory usage per Container is 50Mi.  No request is specified"],
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"cpu": "2"}),
                none.clone(),
                vec!["maximum cpu usage per Container is 1.  No limit is specified"],
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                none.clone(),
                json!({"cpu": "1500m"}),
                vec!["maximum cpu usage per Container is 1, but limit is 1500m"],
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "1.5"}}),
                json!({"cpu": "1"}),
                json!({"cpu": "2"}),
                vec!["cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000"],
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                none.clone(),
                json!({"cpu": "2"}),
                vec![
                    "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
                ],
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                none.clone(),
                json!({"memory": "2Gi"}),
                vec!["maximum memory usage per Pod is 1Gi, but limit is 2Gi"],
            ),
            (
                json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}),
                none.clone(),
                none.clone(),
                vec![],
            ),
        ] {
            assert_eq!(faults(Limited::Pod, &limit, &pod(&requests, &limits)), expected, "{limit}");
        }
    }

    #[test]
    fn defaults_are_given_and_told() {
        let limits = [
            json!({"type": "Container", "default": {"cpu": "75m", "memory": "10Mi"}, "defaultRequest": {"cpu": "50m"}}),
        ];
        let mut pod = pod(&json!({}), &json!({"memory": "5Mi"}));
        give_defaults(&limits, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "50m"}, "limits": {"memory": "5Mi", "cpu": "75m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
    }
}
