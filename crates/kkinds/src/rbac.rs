//! Roles and their bindings.

use kschema::{
    error::FieldError,
    fields::{items_mut, set_default},
    strategy::{NameRule, Strategy},
};
use serde_json::Value;

use crate::check::{Internal, Look, Path, Report, form, labels, same_at};

type Errors = Vec<FieldError>;

const GROUP: &str = "rbac.authorization.k8s.io";

/// The strategy of `roles` and `clusterroles`.
#[derive(Debug)]
pub(crate) struct Roles {
    /// Whether they hold in one namespace only.
    pub(crate) namespaced: bool,
}

/// The strategy of `rolebindings` and `clusterrolebindings`.
#[derive(Debug)]
pub(crate) struct Bindings {
    /// Whether they hold in one namespace only.
    pub(crate) namespaced: bool,
}

fn rule(rule: &Value, namespaced: bool, path: &Path<'_>, errors: &mut Errors) {
    if rule.count("verbs") == 0 {
        errors.required(&path.field("verbs"), "verbs must contain at least one value");
    }
    let urls = rule.get_some("nonResourceURLs").filter(|_| rule.count("nonResourceURLs") > 0);
    if let Some(urls) = urls {
        let field = path.field("nonResourceURLs");
        if namespaced {
            errors.invalid(&field, urls, "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|key| rule.count(key) > 0) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.invalid(&field, urls, why);
        }
        return;
    }
    if rule.count("apiGroups") == 0 {
        errors.required(&path.field("apiGroups"), "resource rules must supply at least one api group");
    }
    if rule.count("resources") == 0 {
        errors.required(&path.field("resources"), "resource rules must supply at least one resource");
    }
}

fn aggregated(object: &Value) -> &[Value] {
    object.get_some("aggregationRule").map_or(&[], |rule| rule.list("clusterRoleSelectors"))
}

fn role(object: &Value, namespaced: bool, lax: bool, errors: &mut Errors) {
    let list = Path::root("rules");
    for (index, one) in object.list("rules").iter().enumerate() {
        rule(one, namespaced, &list.index(index), errors);
    }
    if namespaced || !object.has("aggregationRule") {
        return;
    }
    let list = Path::root("aggregationRule.clusterRoleSelectors");
    if aggregated(object).is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.required(&list, why);
    }
    for (index, selector) in aggregated(object).iter().enumerate() {
        labels::selector(Some(selector), &list.index(index), lax, errors);
        if labels::is_faulty(Some(selector)) {
            errors.invalid(&list.index(index), None, "invalid label selector.");
        }
    }
}

impl Strategy for Roles {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        role(object, self.namespaced, false, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let lax = aggregated(old).iter().any(|selector| labels::is_faulty(Some(selector)));
        role(object, self.namespaced, lax, errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn subject(subject: &Value, namespaced: bool, path: &Path<'_>, errors: &mut Errors) {
    let (name, group) = (subject.text("name"), subject.text("apiGroup"));
    errors.needs(subject, path, "name");
    match subject.text("kind") {
        "ServiceAccount" => {
            errors.optional_name(&path.field("name"), name, form::dns_subdomain);
            if !group.is_empty() {
                errors.unsupported(&path.field("apiGroup"), group, &[""]);
            }
            if !namespaced {
                errors.needs(subject, path, "namespace");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.unsupported(&path.field("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.unsupported(&path.field("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        if let Some(role) = object.get_mut("roleRef").filter(|role| role.is_object())
            && role.text("apiGroup").is_empty()
        {
            role["apiGroup"] = GROUP.into();
        }
        for subject in items_mut(object, "subjects") {
            if ["User", "Group"].contains(&subject.text("kind")) {
                set_default(subject, "apiGroup", GROUP);
            }
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (role, path) = (&object["roleRef"], Path::root("roleRef"));
        if role.text("apiGroup") != GROUP {
            errors.unsupported(&path.field("apiGroup"), role.text("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&role.text("kind")) {
            errors.unsupported(&path.field("kind"), role.text("kind"), kinds);
        }
        errors.name(&path.field("name"), role.text("name"), form::path_segment);
        let list = Path::root("subjects");
        for (index, one) in object.list("subjects").iter().enumerate() {
            subject(one, self.namespaced, &list.index(index), errors);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate(object, errors);
        if !same_at(object, old, "roleRef") {
            errors.invalid(
                &Path::root("roleRef"),
                Internal("~rbac.v1.RoleRef", object.get("roleRef")),
                "cannot change roleRef",
            );
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
