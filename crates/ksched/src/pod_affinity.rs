//! Affinity between pods, read once per pod and matched against many.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm},
    apimachinery::pkg::apis::meta::v1,
};
use kcore::{
    Labels,
    selector::{LabelSelector, Operator, Requirement},
};

use crate::pod::PodInfo;

/// Reads a selector of the API: an empty one selects everything, a missing one nothing (`None`), and so does one that
/// can't be read, which the API server refuses.
#[must_use]
pub fn read_selector(selector: Option<&v1::LabelSelector>) -> Option<LabelSelector> {
    let selector = selector?;
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|one| (one.key.as_str(), one.operator.as_str(), one.values.clone().unwrap_or_default()));
    LabelSelector::of_object(labels, expressions)
}

/// A label has this value.
pub(crate) fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In, values: vec![value.to_owned()] }
}

/// A term of affinity or anti-affinity between pods: which pods it means, and how near is near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTerm {
    /// The label of nodes whose value they share.
    pub topology_key: Arc<str>,
    /// The namespaces by name.
    pub namespaces: Vec<Arc<str>>,
    /// Namespaces by label; `None` adds none, an empty selector all.
    pub namespace_selector: Option<LabelSelector>,
    /// The pods; `None` means none.
    pub selector: Option<LabelSelector>,
}

impl PodTerm {
    /// Reads a term of a pod in a namespace, which counts when the term names no namespaces.
    #[must_use]
    pub fn read(term: &PodAffinityTerm, namespace: &Arc<str>) -> Self {
        let named = term.namespaces.as_deref().unwrap_or_default();
        let namespaces = if named.is_empty() && term.namespace_selector.is_none() {
            vec![Arc::clone(namespace)]
        } else {
            named.iter().map(|name| name.as_str().into()).collect()
        };
        Self {
            topology_key: term.topology_key.as_str().into(),
            namespaces,
            namespace_selector: read_selector(term.namespace_selector.as_ref()),
            selector: read_selector(term.label_selector.as_ref()),
        }
    }

    /// Whether the term means a pod. `namespace_labels` are those of the pod's namespace; a namespace that is not known
    /// has none.
    #[must_use]
    pub fn matches(&self, pod: &PodInfo, namespace_labels: Option<&Labels>) -> bool {
        let Some(selector) = &self.selector else { return false };
        let by_label = || {
            self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.matches_with(|key| namespace_labels.and_then(|labels| labels.get(key)))
            })
        };
        (self.namespaces.contains(&pod.namespace) || by_label()) && selector.matches(&pod.labels)
    }
}

/// All that a pod says about other pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAffinity {
    /// Must be near a pod that all of these mean.
    pub required: Vec<PodTerm>,
    /// Must not be near any pod that one of these means.
    pub required_anti: Vec<PodTerm>,
    /// Would like to be near, with weights; those of anti-affinity are negative.
    pub preferred: Vec<(i64, PodTerm)>,
}

impl PodAffinity {
    /// Reads a pod's terms.
    #[must_use]
    pub fn read(pod: &Pod, namespace: &Arc<str>) -> Self {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let far = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let read = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<PodTerm> {
            terms.into_iter().flatten().map(|term| PodTerm::read(term, namespace)).collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, PodTerm)> {
            let read = |term: &WeightedPodAffinityTerm| {
                (sign * i64::from(term.weight), PodTerm::read(&term.pod_affinity_term, namespace))
            };
            terms.into_iter().flatten().map(read).collect()
        };
        let mut preferred = weighted(
            near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref()),
            1,
        );
        preferred.extend(weighted(
            far.and_then(|far| far.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        Self {
            required: read(
                near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            required_anti: read(
                far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred,
        }
    }

    /// Whether the pod says nothing about other pods.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty()
    }
}
