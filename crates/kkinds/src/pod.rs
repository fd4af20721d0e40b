//! Pods and pod templates.

pub(crate) mod affinity;
mod affinity_keys;
pub(crate) mod annotations;
mod claims;
mod container_status;
pub(crate) mod containers;
pub(crate) mod defaults;
mod dns;
mod env;
mod mounts;
pub(crate) mod options;
mod overlap;
mod probes;
mod projected;
mod qos;
mod resize;
pub(crate) mod resources;
mod security;
mod spec;
mod spread;
mod status;
pub(crate) mod template;
pub(crate) mod tolerations;
mod update;
mod volumes;
pub(crate) mod warnings;
mod windows;

use kschema::{error::FieldError, fields::child, strategy::Strategy};
use serde_json::{Value, json};

use self::options::Options;
pub(crate) use self::{probes::port, volumes::template_metadata};
use crate::check::{Look, Path, Report, address, form};

/// The strategy of `pods`.
#[derive(Debug)]
pub(crate) struct Pods;

/// Checks metadata and specification of a pod (`validatePodMetadataAndSpec`).
fn validate_pod(object: &Value, options: Options, errors: &mut Vec<FieldError>) {
    let (meta, pod) = (&object["metadata"], &object["spec"]);
    let path = Path::root("metadata");
    annotations::validate(meta, pod, options, &path.field("annotations"), errors);
    let path = Path::root("spec");
    spec::validate(pod, Some(meta), &path, options, errors);
    if pod.text("serviceAccountName").is_empty() {
        let list = path.field("volumes");
        for (index, volume) in pod.list("volumes").iter().enumerate() {
            let item = list.index(index);
            let sources = item.field("projected.sources");
            let entries = volume.get("projected").map(|all| all.list("sources")).unwrap_or_default();
            for (index, _) in
                entries.iter().enumerate().filter(|(_, source)| source.has("serviceAccountToken"))
            {
                let why = "must not be specified when serviceAccountName is not set";
                errors.forbidden(&sources.index(index).field("serviceAccountToken"), why);
            }
        }
    }
    for list in ["containers", "initContainers"] {
        let path = path.field(list);
        for (index, container) in pod.list(list).iter().enumerate() {
            containers::image_whitespace(container, &path.index(index), errors);
        }
    }
}

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::of_pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = qos::class(&object["spec"]);
        object["status"] = json!({"phase": "Pending", "qosClass": class});
        if object["spec"].count("schedulingGates") > 0 {
            // The server has just written when the pod was created.
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastTransitionTime": object["metadata"]["creationTimestamp"],
            }]);
        }
        affinity_keys::complete(object);
        template::sync_app_armor(object);
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        status::prepare(object, old);
    }

    fn prepare_subresource(&self, subresource: &str, object: &mut Value, old: &Value) {
        match subresource {
            "ephemeralcontainers" => resize::prepare_ephemeral(object, old),
            "resize" => resize::prepare_resize(object, old),
            _ => {}
        }
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        validate_pod(object, Options { pod: true, ..Options::default() }, errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut Vec<FieldError>) {
        self.validate(object, errors);
        let (path, spec) = (Path::root("spec"), &object["spec"]);
        if spec.count("ephemeralContainers") > 0 {
            errors.forbidden(&path.field("ephemeralContainers"), "cannot be set on create");
        }
        if !spec.text("nodeName").is_empty() && spec.count("schedulingGates") > 0 {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden(&path.field("nodeName"), why);
        }
        annotations::validate_agreement(&object["metadata"], spec, &path, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        update::validate(object, old, Options::of_update(old, true), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let options = Options::of_update(old, true);
        validate_pod(object, options, errors);
        update::validate(object, old, options, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        status::validate(object, old, Options::of_update(old, true), errors);
    }

    fn validate_subresource(
        &self,
        subresource: &str,
        object: &Value,
        old: &Value,
        errors: &mut Vec<FieldError>,
    ) -> bool {
        let options = Options::of_update(old, true);
        match subresource {
            "ephemeralcontainers" => {
                validate_pod(object, options, errors);
                resize::validate_ephemeral(object, old, options, errors);
            }
            "resize" => {
                validate_pod(object, options, errors);
                resize::validate_resize(object, old, errors);
            }
            // What the server itself writes for `binding` and `eviction` is right.
            "binding" | "eviction" => {}
            _ => return false,
        }
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_some() {
            return out;
        }
        let faults = form::dns_label(object["metadata"].text("name"));
        if !faults.is_empty() {
            out.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" ")));
        }
        warnings::of_template(object, &Path::root(""), false, &mut out);
        out
    }

    fn subresource_warnings(&self, subresource: &str, object: &Value, _old: &Value) -> Vec<String> {
        let mut out = Vec::new();
        let path = Path::root("status");
        for key in ["podIPs", "hostIPs"].into_iter().filter(|_| subresource == "status") {
            let list = path.field(key);
            for (index, entry) in object["status"].list(key).iter().enumerate() {
                address::warnings(&list.index(index).field("ip"), entry.text("ip"), &mut out);
            }
        }
        out
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"],
            _ => &[],
        }
    }

    fn deletion_fields(&self) -> Option<&'static [&'static str]> {
        Some(&["spec.terminationGracePeriodSeconds", "spec.nodeName", "status.phase"])
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let period = requested.or_else(|| spec["terminationGracePeriodSeconds"].as_i64()).unwrap_or(0);
        // Nobody would ever confirm the end of a pod that is on no node, and one that ended needs no grace.
        let unscheduled = spec["nodeName"].as_str().unwrap_or_default().is_empty();
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if unscheduled || ended { Some(0) } else { Some(if period < 0 { 1 } else { period }) }
    }
}

/// The strategy of `podtemplates`.
#[derive(Debug)]
pub(crate) struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        template::default(child(object, "template"));
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        template::validate(&object["template"], None, &Path::root("template"), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        template::validate(&object["template"], Some(&old["template"]), &Path::root("template"), errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let old = old.map(|old| &old["template"]);
        template::warnings(&object["template"], old, &Path::root("template"), &mut out);
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
