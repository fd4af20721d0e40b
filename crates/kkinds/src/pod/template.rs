//! What workloads make pods from (`ValidatePodTemplateSpec`).

use kschema::{
    error::FieldError,
    fields::{child, items_mut},
};
use serde_json::Value;

use super::{annotations, defaults, options::Options, spec, warnings as all_warnings};
use crate::check::{Look, Path, Report, labels, same_at};

/// Fills in a template.
pub(crate) fn default(template: &mut Value) {
    if let Some(spec) = template.get_mut("spec") {
        defaults::of_spec(spec);
    }
}

/// Checks the template at `path`. `old`: what it is changed from.
pub(crate) fn validate(template: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let options = old.map_or_else(Options::default, |old| Options::of_update(old, false));
    let meta = &template["metadata"];
    labels::labels(meta, path, "labels", errors);
    labels::annotations(meta, path, errors);
    annotations::validate(meta, &template["spec"], options, &path.field("annotations"), errors);
    let field = path.field("spec");
    spec::validate(&template["spec"], None, &field, options, errors);
    annotations::validate_agreement(meta, &template["spec"], &field, errors);
    if template["spec"].count("ephemeralContainers") > 0 {
        let why = "ephemeral containers not allowed in pod template";
        errors.forbidden(&field.field("ephemeralContainers"), why);
    }
}

/// Adds the warnings about the template at `path`, unless it is what it was.
pub(crate) fn warnings(template: &Value, old: Option<&Value>, path: &Path<'_>, out: &mut Vec<String>) {
    let unchanged =
        old.is_some_and(|old| same_at(template, old, "spec") && same_at(template, old, "metadata"));
    if !unchanged {
        all_warnings::of_template(template, path, true, out);
    }
}

/// Copies AppArmor profiles from annotations into the fields that have replaced them (KEP-24).
pub(crate) fn sync_app_armor(pod: &mut Value) {
    let Some(notes) = pod["metadata"].get_some("annotations").cloned() else {
        return;
    };
    let spec = &mut pod["spec"];
    if spec["os"].text("name") == "windows"
        || !notes
            .as_object()
            .is_some_and(|notes| notes.keys().any(|key| key.starts_with(annotations::APP_ARMOR)))
    {
        return;
    }
    let of_pod = spec["securityContext"].get("appArmorProfile").cloned();
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            let own = container.get("securityContext").is_some_and(|context| context.has("appArmorProfile"));
            let key = format!("{}{}", annotations::APP_ARMOR, container.text("name"));
            let meant = notes.some_text(&key).and_then(annotations::app_armor_field);
            if let Some(profile) = meant.filter(|profile| !own && of_pod.as_ref() != Some(profile)) {
                child(container, "securityContext")["appArmorProfile"] = profile;
            }
        }
    }
}
