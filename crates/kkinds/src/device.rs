//! What claims, classes and slices of devices have in common (KEP-4381): names, selectors, configurations.

pub(crate) mod claim;
pub(crate) mod policy;
pub(crate) mod pool_status;
pub(crate) mod slice;
pub(crate) mod status;
pub(crate) mod taint_rule;

use std::sync::LazyLock;

use kcel::{DeviceEnv, ExpressionError};
use kschema::error::FieldError;
use serde_json::Value;

use crate::{
    admission_rules::refused,
    check::{Look, Path, Report, form, labels, texts},
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

/// What selectors may mention. It never changes.
static SELECTORS: LazyLock<DeviceEnv> = LazyLock::new(DeviceEnv::new);

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const SELECTORS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const IDENTIFIER_BYTES_MAX: usize = 32;
const BINDING_CONDITIONS_MAX: usize = 4;

/// Reports a list that has too many entries.
fn fits(count: usize, limit: usize, path: &Path<'_>, errors: &mut Errors) -> bool {
    if count > limit {
        errors.too_many(path, count, limit);
    }
    count <= limit
}

/// Checks the name of a pool: subdomains joined by slashes.
fn pool(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > form::SUBDOMAIN_BYTES_MAX {
        errors.too_long(path, form::SUBDOMAIN_BYTES_MAX);
    }
    for part in name.split('/') {
        errors.faults(path, part, form::dns_subdomain(part));
    }
}

fn label(name: &str, path: &Path<'_>, errors: &mut Errors) {
    errors.faults(path, name, form::dns_label(name));
}

/// Checks the id that tells shares of a device apart.
fn uid(text: &str, path: &Path<'_>, errors: &mut Errors) {
    let shape = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if !shape {
        let why = if text.len() == 36 {
            "invalid UUID format".to_owned()
        } else {
            format!("invalid UUID length: {}", text.len())
        };
        errors.invalid(path, text, format_args!("error validating uid: {why}"));
    } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        errors.invalid(path, text, "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
    }
}

fn identifier(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.len() > IDENTIFIER_BYTES_MAX {
        errors.too_long(path, IDENTIFIER_BYTES_MAX);
    }
    errors.faults(path, name, form::c_identifier(name));
}

/// Checks the name of an attribute or capacity, which may have a domain. All faults stand at the same path.
fn qualified(name: &str, path: &Path<'_>, errors: &mut Errors) {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [name] => identifier(name, path, errors),
        [domain, name] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                csi_driver(domain, path, errors);
            }
            if name.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                identifier(name, path, errors);
            }
        }
        _ => {}
    }
}

fn fully_qualified(name: &str, path: &Path<'_>, errors: &mut Errors) {
    qualified(name, path, errors);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, name, why);
    }
}

/// `stored`: they have been checked before.
fn selectors(holder: &Value, stored: bool, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("selectors");
    let found = holder.list("selectors");
    if !fits(found.len(), SELECTORS_MAX, &list, errors) {
        return;
    }
    for (index, selector) in found.iter().enumerate() {
        let item = list.index(index);
        match selector.get_some("cel") {
            None => errors.required(&item.field("cel"), ""),
            Some(cel) if cel.text("expression").len() > EXPRESSION_BYTES_MAX => {
                errors.too_long(&item.field("cel.expression"), EXPRESSION_BYTES_MAX);
            }
            Some(_) if stored => {}
            Some(cel) => selector_expression(cel.text("expression"), &item.field("cel.expression"), errors),
        }
    }
}

fn selector_expression(expression: &str, path: &Path<'_>, errors: &mut Errors) {
    match SELECTORS.compile(expression) {
        Err(error @ ExpressionError::Cost) => errors.forbidden(path, error),
        compiled => refused(compiled, expression, path, errors),
    }
}

/// Checks data in a driver's own format.
fn raw(value: Option<&Value>, limit: usize, path: &Path<'_>, errors: &mut Errors) {
    match value {
        None => errors.required(path, ""),
        Some(value) if value.to_string().len() > limit => errors.too_long(path, limit),
        Some(Value::Object(_)) => {}
        Some(_) => errors.invalid(path, "<value omitted>", "must be a valid JSON object"),
    }
}

fn configuration(config: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("opaque");
    let Some(opaque) = config.get_some("opaque") else {
        errors.required(&field, "");
        return;
    };
    csi_driver(opaque.text("driver"), &field.field("driver"), errors);
    raw(opaque.get_some("parameters"), PARAMETERS_BYTES_MAX, &field.field("parameters"), errors);
}

/// Checks a toleration of a device's taints.
fn toleration(toleration: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (key, value) = (toleration.text("key"), toleration.text("value"));
    if !key.is_empty() {
        labels::name(key, &path.field("key"), errors);
    }
    let field = path.field("value");
    match toleration.text("operator") {
        "Exists" if !value.is_empty() => {
            errors.invalid(&field, value, "must be empty for operator `Exists`");
        }
        "Equal" => errors.faults(&field, value, form::label_value(value)),
        other => errors.one_of(&path.field("operator"), other, &["Equal", "Exists"]),
    }
    let effect = toleration.text("effect");
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.unsupported(&path.field("effect"), effect, &EFFECTS);
    }
}

/// Checks the conditions that a device waits for before it is bound (KEP-5007).
fn binding(device: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (wanted, failed) = ("bindingConditions", "bindingFailureConditions");
    for key in [wanted, failed] {
        let list = path.field(key);
        if fits(device.count(key), BINDING_CONDITIONS_MAX, &list, errors) {
            for (index, name) in texts(device.list(key)).enumerate() {
                labels::name(name, &list.index(index), errors);
            }
        }
    }
    let wait: Vec<&str> = texts(device.list(wanted)).collect();
    let fail: Vec<&str> = texts(device.list(failed)).collect();
    for (key, names) in [(wanted, &wait), (failed, &fail)] {
        let list = path.field(key);
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                errors.duplicate(&list.index(index), *name);
            }
            if key == failed && wait.contains(name) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                errors.invalid(&list.index(index), *name, why);
            }
        }
    }
    for (key, names, other, others) in [(wanted, &wait, failed, &fail), (failed, &fail, wanted, &wait)] {
        if names.is_empty() && !others.is_empty() {
            let why = format!("{key} are required to use {other}");
            errors.invalid(&path.field(key), device.get_some(key), why);
        }
    }
}
