//! Requests to evict something, and the evictions that come of them (KEP-4563). New in 1.37 and off by default: the rules are
//! those that the types' descriptions state, in the words of declarative validation.

use kschema::{
    error::FieldError,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, condition, labels, same_at},
    declared::{at_most, immutable, range, union, unique},
};

type Errors = Vec<FieldError>;

/// The strategy of `evictionrequests` and `evictions` of the lifecycle group.
#[derive(Debug)]
pub(crate) struct EvictionRequests {
    /// Whether these are what comes of requests.
    pub(crate) evictions: bool,
}

const CONDITIONS_MAX: usize = 100;
const REQUESTERS_MAX: usize = 100;
const RESPONDERS_MAX: usize = 11;
const MESSAGE_CHARACTERS_MAX: usize = 4000;
const PRIORITY_MAX: i64 = 100_000;
const INTENTS: [&str; 2] = ["Eviction", "Withdrawn"];
const STATES: [&str; 5] = ["Active", "Canceled", "Completed", "Inactive", "Interrupted"];

fn key(object: &Value, path: &Path<'_>, name: &str, errors: &mut Errors) {
    let (text, field) = (object.text(name), path.field(name));
    if text.is_empty() {
        errors.required(&field, "");
    } else {
        labels::domain_prefixed(text, &field, errors);
    }
}

fn target(target: &Value, path: &Path<'_>, errors: &mut Errors) {
    union(target, None, path, &["pod"], errors);
    let Some(pod) = target.get_some("pod") else {
        return;
    };
    let field = path.field("pod");
    errors.needs(pod, &field, "name");
    let (uid, at) = (pod.text("uid"), field.field("uid"));
    let good = uid.len() == 36
        && uid.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
    if uid.is_empty() {
        errors.required(&at, "");
    } else if !good {
        errors.invalid(&at, uid, "must be a lowercase UUID in 8-4-4-4-12 format");
    }
}

fn spec(object: &Value, old: Option<&Value>, evictions: bool, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let was = old.map(|old| &old["spec"]);
    if !immutable(spec, was, &path, "target", errors) && was.is_none() {
        target(&spec["target"], &path.field("target"), errors);
    }
    if evictions {
        return;
    }
    if !immutable(spec, was, &path, "requester", errors) && was.is_none() {
        key(spec, &path, "requester", errors);
    }
    if !was.is_some_and(|was| same_at(spec, was, "intent")) {
        errors.one_of(&path.field("intent"), spec.text("intent"), &INTENTS);
    }
}

fn requesters(found: &[Value], list: &Path<'_>, errors: &mut Errors) {
    if at_most(found, REQUESTERS_MAX, list, errors) {
        unique(found, &["name", "intent"], list, errors);
        for (index, one) in found.iter().enumerate() {
            let item = list.index(index);
            key(one, &item, "name", errors);
            errors.one_of(&item.field("intent"), one.text("intent"), &INTENTS);
        }
    }
}

/// Which responders there are stays once they are set; one at most is active.
fn responders(found: &[Value], old: &[Value], list: &Path<'_>, errors: &mut Errors) {
    let find = |name: &str| old.iter().find(|old| old.text("name") == name);
    let kept = found.len() == old.len() && found.iter().all(|one| find(one.text("name")).is_some());
    if !old.is_empty() && !kept {
        errors.invalid(list, None, "field is immutable");
        return;
    }
    if !at_most(found, RESPONDERS_MAX, list, errors) {
        return;
    }
    unique(found, &["name", "priority", "state"], list, errors);
    let mut active = 0;
    for (index, one) in found.iter().enumerate() {
        let item = list.index(index);
        key(one, &item, "name", errors);
        match find(one.text("name")) {
            Some(was) => {
                immutable(one, Some(was), &item, "priority", errors);
            }
            None if one.has("priority") => range(one, &item, "priority", 0, PRIORITY_MAX, errors),
            None => errors.required(&item.field("priority"), ""),
        }
        errors.one_of(&item.field("state"), one.text("state"), &STATES);
        active += usize::from(one.text("state") == "Active");
    }
    if active > 1 {
        errors.too_many(list, active, 1);
    }
}

fn statuses(found: &[Value], old: &[Value], list: &Path<'_>, errors: &mut Errors) {
    if !at_most(found, RESPONDERS_MAX, list, errors) {
        return;
    }
    unique(found, &["name"], list, errors);
    for (index, one) in found.iter().enumerate() {
        let item = list.index(index);
        key(one, &item, "name", errors);
        if one.text("message").chars().count() > MESSAGE_CHARACTERS_MAX {
            let field = item.field("message").to_string();
            errors.fault(FieldError::too_long_characters(field, MESSAGE_CHARACTERS_MAX));
        }
        let was = old.iter().find(|old| old.text("name") == one.text("name"));
        for key in ["startTime", "completionTime"] {
            immutable(one, was.filter(|was| was.has(key)), &item, key, errors);
        }
    }
}

impl Strategy for EvictionRequests {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        spec(object, None, self.evictions, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        spec(object, Some(old), self.evictions, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (status, was, path) = (&object["status"], &old["status"], Path::root("status"));
        let (list, found) = (path.field("conditions"), status.list("conditions"));
        if at_most(found, CONDITIONS_MAX, &list, errors) {
            condition::validate(found, &list, errors);
        }
        range(status, &path, "observedGeneration", 1, i64::MAX, errors);
        let key = "observedGeneration";
        if status.int(key) < was.int(key) {
            let why = format!("must be greater than or equal to {}", was.int(key));
            errors.invalid(&path.field(key), status.int(key), why);
        }
        requesters(status.list("requesters"), &path.field("requesters"), errors);
        let key = "targetResponders";
        responders(status.list(key), was.list(key), &path.field(key), errors);
        let key = "responders";
        statuses(status.list(key), was.list(key), &path.field(key), errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
    }
}
