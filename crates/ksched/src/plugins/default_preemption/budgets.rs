//! Which pods may not go without violating a PodDisruptionBudget.

use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kcore::selector::LabelSelector;

use crate::{pod::PodInfo, pod_affinity::read_selector, snapshot::catalog::Catalog};

/// The budgets of a cluster, read once per attempt.
pub(super) struct Budgets<'a> {
    budgets: Vec<Budget<'a>>,
}

struct Budget<'a> {
    object: &'a PodDisruptionBudget,
    selector: LabelSelector,
    allowed: i32,
}

impl<'a> Budgets<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Self {
        let budgets = catalog.list::<PodDisruptionBudget>().filter_map(|object| {
            let selector = object.spec.as_ref().and_then(|spec| read_selector(spec.selector.as_ref()))?;
            let allowed =
                object.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or_default();
            // Here, an empty selector means no pod.
            (!selector.is_empty()).then_some(Budget { object, selector, allowed })
        });
        Self { budgets: budgets.collect() }
    }

    /// Splits pods into those whose going would violate a budget and the others; the order stays (upstream's
    /// `filterPodsWithPDBViolation`).
    pub(super) fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        if self.budgets.is_empty() {
            return (Vec::new(), pods);
        }
        let mut left: Vec<i32> = self.budgets.iter().map(|budget| budget.allowed).collect();
        pods.into_iter().partition(|pod| {
            let mut violates = false;
            for (budget, left) in self.budgets.iter().zip(&mut left) {
                if budget.counts(pod) {
                    *left -= 1;
                    violates |= *left < 0;
                }
            }
            violates
        })
    }
}

impl Budget<'_> {
    /// Whether the pod's going uses the budget up. That of pods which the API server has let go counts already.
    fn counts(&self, pod: &PodInfo) -> bool {
        let status = self.object.status.as_ref();
        let going = status.and_then(|status| status.disrupted_pods.as_ref());
        !pod.labels.is_empty()
            && self.object.metadata.namespace.as_deref() == Some(&*pod.namespace)
            && self.selector.matches(&pod.labels)
            && !going.is_some_and(|going| going.contains_key(&*pod.name))
    }
}
