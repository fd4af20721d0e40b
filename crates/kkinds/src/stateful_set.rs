//! Stateful sets and the revisions that they and daemon sets keep.

use std::borrow::Cow;

use kschema::{
    error::FieldError,
    fields::{child, items_mut, keep, set_default},
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, form, labels, same},
    claim_spec::{self, ClaimOptions},
    pod::{defaults::round_up_list, template},
    workload::{
        at_most_all, collisions, counts, default_template, parts, runs_always, selector, selects_template,
        share, validate_share,
    },
};

type Errors = Vec<FieldError>;

/// The strategy of `statefulsets`.
#[derive(Debug)]
pub(crate) struct StatefulSets;

/// The strategy of `controllerrevisions`.
#[derive(Debug)]
pub(crate) struct ControllerRevisions;

fn rollout(strategy: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("rollingUpdate");
    match (strategy.text("type"), strategy.get_some("rollingUpdate")) {
        ("", _) => errors.required(path, ""),
        ("OnDelete", Some(rolling)) => {
            errors.invalid(
                &field,
                Internal("~apps.v1.RollingUpdateStatefulSetStrategy", Some(rolling)),
                "only allowed for updateStrategy 'RollingUpdate'",
            );
        }
        ("RollingUpdate", Some(rolling)) => {
            errors.not_negative(rolling, &field, "partition");
            if let Some(shown) = rolling.get_some("maxUnavailable") {
                validate_share(rolling, &field, "maxUnavailable", errors);
                if share(rolling, "maxUnavailable") == 0 {
                    errors.invalid(&field.field("maxUnavailable"), shown, "cannot be 0");
                }
                at_most_all(rolling, &field, "maxUnavailable", errors);
            }
        }
        ("OnDelete" | "RollingUpdate", None) => {}
        _ => errors.invalid(
            path,
            Internal("~apps.v1.StatefulSetUpdateStrategy", Some(strategy)),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
}

/// The template as its pods will be: the set names hosts itself, and adds a volume for each claim.
fn template_of_pods(spec: &Value) -> Cow<'_, Value> {
    let pod = &spec["template"]["spec"];
    let claims = spec.list("volumeClaimTemplates");
    if claims.is_empty() && pod.text("subdomain").is_empty() && pod.text("hostname").is_empty() {
        return Cow::Borrowed(&spec["template"]);
    }
    let mut template = spec["template"].clone();
    let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) else {
        return Cow::Owned(template);
    };
    pod.remove("subdomain");
    pod.remove("hostname");
    if !claims.is_empty() {
        let names: Vec<&str> = claims.iter().map(|claim| claim["metadata"].text("name")).collect();
        let own = pod.get("volumes").and_then(Value::as_array).into_iter().flatten();
        let own = own.filter(|volume| !names.contains(&volume.text("name"))).cloned();
        let mut added: Vec<&str> = Vec::new();
        for name in &names {
            if !added.contains(name) {
                added.push(name);
            }
        }
        let added =
            added.into_iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        let volumes: Vec<Value> = added.chain(own).collect();
        pod.insert("volumes".to_owned(), volumes.into());
    }
    Cow::Owned(template)
}

/// What the check of a change leaves out.
#[derive(Clone, Copy)]
struct Lax {
    service_name: bool,
    claims: bool,
    template: bool,
}

fn validate(spec: &Value, old: Option<&Value>, lax: Lax, errors: &mut Errors) {
    let path = Path::root("spec");
    match spec.text("podManagementPolicy") {
        "" => errors.required(&path.field("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            let field = path.field("podManagementPolicy");
            errors.invalid(&field, other, "must be 'OrderedReady' or 'Parallel'");
        }
    }
    rollout(&spec["updateStrategy"], &path.field("updateStrategy"), errors);
    if let Some(policy) = spec.get_some("persistentVolumeClaimRetentionPolicy") {
        let field = path.field("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            if !["Retain", "Delete"].contains(&policy.text(key)) {
                errors.unsupported(&field.field(key), policy.text(key), &["Retain", "Delete"]);
            }
        }
    }
    if !lax.claims {
        let list = path.field("volumeClaimTemplates");
        for (index, claim) in spec.list("volumeClaimTemplates").iter().enumerate() {
            let item = list.index(index);
            claim_spec::validate(&claim["spec"], &item.field("spec"), ClaimOptions::default(), errors);
        }
    }
    counts(spec, &path, &["replicas", "minReadySeconds"], errors);
    if let Some(ordinals) = spec.get_some("ordinals") {
        errors.not_negative(ordinals, &path.field("ordinals"), "start");
    }
    if !lax.service_name {
        errors.optional_name(&path.field("serviceName"), spec.text("serviceName"), form::dns_label);
    }
    selector(spec, &path, "statefulset", errors);
    if spec.get_some("selector").is_none_or(|selector| !labels::is_empty(selector)) {
        selects_template(spec, &path, errors);
    }
    let field = path.field("template");
    if lax.template {
        let meta = &spec["template"]["metadata"];
        labels::labels(meta, &field, "labels", errors);
        labels::annotations(meta, &field, errors);
    } else {
        let was = old.map(|old| &old["template"]);
        template::validate(&template_of_pods(spec), was, &field, errors);
    }
    runs_always(spec, &path, "StatefulSet", errors);
}

/// `maxUnavailable` needs a feature that is off (KEP-961): it is kept only where it has been used.
fn drop_disabled(object: &mut Value, old: Option<&Value>) {
    let used = old.is_some_and(|old| {
        old.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable").is_some_and(|value| !value.is_null())
    });
    if !used
        && let Some(rolling) = object.pointer_mut("/spec/updateStrategy/rollingUpdate")
        && let Some(map) = rolling.as_object_mut()
    {
        map.remove("maxUnavailable");
    }
}

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Value) {
        default_template(object);
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        if let Some(policy) = spec.get_mut("persistentVolumeClaimRetentionPolicy") {
            set_default(policy, "whenDeleted", "Retain");
            set_default(policy, "whenScaled", "Retain");
        }
        for claim in items_mut(spec, "volumeClaimTemplates") {
            set_default(claim, "apiVersion", "v1");
            set_default(claim, "kind", "PersistentVolumeClaim");
            if let Some(resources) = claim.pointer_mut("/spec/resources") {
                round_up_list(resources, "limits");
                round_up_list(resources, "requests");
            }
            set_default(child(claim, "status"), "phase", "Pending");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
        drop_disabled(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        drop_disabled(object, Some(old));
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        let status = child(object, "status");
        set_default(status, "replicas", 0);
        set_default(status, "availableReplicas", 0);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let strict = Lax { service_name: false, claims: false, template: false };
        validate(&object["spec"], None, strict, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const FREE: [&str; 7] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            "revisionHistoryLimit",
        ];
        let (spec, was) = (&object["spec"], &old["spec"]);
        let mut faults = Vec::new();
        let lax = Lax { service_name: true, claims: true, template: false };
        validate(was, Some(was), lax, &mut faults);
        validate(spec, Some(was), Lax { template: !faults.is_empty(), ..lax }, errors);
        let mut fixed = spec.clone();
        FREE.iter().for_each(|key| keep(&mut fixed, was, key));
        if !same(&fixed, was) {
            errors.forbidden(&Path::root("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const COUNTS: [&str; 7] = [
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ];
        let (status, path) = (&object["status"], Path::root("status"));
        counts(status, &path, &COUNTS, errors);
        parts(status, &path, &COUNTS[1..5], "status.readyReplicas", errors);
        collisions(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let (spec, path) = (&object["spec"], Path::root("spec"));
        let was = old.map(|old| &old["spec"]["template"]);
        template::warnings(&spec["template"], was, &path.field("template"), &mut out);
        let list = path.field("volumeClaimTemplates");
        for (index, claim) in spec.list("volumeClaimTemplates").iter().enumerate() {
            // Upstream writes the field's name this way for changes.
            let field = if old.is_some() { "Spec" } else { "" };
            claim_spec::warnings(&claim["spec"], &list.index(index).field(field), &mut out);
        }
        if spec.int("revisionHistoryLimit") < 0 {
            out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
        }
        out
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
}

impl Strategy for ControllerRevisions {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let root = Path::root("");
        errors.not_negative(object, &root, "revision");
        match object.get_some("data") {
            Some(Value::Object(_)) => {}
            Some(_) => errors.required(&root.field("data"), "data must be a valid JSON object"),
            None => errors.required(&root.field("data"), "data is mandatory"),
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = Path::root("");
        errors.not_negative(object, &root, "revision");
        if object.get("data") != old.get("data") {
            errors.invalid(&root.field("data"), object.get("data"), "field is immutable");
        }
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
