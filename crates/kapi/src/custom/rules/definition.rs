//! What is wrong with the rules of a definition that somebody creates or changes: they must compile, and must not be able to
//! cost too much (`validateCustomResourceDefinitionValidation` of the apiextensions server).

use kcel::limits;
use kschema::{
    ListKind,
    error::FieldError,
    structural::{Additional, Rule, Structural},
};
use serde_json::Value;

use super::{decl, env};

/// Looks at the schema of one version, which is structural and whose rules have the right form
/// ([`kschema::structural::validate_schema`]). `path` is that of its `openAPIV3Schema`.
pub(crate) fn check(schema: &Structural, path: &str, errors: &mut Vec<FieldError>) {
    let mut total = Total::default();
    let before = errors.len();
    let mut walk = Walk { errors, total: &mut total };
    walk.node(schema, path, Some(1), true, None);
    if total.cost > limits::CRD_ESTIMATE_MAX {
        total.most.sort_by(|(one, _), (other, _)| other.cmp(one));
        for (cost, place) in total.most.iter().take(4) {
            let _ = cost;
            let why =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(FieldError::forbidden(place.as_str(), why));
        }
        let why = too_much(
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
            total.cost,
            limits::CRD_ESTIMATE_MAX,
        );
        errors.push(FieldError::forbidden(path, why));
    }
    debug_assert!(errors.len() >= before, "errors are only added");
}

/// What all rules of a schema can cost together.
#[derive(Default)]
struct Total {
    cost: u64,
    /// Those that cost more than a hundredth of what is allowed, with their places.
    most: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, cost: u64, place: &str) {
        self.cost = self.cost.saturating_add(cost);
        if cost >= limits::CRD_ESTIMATE_MAX / 100 {
            self.most.push((cost, place.to_owned()));
        }
    }
}

struct Walk<'a> {
    errors: &'a mut Vec<FieldError>,
    total: &'a mut Total,
}

impl Walk<'_> {
    /// `times`: how often values of this schema can occur at most; `None` if nothing limits it. `lost`: where an old value
    /// ceased to be known.
    fn node(
        &mut self,
        schema: &Structural,
        path: &str,
        times: Option<u64>,
        is_root: bool,
        lost: Option<&str>,
    ) {
        if !schema.rules.is_empty() {
            self.rules(schema, path, times, is_root, lost);
        }
        let limits = schema.limits.as_deref();
        let up_to = |limit: Option<i64>| {
            times.zip(limit).map(|(times, limit)| times.saturating_mul(u64::try_from(limit).unwrap_or(0)))
        };
        for (name, field) in &schema.properties {
            let lost = if schema.atomic { Some(path) } else { lost };
            self.node(field, &format!("{path}.properties[{name}]"), times, field.is_object, lost);
        }
        if let Additional::Schema(values) = &schema.additional {
            let times = up_to(limits.and_then(|limits| limits.max_properties));
            self.node(values, &format!("{path}.additionalProperties"), times, values.is_object, lost);
        }
        if let Some(items) = &schema.items {
            let times = up_to(limits.and_then(|limits| limits.max_items));
            let below = format!("{path}.items");
            let keyed = matches!(schema.list, ListKind::Map(_));
            let lost = if keyed { lost } else { lost.or(Some(path)) };
            self.node(items, &below, times, items.is_object, lost);
        }
        for (index, nested) in
            limits.map(|limits| limits.all_of.as_slice()).unwrap_or_default().iter().enumerate()
        {
            if has_rules(nested) {
                // What restricts has no types of its own: it is read with those of the schema around it.
                let merged = Structural { rules: nested.rules.clone(), limits: None, ..schema.clone() };
                self.rules(&merged, &format!("{path}.allOf[{index}]"), times, is_root, lost);
            }
        }
    }

    fn rules(
        &mut self,
        schema: &Structural,
        path: &str,
        times: Option<u64>,
        is_root: bool,
        lost: Option<&str>,
    ) {
        let Some(decl) = decl::of(schema, is_root).map(|decl| decl.named("selfType")) else {
            let why = "internal error: failed to retrieve type information for x-kubernetes-validations";
            self.errors.push(FieldError::internal(format!("{path}.x-kubernetes-validations"), why));
            return;
        };
        let times = times.unwrap_or_else(|| decl.cardinality_max());
        for (index, rule) in schema.rules.iter().enumerate() {
            let place = format!("{path}.x-kubernetes-validations[{index}]");
            self.rule(rule, &decl, &place, times, lost);
        }
    }

    fn rule(&mut self, rule: &Rule, decl: &kcel::Decl, place: &str, times: u64, lost: Option<&str>) {
        let env = env(rule, decl);
        let at = |key: &str| format!("{place}.{key}");
        let shown = shown(rule);
        let fault = |key: &str, why: String| FieldError::invalid(at(key), &shown, why);
        let program = match env.compile(&rule.rule) {
            Ok(program) if program.output_type().to_string() == "bool" => program,
            Ok(_) => {
                self.errors.push(fault("rule", "cel expression must evaluate to a bool".to_owned()));
                return;
            }
            Err(errors) => {
                self.errors.push(fault("rule", format!("compilation failed: {errors}")));
                return;
            }
        };
        self.cost(program.estimate().max.saturating_mul(times), "estimated rule cost", &at("rule"));
        if !rule.message_expression.is_empty() {
            match env.compile(&rule.message_expression) {
                Ok(message) if message.output_type().to_string() == "string" => {
                    self.cost(
                        message.estimate().max,
                        "estimated messageExpression cost",
                        &at("messageExpression"),
                    );
                }
                Ok(_) => {
                    let why = "messageExpression must evaluate to a string".to_owned();
                    self.errors.push(fault("messageExpression", why));
                }
                Err(errors) => {
                    let why = format!("messageExpression compilation failed: {errors}");
                    self.errors.push(fault("messageExpression", why));
                }
            }
        }
        match (program.uses("oldSelf"), lost, rule.optional_old_self) {
            (true, Some(lost), _) => {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}"
                );
                self.errors.push(FieldError::invalid_text(at("rule"), &rule.rule, why));
            }
            (false, _, Some(set)) => {
                let why = "may not be set if oldSelf is not used in rule";
                self.errors.push(FieldError::invalid(at("optionalOldSelf"), set, why));
            }
            _ => {}
        }
    }

    fn cost(&mut self, cost: u64, what: &str, place: &str) {
        if cost > limits::RULE_ESTIMATE_MAX {
            self.errors.push(FieldError::forbidden(place, too_much(what, cost, limits::RULE_ESTIMATE_MAX)));
        }
        self.total.add(cost, place);
    }
}

fn has_rules(schema: &Structural) -> bool {
    !schema.rules.is_empty()
}

/// The rule as Go's JSON shows it.
fn shown(rule: &Rule) -> Value {
    let mut shown = serde_json::json!({"rule": rule.rule});
    for (key, text) in [
        ("message", &rule.message),
        ("messageExpression", &rule.message_expression),
        ("fieldPath", &rule.field_path),
    ] {
        if !text.is_empty() {
            shown[key] = text.as_str().into();
        }
    }
    shown
}

/// Upstream's words for a budget that is exceeded.
fn too_much(what: &str, cost: u64, limit: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "the factor is shown with one digit")]
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
