//! Which requests a `FlowSchema` is about, and which flow of it a request belongs to.

use serde_json::Value;

use crate::{authn::UserInfo, request::RequestInfo};

/// A `FlowSchema`, ready to be matched.
#[derive(Debug)]
pub(super) struct FlowSchema {
    pub(super) name: String,
    /// The name of its priority level.
    pub(super) level: String,
    /// Lower ones are asked first.
    pub(super) precedence: i64,
    by: By,
    rules: Vec<Rule>,
}

/// What tells the flows of a schema apart.
#[derive(Debug)]
enum By {
    Nothing,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Words,
    groups: Words,
    resources: Words,
    namespaces: Words,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Words,
    paths: Vec<String>,
}

/// A list of words; `*` stands for any.
#[derive(Debug)]
struct Words {
    any: bool,
    words: Vec<String>,
}

impl Words {
    fn of(list: &Value) -> Self {
        let words: Vec<String> =
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        Self { any: words.iter().any(|word| word == "*"), words }
    }

    fn has(&self, word: &str) -> bool {
        self.any || self.words.iter().any(|candidate| candidate == word)
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl FlowSchema {
    pub(super) fn of(object: &Value) -> Self {
        let spec = &object["spec"];
        let by = match spec["distinguisherMethod"]["type"].as_str() {
            Some("ByUser") => By::User,
            Some("ByNamespace") => By::Namespace,
            _ => By::Nothing,
        };
        Self {
            name: text(&object["metadata"]["name"]),
            level: text(&spec["priorityLevelConfiguration"]["name"]),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            by,
            rules: items(&spec["rules"]).map(Rule::of).collect(),
        }
    }

    /// Whether the schema is about this request.
    pub(super) fn matches(&self, user: &UserInfo, request: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            let asked = if request.is_resource {
                rule.resources.iter().any(|rule| rule.matches(request))
            } else {
                rule.paths.iter().any(|rule| rule.matches(request))
            };
            asked && rule.subjects.iter().any(|subject| subject.is(user))
        })
    }

    /// The number of the request's flow.
    pub(super) fn flow(&self, user: &UserInfo, request: &RequestInfo) -> u64 {
        let distinguisher = match self.by {
            By::Nothing => "",
            By::User => &user.name,
            By::Namespace => &request.namespace,
        };
        // Fixed seeds: the same flow has the same queues in every process.
        ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((&self.name, distinguisher))
    }
}

impl Rule {
    fn of(rule: &Value) -> Self {
        let subject = |subject: &Value| match subject["kind"].as_str() {
            Some("User") => Some(Subject::User(text(&subject["user"]["name"]))),
            Some("Group") => Some(Subject::Group(text(&subject["group"]["name"]))),
            Some("ServiceAccount") => Some(Subject::ServiceAccount {
                namespace: text(&subject["serviceAccount"]["namespace"]),
                name: text(&subject["serviceAccount"]["name"]),
            }),
            _ => None,
        };
        let resource = |rule: &Value| ResourceRule {
            verbs: Words::of(&rule["verbs"]),
            groups: Words::of(&rule["apiGroups"]),
            resources: Words::of(&rule["resources"]),
            namespaces: Words::of(&rule["namespaces"]),
            cluster_scope: rule["clusterScope"] == true,
        };
        let path = |rule: &Value| PathRule {
            verbs: Words::of(&rule["verbs"]),
            paths: items(&rule["nonResourceURLs"]).map(text).collect(),
        };
        Self {
            subjects: items(&rule["subjects"]).filter_map(subject).collect(),
            resources: items(&rule["resourceRules"]).map(resource).collect(),
            paths: items(&rule["nonResourceRules"]).map(path).collect(),
        }
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.is_in(name),
            Self::ServiceAccount { namespace, name } => {
                let account =
                    user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(of, account)| of == namespace && (name == "*" || account == name))
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, request: &RequestInfo) -> bool {
        let place = if request.namespace.is_empty() {
            self.cluster_scope
        } else {
            self.namespaces.has(&request.namespace)
        };
        place
            && self.verbs.has(&request.verb)
            && self.groups.has(&request.group)
            && self.has_resource(request)
    }

    fn has_resource(&self, request: &RequestInfo) -> bool {
        if request.subresource.is_empty() {
            return self.resources.has(&request.resource);
        }
        let named = |word: &String| {
            word.split_once('/').is_some_and(|(resource, subresource)| {
                resource == request.resource && subresource == request.subresource
            })
        };
        self.resources.any || self.resources.words.iter().any(named)
    }
}

impl PathRule {
    fn matches(&self, request: &RequestInfo) -> bool {
        let covers = |path: &String| match path.strip_suffix('*') {
            Some(prefix) => request.path.starts_with(prefix),
            None => *path == request.path,
        };
        self.verbs.has(&request.verb) && self.paths.iter().any(covers)
    }
}
