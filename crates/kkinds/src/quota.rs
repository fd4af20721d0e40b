//! What objects use of the resources that a ResourceQuota limits: no I/O.
//!
//! The controller of quotas adds up what is there; admission asks what one object more would use. Start at [`Evaluator`]. The rules are those of `k8s.io/apiserver/pkg/quota/v1` and
//! `k8s.io/kubernetes/pkg/quota/v1`.

use std::{borrow::Borrow, collections::BTreeMap};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            PersistentVolumeClaim, Pod, ResourceQuotaSpec, ScopedResourceSelectorRequirement, Service,
        },
        resource::v1::ResourceClaim,
    },
    apimachinery::pkg::api::resource,
};
use kcore::{Quantity, Stored};
use serde::Deserialize;
use serde_json::Value;

mod claims;
mod devices;
mod pods;
mod scopes;
mod services;
#[cfg(test)]
mod tests;

pub use claims::{claim_in_scope, claim_usage};
pub use devices::device_usage;
pub use pods::{is_charged, pod_in_scope, pod_requests, pod_usage};
pub use services::service_usage;

/// Amounts by the name of the resource, such as `requests.cpu` or `count/pods`.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads amounts as an API object has them. What is no quantity, which validation keeps out, is left out.
#[must_use]
pub fn amounts(list: Option<&BTreeMap<String, resource::Quantity>>) -> Amounts {
    let read =
        |(name, text): (&String, &resource::Quantity)| Some((name.clone(), Quantity::parse(&text.0).ok()?));
    list.into_iter().flatten().filter_map(read).collect()
}

/// Amounts as an API object has them, each in its canonical form.
#[must_use]
pub fn written(amounts: &Amounts) -> BTreeMap<String, resource::Quantity> {
    amounts.iter().map(|(name, amount)| (name.clone(), resource::Quantity(amount.to_string()))).collect()
}

/// Adds `more` to `sum`, name by name.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += *amount;
    }
}

/// The resource under which the objects of a kind are counted.
///
/// ```
/// assert_eq!(kkinds::quota::count_name("", "pods"), "count/pods");
/// assert_eq!(kkinds::quota::count_name("apps", "deployments"), "count/deployments.apps");
/// ```
#[must_use]
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// The group and the plural name of the kind whose objects a resource counts; `None` if it counts none.
///
/// ```
/// assert_eq!(kkinds::quota::counted_kind("count/deployments.apps"), Some(("apps", "deployments")));
/// assert_eq!(kkinds::quota::counted_kind("secrets"), Some(("", "secrets")));
/// assert_eq!(kkinds::quota::counted_kind("requests.cpu"), None);
/// ```
#[must_use]
pub fn counted_kind(resource: &str) -> Option<(&str, &str)> {
    if OLD_NAMES.contains(&resource) {
        return Some(("", resource));
    }
    if devices::is_class_resource(resource) {
        return Some(("resource.k8s.io", "resourceclaims"));
    }
    let kind = resource.strip_prefix("count/")?;
    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
    Some((group, plural))
}

/// Kinds of the core group that are also counted under their bare names.
const OLD_NAMES: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

/// Kinds that no quota counts (upstream's `DefaultIgnoredResources`).
const IGNORED: [(&str, &str); 10] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

/// How the objects of one kind are charged.
///
/// ```
/// use kkinds::quota::Evaluator;
///
/// let services = Evaluator::of("", "services").unwrap();
/// assert_eq!(services.matching(["services.nodeports", "pods"]), ["services.nodeports"]);
/// let service = serde_json::json!({"metadata": {}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
/// let usage = services.usage_of_value(&service, "2030-01-01T00:00:00Z".parse()?)?;
/// assert_eq!(usage["services.nodeports"].to_string(), "1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evaluator {
    /// Pods, and what they ask for.
    Pods,
    /// Services, node ports and load balancers.
    Services,
    /// PersistentVolumeClaims and what they ask for, also by storage class.
    Claims,
    /// ResourceClaims and the devices that they may get, by device class.
    Devices,
    /// Any other kind: the number of its objects, under these names.
    Count(Vec<String>),
}

impl Evaluator {
    /// The one for a kind; `None` for kinds that are never charged.
    #[must_use]
    pub fn of(group: &str, plural: &str) -> Option<Self> {
        match (group, plural) {
            ("", "pods") => Some(Self::Pods),
            ("", "services") => Some(Self::Services),
            ("", "persistentvolumeclaims") => Some(Self::Claims),
            ("resource.k8s.io", "resourceclaims") => Some(Self::Devices),
            kind if IGNORED.contains(&kind) => None,
            ("", old) if OLD_NAMES.contains(&old) => {
                Some(Self::Count(vec![count_name(group, plural), plural.to_owned()]))
            }
            _ => Some(Self::Count(vec![count_name(group, plural)])),
        }
    }

    /// Those of the names that this kind is charged under.
    #[must_use]
    pub fn matching<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Vec<String> {
        let charged = |name: &str| match self {
            Self::Pods => pods::is_pod_resource(name),
            Self::Services => services::SERVICE_RESOURCES.contains(&name),
            Self::Claims => claims::is_claim_resource(name),
            Self::Devices => devices::is_device_resource(name),
            Self::Count(names) => names.iter().any(|known| known == name),
        };
        names.into_iter().map(|name| name.as_ref().to_owned()).filter(|name| charged(name)).collect()
    }

    /// What one object uses, under all names. `now` decides whether a pod that does not end is still charged.
    ///
    /// # Errors
    /// When the object does not fit its type.
    pub fn usage(&self, object: &Stored, now: Timestamp) -> Result<Amounts, serde_json::Error> {
        Ok(match self {
            Self::Pods => pod_usage(&*object.typed::<Pod>()?, now),
            Self::Services => service_usage(&*object.typed::<Service>()?),
            Self::Claims => claim_usage(&*object.typed::<PersistentVolumeClaim>()?),
            Self::Devices => device_usage(&*object.typed::<ResourceClaim>()?),
            Self::Count(names) => one_of_each(names),
        })
    }

    /// [`usage`](Self::usage) of an object that is not stored yet, as admission has it.
    ///
    /// # Errors
    /// When the object does not fit its type.
    pub fn usage_of_value(&self, object: &Value, now: Timestamp) -> Result<Amounts, serde_json::Error> {
        Ok(match self {
            Self::Pods => pod_usage(&Pod::deserialize(object)?, now),
            Self::Services => service_usage(&Service::deserialize(object)?),
            Self::Claims => claim_usage(&PersistentVolumeClaim::deserialize(object)?),
            Self::Devices => device_usage(&ResourceClaim::deserialize(object)?),
            Self::Count(names) => one_of_each(names),
        })
    }

    /// Whether an object is within all of the scopes; without any, every object is. Only pods and claims have scopes.
    ///
    /// # Errors
    /// When the object does not fit its type.
    pub fn in_scopes(
        &self,
        object: &Stored,
        scopes: &[ScopedResourceSelectorRequirement],
    ) -> Result<bool, serde_json::Error> {
        Ok(match self {
            _ if scopes.is_empty() => true,
            Self::Pods => {
                let pod = object.typed::<Pod>()?;
                scopes.iter().all(|scope| pod_in_scope(&pod, scope))
            }
            Self::Claims => {
                let claim = object.typed::<PersistentVolumeClaim>()?;
                scopes.iter().all(|scope| claim_in_scope(&claim, scope))
            }
            Self::Services | Self::Devices | Self::Count(_) => false,
        })
    }

    /// [`in_scopes`](Self::in_scopes) for an object that is not stored yet.
    ///
    /// # Errors
    /// When the object does not fit its type.
    pub fn value_in_scopes(
        &self,
        object: &Value,
        scopes: &[ScopedResourceSelectorRequirement],
    ) -> Result<bool, serde_json::Error> {
        Ok(match self {
            _ if scopes.is_empty() => true,
            Self::Pods => {
                let pod = Pod::deserialize(object)?;
                scopes.iter().all(|scope| pod_in_scope(&pod, scope))
            }
            Self::Claims => {
                let claim = PersistentVolumeClaim::deserialize(object)?;
                scopes.iter().all(|scope| claim_in_scope(&claim, scope))
            }
            Self::Services | Self::Devices | Self::Count(_) => false,
        })
    }

    /// What decides whether an object is within scopes; two objects with the same facts are within the same ones.
    ///
    /// # Errors
    /// When the object does not fit its type.
    pub fn scope_facts(&self, object: &Stored) -> Result<Vec<String>, serde_json::Error> {
        Ok(match self {
            Self::Pods => pods::scope_facts(&*object.typed::<Pod>()?),
            Self::Claims => claims::class_names(&*object.typed::<PersistentVolumeClaim>()?),
            Self::Services | Self::Devices | Self::Count(_) => Vec::new(),
        })
    }

    /// What the objects within the scopes use together, under these names only; a name that none of them uses is there with
    /// nothing (upstream's `CalculateUsageStats`).
    ///
    /// # Errors
    /// When an object does not fit its type.
    pub fn total<O: Borrow<Stored>>(
        &self,
        objects: impl IntoIterator<Item = O>,
        scopes: &[ScopedResourceSelectorRequirement],
        names: &[String],
        now: Timestamp,
    ) -> Result<Amounts, serde_json::Error> {
        let mut total: Amounts = names.iter().map(|name| (name.clone(), Quantity::ZERO)).collect();
        for object in objects {
            if self.in_scopes(object.borrow(), scopes)? {
                for (name, amount) in self.usage(object.borrow(), now)? {
                    if let Some(sum) = total.get_mut(&name) {
                        *sum += amount;
                    }
                }
            }
        }
        Ok(total)
    }
}

fn one_of_each(names: &[String]) -> Amounts {
    names.iter().map(|name| (name.clone(), Quantity::from_value(1))).collect()
}

/// The scopes of a quota, those without an operator among them, as what is there.
#[must_use]
pub fn scopes_of(spec: &ResourceQuotaSpec) -> Vec<ScopedResourceSelectorRequirement> {
    let bare = spec.scopes.iter().flatten().map(|scope| ScopedResourceSelectorRequirement {
        scope_name: scope.clone(),
        operator: "Exists".to_owned(),
        values: None,
    });
    let selected =
        spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    bare.chain(selected.cloned()).collect()
}
