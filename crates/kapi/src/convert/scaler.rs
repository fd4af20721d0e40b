//! HorizontalPodAutoscalers: what `autoscaling/v1` has no fields for stands in annotations, as JSON (upstream's
//! `pkg/apis/autoscaling/v1/conversion.go`).

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// Percent of the requested CPU, where an object of v1 says nothing.
const CPU_DEFAULT: u32 = 80;
/// What an older conversion wrote.
const TOLERANCES: [&str; 2] = [
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
const SOURCES: [&str; 5] = ["object", "pods", "resource", "containerResource", "external"];

/// Turns an object of v1 into the form of v2.
pub(super) fn to_hub(object: &mut Value) {
    let read = |object: &Value, name: &str| -> Option<Value> {
        serde_json::from_str(object["metadata"]["annotations"][name].as_str()?).ok()
    };
    let list = |name: &str| match read(object, name) {
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Some(items),
        _ => None,
    };
    let (metrics, current, conditions) = (list(METRICS), list(CURRENT), list(CONDITIONS));
    let behavior = read(object, BEHAVIOR).filter(|behavior| behavior.is_object());
    drop_annotations(object);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut all: Vec<Value> =
            metrics.into_iter().flatten().map(|metric| to_v2(&metric, "target")).collect();
        if let Some(percent) =
            spec.remove("targetCPUUtilizationPercentage").filter(|percent| !percent.is_null())
        {
            all.push(cpu(&percent));
        }
        if all.is_empty() {
            all.push(cpu(&json!(CPU_DEFAULT)));
        }
        spec.insert("metrics".into(), Value::Array(all));
        let behavior = behavior.map(|behavior| recase(behavior, char::to_ascii_lowercase));
        if let Some(behavior) = behavior.filter(|behavior| *behavior != json!({})) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.remove("currentCPUUtilizationPercentage").unwrap_or_default();
        // The annotation knows more.
        let current = current.map(|current| current.iter().map(|metric| to_v2(metric, "current")).collect());
        let bare = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}});
        let current = current.or_else(|| (!percent.is_null()).then(|| Value::Array(vec![bare])));
        current.map(|current| status.insert("currentMetrics".into(), current));
        conditions.map(|conditions| status.insert("conditions".into(), Value::Array(conditions)));
    }
}

/// Turns an object of v2 into the form of v1.
pub(super) fn from_hub(object: &mut Value) {
    drop_annotations(object);
    let mut notes = Vec::new();
    let mut note = |name: &'static str, value: Value| notes.push((name, json!(text(&value))));
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let metrics = list(spec.remove("metrics"));
        let (percents, others): (Vec<Value>, Vec<Value>) =
            metrics.into_iter().partition(|metric| is_cpu(metric, "target"));
        if let Some(first) = percents.first() {
            let percent = first["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        if !others.is_empty() {
            note(METRICS, others.iter().map(|metric| to_v1(metric, "target")).collect());
        }
        if let Some(behavior) = spec.remove("behavior").filter(Value::is_object) {
            note(BEHAVIOR, internal(&behavior));
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let current = list(status.remove("currentMetrics"));
        if let Some(last) = current.iter().rfind(|metric| is_cpu(metric, "current")) {
            let percent = last["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        if !current.is_empty() {
            note(CURRENT, current.iter().map(|metric| to_v1(metric, "current")).collect());
        }
        let conditions = list(status.remove("conditions"));
        if !conditions.is_empty() {
            note(CONDITIONS, Value::Array(conditions));
        }
    }
    if notes.is_empty() {
        return;
    }
    let annotations = object["metadata"]["annotations"].take();
    let mut annotations = match annotations {
        Value::Object(annotations) => annotations,
        _ => Object::new(),
    };
    annotations.extend(notes.into_iter().map(|(name, value)| (name.to_owned(), value)));
    object["metadata"]["annotations"] = Value::Object(annotations);
}

fn drop_annotations(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    let ours =
        |name: &str| [METRICS, CURRENT, CONDITIONS, BEHAVIOR].contains(&name) || TOLERANCES.contains(&name);
    annotations.retain(|name, _| !ours(name));
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn cpu(percent: &Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

/// Whether v1 has a field of its own for a metric; `side` is `target` or `current`.
fn is_cpu(metric: &Value, side: &str) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource"
        && resource["name"] == "cpu"
        && !resource[side]["averageUtilization"].is_null()
}

/// An object of the pairs whose value is there.
fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    let pairs = pairs.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(pairs.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn or(value: &Value, default: &str) -> Value {
    if value.is_null() { json!(default) } else { value.clone() }
}

/// A metric of v2 in the words of v1; `side` is `target` or `current`.
fn to_v1(metric: &Value, side: &str) -> Value {
    let [value, average, utilization] =
        ["Value", "AverageValue", "AverageUtilization"].map(|end| format!("{side}{end}"));
    let mut out = Object::from_iter([("type".to_owned(), or(&metric["type"], ""))]);
    for source in SOURCES.into_iter().filter(|source| metric[*source].is_object()) {
        let from = &metric[source];
        let (amount, id) = (&from[side], &from["metric"]);
        // A status always has an amount, and so have targets that v1 has no pointer for.
        let amount_or_zero = |key: &str| or(&amount[key], "0");
        let maybe = |key: &str| if side == "current" { amount_or_zero(key) } else { amount[key].clone() };
        let name = || or(&id["name"], "");
        let converted = match source {
            "object" => object([
                ("target", from["describedObject"].clone()),
                ("metricName", name()),
                (&value, amount_or_zero("value")),
                ("selector", id["selector"].clone()),
                ("averageValue", amount["averageValue"].clone()),
            ]),
            "pods" => object([
                ("metricName", name()),
                (&average, amount_or_zero("averageValue")),
                ("selector", id["selector"].clone()),
            ]),
            "external" => object([
                ("metricName", name()),
                ("metricSelector", id["selector"].clone()),
                (&value, maybe("value")),
                (&average, amount["averageValue"].clone()),
            ]),
            _ => object([
                ("name", or(&from["name"], "")),
                ("container", from["container"].clone()),
                (&utilization, amount["averageUtilization"].clone()),
                (&average, maybe("averageValue")),
            ]),
        };
        out.insert(source.to_owned(), converted);
    }
    Value::Object(out)
}

/// A metric in the words of v1 as one of v2.
fn to_v2(metric: &Value, side: &str) -> Value {
    let [value, average, utilization] =
        ["Value", "AverageValue", "AverageUtilization"].map(|end| format!("{side}{end}"));
    let target = side == "target";
    let mut out = Object::from_iter([("type".to_owned(), or(&metric["type"], ""))]);
    for source in SOURCES.into_iter().filter(|source| metric[*source].is_object()) {
        let from = &metric[source];
        let kind = |name: &str| if target { json!(name) } else { Value::Null };
        let id = |selector: &str| {
            object([("name", or(&from["metricName"], "")), ("selector", from[selector].clone())])
        };
        let converted = match source {
            "object" => {
                let averaged = !from["averageValue"].is_null();
                let amount = or(&from[&value], "0");
                // A zero beside an average only stands there because v1 can't leave it out.
                let amount = if target && averaged && amount == "0" { Value::Null } else { amount };
                let amount = object([
                    ("type", kind(if averaged { "AverageValue" } else { "Value" })),
                    ("value", amount),
                    ("averageValue", from["averageValue"].clone()),
                ]);
                object([
                    ("describedObject", from["target"].clone()),
                    ("metric", id("selector")),
                    (side, amount),
                ])
            }
            "pods" => {
                let amount =
                    object([("type", kind("AverageValue")), ("averageValue", or(&from[&average], "0"))]);
                object([("metric", id("selector")), (side, amount)])
            }
            "external" => {
                let amount = object([
                    ("type", kind(if from[&value].is_null() { "AverageValue" } else { "Value" })),
                    ("value", if target { from[&value].clone() } else { or(&from[&value], "0") }),
                    ("averageValue", from[&average].clone()),
                ]);
                object([("metric", id("metricSelector")), (side, amount)])
            }
            _ => {
                let amount = object([
                    ("type", kind(if from[&utilization].is_null() { "AverageValue" } else { "Utilization" })),
                    ("averageValue", if target { from[&average].clone() } else { or(&from[&average], "0") }),
                    ("averageUtilization", from[&utilization].clone()),
                ]);
                object([
                    ("name", or(&from["name"], "")),
                    ("container", from["container"].clone()),
                    (side, amount),
                ])
            }
        };
        out.insert(source.to_owned(), converted);
    }
    Value::Object(out)
}

/// The behaviour as upstream's annotation has it: by the names of Go's fields, with those that are not set.
fn internal(behavior: &Value) -> Value {
    let rules = |name: &str| {
        let rules = &behavior[name];
        if !rules.is_object() {
            return Value::Null;
        }
        let policies = rules["policies"].as_array().map(|policies| {
            policies.iter().map(|policy| recase(policy.clone(), char::to_ascii_uppercase)).collect::<Value>()
        });
        json!({
            "StabilizationWindowSeconds": rules["stabilizationWindowSeconds"],
            "SelectPolicy": rules["selectPolicy"],
            "Policies": policies,
            "Tolerance": rules["tolerance"],
        })
    };
    json!({"ScaleUp": rules("scaleUp"), "ScaleDown": rules("scaleDown")})
}

/// The keys of an object, three levels deep at most, with another first letter; what is null goes.
fn recase(value: Value, change: fn(&char) -> char) -> Value {
    match value {
        Value::Object(map) => {
            let pairs = map.into_iter().filter(|(_, value)| !value.is_null());
            let renamed = pairs.map(|(key, value)| {
                let mut letters = key.chars();
                let first: String = letters.next().iter().map(change).collect();
                (first + letters.as_str(), recase(value, change))
            });
            Value::Object(renamed.collect())
        }
        Value::Array(items) => items.into_iter().map(|item| recase(item, change)).collect(),
        other => other,
    }
}

/// The order of Go's structs; what isn't here follows in alphabetical order.
const ORDER: [&str; 38] = [
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "kind",
    "name",
    "apiVersion",
    "target",
    "metricName",
    "metricSelector",
    "targetValue",
    "currentValue",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetAverageValue",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
];

/// JSON as Go writes these structs: in their order, and safe in HTML.
fn text(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn write(value: &Value, out: &mut String) {
    let mut between = "";
    match value {
        Value::Object(map) => {
            let rank = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| rank(key));
            out.push('{');
            for (key, value) in pairs {
                out.push_str(between);
                out.push_str(&json!(key).to_string());
                out.push(':');
                write(value, out);
                between = ",";
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                out.push_str(between);
                write(item, out);
                between = ",";
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One metric of v2 and its words in the annotation (`pkg/apis/autoscaling/v1/conversion.go`).
    #[test]
    fn metrics_stand_in_an_annotation() {
        let described = json!({"kind": "Ingress", "name": "i", "apiVersion": "networking.k8s.io/v1"});
        let reference = r#"{"kind":"Ingress","name":"i","apiVersion":"networking.k8s.io/v1"}"#;
        for (metric, expected) in [
            (
                json!({"type": "Object", "object": {"describedObject": described, "metric": {"name": "m"}, "target": {"type": "Value", "value": "10"}}}),
                format!(r#"[{{"type":"Object","object":{{"target":{reference},"metricName":"m","targetValue":"10"}}}}]"#),
            ),
            (
                json!({"type": "Object", "object": {"describedObject": described, "metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}}),
                format!(r#"[{{"type":"Object","object":{{"target":{reference},"metricName":"m","targetValue":"0","averageValue":"5"}}}}]"#),
            ),
            (
                json!({"type": "Pods", "pods": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "1k"}}}),
                r#"[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"1k","selector":{"matchLabels":{"a":"b"}}}}]"#.into(),
            ),
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "100m"}}}),
                r#"[{"type":"Resource","resource":{"name":"cpu","targetAverageValue":"100m"}}]"#.into(),
            ),
            (
                json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 60}}}),
                r#"[{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageUtilization":60,"container":"c"}}]"#.into(),
            ),
            (
                json!({"type": "External", "external": {"metric": {"name": "a<b", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "3"}}}),
                r#"[{"type":"External","external":{"metricName":"a\u003cb","metricSelector":{"matchLabels":{"a":"b"}},"targetValue":"3"}}]"#.into(),
            ),
        ] {
            let hub = json!({"metadata": {"annotations": {"kept": "x"}}, "spec": {"maxReplicas": 3, "metrics": [metric, cpu(&json!(50))]}});
            let mut object = hub.clone();
            from_hub(&mut object);
            assert_eq!(object["metadata"]["annotations"][METRICS], expected, "{metric}");
            assert_eq!(object["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
            to_hub(&mut object);
            assert_eq!(object, hub, "{metric}");
        }
    }

    #[test]
    fn the_status_and_the_behaviour_stand_in_annotations_too() {
        let hub = json!({
            "metadata": {},
            "spec": {"metrics": [cpu(&json!(50))], "behavior": {"scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 0,
                "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}},
            "status": {
                "currentReplicas": 1,
                "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "r", "message": "m"}],
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "7m"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "current": {"averageValue": "2"}}},
                ],
            },
        });
        let mut object = hub.clone();
        from_hub(&mut object);
        let annotations = &object["metadata"]["annotations"];
        for (name, expected) in [
            (
                BEHAVIOR,
                r#"{"ScaleUp":{"StabilizationWindowSeconds":0,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":null}"#,
            ),
            (
                CONDITIONS,
                r#"[{"type":"AbleToScale","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z","reason":"r","message":"m"}]"#,
            ),
            (
                CURRENT,
                r#"[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":7,"currentAverageValue":"7m"}},{"type":"Pods","pods":{"metricName":"m","currentAverageValue":"2"}}]"#,
            ),
        ] {
            assert_eq!(annotations[name], expected, "{name}");
        }
        assert_eq!(object["status"], json!({"currentReplicas": 1, "currentCPUUtilizationPercentage": 7}));
        to_hub(&mut object);
        assert_eq!(object, hub);
    }

    #[test]
    fn objects_of_the_first_version_are_completed() {
        for (old, spec, status) in [
            (json!({"spec": {"maxReplicas": 1}}), json!([cpu(&json!(80))]), Value::Null),
            (json!({"spec": {"targetCPUUtilizationPercentage": 5}}), json!([cpu(&json!(5))]), Value::Null),
            (
                // What can't be read is passed over.
                json!({"metadata": {"annotations": {METRICS: "{", CURRENT: "[1]", BEHAVIOR: "{}"}}, "spec": {},
                    "status": {"currentCPUUtilizationPercentage": 9}}),
                json!([cpu(&json!(80))]),
                json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 9}}}]),
            ),
        ] {
            let mut object = old.clone();
            to_hub(&mut object);
            assert_eq!(object["spec"]["metrics"], spec, "{old}");
            assert_eq!(object["status"]["currentMetrics"], status, "{old}");
            assert!(
                object["metadata"].get("annotations").is_none() && object["spec"].get("behavior").is_none()
            );
        }
    }
}
