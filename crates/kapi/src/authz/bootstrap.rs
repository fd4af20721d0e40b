//! The bootstrap policy: roles and bindings that every cluster has (upstream's `authorizer/rbac/bootstrappolicy`), read from
//! `bootstrap/policy.txt`, and how they are brought up to date at each start: what is missing is added, what somebody has added
//! stays, and what is annotated with `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use serde_json::{Value, json};

use super::rbac::{GROUP, PolicyRule, missing};

const POLICY: &str = include_str!("bootstrap/policy.txt");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// One object of the policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// The plural name of its kind.
    pub(crate) plural: &'static str,
    /// Empty for what holds in the whole cluster.
    pub(crate) namespace: String,
    /// The object.
    pub(crate) object: Value,
}

/// The whole policy, in the order in which it is made: roles come before what binds them.
pub(crate) fn policy() -> Vec<Item> {
    read(POLICY.lines())
}

/// The rules of one of the policy's cluster roles; none if it has no such role.
pub(crate) fn rules_of(role: &str) -> Vec<PolicyRule> {
    let is_it = |line: &str| line.split_whitespace().take(2).eq(["role", role]);
    let mut lines = POLICY.lines().skip_while(|line| !is_it(line));
    let head = lines.next();
    let items = read(head.into_iter().chain(lines.take_while(|line| line.starts_with([' ', '#']))));
    items.first().map(|item| PolicyRule::all_of(&item.object)).unwrap_or_default()
}

fn read(lines: impl Iterator<Item = &'static str>) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        match (line.starts_with(' '), words.next(), items.last_mut()) {
            (false, Some("role"), _) => items.push(role(words)),
            (false, Some("bind"), _) => items.push(binding(words)),
            (true, Some(first), Some(item)) => {
                let words: Vec<&str> = std::iter::once(first).chain(words).collect();
                let key = if item.object["roleRef"].is_object() { "subjects" } else { "rules" };
                let part = if key == "rules" { rule(&words) } else { subject(&words) };
                if let Value::Array(parts) = &mut item.object[key] {
                    parts.push(part);
                } else {
                    item.object[key] = json!([part]);
                }
            }
            _ => {}
        }
    }
    items
}

fn item(kind: &str, plurals: [&'static str; 2], place: &str) -> Item {
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": format!("Cluster{kind}"),
        "metadata": {
            "name": name, "annotations": {AUTO_UPDATE: "true"}, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
    });
    if !namespace.is_empty() {
        object["kind"] = json!(kind);
        object["metadata"]["namespace"] = json!(namespace);
    }
    Item { plural: plurals[usize::from(!namespace.is_empty())], namespace: namespace.to_owned(), object }
}

fn role<'a>(mut words: impl Iterator<Item = &'a str>) -> Item {
    let mut item = item("Role", ["clusterroles", "roles"], words.next().unwrap_or_default());
    item.object["rules"] = json!([]);
    for word in words {
        if let Some(role) = word.strip_prefix("to:") {
            item.object["metadata"]["labels"][format!("{AGGREGATE}{role}")] = json!("true");
        } else if let Some(role) = word.strip_prefix("from:") {
            let selector = json!({"matchLabels": {format!("{AGGREGATE}{role}"): "true"}});
            item.object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
        }
    }
    item
}

fn binding<'a>(mut words: impl Iterator<Item = &'a str>) -> Item {
    let plurals = ["clusterrolebindings", "rolebindings"];
    let mut item = item("RoleBinding", plurals, words.next().unwrap_or_default());
    let (kind, name) = words.next().and_then(|role| role.split_once('/')).unwrap_or_default();
    item.object["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": name});
    item
}

fn rule(words: &[&str]) -> Value {
    let list = |word: Option<&&str>| -> Vec<String> {
        let words = word.map(|word| word.split(',')).into_iter().flatten();
        words.map(|word| if word == "core" { String::new() } else { word.to_owned() }).collect()
    };
    let verbs = list(words.first());
    let rule = if words.len() == 2 {
        PolicyRule { verbs, non_resource_urls: list(words.get(1)), ..PolicyRule::default() }
    } else {
        PolicyRule {
            verbs,
            api_groups: list(words.get(1)),
            resources: list(words.get(2)),
            resource_names: list(words.get(3)),
            ..PolicyRule::default()
        }
    };
    rule.to_value()
}

fn subject(words: &[&str]) -> Value {
    let (kind, name) = (words.first().copied(), words.get(1).copied().unwrap_or_default());
    if kind == Some("ServiceAccount") {
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        return json!({"kind": kind, "name": name, "namespace": namespace});
    }
    json!({"kind": kind, "apiGroup": GROUP, "name": name})
}

/// What is to be done about an object of the policy that is there already.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing: it has all that it should have, or nobody may change it.
    Keep,
    /// It becomes this.
    Update(Value),
    /// It binds another role, which can't be changed: it is deleted and made anew.
    Recreate,
}

/// Compares what is there with what should be (upstream's `component-helpers/auth/rbac/reconciliation`).
pub(crate) fn reconcile(existing: &Value, expected: &Value) -> Step {
    if existing["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return Step::Keep;
    }
    if existing["roleRef"] != expected["roleRef"] {
        return Step::Recreate;
    }
    let mut wanted = existing.clone();
    for map in ["annotations", "labels"] {
        for (key, value) in expected["metadata"][map].as_object().into_iter().flatten() {
            if existing["metadata"][map][key].is_null() {
                wanted["metadata"][map][key] = value.clone();
            }
        }
    }
    if expected["roleRef"].is_object() {
        add_missing(&mut wanted, existing, expected, "/subjects");
    } else {
        let missing = missing(&PolicyRule::all_of(existing), &PolicyRule::all_of(expected));
        let rules = existing["rules"].as_array().cloned().unwrap_or_default();
        if !missing.is_empty() {
            let missing = missing.iter().map(PolicyRule::to_value);
            wanted["rules"] = rules.into_iter().chain(missing).collect();
        }
        if expected["aggregationRule"].is_null() {
            if let Some(wanted) = wanted.as_object_mut() {
                wanted.remove("aggregationRule");
            }
        } else if existing["aggregationRule"]["clusterRoleSelectors"].is_array() {
            add_missing(&mut wanted, existing, expected, "/aggregationRule/clusterRoleSelectors");
        } else {
            wanted["aggregationRule"] = expected["aggregationRule"].clone();
        }
    }
    if wanted == *existing { Step::Keep } else { Step::Update(wanted) }
}

/// Adds to a list what is expected in it and not there.
fn add_missing(wanted: &mut Value, existing: &Value, expected: &Value, list: &str) {
    let items = |object: &Value| object.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut all, expected) = (items(existing), items(expected));
    let before = all.len();
    for item in expected {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    if all.len() > before {
        let key = list.rsplit('/').next().unwrap_or_default();
        let parent = list.strip_suffix(key).and_then(|path| path.strip_suffix('/')).unwrap_or_default();
        if let Some(parent) = wanted.pointer_mut(parent) {
            parent[key] = all.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(plural: &str, name: &str) -> Item {
        let found = policy()
            .into_iter()
            .find(|item| item.plural == plural && item.object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("{plural} {name} is not in the policy"))
    }

    #[test]
    fn the_policy_is_read_whole() {
        let items = policy();
        let count = |plural: &str| items.iter().filter(|item| item.plural == plural).count();
        let counts = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"].map(count);
        assert_eq!(counts, [77, 7, 58, 7], "as a server of the same version with all features has them");
        let admin = named("clusterroles", "cluster-admin");
        let star = json!([
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]);
        assert_eq!(admin.object["rules"], star);
        let edit = named("clusterroles", "edit").object;
        assert_eq!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        let selectors = json!([{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}]);
        assert_eq!(edit["aggregationRule"]["clusterRoleSelectors"], selectors);
        // Every binding refers to a role of the policy.
        for binding in items.iter().filter(|item| item.object["roleRef"].is_object()) {
            let role = &binding.object["roleRef"];
            let there = items.iter().any(|item| {
                item.object["kind"] == role["kind"] && item.object["metadata"]["name"] == role["name"]
            });
            assert!(there, "{role}");
        }
    }

    #[test]
    fn the_rules_of_one_role_are_read_alone() {
        for role in ["system:node", "cluster-admin", "view"] {
            let whole = named("clusterroles", role).object;
            assert_eq!(rules_of(role), PolicyRule::all_of(&whole), "{role}");
        }
        assert_eq!(rules_of("no-such-role"), []);
        assert!(!rules_of("system:node").is_empty());
    }

    /// They are stored without another look.
    #[test]
    fn the_policy_is_in_canonical_form() {
        let catalog = kschema::builtin::catalog();
        for item in policy() {
            let mut checked = item.object.clone();
            let kind = item.object["kind"].as_str().unwrap_or_default();
            let id = catalog.find(&format!("~rbac.v1.{kind}")).expect("a definition");
            kschema::check::check(&catalog, &kschema::Type::Named(id), &mut checked).expect("a valid object");
            assert_eq!(checked, item.object);
        }
    }

    /// Cases of upstream's `reconcile_role_test.go` and `reconcile_rolebindings_test.go`.
    #[test]
    fn what_is_missing_is_added() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let role = |rules: Value| json!({"metadata": {"annotations": {AUTO_UPDATE: "true"}}, "rules": rules});
        let binding = |role: &str, subjects: Value| json!({"metadata": {}, "roleRef": {"name": role}, "subjects": subjects});
        let (jane, joe) = (json!({"kind": "User", "name": "jane"}), json!({"kind": "User", "name": "joe"}));
        let mut own = role(json!([rule("get")]));
        own["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        let aggregated = |labels: &[&str]| {
            let selectors: Vec<Value> =
                labels.iter().map(|label| json!({"matchLabels": {*label: "true"}})).collect();
            json!({"metadata": {}, "rules": [], "aggregationRule": {"clusterRoleSelectors": selectors}})
        };
        for (what, existing, expected, step) in [
            ("equal", role(json!([rule("get")])), role(json!([rule("get")])), Step::Keep),
            (
                "a rule is missing",
                role(json!([rule("get")])),
                role(json!([rule("list")])),
                Step::Update(role(json!([rule("get"), rule("list")]))),
            ),
            ("more is there", role(json!([rule("*")])), role(json!([rule("list")])), Step::Keep),
            ("protected", own, role(json!([rule("list")])), Step::Keep),
            ("another role", binding("a", json!([])), binding("b", json!([])), Step::Recreate),
            (
                "a subject is missing",
                binding("a", json!([jane])),
                binding("a", json!([joe])),
                Step::Update(binding("a", json!([jane, joe]))),
            ),
            (
                "no subject is there",
                binding("a", Value::Null),
                binding("a", json!([joe])),
                Step::Update(binding("a", json!([joe]))),
            ),
            (
                "a selector is missing",
                aggregated(&["a"]),
                aggregated(&["b"]),
                Step::Update(aggregated(&["a", "b"])),
            ),
        ] {
            assert_eq!(reconcile(&existing, &expected), step, "{what}");
        }
        let plain = json!({"metadata": {}, "rules": []});
        assert_eq!(reconcile(&aggregated(&["a"]), &plain), Step::Update(plain.clone()));
        assert_eq!(reconcile(&plain, &aggregated(&["a"])), Step::Update(aggregated(&["a"])));
    }
}
