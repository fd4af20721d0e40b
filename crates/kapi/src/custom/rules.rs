//! `x-kubernetes-validations`: the rules of a structural schema in CEL, compiled once and asked on each write (KEP-2876).

mod decl;
mod definition;

use std::collections::BTreeMap;

use kcel::{Bindings, Env, EvalError, Program, limits};
use kschema::{
    ListKind,
    error::FieldError,
    structural::{Additional, JsonType, Rule, Structural},
};
use serde_json::Value;

pub(crate) use self::definition::check as check_definition;

/// The longest message that a `messageExpression` may make, in bytes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// The rules of a schema and of what is below it.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    compiled: Vec<Compiled>,
    kind: JsonType,
    /// The keys by which entries of a list are the same as before.
    keys: Vec<Box<str>>,
    /// Whether fields can be compared with what they were.
    atomic: bool,
    properties: BTreeMap<Box<str>, Rules>,
    values: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    all_of: Vec<Rules>,
}

/// One rule.
#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    /// Whether it mentions `oldSelf`.
    transition: bool,
}

/// What the checks that need no rules have found that makes rules pointless (`hasBlockingErr`).
const BLOCKING: [&str; 5] = [
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
];

/// What expressions see of whole objects of this schema.
pub(super) fn declared(schema: &Structural) -> Option<kcel::Decl> {
    decl::of(schema, true)
}

impl Rules {
    /// The rules of a schema; `None` if there are none in it.
    pub(super) fn compile(schema: &Structural) -> Option<Self> {
        Self::of(schema, schema, true)
    }

    /// The rules that `rules` has, about values that `schema` describes: within `allOf` these are two.
    fn of(rules: &Structural, schema: &Structural, is_root: bool) -> Option<Self> {
        let compiled =
            if rules.rules.is_empty() { Vec::new() } else { compile_all(&rules.rules, schema, is_root) };
        let below = |rules: &Structural, schema: &Structural| Self::of(rules, schema, schema.is_object);
        let mut properties = BTreeMap::new();
        for (name, rules) in &rules.properties {
            if let Some(made) = schema.properties.get(name).and_then(|schema| below(rules, schema)) {
                properties.insert(name.clone(), made);
            }
        }
        let values = match (&rules.additional, &schema.additional) {
            (Additional::Schema(rules), Additional::Schema(schema)) => below(rules, schema),
            _ => None,
        };
        let items =
            rules.items.as_ref().zip(schema.items.as_ref()).and_then(|(rules, schema)| below(rules, schema));
        let all_of = rules.limits.as_ref().map(|limits| limits.all_of.as_slice()).unwrap_or_default();
        let all_of: Vec<Self> = all_of.iter().filter_map(|rules| Self::of(rules, schema, is_root)).collect();
        let keys = match &schema.list {
            ListKind::Map(keys) => keys.clone(),
            _ => Vec::new(),
        };
        let none = compiled.is_empty()
            && properties.is_empty()
            && values.is_none()
            && items.is_none()
            && all_of.is_empty();
        (!none).then(|| Self {
            compiled,
            kind: schema.kind,
            keys,
            atomic: schema.atomic,
            properties,
            values: values.map(Box::new),
            items: items.map(Box::new),
            all_of,
        })
    }

    /// Asks all rules about an object that has passed the other checks. `old` is what it was; it is missing for a new one.
    pub(super) fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        if errors.iter().any(|error| BLOCKING.contains(&error.reason())) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", Value::Null, why));
            return;
        }
        let mut walk = Walk { budget: limits::REQUEST_COST_MAX, path: String::new(), errors };
        walk.node(self, object, old, old.map(|old| (object, old)));
    }
}

fn compile_all(rules: &[Rule], schema: &Structural, is_root: bool) -> Vec<Compiled> {
    let declared = decl::of(schema, is_root).map(|decl| decl.named("selfType"));
    rules
        .iter()
        .map(|rule| {
            let none = || Compiled {
                rule: rule.clone(),
                program: Err("failed to convert to declType for CEL validation rules".to_owned()),
                message: None,
                transition: false,
            };
            declared.as_ref().map_or_else(none, |decl| compile(rule, decl))
        })
        .collect()
}

fn env(rule: &Rule, decl: &kcel::Decl) -> Env {
    let env = Env::builder().variable("self", decl.clone());
    let env = if rule.optional_old_self == Some(true) {
        env.optional_variable("oldSelf", decl)
    } else {
        env.variable("oldSelf", decl.clone())
    };
    env.build()
}

fn compile(rule: &Rule, decl: &kcel::Decl) -> Compiled {
    let env = env(rule, decl);
    let program = match env.compile(&rule.rule) {
        Ok(program) if program.output_type().to_string() == "bool" => Ok(program),
        Ok(_) => Err("cel expression must evaluate to a bool".to_owned()),
        Err(errors) => Err(format!("compilation failed: {errors}")),
    };
    let message = Some(&rule.message_expression).filter(|text| !text.trim().is_empty());
    let message = message.and_then(|text| env.compile(text).ok());
    let transition = program.as_ref().is_ok_and(|program| program.uses("oldSelf"));
    Compiled { rule: rule.clone(), program, message, transition }
}

/// One walk over an object.
struct Walk<'a> {
    /// What may still be spent.
    budget: u64,
    path: String,
    errors: &'a mut Vec<FieldError>,
}

/// A value and what it was, of which it can be said whether it changed.
type Pair<'v> = Option<(&'v Value, &'v Value)>;

impl Walk<'_> {
    /// Asks the rules of a value and of what is below it; whether to go on. `near` is the nearest value from here up that has
    /// an old one: what was wrong with it before it was changed may stay (KEP-4008).
    fn node(&mut self, rules: &Rules, value: &Value, old: Option<&Value>, near: Pair<'_>) -> bool {
        if value.is_null() {
            return true;
        }
        let near = old.map(|old| (value, old)).or(near);
        if !self.expressions(rules, value, old.filter(|old| !old.is_null()), near) {
            return false;
        }
        if !rules.all_of.iter().all(|rules| self.node(rules, value, old, None)) {
            return false;
        }
        match value {
            Value::Array(list) => self.list(rules, list, old.and_then(Value::as_array), near),
            Value::Object(map) => {
                let old = old.filter(|_| !rules.atomic).and_then(Value::as_object);
                map.iter().all(|(key, value)| {
                    let (below, named) = match (rules.properties.get(&**key), &rules.values) {
                        (Some(below), _) => (below, true),
                        (None, Some(below)) => (&**below, false),
                        (None, None) => return true,
                    };
                    let length = self.path.len();
                    match (named, length) {
                        (true, 0) => self.path.push_str(key),
                        (true, _) => {
                            self.path.push('.');
                            self.path.push_str(key);
                        }
                        (false, _) => {
                            self.path.push('[');
                            self.path.push_str(key);
                            self.path.push(']');
                        }
                    }
                    let goes_on = self.node(below, value, old.and_then(|old| old.get(key)), near);
                    self.path.truncate(length);
                    goes_on
                })
            }
            _ => true,
        }
    }

    fn list(&mut self, rules: &Rules, list: &[Value], old: Option<&Vec<Value>>, near: Pair<'_>) -> bool {
        let Some(below) = &rules.items else {
            return true;
        };
        list.iter().enumerate().all(|(index, item)| {
            // Only entries that are found by keys can be compared with what they were.
            let same = |old: &&Value| rules.keys.iter().all(|key| old.get(&**key) == item.get(&**key));
            let old = old.filter(|_| !rules.keys.is_empty()).and_then(|old| old.iter().find(same));
            let length = self.path.len();
            self.path.push_str(&format!("[{index}]"));
            let goes_on = self.node(below, item, old, near);
            self.path.truncate(length);
            goes_on
        })
    }

    fn at(&self) -> String {
        if self.path.is_empty() { "<nil>".to_owned() } else { self.path.clone() }
    }

    /// An error whose value is the type of what it is about, as upstream has it for faults of the rules themselves.
    fn fault(&mut self, rules: &Rules, why: String) {
        self.errors.push(FieldError::invalid_text(self.at(), type_name(rules.kind), why));
    }

    /// Asks the rules of one value; whether to go on.
    fn expressions(&mut self, rules: &Rules, value: &Value, old: Option<&Value>, near: Pair<'_>) -> bool {
        for compiled in &rules.compiled {
            let rule = &compiled.rule;
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    self.fault(rules, format!("rule compile error: {why}"));
                    continue;
                }
            };
            let optional = rule.optional_old_self == Some(true);
            if compiled.transition && old.is_none() && !optional {
                continue;
            }
            let mut bindings = Bindings::new().json("self", value);
            if optional {
                bindings = bindings.with("oldSelf", kcel::Value::optional(old.map(kcel::Value::json)));
            } else if let Some(old) = old {
                bindings = bindings.json("oldSelf", old);
            }
            if self.budget == 0 {
                self.fault(rules, OUT_OF_BUDGET.to_owned());
                return false;
            }
            let outcome = program.eval(&bindings, limits::PER_CALL_COST_MAX);
            if outcome.cost > self.budget {
                self.fault(rules, OUT_OF_BUDGET.to_owned());
                return false;
            }
            self.budget -= outcome.cost;
            match outcome.result {
                Ok(result) if result.as_bool() == Some(true) => {}
                Ok(_) => {
                    if !self.failed(rules, compiled, value, &bindings, near) {
                        return false;
                    }
                }
                Err(EvalError::CostLimit) => {
                    let why = format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        EvalError::CostLimit,
                        rule.rule.trim()
                    );
                    self.fault(rules, why);
                    return false;
                }
                Err(error) => {
                    let error = error.to_string();
                    let rule = rule.rule.trim();
                    let why = if error.starts_with("no such overload") {
                        format!(
                            "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
                        )
                    } else {
                        format!("{error} evaluating rule: {rule}")
                    };
                    self.fault(rules, why);
                }
            }
        }
        true
    }

    /// A rule is not fulfilled: says so, unless what it is about has not changed. Whether to go on.
    fn failed(
        &mut self,
        rules: &Rules,
        compiled: &Compiled,
        value: &Value,
        bindings: &Bindings<'_>,
        near: Pair<'_>,
    ) -> bool {
        let rule = &compiled.rule;
        if !compiled.transition && near.is_some_and(|(new, old)| new == old) {
            return true;
        }
        let path = match rule.field_path.as_str() {
            "" => self.at(),
            field if field.starts_with('[') || self.path.is_empty() => {
                format!(
                    "{}{}",
                    self.path,
                    field.trim_start_matches(if self.path.is_empty() { '.' } else { ' ' })
                )
            }
            field => format!("{}.{}", self.path, field.trim_start_matches('.')),
        };
        let detail = match self.message(compiled, bindings) {
            Ok(Some(message)) => message,
            Ok(None) if rule.message.is_empty() => format!("failed rule: {}", rule.rule.trim()),
            Ok(None) => rule.message.trim().to_owned(),
            Err(why) => {
                self.errors.push(FieldError::invalid_text(path, type_name(rules.kind), why));
                return false;
            }
        };
        let whole = matches!(rules.kind, JsonType::Object | JsonType::Array);
        self.errors.push(match rule.reason.as_deref() {
            Some("FieldValueForbidden") => FieldError::forbidden(path, detail),
            Some("FieldValueRequired") => FieldError::required(path, &detail),
            Some("FieldValueDuplicate") if whole => FieldError::duplicate_value(path, ""),
            Some("FieldValueDuplicate") => FieldError::duplicate_value(path, value),
            _ if whole => FieldError::invalid_whole(path, detail),
            _ => FieldError::invalid(path, value, detail),
        });
        true
    }

    /// What the `messageExpression` makes; `None` if there is none or it makes nothing of use.
    fn message(&mut self, compiled: &Compiled, bindings: &Bindings<'_>) -> Result<Option<String>, String> {
        let Some(program) = &compiled.message else {
            return Ok(None);
        };
        let outcome = program.eval(bindings, limits::PER_CALL_COST_MAX);
        if outcome.cost > self.budget {
            return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned());
        }
        self.budget -= outcome.cost;
        match outcome.result {
            Err(EvalError::CostLimit) => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                compiled.rule.message_expression
            )),
            Err(_) => Ok(None),
            Ok(value) => Ok(value
                .as_str()
                .map(str::trim)
                .filter(|text| !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n'))
                .map(str::to_owned)),
        }
    }
}

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

fn type_name(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Any => "",
        JsonType::Object => "object",
        JsonType::Array => "array",
        JsonType::String => "string",
        JsonType::Integer => "integer",
        JsonType::Number => "number",
        JsonType::Boolean => "boolean",
    }
}
