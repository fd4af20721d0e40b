//! Which names a definition gets, and the conditions that say so: pure functions of the definition and the names that others
//! in its group have (upstream's naming, establishing and API approval controllers of the apiextensions server).

use std::collections::HashSet;

use serde_json::{Value, json};

/// The names that are taken in a group.
#[derive(Debug, Default)]
pub(super) struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    /// The accepted names of these definitions.
    pub(super) fn of<'a>(definitions: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Self::default();
        for names in definitions.map(|definition| &definition["status"]["acceptedNames"]) {
            let short = names["shortNames"].as_array().into_iter().flatten();
            let resources = short.chain([&names["plural"], &names["singular"]]);
            taken.resources.extend(resources.filter_map(Value::as_str).map(str::to_owned));
            let kinds = [&names["kind"], &names["listKind"]];
            taken.kinds.extend(kinds.into_iter().filter_map(Value::as_str).map(str::to_owned));
        }
        taken
    }
}

fn condition<'a>(crd: &'a Value, kind: &str) -> Option<&'a Value> {
    crd["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a condition is true.
pub(super) fn is_true(crd: &Value, kind: &str) -> bool {
    condition(crd, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Sets a condition; the time changes with the status.
pub(crate) fn set_condition(
    crd: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    let kept = condition(crd, kind)
        .filter(|old| old["status"] == status)
        .map(|old| old["lastTransitionTime"].clone());
    let new = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": kept.unwrap_or_else(|| json!(now)),
    });
    let list = &mut crd["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|old| old["type"] == kind) {
            Some(old) => *old = new,
            None => list.push(new),
        }
    }
}

/// The definition with the names and conditions that it should have.
pub(super) fn reviewed(crd: &Value, taken: &Taken, now: &str) -> Value {
    let mut next = crd.clone();
    let wanted = &crd["spec"]["names"];
    let accepted = &crd["status"]["acceptedNames"];
    if wanted != accepted {
        accept(crd, &mut next, taken, now);
    }
    if is_true(&next, "NamesAccepted") && !is_true(&next, "Established") {
        set_condition(
            &mut next,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        );
    }
    approve(crd, &mut next, now);
    store_versions(crd, &mut next);
    next
}

/// Every version that objects may have been stored in is noted.
fn store_versions(crd: &Value, next: &mut Value) {
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    let Some(storage) =
        versions.filter(|version| version["storage"] == true).map(|version| &version["name"]).next()
    else {
        return;
    };
    match next["status"]["storedVersions"].as_array_mut() {
        Some(list) if list.contains(storage) => {}
        Some(list) => list.push(storage.clone()),
        None => next["status"]["storedVersions"] = json!([storage]),
    }
}

fn accept(crd: &Value, next: &mut Value, taken: &Taken, now: &str) {
    let wanted = &crd["spec"]["names"];
    let accepted = &crd["status"]["acceptedNames"];
    let mut names = if accepted.is_object() { accepted.clone() } else { json!({"plural": "", "kind": ""}) };
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, reason, used) in [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ] {
        let name = wanted[key].as_str().unwrap_or_default();
        if wanted[key] != accepted[key] && used.contains(name) {
            conflict = Some((reason, in_use(name)));
        } else if !wanted[key].is_null() {
            names[key] = wanted[key].clone();
        }
        // The short names stand between the others: of several conflicts the last one is told.
        if key == "singular" && wanted["shortNames"] != accepted["shortNames"] {
            let own = |name: &&str| {
                accepted["shortNames"].as_array().into_iter().flatten().any(|accepted| accepted == *name)
            };
            let wanted_names =
                wanted["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let clashes: Vec<String> = wanted_names
                .filter(|name| !own(name) && taken.resources.contains(*name))
                .map(in_use)
                .collect();
            match clashes.as_slice() {
                [] => crate::schema::fields::keep(&mut names, wanted, "shortNames"),
                [one] => conflict = Some(("ShortNamesConflict", one.clone())),
                several => conflict = Some(("ShortNamesConflict", format!("[{}]", several.join(", ")))),
            }
        }
    }
    crate::schema::fields::keep(&mut names, wanted, "categories");
    next["status"]["acceptedNames"] = names;
    match &conflict {
        Some((reason, message)) => set_condition(next, "NamesAccepted", "False", reason, message, now),
        None => set_condition(next, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now),
    }
    if conflict.is_some() && condition(next, "Established").is_none() {
        set_condition(next, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
}

/// Definitions in Kubernetes' own groups need an approval (KEP-1111).
fn approve(crd: &Value, next: &mut Value, now: &str) {
    const KEY: &str = "api-approved.kubernetes.io";
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let protected = ["k8s.io", "kubernetes.io"];
    if !protected.iter().any(|end| group == *end || group.ends_with(&format!(".{end}"))) {
        return;
    }
    let note = crd["metadata"]["annotations"][KEY].as_str().unwrap_or_default();
    let is_url = note
        .split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.trim_start_matches('/').is_empty());
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let (status, reason, message) = if note.is_empty() {
        (
            "False",
            "MissingAnnotation",
            format!("protected groups must have approval annotation {KEY:?}, {see}"),
        )
    } else if note.starts_with("unapproved") {
        ("False", "UnapprovedAnnotation", format!("not approved: {note:?}"))
    } else if is_url {
        ("True", "ApprovedAnnotation", format!("approved in {note}"))
    } else {
        let why = format!(
            "protected groups must have approval annotation {KEY:?} with either a URL or a reason starting with \"unapproved\", {see}"
        );
        ("False", "InvalidAnnotation", why)
    };
    set_condition(next, "KubernetesAPIApprovalPolicyConformant", status, reason, &message, now);
}
