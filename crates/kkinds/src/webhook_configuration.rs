//! Configurations of admission webhooks.

use kcel::PolicyEnv;
use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::{
    admission_rules::{
        FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, match_conditions, name_warnings, rule,
    },
    check::{Look, Path, Report, domain, labels, same_at},
    webhook_client,
};

type Errors = Vec<FieldError>;

/// The strategy of `mutatingwebhookconfigurations` and `validatingwebhookconfigurations`.
#[derive(Debug)]
pub(crate) struct WebhookConfigurations;

const HARMLESS: [&str; 2] = ["None", "NoneOnDryRun"];
const EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];

/// What a change may keep although it is not valid any more.
#[derive(Clone, Copy, Default)]
struct Lax {
    conditions: bool,
    effects: bool,
    reviews: bool,
    names: bool,
    selectors: bool,
}

impl Lax {
    fn of_update(object: &Value, old: &Value) -> Self {
        let (new, was) = (object.list("webhooks"), old.list("webhooks"));
        let kept = |(new, old): (&Value, &Value)| same_at(new, old, "matchConditions");
        let spoken = |hook: &Value| {
            let versions = hook.list("admissionReviewVersions");
            versions.is_empty() || webhook_client::speaks(versions)
        };
        let twice = |(index, hook): (usize, &Value)| {
            was[..index].iter().any(|other| other.text("name") == hook.text("name"))
        };
        let faulty = |hook: &Value| {
            ["namespaceSelector", "objectSelector"].iter().any(|key| labels::is_faulty(hook.get_some(key)))
        };
        Self {
            conditions: new.len() == was.len() && new.iter().zip(was).all(kept),
            effects: !was.iter().all(|hook| HARMLESS.contains(&hook.text("sideEffects"))),
            reviews: !was.iter().all(spoken),
            names: was.iter().enumerate().any(twice),
            selectors: was.iter().any(faulty),
        }
    }
}

fn webhook(hook: &Value, lax: Lax, path: &Path<'_>, errors: &mut Errors) {
    domain::full_name(hook.text("name"), &path.field("name"), errors);
    let list = path.field("rules");
    for (index, one) in hook.list("rules").iter().enumerate() {
        rule(one, &list.index(index), errors);
    }
    errors.optional_one_of(hook, path, "failurePolicy", &FAILURE_POLICIES);
    errors.optional_one_of(hook, path, "matchPolicy", &MATCH_POLICIES);
    let effects: &[&str] = if lax.effects { &EFFECTS } else { &HARMLESS };
    if hook.has("sideEffects") {
        errors.optional_one_of(hook, path, "sideEffects", effects);
    } else {
        let why = format!("must specify one of {}", effects.join(", "));
        errors.required(&path.field("sideEffects"), &why);
    }
    if let Some(seconds) = hook.some_int("timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.field("timeoutSeconds"), seconds, why);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        labels::selector(hook.get_some(key), &path.field(key), lax.selectors, errors);
    }
    errors.optional_one_of(hook, path, "reinvocationPolicy", &REINVOCATION_POLICIES);
    webhook_client::validate(&hook["clientConfig"], &path.field("clientConfig"), errors);
    if !lax.conditions {
        match_conditions(hook, &PolicyEnv::new(false), path, errors);
    }
}

fn validate(object: &Value, lax: Lax, errors: &mut Errors) {
    let list = Path::root("webhooks");
    let hooks = object.list("webhooks");
    for (index, hook) in hooks.iter().enumerate() {
        let item = list.index(index);
        webhook(hook, lax, &item, errors);
        let why = "must specify one of v1, v1beta1";
        webhook_client::reviews(hook, "admissionReviewVersions", why, !lax.reviews, &item, errors);
        let name = hook.text("name");
        let twice = hooks[..index].iter().any(|other| other.text("name") == name);
        if twice && !lax.names && !name.is_empty() {
            errors.duplicate(&item.field("name"), name);
        }
    }
}

impl Strategy for WebhookConfigurations {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, Lax::default(), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Lax::of_update(object, old), errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        name_warnings(object)
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
