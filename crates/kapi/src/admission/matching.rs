//! Which requests a webhook or an admission policy is about (upstream's `admission/plugin/{policy/matching,webhook/predicates}`).

use std::{borrow::Cow, sync::Arc};

use kcore::Status;
use serde_json::{Map, Value};

use super::{AdmissionRequest, Operation};
use crate::{error::ApiResult, registry::Resource};

/// The group of the objects that configure admission, which no webhook and no policy is asked about.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";

/// A request as rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) request: &'a AdmissionRequest<'a>,
    /// The object that is asked for; `None` for deletions.
    pub(crate) object: Option<&'a Value>,
    /// The state before.
    pub(crate) old: Option<&'a Value>,
}

impl<'a> Asked<'a> {
    /// The request as it is asked about `object`, which for deletions is what would go.
    pub(crate) fn new(request: &'a AdmissionRequest<'a>, object: &'a Value) -> Self {
        if request.operation == Operation::Delete {
            return Self { request, object: None, old: Some(object) };
        }
        Self { request, object: Some(object), old: request.old }
    }

    pub(crate) fn is_namespace(&self) -> bool {
        let def = &self.request.resource.def;
        def.group.is_empty() && def.plural == "namespaces"
    }

    /// The namespace; of a namespace its own name.
    pub(crate) fn namespace(&self) -> &'a str {
        if self.is_namespace() { self.name() } else { self.request.namespace }
    }

    pub(crate) fn name(&self) -> &'a str {
        let own = || self.object.and_then(|object| object["metadata"]["name"].as_str()).unwrap_or_default();
        if self.request.name.is_empty() { own() } else { self.request.name }
    }

    /// The name in messages: of what has none yet the prefix of its name.
    pub(crate) fn shown_name(&self) -> &'a str {
        let name = self.name();
        if !name.is_empty() {
            return name;
        }
        let prefix = self.object.and_then(|object| object["metadata"]["generateName"].as_str());
        prefix.filter(|prefix| !prefix.is_empty()).unwrap_or("Unknown")
    }

    /// 403 in the words of upstream's `admission.NewForbidden`.
    pub(crate) fn forbidden(&self, why: &str) -> Status {
        let def = &self.request.resource.def;
        Status::forbidden(&def.group, &def.plural, self.shown_name(), why)
    }

    /// Whether it is about one of the objects that configure admission.
    pub(crate) fn is_exempt(&self) -> bool {
        self.request.resource.def.group == GROUP
    }

    fn namespace_labels(&self) -> ApiResult<Value> {
        if self.is_namespace()
            && self.request.subresource.is_empty()
            && let Some(object) = self.object
        {
            return Ok(object["metadata"]["labels"].clone());
        }
        let name = self.namespace();
        let found = self.request.objects.find("", "v1", "namespaces", "", name);
        let found = found.ok_or_else(|| Status::not_found("", "namespaces", name))?;
        let labels = found.header().labels.iter().map(|(key, value)| (key.to_owned(), value.into()));
        Ok(Value::Object(labels.collect::<Map<_, _>>()))
    }
}

/// A rule with operations, and with names in policies.
#[derive(Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<(String, String)>,
    scope: Option<bool>,
    names: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn lists(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let resources = texts(&rule["resources"]).into_iter().map(|whole| match whole.split_once('/') {
            Some((name, sub)) => (name.to_owned(), sub.to_owned()),
            None => (whole, String::new()),
        });
        let scope = match rule["scope"].as_str() {
            Some("Namespaced") => Some(true),
            Some("Cluster") => Some(false),
            _ => None,
        };
        Self {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: resources.collect(),
            scope,
            names: texts(&rule["resourceNames"]),
        }
    }

    /// Whether it speaks of the objects of a resource in any way.
    fn concerns(&self, resource: &Resource) -> bool {
        let def = &resource.def;
        // Events have two groups.
        (lists(&self.groups, &def.group) || def.plural == "events")
            && self.resources.iter().any(|(name, _)| name == "*" || *name == def.plural)
    }

    fn matches(&self, asked: &Asked<'_>, resource: &Resource) -> bool {
        let def = &resource.def;
        let operation = asked.request.operation.name();
        let subresource = asked.request.subresource;
        let is_named = |(name, sub): &(String, String)| {
            (name == "*" || *name == def.plural) && (sub == "*" || sub == subresource)
        };
        let is_in_scope = self
            .scope
            .is_none_or(|namespaced| namespaced != (asked.is_namespace() || asked.namespace().is_empty()));
        is_in_scope
            && lists(&self.operations, operation)
            && lists(&self.groups, &def.group)
            && lists(&self.versions, &resource.version().name)
            && self.resources.iter().any(is_named)
            && (self.names.is_empty() || self.names.iter().any(|name| name == asked.name()))
    }
}

/// What a webhook or a policy is about.
#[derive(Debug)]
pub(crate) struct Constraints {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether no rules are all rules, as for bindings.
    is_open: bool,
    equivalent: bool,
    namespaces: Option<Value>,
    objects: Option<Value>,
}

fn selector(value: &Value) -> Option<Value> {
    let is_empty = |key: &str| match &value[key] {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => true,
    };
    (!is_empty("matchLabels") || !is_empty("matchExpressions")).then(|| value.clone())
}

impl Constraints {
    /// Those of a policy, a binding or a webhook; only the webhook's list of rules has another name.
    pub(crate) fn new(spec: &Value, is_open: bool) -> Self {
        let rules = |key: &str| spec[key].as_array().into_iter().flatten().map(Rule::new).collect::<Vec<_>>();
        let mut all = rules("resourceRules");
        all.extend(rules("rules"));
        Self {
            is_open: is_open && all.is_empty(),
            rules: all,
            excluded: rules("excludeResourceRules"),
            equivalent: spec["matchPolicy"] == "Equivalent",
            namespaces: selector(&spec["namespaceSelector"]),
            objects: selector(&spec["objectSelector"]),
        }
    }

    /// Whether any request about objects of a resource can be meant.
    pub(crate) fn concerns(&self, resource: &Resource) -> bool {
        resource.def.group != GROUP && (self.is_open || self.rules.iter().any(|rule| rule.concerns(resource)))
    }

    /// The resource, in the version that is meant, if the request is meant.
    ///
    /// # Errors
    /// 404 when the labels of a namespace are asked for that is not there.
    pub(crate) fn find(&self, asked: &Asked<'_>) -> ApiResult<Option<Arc<Resource>>> {
        let found = if self.is_open { Some(own(asked)) } else { self.by_rules(&self.rules, asked) };
        if found.is_none() || self.by_rules(&self.excluded, asked).is_some() {
            return Ok(None);
        }
        if let Some(selector) = &self.objects {
            let selects = |object: Option<&Value>| {
                object.is_some_and(|object| kkinds::selects(selector, &object["metadata"]["labels"]))
            };
            if !selects(asked.object) && !selects(asked.old) {
                return Ok(None);
            }
        }
        if let Some(selector) = &self.namespaces
            && (asked.is_namespace() || !asked.namespace().is_empty())
            && !kkinds::selects(selector, &asked.namespace_labels()?)
        {
            return Ok(None);
        }
        Ok(found)
    }

    fn by_rules(&self, rules: &[Rule], asked: &Asked<'_>) -> Option<Arc<Resource>> {
        if rules.is_empty() {
            return None;
        }
        if rules.iter().any(|rule| rule.matches(asked, asked.request.resource)) {
            return Some(own(asked));
        }
        if !self.equivalent {
            return None;
        }
        let equivalents = equivalents(asked.request);
        rules
            .iter()
            .find_map(|rule| equivalents.iter().find(|resource| rule.matches(asked, resource)).cloned())
    }
}

fn own(asked: &Asked<'_>) -> Arc<Resource> {
    let Resource { def, version, table } = asked.request.resource;
    Arc::new(Resource { def: Arc::clone(def), version: *version, table: *table })
}

/// The same objects under other names: the other versions, and for events the other group.
fn equivalents(request: &AdmissionRequest<'_>) -> Vec<Arc<Resource>> {
    let registry = request.objects.registry();
    let def = &request.resource.def;
    let groups: Cow<'_, [&str]> = if def.plural == "events" {
        Cow::Borrowed(&["", "events.k8s.io"])
    } else {
        Cow::Owned(vec![def.group.as_str()])
    };
    let mut found = Vec::new();
    for group in &*groups {
        for (_, versions) in registry.groups().iter().filter(|(name, _)| name == group) {
            for version in versions {
                let other = registry.find(group, version, &def.plural);
                found.extend(other.filter(|other| {
                    other.table == request.resource.table
                        && (other.version != request.resource.version || other.def.group != def.group)
                }));
            }
        }
    }
    found
}
