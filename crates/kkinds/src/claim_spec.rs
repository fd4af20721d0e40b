//! The specification of a claim, wherever it stands: in a claim, a template of a stateful set, or a pod's volume.

use kcore::Quantity;
use kschema::error::FieldError;
use serde_json::Value;

use crate::{
    check::{Look, Path, Report, form, labels, quantity},
    volume_source::access_modes,
};

/// What an update may keep although it is not valid any more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClaimOptions {
    /// The old selector was faulty.
    pub(crate) lax_selector: bool,
    /// The old data source named an API group, which was not checked once.
    pub(crate) lax_group: bool,
}

/// Checks the specification at `path`.
pub(crate) fn validate(spec: &Value, path: &Path<'_>, options: ClaimOptions, errors: &mut Vec<FieldError>) {
    if spec.count("accessModes") == 0 {
        errors.required(&path.field("accessModes"), "at least 1 access mode is required");
    }
    labels::selector(spec.get_some("selector"), &path.field("selector"), options.lax_selector, errors);
    access_modes(spec, path, errors);
    let resources = path.field("resources");
    let field = resources.key("storage");
    match spec.get("resources").and_then(|all| all.get("requests")).and_then(|all| all.get_some("storage")) {
        None => errors.required(&field, ""),
        Some(size) => {
            if quantity::positive(size, &field, errors) {
                quantity::value("storage", size, &field, errors);
            }
        }
    }
    let class = spec.text("storageClassName");
    errors.optional_name(&path.field("storageClassName"), class, form::dns_subdomain);
    errors.optional_one_of(spec, path, "volumeMode", &["Block", "Filesystem"]);
    for key in ["dataSource", "dataSourceRef"] {
        if let Some(source) = spec.get_some(key) {
            data_source(source, &path.field(key), options.lax_group, errors);
        }
    }
    data_sources_agree(spec, path, errors);
    let class = spec.text("volumeAttributesClassName");
    errors.optional_name(&path.field("volumeAttributesClassName"), class, form::dns_subdomain);
}

fn data_source(source: &Value, path: &Path<'_>, lax_group: bool, errors: &mut Vec<FieldError>) {
    errors.needs(source, path, "name");
    errors.needs(source, path, "kind");
    let (group, kind) = (source.text("apiGroup"), source.text("kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(path, kind, why);
    }
    if !lax_group {
        errors.optional_name(&path.field("apiGroup"), group, form::dns_subdomain);
    }
    errors.optional_name(&path.field("namespace"), source.text("namespace"), form::dns_label);
}

/// `dataSource` is the old name of `dataSourceRef`; where both are given they must agree.
fn data_sources_agree(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let (Some(old), Some(new)) = (spec.get_some("dataSource"), spec.get_some("dataSourceRef")) else {
        return;
    };
    // Upstream shows a path here, which has nothing to show.
    let shown = &Value::Object(serde_json::Map::new());
    if !new.text("namespace").is_empty() {
        errors.invalid(path, shown, "may not be specified when dataSourceRef.namespace is specified");
    } else if ["apiGroup", "kind", "name"].iter().any(|key| old.get_some(key) != new.get_some(key)) {
        errors.invalid(path, shown, "must match dataSourceRef");
    }
}

/// What is unusual about a specification that is valid.
pub(crate) fn warnings(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    let resources = path.field("resources");
    for kind in ["requests", "limits"] {
        let size =
            spec.get("resources").and_then(|all| all.get(kind)).and_then(|all| all.get_some("storage"));
        if let Some(size) = size.map(quantity::amount).filter(quantity::is_fraction) {
            warnings.push(fraction(&resources.field(kind).key("storage"), &size));
        }
    }
}

/// The warning that an amount of bytes is not whole.
pub(crate) fn fraction(path: &Path<'_>, size: &Quantity) -> String {
    format!("{path}: fractional byte value \"{size}\" is invalid, must be an integer")
}
