//! Kinds with a rule or two.

use std::sync::Arc;

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{child, immutable, items_mut, set_default},
    strategy::{NameRule, Strategy},
};

/// The strategy of a resource that has one here.
pub(crate) fn strategy(qualified: &str) -> Option<Arc<dyn Strategy>> {
    Some(match qualified {
        "networkpolicies.networking.k8s.io" => Arc::new(NetworkPolicies),
        "priorityclasses.scheduling.k8s.io" => Arc::new(PriorityClasses),
        "customresourcedefinitions.apiextensions.k8s.io" => Arc::new(CustomResourceDefinitions),
        "clusterroles.rbac.authorization.k8s.io" | "roles.rbac.authorization.k8s.io" => Arc::new(Roles),
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => {
            Arc::new(Bindings)
        }
        "leases.coordination.k8s.io" => Arc::new(Leases),
        _ => return None,
    })
}

#[derive(Debug)]
struct NetworkPolicies;

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let kinds = if spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty()) {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        set_default(spec, "policyTypes", kinds);
    }
}

#[derive(Debug)]
struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        const USER_MAX: i64 = 1_000_000_000;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let value = object["value"].as_i64().unwrap_or_default();
        let system = ["system-cluster-critical", "system-node-critical"].contains(&name);
        if name.starts_with("system-") && !system {
            errors.push(FieldError::forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only",
            ));
        }
        if value > USER_MAX && !system {
            errors.push(FieldError::forbidden(
                "value",
                format_args!("maximum allowed value of a user defined priority is {USER_MAX}"),
            ));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        for path in ["value", "preemptionPolicy"] {
            let before = errors.len();
            immutable(object, old, path, errors);
            if errors.len() > before {
                errors.truncate(before);
                errors.push(FieldError::forbidden(path, "may not be changed in an update."));
            }
        }
    }
}

#[derive(Debug)]
struct CustomResourceDefinitions;

impl Strategy for CustomResourceDefinitions {
    fn default(&self, object: &mut Value) {
        let Some(names) = object.pointer_mut("/spec/names") else {
            return;
        };
        let kind = names["kind"].as_str().unwrap_or_default().to_owned();
        set_default(names, "singular", kind.to_lowercase());
        set_default(names, "listKind", format!("{kind}List"));
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
        let name = text(&object["metadata"]["name"]);
        if name != expected {
            errors.push(FieldError::invalid_text(
                "metadata.name",
                &name,
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        let stored = spec["versions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|version| version["storage"] == true)
            .count();
        if stored != 1 {
            errors.push(FieldError::invalid(
                "spec.versions",
                &spec["versions"],
                "must have exactly one version marked as storage version",
            ));
        }
    }
}

#[derive(Debug)]
struct Roles;

impl Strategy for Roles {
    fn prepare_create(&self, _object: &mut Value) {}

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

#[derive(Debug)]
struct Bindings;

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        for subject in items_mut(object, "subjects") {
            let group = if subject["kind"] == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
            if !group.is_empty() {
                set_default(subject, "apiGroup", group);
            }
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        if object["roleRef"]["name"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required("roleRef.name", ""));
        }
        kschema::fields::one_of(object, "roleRef.kind", &["ClusterRole", "Role"], errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let before = errors.len();
        immutable(object, old, "roleRef", errors);
        if errors.len() > before {
            errors.truncate(before);
            errors.push(FieldError::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}

#[derive(Debug)]
struct Leases;

impl Strategy for Leases {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let spec = &object["spec"];
        if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        if let Some(count) = spec["leaseTransitions"].as_i64().filter(|count| *count < 0) {
            errors.push(FieldError::invalid(
                "spec.leaseTransitions",
                count,
                "must be greater than or equal to 0",
            ));
        }
    }
}
