//! Admission policies and their bindings (KEP-3488, KEP-3962).

use kcel::{PolicyEnv, Purpose};
use kschema::{error::FieldError, strategy::Strategy};
use serde_json::{Value, json};

use crate::{
    admission_rules::{
        FAILURE_POLICIES, REINVOCATION_POLICIES, match_conditions, match_resources, name_warnings, refused,
    },
    check::{Internal, Look, Path, Report, condition, form, labels, same_at, texts},
};

type Errors = Vec<FieldError>;

/// The strategy of `validatingadmissionpolicies`.
#[derive(Debug)]
pub(crate) struct ValidatingPolicies;

/// The strategy of `mutatingadmissionpolicies`.
#[derive(Debug)]
pub(crate) struct MutatingPolicies;

/// The strategy of the bindings of both.
#[derive(Debug)]
pub(crate) struct Bindings {
    /// Whether the policies change what is written.
    pub(crate) mutates: bool,
}

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_BYTES_MAX: usize = 5 * 1024;

fn param_kind(kind: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (whole, field) = (kind.text("apiVersion"), path.field("apiVersion"));
    let (group, version) = whole.split_once('/').unwrap_or(("", whole));
    if whole.is_empty() {
        errors.required(&field, "");
    } else if version.contains('/') {
        errors.invalid(&field, whole, format_args!("unexpected GroupVersion string: {whole}"));
    } else {
        let faults = if group.is_empty() { Vec::new() } else { form::dns_subdomain(group) };
        if !faults.is_empty() {
            errors.invalid(&field, group, faults.join(","));
        }
        let faults = form::dns_1035_label(version);
        if version.is_empty() {
            errors.invalid(&field, whole, "version must be specified");
        } else if !faults.is_empty() {
            errors.invalid(&field, version, faults.join(","));
        }
    }
    let (name, field) = (kind.text("kind"), path.field("kind"));
    let faults = form::dns_1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.required(&field, "");
    } else if !faults.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
        errors.invalid(&field, name, why);
    }
}

fn is_cel_name(name: &str) -> bool {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && !RESERVED.contains(&name)
}

/// Compiles the expressions of one policy.
struct Expressions {
    env: PolicyEnv,
    /// Whether anything is different from what is stored, whose expressions have been compiled before.
    changed: bool,
}

impl Expressions {
    fn of(spec: &Value, old: Option<&Value>, composed: bool) -> Self {
        let env = PolicyEnv::new(spec.has("paramKind"));
        let env = if composed { env.with_variables() } else { env };
        Self { env, changed: old.is_none_or(|old| old != spec) }
    }

    /// `shown` is what the message shows of the expression.
    fn check(&self, purpose: Purpose, expression: &str, shown: &str, path: &Path<'_>, errors: &mut Errors) {
        if self.changed {
            refused(self.env.compile(purpose, expression), shown, path, errors);
        }
    }
}

/// What both kinds of policies have.
fn common(
    spec: &Value,
    old: Option<&Value>,
    expressions: &mut Expressions,
    mutates: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if spec.has("failurePolicy") {
        errors.optional_one_of(spec, path, "failurePolicy", &FAILURE_POLICIES);
    } else {
        errors.required(&path.field("failurePolicy"), "");
    }
    if let Some(kind) = spec.get_some("paramKind") {
        param_kind(kind, &path.field("paramKind"), errors);
    }
    let field = path.field("matchConstraints");
    match spec.get_some("matchConstraints") {
        None => errors.required(&field, ""),
        Some(found) => {
            match_resources(found, mutates, &field, errors);
            if found.count("resourceRules") == 0 {
                errors.required(&field.field("resourceRules"), "");
            }
        }
    }
    let kept =
        old.is_some_and(|old| ["paramKind", "matchConditions"].iter().all(|key| same_at(spec, old, key)));
    if !kept {
        match_conditions(spec, &expressions.env, path, errors);
    }
    let list = path.field("variables");
    for (index, variable) in spec.list("variables").iter().enumerate() {
        let item = list.index(index);
        let name = variable.text("name");
        if name.trim().is_empty() {
            errors.required(&item.field("name"), "name is not specified");
        } else if !is_cel_name(name) {
            errors.invalid(&item.field("name"), name, "must be a valid CEL identifier");
        }
        let (expression, field) = (variable.text("expression"), item.field("expression"));
        if expression.trim().is_empty() {
            errors.required(&field, "expression is not specified");
        } else if expressions.changed {
            refused(expressions.env.declare(name, expression), expression, &field, errors);
        }
    }
}

fn validation(validation: &Value, expressions: &Expressions, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "must be non-empty if specified";
    let blank = |key: &str| !validation.text(key).is_empty() && validation.text(key).trim().is_empty();
    let (expression, field) = (validation.text("expression"), path.field("expression"));
    if expression.trim().is_empty() {
        errors.required(&field, "expression is not specified");
    } else {
        expressions.check(Purpose::Validation, expression, expression, &field, errors);
    }
    let (expression, field) = (validation.text("messageExpression"), path.field("messageExpression"));
    if blank("messageExpression") {
        errors.invalid(&field, expression, WHY);
    } else if !expression.is_empty() {
        expressions.check(Purpose::Message, expression, expression, &field, errors);
    }
    let message = validation.text("message");
    if blank("message") {
        errors.invalid(&path.field("message"), message, WHY);
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(&path.field("message"), message, "must not contain line breaks");
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
    errors.optional_one_of(validation, path, "reason", &reasons);
}

fn audit_annotations(object: &Value, expressions: &Expressions, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("auditAnnotations");
    let spec = &object["spec"];
    let found = spec.list("auditAnnotations");
    if found.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid(
            &list,
            Internal("~admissionregistration.v1.AuditAnnotation", spec.get_some("auditAnnotations")),
            why,
        );
    }
    let name = object["metadata"].text("name");
    for (index, annotation) in found.iter().enumerate() {
        let item = list.index(index);
        let (key, field) = (annotation.text("key"), item.field("key"));
        if name.is_empty() {
            errors.invalid(&field, key, "requires metadata.name be non-empty");
        } else {
            let whole = format!("{name}/{key}");
            errors.faults(&field, &whole, form::qualified_name(&whole));
        }
        let shown = annotation.text("valueExpression");
        let (value, at) = (shown.trim(), item.field("valueExpression"));
        if value.is_empty() {
            errors.required(&at, "valueExpression is not specified");
        } else if value.len() > ANNOTATION_BYTES_MAX {
            errors.required(&at, &format!("must not exceed {ANNOTATION_BYTES_MAX} bytes in length"));
        } else {
            expressions.check(Purpose::AuditAnnotation, value, shown, &at, errors);
        }
        if found[..index].iter().any(|other| other.text("key") == key) {
            errors.duplicate(&field, key);
        }
    }
}

fn validating(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    const WHY: &str = "validations or auditAnnotations must contain at least one item";
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let old = old.map(|old| &old["spec"]);
    let mut expressions = Expressions::of(spec, old, spec.count("variables") > 0);
    common(spec, old, &mut expressions, false, &path, errors);
    if spec.count("validations") == 0 && spec.count("auditAnnotations") == 0 {
        errors.required(&path.field("validations"), WHY);
        errors.required(&path.field("auditAnnotations"), WHY);
        return;
    }
    let list = path.field("validations");
    for (index, one) in spec.list("validations").iter().enumerate() {
        validation(one, &expressions, &list.index(index), errors);
    }
    audit_annotations(object, &expressions, &path, errors);
}

fn mutation(mutation: &Value, expressions: &Expressions, path: &Path<'_>, errors: &mut Errors) {
    const KINDS: [(&str, &str, Purpose); 2] = [
        ("ApplyConfiguration", "applyConfiguration", Purpose::ApplyConfiguration),
        ("JSONPatch", "jsonPatch", Purpose::JsonPatch),
    ];
    let kind = mutation.text("patchType");
    errors.one_of(&path.field("patchType"), kind, &KINDS.map(|(kind, ..)| kind));
    let Some((_, key, purpose)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
        return;
    };
    let field = path.field(key);
    match mutation.get_some(key) {
        None => errors.required(&field, &format!("must be specified when patchType is {kind}")),
        Some(found) => {
            let (expression, field) = (found.text("expression").trim(), field.field("expression"));
            if expression.is_empty() {
                errors.required(&field, "");
            } else {
                expressions.check(*purpose, expression, expression, &field, errors);
            }
        }
    }
    for (_, other, _) in KINDS.iter().filter(|(known, other, _)| *known != kind && mutation.has(other)) {
        let why = format!("must not be specified when patchType is {kind}");
        errors.invalid(&path.field(other), format!("{{{other}}}"), why);
    }
}

fn mutating(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let old = old.map(|old| &old["spec"]);
    let mut expressions = Expressions::of(spec, old, true);
    common(spec, old, &mut expressions, true, &path, errors);
    let list = path.field("mutations");
    if spec.count("mutations") == 0 {
        errors.required(&list, "mutations must contain at least one item");
    }
    for (index, one) in spec.list("mutations").iter().enumerate() {
        mutation(one, &expressions, &list.index(index), errors);
    }
    let field = path.field("reinvocationPolicy");
    errors.one_of(&field, spec.text("reinvocationPolicy"), &REINVOCATION_POLICIES);
}

impl Strategy for ValidatingPolicies {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validating(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validating(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (&object["status"], Path::root("status"));
        if let Some(checking) = status.get_some("typeChecking") {
            let list = path.field("typeChecking.expressionWarnings");
            for (index, warning) in checking.list("expressionWarnings").iter().enumerate() {
                let item = list.index(index);
                errors.needs(warning, &item, "warning");
                if warning.text("fieldRef").trim().is_empty() {
                    errors.required(&item.field("fieldRef"), "");
                }
            }
        }
        condition::validate(status.list("conditions"), &path.field("conditions"), errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        name_warnings(object)
    }
}

impl Strategy for MutatingPolicies {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        mutating(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        mutating(object, Some(old), errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        name_warnings(object)
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn param_ref(found: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "name and selector are mutually exclusive";
    let (name, selector) = (found.text("name"), found.get_some("selector"));
    errors.optional_name(&path.field("name"), name, form::path_segment);
    let both = !name.is_empty() && selector.is_some();
    if both {
        errors.forbidden(&path.field("name"), ONE);
    }
    labels::selector(selector, &path.field("selector"), false, errors);
    if both {
        errors.forbidden(&path.field("selector"), ONE);
    }
    if name.is_empty() && selector.is_none() {
        errors.required(path, "one of name or selector must be specified");
    }
    let field = path.field("parameterNotFoundAction");
    errors.one_of(&field, found.text("parameterNotFoundAction"), &["Deny", "Allow"]);
}

fn actions(spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let found: Vec<&str> = texts(spec.list("validationActions")).collect();
    for (index, action) in found.iter().enumerate() {
        if !ACTIONS.contains(action) {
            errors.unsupported(&list.index(index), action, &ACTIONS);
        }
        if found[..index].contains(action) {
            errors.duplicate(&list.index(index), *action);
        }
    }
    if found.contains(&"Deny") && found.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(list, spec.get_some("validationActions"), why);
    }
    if found.is_empty() {
        errors.required(list, "at least one validation action is required");
    }
}

impl Strategy for Bindings {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        errors.name(&path.field("policyName"), spec.text("policyName"), form::dns_subdomain);
        if let Some(found) = spec.get_some("paramRef") {
            param_ref(found, &path.field("paramRef"), errors);
        }
        if let Some(found) = spec.get_some("matchResources") {
            match_resources(found, self.mutates, &path.field("matchResources"), errors);
        }
        if !self.mutates {
            actions(spec, &path.field("validationActions"), errors);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        name_warnings(object)
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
