//! Access reviews: may somebody do something, and what may I do (`pkg/registry/authorization`).

use kcore::{
    Status,
    selector::{FieldSelector, FieldTerm, LabelSelector, Operator, Requirement, key_fault, value_fault},
};
use serde_json::{Value, json};

use crate::{
    authn::UserInfo,
    authz::{Chain, PolicyRule, Verdict},
    error::ApiResult,
    request::RequestInfo,
};

/// Whom a review is about.
pub(super) fn subject(spec: &Value) -> UserInfo {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        uid: text(&spec["uid"]),
        extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
        ..UserInfo::new(text(&spec["user"]), texts(&spec["groups"]))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The status of a review. The specification has been validated.
pub(super) async fn decide(authorizers: &Chain, user: &UserInfo, spec: &Value) -> Value {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    let info = if resource.is_object() {
        let (fields, labels) =
            (field_selector(&resource["fieldSelector"]), label_selector(&resource["labelSelector"]));
        for (name, fault, empty) in [
            ("fieldSelector", fields.fault, fields.selector.is_empty()),
            ("labelSelector", labels.fault, labels.selector.is_empty()),
        ] {
            if fault {
                let partly = if empty { "" } else { "partially " };
                errors.push(format!("spec.resourceAttributes.{name} {partly}ignored due to parse error"));
            }
        }
        let version = Some(text(&resource["version"])).filter(|version| !version.is_empty());
        RequestInfo {
            is_resource: true,
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            version: version.unwrap_or_else(|| "*".to_owned()),
            namespace: text(&resource["namespace"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            name: text(&resource["name"]),
            fields: fields.selector,
            labels: labels.selector,
            ..RequestInfo::default()
        }
    } else {
        RequestInfo { verb: text(&path["verb"]), path: text(&path["path"]), ..RequestInfo::default() }
    };
    let verdict = authorizers.decide(user, &info).await;
    let mut status = json!({"allowed": matches!(verdict, Verdict::Allow(_))});
    if matches!(verdict, Verdict::Deny(_)) {
        status["denied"] = json!(true);
    }
    let (Verdict::Allow(reason) | Verdict::Deny(reason) | Verdict::NoOpinion(reason)) = verdict;
    if !reason.is_none() {
        status["reason"] = json!(reason.to_string());
    }
    if !errors.is_empty() {
        status["evaluationError"] = json!(errors.join("; "));
    }
    status
}

/// A selector of a review, as far as it can be understood: what is left out makes the question a broader one.
struct Parsed<S> {
    selector: S,
    fault: bool,
}

fn label_selector(attributes: &Value) -> Parsed<LabelSelector> {
    if let Some(raw) = attributes["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        let parsed = LabelSelector::parse(raw);
        return Parsed { fault: parsed.is_err(), selector: parsed.unwrap_or_default() };
    }
    let mut fault = false;
    let requirements = attributes["requirements"].as_array().into_iter().flatten();
    let requirements = requirements.filter_map(|requirement| {
        let values = requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let values: Vec<String> = values.map(str::to_owned).collect();
        let operator = match requirement["operator"].as_str() {
            Some("In") if !values.is_empty() => Some(Operator::In),
            Some("NotIn") if !values.is_empty() => Some(Operator::NotIn),
            Some("Exists") if values.is_empty() => Some(Operator::Exists),
            Some("DoesNotExist") if values.is_empty() => Some(Operator::DoesNotExist),
            _ => None,
        };
        let key = text(&requirement["key"]);
        let sound = key_fault(&key).is_none() && values.iter().all(|value| value_fault(value).is_none());
        let requirement = operator.filter(|_| sound).map(|operator| Requirement { key, operator, values });
        fault |= requirement.is_none();
        requirement
    });
    let selector = LabelSelector::new(requirements.collect::<Vec<_>>());
    Parsed { selector, fault }
}

fn field_selector(attributes: &Value) -> Parsed<FieldSelector> {
    if let Some(raw) = attributes["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        let parsed = FieldSelector::parse(raw);
        return Parsed { fault: parsed.is_err(), selector: parsed.unwrap_or_default() };
    }
    let mut fault = false;
    let requirements = attributes["requirements"].as_array().into_iter().flatten();
    let terms = requirements.filter_map(|requirement| {
        let equal = match requirement["operator"].as_str() {
            Some("In") => Some(true),
            Some("NotIn") => Some(false),
            _ => None,
        };
        let term = match (equal, requirement["values"].as_array().map(Vec::as_slice)) {
            (Some(equal), Some([value])) => {
                Some(FieldTerm { path: text(&requirement["key"]), equal, value: text(value) })
            }
            _ => None,
        };
        fault |= term.is_none();
        term
    });
    let selector = FieldSelector::new(terms.collect::<Vec<_>>());
    Parsed { selector, fault }
}

/// The status of a rules review: all that the caller may do in a namespace.
pub(super) async fn rules(authorizers: &Chain, user: &UserInfo, spec: &Value) -> ApiResult<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request").into());
    }
    let found = authorizers.rules(user, namespace).await;
    let shown = |has: fn(&PolicyRule) -> &[String], keys: [&str; 4]| -> Vec<Value> {
        let rules = found.rules.iter().filter(|rule| !has(rule).is_empty());
        let only = |mut rule: Value| {
            if let Some(rule) = rule.as_object_mut() {
                rule.retain(|key, _| keys.contains(&key.as_str()));
            }
            rule
        };
        rules.map(|rule| only(rule.to_value())).collect()
    };
    let resources = shown(|rule| &rule.resources, ["verbs", "apiGroups", "resources", "resourceNames"]);
    let paths = shown(|rule| &rule.non_resource_urls, ["verbs", "nonResourceURLs", "", ""]);
    let mut status =
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": found.incomplete});
    if let Some(error) = found.error {
        status["evaluationError"] = json!(error);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of upstream's `registry/authorization/util/helpers_test.go`: what is understood, and whether something was not.
    #[test]
    fn selectors_are_read_as_far_as_they_can_be() {
        let requirement = |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        for (requirements, expected, fault) in [
            (vec![requirement("a", "In", &["x", "y"])], 1, false),
            (vec![requirement("a", "Exists", &[]), requirement("b", "NotIn", &["x"])], 2, false),
            (vec![requirement("a", "Exists", &["x"])], 0, true),
            (vec![requirement("a", "Soon", &[]), requirement("b", "In", &["x"])], 1, true),
            (vec![requirement("&", "In", &["x"])], 0, true),
        ] {
            let parsed = label_selector(&json!({"requirements": requirements}));
            let found = (parsed.selector.requirements().len(), parsed.fault);
            assert_eq!(found, (expected, fault), "{requirements:?}");
        }
        for (requirements, expected, fault) in [
            (vec![requirement("a", "In", &["x"])], 1, false),
            (vec![requirement("a", "In", &["x", "y"])], 0, true),
            (vec![requirement("a", "Exists", &[]), requirement("b", "NotIn", &["x"])], 1, true),
        ] {
            let parsed = field_selector(&json!({"requirements": requirements}));
            let found = (parsed.selector.terms().len(), parsed.fault);
            assert_eq!(found, (expected, fault), "{requirements:?}");
        }
        assert_eq!(label_selector(&json!({"rawSelector": "a in (b), c"})).selector.requirements().len(), 2);
        assert!(label_selector(&json!({"rawSelector": "a in b"})).fault);
        assert_eq!(field_selector(&json!({"rawSelector": "a=b"})).selector.terms().len(), 1);
        assert!(field_selector(&json!({"rawSelector": "a"})).fault);
    }
}
