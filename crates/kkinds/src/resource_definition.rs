//! Custom resource definitions: everything but what their schemas say.

use kschema::{
    error::FieldError,
    fields::{child, set_default},
    quote::Quoted,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    check::{Faults, Internal, Look, Path, Report, condition, form, same, texts},
    webhook_client,
};

type Errors = Vec<FieldError>;

/// The strategy of `customresourcedefinitions`.
#[derive(Debug)]
pub(crate) struct CustomResourceDefinitions;

const APPROVAL: &str = "api-approved.kubernetes.io";
const WARNING_BYTES_MAX: usize = 256;
const SELECTABLE_MAX: usize = 8;

/// Reports all faults of a text as one.
fn joined(path: &Path<'_>, value: &str, faults: &Faults, intro: &str, errors: &mut Errors) {
    if !value.is_empty() && !faults.is_empty() {
        errors.invalid(path, value, format_args!("{intro}{}", faults.join(",")));
    }
}

fn names(names: &Value, path: &Path<'_>, errors: &mut Errors) {
    for key in ["plural", "singular"] {
        let value = names.text(key);
        joined(&path.field(key), value, &form::dns_1035_label(value), "", errors);
    }
    for key in ["kind", "listKind"] {
        let value = names.text(key);
        let intro = "may have mixed case, but should otherwise match: ";
        let faults = form::dns_1035_label(&value.to_lowercase());
        joined(&path.field(key), value, &faults, intro, errors);
    }
    each_label(names, "shortNames", path, errors);
    let (kind, list) = (names.text("kind"), names.text("listKind"));
    if !kind.is_empty() && kind == list {
        errors.invalid(&path.field("listKind"), list, "kind and listKind may not be the same");
    }
    each_label(names, "categories", path, errors);
}

fn each_label(names: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field(key);
    for (index, value) in texts(names.list(key)).enumerate() {
        let faults = form::dns_1035_label(value);
        if !faults.is_empty() {
            errors.invalid(&list.index(index), value, faults.join(","));
        }
    }
}

fn simple_path(value: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let good = value.starts_with('.');
    if !good {
        errors.invalid(path, value, "must be a simple json path starting with .");
    }
    good
}

fn subresources(holder: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(scale) = holder.get("subresources").and_then(|found| found.get_some("scale")) else {
        return;
    };
    for (key, under) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let field = path.field("subresources.scale");
        let (value, field) = (scale.text(key), field.field(key));
        if value.is_empty() {
            errors.required(&field, "");
        } else if simple_path(value, &field, errors) && !value.starts_with(&format!("{under}.")) {
            errors.invalid(&field, value, format_args!("should be a json path under {under}"));
        }
    }
    let value = scale.text("labelSelectorPath");
    let field = path.field("subresources.scale.labelSelectorPath");
    if !value.is_empty()
        && simple_path(value, &field, errors)
        && ![".spec.", ".status."].iter().any(|under| value.starts_with(under))
    {
        errors.invalid(&field, value, "should be a json path under either .spec or .status");
    }
}

fn columns(holder: &Value, path: &Path<'_>, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let list = path.field("additionalPrinterColumns");
    for (index, column) in holder.list("additionalPrinterColumns").iter().enumerate() {
        let path = list.index(index);
        errors.needs(column, &path, "name");
        let (kind, field) = (column.text("type"), path.field("type"));
        let why = format!("must be one of {}", TYPES.join(","));
        if kind.is_empty() {
            errors.required(&field, &why);
        } else if !TYPES.contains(&kind) {
            errors.invalid(&field, kind, why);
        }
        let format = column.text("format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            errors.invalid(&path.field("format"), format, why);
        }
        let (value, field) = (column.text("jsonPath"), path.field("JSONPath"));
        if value.is_empty() {
            errors.required(&field, "");
        } else {
            simple_path(value, &field, errors);
        }
    }
}

fn selectable(holder: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("selectableFields");
    let mut seen: Vec<&str> = Vec::new();
    for (index, field) in holder.list("selectableFields").iter().enumerate() {
        let (value, path) = (field.text("jsonPath"), list.index(index));
        let path = path.field("jsonPath");
        if value.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if value == ".metadata" || value.starts_with(".metadata.") {
            errors.invalid(&path, value, "must not point to fields in metadata");
        }
        if seen.contains(&value) {
            errors.duplicate(&path, value);
        } else {
            seen.push(value);
        }
    }
    let kept = old.is_some_and(|old| crate::check::same_at(old, holder, "selectableFields"));
    if seen.len() > SELECTABLE_MAX && !kept {
        errors.too_many(&list, seen.len(), SELECTABLE_MAX);
    }
}

fn deprecation(version: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(warning) = version.some_text("deprecationWarning") else {
        return;
    };
    let path = path.field("deprecationWarning");
    if !version.flag("deprecated") {
        errors.invalid(&path, warning, "can only be set for deprecated versions");
        return;
    }
    if warning.len() > WARNING_BYTES_MAX {
        errors.invalid(&path, warning, format_args!("must be <= {WARNING_BYTES_MAX} characters long"));
    }
    if warning.is_empty() {
        errors.invalid(&path, warning, "must not be an empty string");
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        errors.invalid(
            &path,
            warning,
            format_args!(
                "must only contain printable UTF-8 characters; non-printable character found at index {index}"
            ),
        );
    }
}

fn versions(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("versions");
    let found = spec.list("versions");
    // What all versions share is checked once, and reported as if it stood above them.
    let shared = |key: &str| {
        let of = |version: &'_ Value| version.get_some(key).cloned().unwrap_or(Value::Null);
        found.first().is_some_and(|first| found.iter().all(|version| same(&of(version), &of(first))))
    };
    let (columns_shared, subresources_shared) = (shared("additionalPrinterColumns"), shared("subresources"));
    let selectable_shared = shared("selectableFields");
    for (index, version) in found.iter().enumerate() {
        let item = list.index(index);
        let name = version.text("name");
        let faults = form::dns_1035_label(name);
        if !faults.is_empty() {
            errors.invalid(&item.field("name"), name, faults.join(","));
        }
        deprecation(version, &item, errors);
        let was = old.and_then(|old| old.list("versions").iter().find(|old| old.text("name") == name));
        let first = index == 0;
        if !subresources_shared || first {
            subresources(version, if subresources_shared { path } else { &item }, errors);
        }
        if !columns_shared || first {
            columns(version, if columns_shared { path } else { &item }, errors);
        }
        if !selectable_shared || first {
            selectable(version, was, if selectable_shared { path } else { &item }, errors);
        }
    }
    let twice = |(index, version): (usize, &Value)| {
        found[..index].iter().any(|other| other.text("name") == version.text("name"))
    };
    // What all versions have in common stands beside them.
    let mut own = spec.get_some("versions").cloned();
    for key in SHARED.iter().filter(|key| shared(key)) {
        for version in own.iter_mut().flat_map(|list| list.as_array_mut()).flatten() {
            version.as_object_mut().map(|version| version.remove(*key));
        }
    }
    let shown = Internal(VERSION, own.as_ref());
    if found.iter().enumerate().any(twice) {
        errors.invalid(&list, shown, "must contain unique version names");
    }
    if found.iter().filter(|version| version.flag("storage")).count() != 1 {
        errors.invalid(&list, shown, "must have exactly one version marked as storage version");
    }
    // Internally, the name of the first version stands beside the versions, too.
    let first = found.first().map_or("", |version| version.text("name"));
    let faults = if first.is_empty() { Vec::new() } else { form::dns_1035_label(first) };
    if !faults.is_empty() {
        errors.invalid(&path.field("version"), first, faults.join(","));
    }
}

/// What stands beside the versions internally if all have the same.
const SHARED: [&str; 4] = ["additionalPrinterColumns", "schema", "selectableFields", "subresources"];
const VERSION: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion";

fn conversion(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let Some(conversion) = spec.get_some("conversion") else {
        return;
    };
    let path = path.field("conversion");
    errors.one_of(&path.field("strategy"), conversion.text("strategy"), &["None", "Webhook"]);
    let client = path.field("webhookClientConfig");
    let webhook = conversion.get_some("webhook");
    let config = webhook.and_then(|webhook| webhook.get_some("clientConfig"));
    if conversion.text("strategy") == "Webhook" {
        match config {
            None => errors.required(&client, "required when strategy is set to Webhook"),
            Some(config) => webhook_client::validate(config, &client, errors),
        }
        let key = "conversionReviewVersions";
        let was = old.and_then(|old| old.pointer("/conversion/webhook")).map_or(&[][..], |old| old.list(key));
        let strict = was.is_empty() || webhook_client::speaks(was);
        let none = Value::Null;
        webhook_client::reviews(webhook.unwrap_or(&none), key, "", strict, &path, errors);
    } else if let Some(webhook) = webhook {
        const WHY: &str = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.forbidden(&client, WHY);
        }
        if webhook.count("conversionReviewVersions") > 0 {
            errors.forbidden(&path.field("conversionReviewVersions"), WHY);
        }
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    let path = Path::root("spec");
    let (group, field) = (spec.text("group"), path.field("group"));
    if group.is_empty() {
        errors.required(&field, "");
    } else {
        let faults = form::dns_subdomain(group);
        if !faults.is_empty() {
            errors.invalid(&field, group, faults.join(","));
        } else if !group.contains('.') {
            errors.invalid(&field, group, "should be a domain with at least one dot");
        }
    }
    errors.one_of(&path.field("scope"), spec.text("scope"), &["Cluster", "Namespaced"]);
    schemas_are_there(spec, old, &path, errors);
    versions(spec, old, &path, errors);
    let found = &spec["names"];
    let field = path.field("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        errors.needs(found, &field, key);
    }
    names(found, &field, errors);
    conversion(spec, old, &path, errors);
}

fn has_schema(version: &Value) -> bool {
    version.get("schema").is_some_and(|schema| schema.has("openAPIV3Schema"))
}

fn schemas_are_there(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    if old.is_some_and(|old| !old.list("versions").iter().all(has_schema)) {
        return;
    }
    let list = path.field("versions");
    for (index, _) in spec.list("versions").iter().enumerate().filter(|(_, version)| !has_schema(version)) {
        errors.required(&list.index(index).field("schema.openAPIV3Schema"), "");
    }
}

/// How a group of the Kubernetes project has been approved (KEP-1111).
#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval(object: &Value) -> Approval {
    let note = object["metadata"].get("annotations").map_or("", |notes| notes.text(APPROVAL));
    match note {
        "" => Approval::Missing,
        _ if note.starts_with("unapproved") => Approval::Bypassed,
        _ if webhook_client::is_absolute(note) => Approval::Approved,
        _ => Approval::Invalid,
    }
}

fn validate_approval(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let group = object["spec"].text("group");
    let protected = ["k8s.io", "kubernetes.io"]
        .into_iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let found = approval(object);
    if !protected || old.is_some_and(|old| approval(old) == found) {
        return;
    }
    let path = Path::root("metadata.annotations");
    let field = path.key(APPROVAL);
    let why =
        format!("protected groups must have approval annotation {APPROVAL}", APPROVAL = Quoted(APPROVAL));
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match found {
        Approval::Missing => errors.required(&field, &format!("{why}, {see}")),
        Approval::Invalid => {
            let note = object["metadata"]["annotations"].text(APPROVAL);
            let why = format!("{why} with either a URL or a reason starting with \"unapproved\", {see}");
            errors.invalid(&field, note, why);
        }
        Approval::Bypassed | Approval::Approved => {}
    }
}

fn stored(object: &Value, errors: &mut Errors) {
    let (status, path) = (&object["status"], Path::root("status.storedVersions"));
    let stored: Vec<&str> = texts(status.list("storedVersions")).collect();
    let shown = status.get_some("storedVersions");
    if stored.is_empty() {
        errors.invalid(&path, shown, "must have at least one stored version");
        return;
    }
    let versions = object["spec"].list("versions");
    for (index, version) in versions.iter().enumerate().filter(|(_, version)| version.flag("storage")) {
        let name = version.text("name");
        // A version that is there twice is looked for only once.
        let again = versions[..index].iter().any(|other| other.text("name") == name);
        if again || !stored.contains(&name) {
            errors.invalid(&path, shown, format_args!("must have the storage version {name}"));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| version.text("name") == *name) {
            errors.invalid(&path.index(index), *name, format_args!("missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"));
        }
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let was = old.map(|old| &old["spec"]);
    validate_spec(&object["spec"], was, errors);
    if let Some(old) = old {
        let (spec, was, path) = (&object["spec"], &old["spec"], Path::root("spec"));
        let field = path.field("names");
        if condition::is_true(old["status"].list("conditions"), "Established") {
            errors.immutable(spec, was, &path, "scope");
            errors.immutable(&spec["names"], &was["names"], &field, "kind");
        }
        errors.immutable(spec, was, &path, "group");
        errors.immutable(&spec["names"], &was["names"], &field, "plural");
    }
    names(&object["status"]["acceptedNames"], &Path::root("status.acceptedNames"), errors);
    stored(object, errors);
    validate_approval(object, old, errors);
    if object["spec"].flag("preserveUnknownFields")
        && !was.is_some_and(|was| was.flag("preserveUnknownFields"))
    {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&Path::root("spec.preserveUnknownFields"), true, why);
    }
}

/// Notes that objects are stored in the version that is for storage.
fn note_storage(object: &mut Value) {
    let versions = object["spec"].list("versions").iter();
    let Some(name) =
        versions.filter(|version| version.flag("storage")).map(|version| version["name"].clone()).next()
    else {
        return;
    };
    let list = &mut child(object, "status")["storedVersions"];
    match list.as_array_mut() {
        Some(list) if list.contains(&name) => {}
        Some(list) => list.push(name),
        None => *list = json!([name]),
    }
}

impl Strategy for CustomResourceDefinitions {
    fn default(&self, object: &mut Value) {
        let Some(names) = object.pointer_mut("/spec/names").filter(|names| names.is_object()) else {
            return;
        };
        let kind = names.text("kind").to_owned();
        if names.text("singular").is_empty() {
            names["singular"] = kind.to_lowercase().into();
        }
        if !kind.is_empty() {
            set_default(names, "listKind", format!("{kind}List"));
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"acceptedNames": {"kind": "", "plural": ""}, "storedVersions": []});
        note_storage(object);
    }

    fn prepare_update(&self, object: &mut Value, _old: &Value) {
        note_storage(object);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (meta, spec) = (&object["metadata"], &object["spec"]);
        let name = meta.text("name");
        if name != format!("{}.{}", spec["names"].text("plural"), spec.text("group")) {
            let why = "must be spec.names.plural+\".\"+spec.group";
            errors.invalid(&Path::root("metadata.name"), name, why);
        }
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        names(&object["status"]["acceptedNames"], &Path::root("status.acceptedNames"), errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
}
