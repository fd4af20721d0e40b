//! PodDisruptionBudgets: how many pods may be disrupted now (KEP-85).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1 as meta,
};
use kcore::{Clock, Stored, selector::LabelSelector};

use crate::{
    controller::Controller,
    controllers::{Context, pod_state, together::Together},
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    manager::Runnable,
    reconciler::{Action, ReconcileError, Reconciler},
    request::Requests,
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod decide;
mod scale;
mod stale;
#[cfg(test)]
mod tests;

use decide::{Basis, basis, disrupted, expected, failed, healthy, status_of};
use scale::{ScaleError, Scales};

/// How long a pod whose eviction was allowed may take to show that it is being deleted; after that it counts again
/// (upstream's `DeletionTimeout`).
pub const DISRUPTED_POD_DEADLINE: Duration = Duration::from_secs(120);
/// How long a pod may say that it is about to be disrupted without being deleted (upstream's
/// `stalePodDisruptionTimeout`).
pub const STALE_DISRUPTION_AGE: Duration = Duration::from_secs(120);

const NAME: &str = "disruption-controller";

/// The controller `disruption-controller`: says in the status of each PodDisruptionBudget how many healthy pods it needs,
/// how many there are, and how many may be disrupted now, which the eviction subresource counts down; and takes back the
/// condition DisruptionTarget of pods that were not deleted within [`STALE_DISRUPTION_AGE`].
///
/// How many pods there should be is what the pods' controllers ask for: Deployments, ReplicaSets, StatefulSets and
/// ReplicationControllers as informers show them, any other kind by its subresource `scale`.
pub fn disruption(context: &Context) -> impl Runnable + use<> {
    let budgets = context.informers().of::<PodDisruptionBudget>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let scales = Scales::new(context, context.requests(NAME));
    let reconciler = Budgets {
        resource: ResourceType::of::<PodDisruptionBudget>(),
        pod_resource: ResourceType::of::<Pod>(),
        written: Expectations::new(budgets.lister().clone()),
        requests: context.requests(NAME),
        recorder: context.recorder("controllermanager"),
        clock: Arc::clone(context.clock()),
        budgets: budgets.clone(),
        pods: pods.clone(),
        scales,
    };
    let covering = budgets_of(&budgets, context.recorder("controllermanager"));
    let mut main = Controller::new(NAME, reconciler)
        .on(Trigger::new(&budgets, MapTo::Itself))
        .on(Trigger::new(&pods, covering));
    for kind in Scales::reads(context) {
        main = main.reads(&kind);
    }
    Together::new(NAME, [main, stale::stale_conditions(context, NAME)])
}

/// A budget's selector: nothing is selected without one, everything by an empty one.
fn selector(budget: &PodDisruptionBudget) -> Option<LabelSelector> {
    let spec = budget.spec.as_ref()?;
    pod_state::label_selector(spec.selector.as_ref()?)
}

/// The budgets that cover a pod. More than one is a mistake, which is told; unlike upstream, which picks one, all of them
/// are looked at, so that all their counts are right.
fn budgets_of(budgets: &Informer<PodDisruptionBudget>, recorder: EventRecorder) -> MapTo {
    let (budgets, pods) = (budgets.clone(), ResourceType::of::<Pod>());
    MapTo::Keys(Arc::new(move |change, keys| {
        let all = budgets.in_namespace(&change.header().namespace);
        let mut covering = 0;
        for (budget, selector) in all.iter().filter_map(|budget| Some((budget, selector(budget)?))) {
            let name = budget.metadata.name.as_deref().unwrap_or_default();
            let matches = |side: &Arc<Stored>| selector.matches(&side.header().labels);
            if change.sides().any(matches) {
                keys.push(ObjectKey::new(&*change.header().namespace, name));
            }
            covering += usize::from(change.new.as_ref().is_some_and(matches));
        }
        if let (Some(pod), 2..) = (&change.new, covering) {
            let (namespace, name) = (&change.header().namespace, &change.header().name);
            let first = keys.last().map(|key| &*key.name).unwrap_or_default();
            let message = format!(
                "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {first:?} arbitrarily."
            );
            let about = Regarding::of(pod, &pods);
            recorder.record(&about, EventType::Warning, "MultiplePodDisruptionBudgets", message);
        }
    }))
}

struct Budgets {
    resource: ResourceType,
    pod_resource: ResourceType,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
    written: Expectations,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Budgets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.budgets.lister().get(&key.namespace, &key.name) else {
            self.written.forget(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let budget = stored.typed::<PodDisruptionBudget>()?;
        let about = Regarding::of(&stored, &self.resource);
        let selected = selector(&budget)
            .map_or_else(Vec::new, |selector| self.pods.lister().select(&key.namespace, &selector));
        let pods = selected.iter().map(|pod| pod.typed::<Pod>()).collect::<Result<Vec<_>, _>>()?;
        if pods.is_empty() {
            self.recorder.record(&about, EventType::Normal, "NoPods", "No matching pods found");
        }
        let (expected, desired) = match self.expected(&budget, &pods, &about).await {
            Ok(expected) => expected,
            Err(error) => {
                let message = format!("Failed to calculate the number of expected pods: {error}");
                self.recorder.record(&about, EventType::Warning, "CalculateExpectedPodCountFailed", message);
                return self.fail_safe(key, &stored, &budget, error).await;
            }
        };
        let now = self.clock.now();
        let waiting = disrupted(&budget, &pods, now);
        for late in &waiting.late {
            let pod = selected.iter().find(|pod| *pod.header().name == **late);
            let message =
                format!("Pod was expected by PDB {0}/{0} to be deleted but it wasn't", key.namespace);
            if let Some(pod) = pod {
                let about = Regarding::of(pod, &self.pod_resource);
                self.recorder.record(&about, EventType::Warning, "NotDeleted", message);
            }
        }
        let current = healthy(&pods, &waiting.pods, now);
        let status = status_of(&budget, current, desired, expected, waiting.pods, now);
        self.write(key, &stored, &budget, &status).await?;
        Ok(waiting.recheck.map_or(Action::Done, Action::After))
    }
}

impl Budgets {
    /// How many pods there should be, and how many of them healthy.
    async fn expected(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        about: &Regarding,
    ) -> Result<(i32, i32), ScaleError> {
        let basis = basis(budget);
        let count = match basis {
            Basis::Nothing => 0,
            Basis::Pods => i32::try_from(pods.len()).unwrap_or(i32::MAX),
            Basis::Scale => {
                let (scale, unmanaged) = self.scales.sum(pods).await?;
                if unmanaged > 0 {
                    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                    let message = unmanaged_message(selector);
                    self.recorder.record(about, EventType::Warning, "UnmanagedPods", message);
                }
                scale
            }
        };
        Ok((count, expected(budget, count)))
    }

    /// Nothing may be disrupted while it is not known what is there. What the server did not answer is asked again.
    async fn fail_safe(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        budget: &PodDisruptionBudget,
        error: ScaleError,
    ) -> Result<Action, ReconcileError> {
        let status = failed(budget, error.to_string(), self.clock.now());
        self.write(key, stored, budget, &status).await?;
        match error {
            ScaleError::Request(error) => Err(error.into()),
            ScaleError::NoControllers(_) | ScaleError::NoKind { .. } | ScaleError::NoScale(_) => {
                Ok(Action::Done)
            }
        }
    }

    async fn write(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        budget: &PodDisruptionBudget,
        status: &k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus,
    ) -> Result<(), ReconcileError> {
        let path = self.resource.path(&key.namespace, &key.name);
        let old = budget.status.as_ref();
        let written = self.requests.write_status(&path, stored.revision(), old, status).await?;
        self.written.wrote(key, written);
        Ok(())
    }
}

/// With the selector as Go shows it.
fn unmanaged_message(selector: Option<&meta::LabelSelector>) -> String {
    let shown = selector.map_or_else(
        || "nil".to_owned(),
        |selector| {
            let labels = selector.match_labels.iter().flatten();
            let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
            let expressions = selector.match_expressions.iter().flatten().map(|one| {
                let values = one.values.as_deref().unwrap_or_default().join(" ");
                format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", one.key, one.operator)
            });
            let expressions: String = expressions.collect();
            format!("&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}")
        },
    );
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {shown}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}
