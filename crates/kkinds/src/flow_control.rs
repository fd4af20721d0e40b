//! Flow schemas and priority levels (KEP-1040).

use kschema::{error::FieldError, fields::keep, strategy::Strategy};
use serde_json::{Value, json};

use crate::check::{Faults, Form, Internal, Look, Path, Report, form, same, texts};

type Errors = Vec<FieldError>;

/// The strategy of `flowschemas`.
#[derive(Debug)]
pub(crate) struct FlowSchemas;

/// The strategy of `prioritylevelconfigurations`.
#[derive(Debug)]
pub(crate) struct PriorityLevels;

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// How many bits a request's hash has.
const HASH_BITS_MAX: i64 = 60;

/// What the two schemas say that are always there.
fn mandatory_schema(name: &str) -> Option<Value> {
    let schema = |precedence: i64, groups: &[&str]| {
        let subjects: Vec<Value> =
            groups.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect();
        json!({
            "priorityLevelConfiguration": {"name": name},
            "matchingPrecedence": precedence,
            "rules": [{
                "subjects": subjects,
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            }],
        })
    };
    match name {
        "exempt" => Some(schema(1, &["system:masters"])),
        "catch-all" => {
            let mut found = schema(PRECEDENCE_MAX, &["system:unauthenticated", "system:authenticated"]);
            found["distinguisherMethod"] = json!({"type": "ByUser"});
            Some(found)
        }
        _ => None,
    }
}

/// What the two levels say that are always there.
fn mandatory_level(name: &str) -> Option<Value> {
    match name {
        "exempt" => Some(json!({"type": "Exempt"})),
        "catch-all" => Some(json!({
            "type": "Limited",
            "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}},
        })),
        _ => None,
    }
}

/// Checks a list that is not empty, and in which `*` stands alone. Whether its entries are to be looked at.
fn list(rule: &Value, key: &str, needed: &str, what: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let field = path.field(key);
    if rule.count(key) == 0 {
        errors.required(&field, needed);
        return false;
    }
    let any = texts(rule.list(key)).any(|text| text == "*");
    if any && rule.count(key) > 1 {
        let why = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&field, rule.get_some(key), why);
    }
    !any
}

fn verbs(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    const VERBS: [&str; 9] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    let named = list(rule, "verbs", "verbs must contain at least one value", "verbs", path, errors);
    if named && texts(rule.list("verbs")).any(|verb| !VERBS.contains(&verb)) {
        errors.unsupported_choice(&path.field("verbs"), &rule["verbs"], &VERBS);
    }
}

fn resource_rule(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    verbs(rule, path, errors);
    let needed = "resource rules must supply at least one api group";
    list(rule, "apiGroups", needed, "api groups", path, errors);
    let needed = "resource rules must supply at least one resource";
    list(rule, "resources", needed, "resources", path, errors);
    if rule.flag("clusterScope") && rule.count("namespaces") == 0 {
        return;
    }
    let needed = "resource rules that are not cluster scoped must supply at least one namespace";
    if list(rule, "namespaces", needed, "namespaces", path, errors) {
        let field = path.field("namespaces");
        for (index, name) in texts(rule.list("namespaces")).enumerate() {
            for fault in form::dns_label(name) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {fault}");
                errors.invalid(&field.index(index), name, why);
            }
        }
    }
}

fn url_fault(url: &str) -> Option<&'static str> {
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ => match url.matches('*').count() {
            0 => None,
            1 if url.ends_with("/*") => None,
            _ => Some("wildcard can only do suffix matching"),
        },
    }
}

fn url_rule(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    verbs(rule, path, errors);
    let (key, needed) = ("nonResourceURLs", "nonResourceURLs must contain at least one value");
    if list(rule, key, needed, "non-resource URLs", path, errors) {
        let field = path.field(key);
        for (index, url) in texts(rule.list(key)).enumerate() {
            if let Some(why) = url_fault(url) {
                errors.invalid(&field.index(index), url, why);
            }
        }
    }
}

fn subject(subject: &Value, path: &Path<'_>, errors: &mut Errors) {
    const KINDS: [(&str, &str); 3] =
        [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = subject.text("kind");
    let Some((_, key)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        errors.unsupported(&path.field("kind"), kind, &KINDS.map(|(kind, _)| kind));
        return;
    };
    let field = path.field(key);
    match subject.get_some(key) {
        None => errors.required(&field, &format!("{key} is required when subject kind is '{kind}'")),
        Some(found) => {
            let account: Form = |name| match name {
                "*" => Faults::new(),
                _ => form::dns_subdomain(name),
            };
            let any: Form = |_| Faults::new();
            let is_account = kind == "ServiceAccount";
            errors.name(&field.field("name"), found.text("name"), if is_account { account } else { any });
            let namespace = found.text("namespace");
            if is_account && namespace.is_empty() {
                let why = "must specify namespace for service account";
                errors.required(&field.field("namespace"), why);
            } else if is_account {
                errors.faults(&field.field("namespace"), namespace, form::dns_label(namespace));
            }
        }
    }
    for (other, key) in [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")] {
        if other != kind && subject.has(key) {
            let why = format!("{key} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&path.field(key), why);
        }
    }
}

fn rule(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("subjects");
    if rule.count("subjects") == 0 {
        errors.required(&field, "subjects must contain at least one value");
    }
    for (index, one) in rule.list("subjects").iter().enumerate() {
        subject(one, &field.index(index), errors);
    }
    if rule.count("resourceRules") == 0 && rule.count("nonResourceRules") == 0 {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let field = path.field("resourceRules");
    for (index, one) in rule.list("resourceRules").iter().enumerate() {
        resource_rule(one, &field.index(index), errors);
    }
    let field = path.field("nonResourceRules");
    for (index, one) in rule.list("nonResourceRules").iter().enumerate() {
        url_rule(one, &field.index(index), errors);
    }
}

fn conditions(object: &Value, errors: &mut Errors) {
    let list = Path::root("status.conditions");
    let found = object["status"].list("conditions");
    for (index, condition) in found.iter().enumerate() {
        let item = list.index(index);
        let kind = condition.text("type");
        if found[..index].iter().any(|other| other.text("type") == kind) {
            errors.duplicate(&item.field("type"), kind);
        }
        errors.needs(condition, &item, "type");
    }
}

impl Strategy for FlowSchemas {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path, name) = (&object["spec"], Path::root("spec"), object["metadata"].text("name"));
        let (precedence, field) = (spec.int("matchingPrecedence"), path.field("matchingPrecedence"));
        if precedence <= 0 {
            errors.invalid(&field, precedence, "must be a positive value");
        }
        if precedence > PRECEDENCE_MAX {
            errors.invalid(&field, precedence, format_args!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if precedence == 1 && name != "exempt" {
            let why = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.invalid(&field, precedence, why);
        }
        if let Some(method) = spec.get_some("distinguisherMethod") {
            let methods = ["ByNamespace", "ByUser"];
            if !methods.contains(&method.text("type")) {
                errors.unsupported_choice(
                    &path.field("distinguisherMethod.type"),
                    Internal("~flowcontrol.v1.FlowDistinguisherMethod", Some(method)),
                    &methods,
                );
            }
        }
        let (level, field) =
            (spec["priorityLevelConfiguration"].text("name"), path.field("priorityLevelConfiguration.name"));
        if level.is_empty() {
            errors.required(&field, "must reference a priority level");
        } else {
            errors.faults(&field, level, form::dns_subdomain(level));
        }
        let field = path.field("rules");
        for (index, one) in spec.list("rules").iter().enumerate() {
            rule(one, &field.index(index), errors);
        }
        if mandatory_schema(name).is_some_and(|fixed| !same(spec, &fixed)) {
            errors.invalid(
                &path,
                Internal("~flowcontrol.v1.FlowSchemaSpec", Some(spec)),
                format_args!("spec of '{name}' must equal the fixed value"),
            );
        }
        conditions(object, errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        conditions(object, errors);
    }
}

/// How many bits a hash needs to deal so many cards of such a deck.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "Both are small, and it is computed in floating point upstream."
    )]
    let bits = ((deck as f64).log2() * hand as f64).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "It saturates, which is far above the limit.")]
    let bits = bits as i64;
    bits
}

fn queuing(queuing: &Value, path: &Path<'_>, errors: &mut Errors) {
    const POSITIVE: &str = "must be positive";
    let (limit, queues, hand) =
        (queuing.int("queueLengthLimit"), queuing.int("queues"), queuing.int("handSize"));
    if limit <= 0 {
        errors.invalid(&path.field("queueLengthLimit"), limit, POSITIVE);
    }
    if queues <= 0 {
        errors.invalid(&path.field("queues"), queues, POSITIVE);
    } else if queues > QUEUES_MAX {
        let why = format!("must not be greater than {QUEUES_MAX}");
        errors.invalid(&path.field("queues"), queues, why);
    }
    let field = path.field("handSize");
    if hand <= 0 {
        errors.invalid(&field, hand, POSITIVE);
    } else if hand > queues {
        errors.invalid(&field, hand, format_args!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > HASH_BITS_MAX {
        errors.invalid(&field, hand, format_args!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"));
    }
}

fn shares(level: &Value, path: &Path<'_>, errors: &mut Errors) {
    let shares = level.int("nominalConcurrencyShares");
    if shares < 0 {
        let field = path.field("nominalConcurrencyShares");
        errors.invalid(&field, shares, "must be a non-negative integer");
    }
}

fn lendable(level: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.in_range(level, path, "lendablePercent", 0, 100);
}

fn limited(level: &Value, path: &Path<'_>, errors: &mut Errors) {
    shares(level, path, errors);
    let (response, field) = (&level["limitResponse"], path.field("limitResponse"));
    let queue = response.get_some("queuing");
    let at = field.field("queuing");
    match (response.text("type"), queue) {
        ("Reject", Some(_)) => {
            errors.forbidden(&at, "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Queue", None) => {
            errors.required(&at, "must not be empty if limited.limitResponse.type is Limited");
        }
        ("Queue", Some(queue)) => queuing(queue, &at, errors),
        ("Reject", None) => {}
        (other, _) => errors.unsupported(&field.field("type"), other, &["Queue", "Reject"]),
    }
    lendable(level, path, errors);
    let limit = level.int("borrowingLimitPercent");
    if limit < 0 {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(&path.field("borrowingLimitPercent"), limit, why);
    }
}

impl Strategy for PriorityLevels {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        const ZERO: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
        let (spec, path, name) = (&object["spec"], Path::root("spec"), object["metadata"].text("name"));
        if object["metadata"].get("annotations").is_some_and(|notes| notes.get(ZERO).is_some()) {
            let why = format!("annotation '{ZERO}' is forbidden");
            errors.forbidden(&Path::root("metadata.annotations"), why);
        }
        let kind = spec.text("type");
        if (name == "exempt") != (kind == "Exempt") {
            let why = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.invalid(&path.field("type"), kind, why);
        }
        let (exempt, limits) = (spec.get_some("exempt"), spec.get_some("limited"));
        match kind {
            "Exempt" => {
                if limits.is_some() {
                    errors.forbidden(&path.field("limited"), "must be nil if the type is not Limited");
                }
                if let Some(exempt) = exempt {
                    shares(exempt, &path.field("exempt"), errors);
                    lendable(exempt, &path.field("exempt"), errors);
                }
            }
            "Limited" => {
                if exempt.is_some() {
                    errors.forbidden(&path.field("exempt"), "must be nil if the type is Limited");
                }
                match limits {
                    None => errors.required(&path.field("limited"), "must not be empty when type is Limited"),
                    Some(limits) => limited(limits, &path.field("limited"), errors),
                }
            }
            _ => errors.unsupported(&path.field("type"), kind, &["Exempt", "Limited"]),
        }
        if let Some(mut fixed) = mandatory_level(name) {
            let except = if name == "exempt" {
                keep(&mut fixed, spec, "exempt");
                " except the 'spec.exempt' field"
            } else {
                ""
            };
            if !same(spec, &fixed) {
                errors.invalid(
                    &path,
                    Internal("~flowcontrol.v1.PriorityLevelConfigurationSpec", Some(spec)),
                    format_args!("spec of '{name}'{except} must equal the fixed value"),
                );
            }
        }
        conditions(object, errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        conditions(object, errors);
    }
}
