//! Classes of storage and of the attributes of volumes (KEP-3751).

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::{
    check::{Look, Path, Report, form, labels, same_at, texts},
    node_labels,
};

type Errors = Vec<FieldError>;

/// The strategy of `storageclasses`.
#[derive(Debug)]
pub(crate) struct StorageClasses;

/// The strategy of `volumeattributesclasses`.
#[derive(Debug)]
pub(crate) struct VolumeAttributesClasses;

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

fn provisioner(object: &Value, key: &str, errors: &mut Errors) {
    let (name, path) = (object.text(key), Path::root(key));
    if name.is_empty() {
        errors.required(&path, "");
    } else {
        errors.faults(&path, name, form::qualified_name_caseless(name));
    }
}

fn parameters(object: &Value, errors: &mut Errors) {
    let path = Path::root("parameters");
    if object.count("parameters") > PARAMETERS_MAX {
        errors.too_long(&path, PARAMETERS_MAX);
        return;
    }
    let mut bytes = 0;
    for (key, value) in object.map("parameters") {
        if key.is_empty() {
            errors.invalid(&path, key, "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.too_long(&path, PARAMETERS_BYTES_MAX);
    }
}

fn topologies(object: &Value, errors: &mut Errors) {
    let list = Path::root("allowedTopologies");
    let terms = object.list("allowedTopologies");
    for (index, term) in terms.iter().enumerate() {
        let item = list.index(index);
        let field = item.field("matchLabelExpressions");
        let expressions = term.list("matchLabelExpressions");
        for (index, expression) in expressions.iter().enumerate() {
            let path = field.index(index);
            let values = path.field("values");
            if expression.count("values") == 0 {
                errors.required(&values, "");
            }
            let all: Vec<&str> = texts(expression.list("values")).collect();
            for (index, value) in
                all.iter().enumerate().filter(|(index, value)| all[..*index].contains(value))
            {
                errors.duplicate(&values.index(index), *value);
            }
            let key = expression.text("key");
            labels::name(key, &path.field("key"), errors);
            if expressions[..index].iter().any(|other| other.text("key") == key) {
                errors.duplicate(&path.field("key"), key);
            }
        }
        if terms[..index].iter().any(|other| meaning(other) == meaning(term)) {
            errors.duplicate(&field, "");
        }
    }
}

/// What a term asks for, whatever the order.
fn meaning(term: &Value) -> Vec<(&str, Vec<&str>)> {
    let mut parts: Vec<(&str, Vec<&str>)> = Vec::new();
    for expression in term.list("matchLabelExpressions") {
        let mut values: Vec<&str> = texts(expression.list("values")).collect();
        values.sort_unstable();
        values.dedup();
        let key = expression.text("key");
        parts.retain(|(other, _)| *other != key);
        parts.push((key, values));
    }
    parts.sort_unstable();
    parts
}

impl Strategy for StorageClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = Path::root("");
        provisioner(object, "provisioner", errors);
        parameters(object, errors);
        if object.some_text("reclaimPolicy") != Some("") {
            errors.optional_one_of(object, &root, "reclaimPolicy", &["Delete", "Retain"]);
        }
        if object.has("volumeBindingMode") {
            errors.optional_one_of(
                object,
                &root,
                "volumeBindingMode",
                &["Immediate", "WaitForFirstConsumer"],
            );
        } else {
            errors.required(&Path::root("volumeBindingMode"), "");
        }
        topologies(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            errors.immutable(object, old, &Path::root(""), key);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let list = Path::root("allowedTopologies");
        for (index, term) in object.list("allowedTopologies").iter().enumerate() {
            let item = list.index(index);
            let field = item.field("matchLabelExpressions");
            for (index, expression) in term.list("matchLabelExpressions").iter().enumerate() {
                if let Some(why) = node_labels::deprecated(expression.text("key")) {
                    out.push(format!("{}: {why}", field.index(index).field("key")));
                }
            }
        }
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

impl Strategy for VolumeAttributesClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        provisioner(object, "driverName", errors);
        parameters(object, errors);
        if object.count("parameters") == 0 {
            errors.required(&Path::root("parameters"), "must contain at least one key/value pair");
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for key in ["driverName", "parameters"] {
            if !same_at(object, old, key) {
                errors.forbidden(&Path::root(key), format_args!("updates to {key} are forbidden."));
            }
        }
        self.validate(object, errors);
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
