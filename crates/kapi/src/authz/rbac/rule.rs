//! One rule of a role: which requests it allows.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

use crate::request::RequestInfo;

/// What a role allows (`rbac.authorization.k8s.io/v1` `PolicyRule`). A rule is about resources or about paths, never both.
///
/// ```
/// use kapi::{authz::PolicyRule, request::RequestInfo};
/// use serde_json::json;
///
/// let rule = PolicyRule::of(&json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/log"]}));
/// let ask = |resource: &str, subresource: &str| RequestInfo {
///     is_resource: true, verb: "get".into(), resource: resource.into(), subresource: subresource.into(), ..Default::default()
/// };
/// assert!(rule.allows(&ask("pods", "")));
/// assert!(rule.allows(&ask("builds", "log")));
/// assert!(!rule.allows(&ask("pods", "exec")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRule {
    /// The verbs; `*` stands for any.
    pub verbs: Vec<String>,
    /// The API groups; empty text is the core group, `*` any.
    pub api_groups: Vec<String>,
    /// The resources: `pods`, `pods/log`, `*/scale`, `*`.
    pub resources: Vec<String>,
    /// The names of the objects; none stands for all.
    pub resource_names: Vec<String>,
    /// The paths that are no resources: `/healthz`, `/healthz/*`, `*`.
    pub non_resource_urls: Vec<String>,
}

/// The fields in the order in which upstream writes them in messages.
const FIELDS: [(&str, &str); 5] = [
    ("APIGroups", "apiGroups"),
    ("Resources", "resources"),
    ("NonResourceURLs", "nonResourceURLs"),
    ("ResourceNames", "resourceNames"),
    ("Verbs", "verbs"),
];

pub(crate) fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|candidate| candidate == word)
}

fn has_or_any(list: &[String], word: &str) -> bool {
    list.iter().any(|candidate| candidate == "*" || candidate == word)
}

/// Whether a path of a rule stands for this one: it is the same, or ends with `*` and begins the same.
pub(crate) fn path_covers(owner: &str, path: &str) -> bool {
    owner == path || (owner.ends_with('*') && path.starts_with(owner.trim_end_matches('*')))
}

impl PolicyRule {
    /// Reads a rule from its object; what is not text is left out.
    #[must_use]
    pub fn of(rule: &Value) -> Self {
        let words = |key: &str| {
            let words = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            words.map(str::to_owned).collect()
        };
        Self {
            verbs: words("verbs"),
            api_groups: words("apiGroups"),
            resources: words("resources"),
            resource_names: words("resourceNames"),
            non_resource_urls: words("nonResourceURLs"),
        }
    }

    /// The rules of a role's object.
    #[must_use]
    pub fn all_of(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::of).collect()
    }

    fn field(&self, name: &str) -> &[String] {
        match name {
            "apiGroups" => &self.api_groups,
            "resources" => &self.resources,
            "nonResourceURLs" => &self.non_resource_urls,
            "resourceNames" => &self.resource_names,
            _ => &self.verbs,
        }
    }

    /// The rule as an object has it; empty lists are left out.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let fields = FIELDS.iter().map(|(_, name)| (*name, self.field(name)));
        let filled = fields.filter(|(_, words)| !words.is_empty());
        Value::Object(filled.map(|(name, words)| (name.to_owned(), words.into())).collect::<Map<_, _>>())
    }

    /// Whether the rule allows this request (upstream's `RuleAllows`).
    #[must_use]
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !has_or_any(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|url| path_covers(url, &request.path));
        }
        has_or_any(&self.api_groups, &request.group)
            && self.resources.iter().any(|resource| resource_matches(resource, request))
            && (self.resource_names.is_empty() || has(&self.resource_names, &request.name))
    }
}

fn resource_matches(resource: &str, request: &RequestInfo) -> bool {
    if resource == "*" {
        return true;
    }
    if request.subresource.is_empty() {
        return resource == request.resource;
    }
    // A resource's name may itself hold a slash in a review, so the text is compared as a whole.
    let whole = resource.strip_prefix(request.resource.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let any = resource.strip_prefix("*/");
    whole == Some(&request.subresource) || any == Some(&request.subresource)
}

/// The short form that messages have: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        let fields = FIELDS.iter().map(|(shown, name)| (shown, self.field(name)));
        for (index, (shown, words)) in fields.filter(|(_, words)| !words.is_empty()).enumerate() {
            write!(f, "{}{shown}:{}", if index > 0 { ", " } else { "" }, Quoted(words))?;
        }
        f.write_char('}')
    }
}

/// A list of words as Go's `%q` writes it: `["a" "b"]`.
pub(crate) struct Quoted<'a>(pub(crate) &'a [String]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (index, word) in self.0.iter().enumerate() {
            write!(f, "{}{word:?}", if index > 0 { " " } else { "" })?;
        }
        f.write_char(']')
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Cases of upstream's `rbac_test.go` (`TestRuleMatches`), in the form `verb group resource/subresource name` or
    /// `verb path`.
    #[test]
    fn rules_match_as_upstream() {
        let star = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        let group =
            json!({"verbs": ["verb1"], "apiGroups": ["group1"], "resources": ["resource1", "resource2"]});
        let sub = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]});
        let exact = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["foo/bar"]});
        let named =
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a", "b"]});
        let paths =
            json!({"verbs": ["get", "post"], "nonResourceURLs": ["/foo", "/bar/*", "/baz*", "/root/**"]});
        let all = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
        for (rule, ask, expected) in [
            (&star, "anything group resource1 n", true),
            (&star, "anything group resource1/subresource1 n", true),
            (&star, "get /foo", false),
            (&group, "verb1 group1 resource1 n", true),
            (&group, "verb1 group1 resource1/subresource1 n", false),
            (&group, "verb2 group1 resource1 n", false),
            (&group, "verb1 group2 resource1 n", false),
            (&sub, "get g foo/scale n", true),
            (&sub, "get g foo/status n", false),
            (&sub, "get g foo n", false),
            (&sub, "get g scale n", false),
            (&exact, "get g foo/bar n", true),
            (&exact, "get g foo n", false),
            (&exact, "get g foo/baz n", false),
            (&named, "get g r a", true),
            (&named, "get g r c", false),
            (&named, "list g r -", false),
            (&paths, "get /foo", true),
            (&paths, "get /foo/", false),
            (&paths, "post /bar/x", true),
            (&paths, "get /bar", false),
            (&paths, "get /bazaar", true),
            (&paths, "get /root/x/y", true),
            (&paths, "delete /foo", false),
            (&paths, "get g foo n", false),
            (&all, "delete /whatever", true),
        ] {
            assert_eq!(PolicyRule::of(rule).allows(&request(ask)), expected, "{rule} and {ask}");
        }
    }

    fn request(text: &str) -> RequestInfo {
        let words: Vec<&str> = text.split(' ').collect();
        if let [verb, path] = words[..] {
            return RequestInfo { verb: verb.into(), path: path.into(), ..RequestInfo::default() };
        }
        let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
        RequestInfo {
            is_resource: true,
            verb: words[0].into(),
            group: words[1].into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: words[3].trim_start_matches('-').into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        let value = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a\"b"]});
        let rule = PolicyRule::of(&value);
        assert_eq!(rule.to_value(), value);
        let short = r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["a\"b"], Verbs:["get" "list"]}"#;
        assert_eq!(rule.to_string(), short);
    }
}
