//! What a schema can't say about a kind: defaults that depend on other fields, what may change, what must be valid.

mod batch;
mod misc;
mod namespace;
mod node;
mod pod;
mod pod_spec;
mod service;
mod workload;

use std::{fmt::Debug, sync::Arc};

use serde_json::Value;

pub use self::service::ServiceAddresses;
pub(crate) use self::workload::selects;
use crate::error::FieldError;

/// What the server asks about a kind when one of its objects is written.
///
/// Objects come in the storage version, decoded, without unknown fields and with the plain defaults of the schema filled
/// in. Methods are called on the request path, possibly several times for one write (a conflict is tried again), so they
/// must neither block nor keep anything.
pub trait Strategy: Debug + Send + Sync + 'static {
    /// Fills in defaults that depend on other fields.
    fn default(&self, _object: &mut Value) {}

    /// Prepares an object for its creation: clears what callers may not set, sets the first status.
    fn prepare_create(&self, object: &mut Value) {
        drop_status(object);
    }

    /// Prepares a changed object: keeps what callers may not change. The status has been kept already.
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    /// Checks an object before it is created or changed.
    fn validate(&self, _object: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks a change, after [`validate`](Self::validate).
    fn validate_update(&self, _object: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// What a name must look like.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// For kinds that are deleted gracefully: how many seconds of grace this object gets, when `requested` asks for some.
    /// `None`: the kind is deleted at once.
    fn grace_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Things that only one object of the cluster may hold, such as a cluster IP. They are claimed and freed in the same
    /// transaction that writes the object.
    fn claims(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`allocate`](Self::allocate) ever picks something.
    fn allocates(&self) -> bool {
        false
    }

    /// Picks what the object wants and does not name, such as a cluster IP. `taken` tells whether a claim is held.
    fn allocate(
        &self,
        _object: &mut Value,
        _old: Option<&Value>,
        _taken: &dyn Fn(&str) -> bool,
    ) -> Result<(), FieldError> {
        Ok(())
    }
}

/// What a name must look like (Kubernetes, "Object Names and IDs").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// A lower-case RFC 1123 subdomain of at most 253 bytes.
    Subdomain,
    /// A lower-case RFC 1123 label of at most 63 bytes.
    Label,
    /// A lower-case RFC 1035 label of at most 63 bytes.
    Label1035,
    /// Anything that fits into a path.
    PathSegment,
}

impl NameRule {
    /// What is wrong with `name`, in upstream's words. `prefix`: it is a `generateName`, to which five characters come.
    #[must_use]
    pub fn fault(self, name: &str, prefix: bool) -> Option<String> {
        const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
        // Upstream masks the trailing dash of a prefix, as the generated part follows it.
        let masked;
        let text = match name.strip_suffix('-') {
            Some(stem) if prefix => {
                masked = format!("{stem}a");
                &masked
            }
            _ => name,
        };
        let too_long =
            |limit: usize| (text.len() > limit).then(|| format!("must be no more than {limit} bytes"));
        let fault = |good: bool, words: &str| (!good).then(|| words.to_owned());
        match self {
            Self::Subdomain => {
                too_long(253).or_else(|| fault(kcore::selector::is_dns_subdomain(text), SUBDOMAIN))
            }
            Self::Label => too_long(63).or_else(|| fault(kcore::selector::is_dns_label(text), LABEL)),
            Self::Label1035 => too_long(63).or_else(|| {
                let good =
                    text.starts_with(|c: char| c.is_ascii_lowercase()) && kcore::selector::is_dns_label(text);
                fault(good, LABEL_1035)
            }),
            Self::PathSegment => match text {
                "." | ".." => Some(format!("may not be '{text}'")),
                _ => text.chars().find(|c| matches!(c, '/' | '%')).map(|c| format!("may not contain '{c}'")),
            },
        }
    }
}

/// What the built-in strategies need from outside.
#[derive(Clone, Debug, Default)]
pub struct Strategies {
    /// Which addresses and ports services get.
    pub addresses: Arc<ServiceAddresses>,
}

/// A kind without rules of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Strategy for Plain {}

/// The strategy of a built-in resource.
pub(crate) fn builtin(qualified: &str, strategies: &Strategies) -> Arc<dyn Strategy> {
    match qualified {
        "pods" => Arc::new(pod::Pods),
        "podtemplates" => Arc::new(pod::PodTemplates),
        "nodes" => Arc::new(node::Nodes),
        "namespaces" => Arc::new(namespace::Namespaces),
        "services" => Arc::new(service::Services::new(Arc::clone(&strategies.addresses))),
        "deployments.apps" => Arc::new(workload::Deployments),
        "replicasets.apps" => Arc::new(workload::ReplicaSets),
        "statefulsets.apps" => Arc::new(workload::StatefulSets),
        "daemonsets.apps" => Arc::new(workload::DaemonSets),
        "replicationcontrollers" => Arc::new(workload::ReplicationControllers),
        "jobs.batch" => Arc::new(batch::Jobs),
        "cronjobs.batch" => Arc::new(batch::CronJobs),
        _ => misc::strategy(qualified).unwrap_or_else(|| Arc::new(Plain)),
    }
}

/// Takes the status away.
pub(crate) fn drop_status(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
}

/// Checks that a number is not negative.
pub(crate) fn not_negative(object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let value = path.split('.').try_fold(object, |value, key| value.get(key)).and_then(Value::as_i64);
    if let Some(value) = value.filter(|value| *value < 0) {
        errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// Checks that a field has not changed.
pub(crate) fn immutable(object: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let find = |object| {
        path.split('.').try_fold(object, |value: &Value, key| value.get(key)).cloned().unwrap_or(Value::Null)
    };
    let new = find(object);
    if new != find(old) {
        errors.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

/// Checks that a text is one of those supported.
pub(crate) fn one_of(object: &Value, path: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    let value = path.split('.').try_fold(object, |value, key| value.get(key)).and_then(Value::as_str);
    if let Some(value) = value.filter(|value| !supported.contains(value)) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

/// [`one_of`] for a key of the object that stands at `path`.
pub(crate) fn one_of_at(
    object: &Value,
    key: &str,
    path: &str,
    supported: &[&str],
    errors: &mut Vec<FieldError>,
) {
    if let Some(value) = object[key].as_str().filter(|value| !supported.contains(value)) {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), value, supported));
    }
}

/// [`not_negative`] for a key of the object that stands at `path`.
pub(crate) fn not_negative_at(object: &Value, key: &str, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(value) = object[key].as_i64().filter(|value| *value < 0) {
        errors.push(FieldError::invalid(
            format!("{path}.{key}"),
            value,
            "must be greater than or equal to 0",
        ));
    }
}

/// `object[key]`, made an object if it is missing.
pub(crate) fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    let entry = &mut object[key];
    if entry.is_null() {
        *entry = Value::Object(serde_json::Map::new());
    }
    entry
}

/// Sets `object[key]` unless it is there.
pub(crate) fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && !map.contains_key(key)
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// The entries of the list `object[key]`, to be changed; none if there is no such list. (Indexing a missing key for writing
/// would leave a null behind.)
pub(crate) fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Makes `object[key]` what `old[key]` is: the same value, or missing.
pub(crate) fn keep(object: &mut Value, old: &Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        match old.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}
