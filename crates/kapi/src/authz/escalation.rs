//! Nobody gives away more than they hold (upstream's `pkg/registry/rbac/*/policybased`): who writes a role must hold all its
//! rules or may `escalate`; who writes a binding must hold all rules of its role or may `bind` it.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use kcore::Status;
use serde_json::{Value, json};

use super::{
    Chain,
    rbac::{GROUP, PolicyRule, Quoted, Rbac, compact, missing},
};
use crate::{
    admission::{Admission, AdmissionRequest, Operation},
    authn::{MASTERS, UserInfo},
    error::ApiResult,
    request::RequestInfo,
};

/// The last step that may change an object, so that what is checked is what is stored.
#[derive(Debug)]
pub(crate) struct NoEscalation {
    pub(crate) authorizers: Chain,
    pub(crate) rbac: Arc<Rbac>,
}

#[async_trait]
impl Admission for NoEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let def = &request.resource.def;
        if def.group != GROUP || request.user.is_in(MASTERS) {
            return Ok(());
        }
        if request.old.is_some_and(|old| only_ownership_differs(object, old)) {
            return Ok(());
        }
        match def.plural.as_str() {
            "roles" | "clusterroles" => self.role(request, object).await,
            _ => self.binding(request, object).await,
        }
    }
}

impl NoEscalation {
    async fn role(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let plural = &request.resource.def.plural;
        // Of what is created the path has no name.
        let name = if request.operation == Operation::Create { "" } else { request.name };
        if self.may(request.user, "escalate", plural, request.namespace, name).await {
            return Ok(());
        }
        let refuse = |why: &str| Status::forbidden(GROUP, plural, object_name(object), why);
        self.holds(request, &PolicyRule::all_of(object)).map_err(|why| refuse(&why))?;
        let aggregated = |object: &Value| {
            let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array();
            selectors.is_some_and(|selectors| !selectors.is_empty())
        };
        if plural == "clusterroles" && (aggregated(object) || request.old.is_some_and(aggregated)) {
            // Such a role can gather anything.
            let any = json!(["*"]);
            let all = [
                PolicyRule::of(&json!({"verbs": any, "apiGroups": any, "resources": any})),
                PolicyRule::of(&json!({"verbs": any, "nonResourceURLs": any})),
            ];
            let why = "must have cluster-admin privileges to use the aggregationRule";
            self.holds(request, &all).map_err(|_| refuse(why))?;
        }
        Ok(())
    }

    async fn binding(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let role = &object["roleRef"];
        let text = |key: &str| role[key].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let plural = match kind {
            "Role" => "roles",
            "ClusterRole" => "clusterroles",
            // Validation says what is wrong with it.
            _ => return Ok(()),
        };
        if self.may(request.user, "bind", plural, request.namespace, name).await {
            return Ok(());
        }
        let rules = self.rbac.role(request.namespace, kind, name);
        // As upstream, which names the kind that the request is about.
        let rules = rules.ok_or_else(|| Status::not_found(GROUP, &request.resource.def.plural, name))?;
        let refuse = |why: String| {
            Status::forbidden(GROUP, &request.resource.def.plural, object_name(object), &why).into()
        };
        self.holds(request, &rules).map_err(refuse)
    }

    async fn may(&self, user: &UserInfo, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
        let ask = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        self.authorizers.allows(user, &ask).await
    }

    /// Whether the caller holds all these rules; the error names those that are missing.
    fn holds(&self, request: &AdmissionRequest<'_>, rules: &[PolicyRule]) -> Result<(), String> {
        let held = self.rbac.rules_for(request.user, request.namespace);
        let missing = missing(&held.rules, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let user = request.user;
        let lines: BTreeSet<String> = compact(missing).iter().map(ToString::to_string).collect();
        let lines: Vec<String> = lines.into_iter().collect();
        let mut why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            Quoted(&user.groups),
            lines.join("\n")
        );
        if let Some(error) = held.error {
            why = format!("{why}; resolution errors: [{error}]");
        }
        Err(why)
    }
}

fn object_name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether an object differs from its old state only in what the garbage collector changes
/// (`registry/rbac/helpers.go` `IsOnlyMutatingGCFields`).
pub(crate) fn only_ownership_differs(object: &Value, old: &Value) -> bool {
    const FREE: [&str; 3] = ["ownerReferences", "finalizers", "managedFields"];
    let (Some(new), Some(before)) = (object.as_object(), old.as_object()) else {
        return false;
    };
    let same = |key: &String| key == "metadata" || new.get(key) == before.get(key);
    if !new.keys().chain(before.keys()).all(same) {
        return false;
    }
    let (Some(new), Some(before)) = (object["metadata"].as_object(), old["metadata"].as_object()) else {
        return false;
    };
    new.keys().chain(before.keys()).all(|key| FREE.contains(&key.as_str()) || new.get(key) == before.get(key))
}
