//! In-place changes of what containers may use (KEP-1287): whether the node has room for them, and what is done to containers.
//!
//! What a pod *wants* is in its spec. What the node has given it is its *allocation*, which follows the spec when there is room. What a
//! container *has* is what it was started with, or was changed to last. `containerStatuses` show the latter two.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use super::{Action, Busy, GRACE_DEFAULT, Input, Plan, PodMachine, RETRY_AFTER, StopReason, later};
use crate::demand;

/// When a change that the node had no room for is looked at again, if nothing else happens before (upstream looks every 3 minutes).
pub const DEFERRED_FOR: SignedDuration = SignedDuration::from_secs(180);
/// The resources that can be changed in place.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What the node has and what others have of it: thousandths of processors, and bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What the node gives to pods.
    pub capacity: [i64; 2],
    /// What the other pods of the node request of it, as it was given to them.
    pub used: [i64; 2],
    /// Why Guaranteed pods can't be changed, where a manager of the node has given them their own.
    pub bound: [Option<&'static str>; 2],
}

/// A change that is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Others would have to leave first.
    Deferred(String),
    /// It can never be, on this node or for this pod.
    Infeasible(String),
}

impl Pending {
    /// The reason of the condition `PodResizePending`, and its message.
    #[must_use]
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Deferred(message) => ("Deferred", message),
            Self::Infeasible(message) => ("Infeasible", message),
        }
    }
}

/// Whether a pod that requests so much may have it, in upstream's order and words (`canResizePod`).
///
/// # Errors
/// Why not, or not now.
pub fn decide(requests: [i64; 2], is_static: bool, room: &Room) -> Result<(), Pending> {
    if is_static {
        return Err(Pending::Infeasible("In-place resize of static-pods is not supported".to_owned()));
    }
    for index in [1, 0] {
        let (name, wanted, capacity) = (RESIZABLE[index], requests[index], room.capacity[index]);
        if wanted > capacity {
            return Err(Pending::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
            )));
        }
    }
    for (index, name) in RESIZABLE.into_iter().enumerate() {
        let (wanted, used, capacity) = (requests[index], room.used[index], room.capacity[index]);
        // Who requests nothing of it needs no room.
        if wanted > 0 && wanted > capacity.saturating_sub(used) {
            return Err(Pending::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            )));
        }
    }
    Ok(())
}

/// What of a container can be changed: requests and limits of processors and memory, as numbers.
fn figures(resources: &ResourceRequirements) -> [[Option<i64>; 2]; 2] {
    RESIZABLE
        .map(|name| [&resources.requests, &resources.limits].map(|list| demand::amount(list.as_ref(), name)))
}

fn same(one: &ResourceRequirements, other: &ResourceRequirements) -> bool {
    figures(one) == figures(other)
}

/// Whether the way from `has` to `wants` needs a restart, by the container's `resizePolicy`.
fn needs_restart(container: &Container, has: &ResourceRequirements, wants: &ResourceRequirements) -> bool {
    let (has, wants) = (figures(has), figures(wants));
    let changed = RESIZABLE.iter().zip(has.iter().zip(&wants)).filter(|(_, (has, wants))| has != wants);
    let restarts = |name: &str| {
        let mut policies = container.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
    };
    changed.into_iter().any(|(name, _)| restarts(name))
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default)]
pub(super) struct Resizing {
    /// What the start that was asked for last is to have.
    starting: Option<Arc<ResourceRequirements>>,
    /// What the container that runs has.
    has: Option<Arc<ResourceRequirements>>,
    /// It is being restarted to get more or less.
    pub(super) restarts: bool,
    /// The runtime refused; when to try again.
    refused: Option<(String, Timestamp)>,
}

/// What the node has given the pod, by container. Shared with what containers have: most pods never change.
#[derive(Clone, Debug, Default)]
pub(super) struct Allocation(Vec<(Box<str>, Arc<ResourceRequirements>)>);

impl Allocation {
    fn get(&self, container: &str) -> Option<&Arc<ResourceRequirements>> {
        self.0.iter().find(|(name, _)| **name == *container).map(|(_, given)| given)
    }

    fn put(&mut self, container: &str, given: ResourceRequirements) {
        self.0.push((container.into(), Arc::new(given)));
    }
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// What the containers want; nothing is kept of those that want nothing.
fn wanted(spec: &PodSpec) -> Allocation {
    let mut given = Allocation::default();
    for container in containers(spec) {
        if let Some(own) = &container.resources {
            given.put(&container.name, own.clone());
        }
    }
    given
}

/// What the containers were given by what the API says of them, for an agent that comes back; else what they want.
fn recover(pod: &Pod, spec: &PodSpec) -> (Allocation, BTreeMap<String, ResourceRequirements>) {
    let status = pod.status.as_ref();
    let lists = status.map(|status| [&status.container_statuses, &status.init_container_statuses]);
    let known =
        |name: &str| lists.into_iter().flatten().flatten().flatten().find(|status| status.name == name);
    let (mut given, mut has) = (Allocation::default(), BTreeMap::new());
    for container in containers(spec) {
        let told = known(&container.name)
            .and_then(|status| Some((status.allocated_resources.clone()?, status.resources.clone()?)));
        let Some((requests, shown)) = told else {
            if let Some(own) = &container.resources {
                given.put(&container.name, own.clone());
            }
            continue;
        };
        let resources = ResourceRequirements {
            requests: Some(requests),
            limits: shown.limits.clone(),
            claims: shown.claims.clone(),
        };
        given.put(&container.name, resources);
        has.insert(container.name.clone(), shown);
    }
    (given, has)
}

impl PodMachine {
    /// Whether the pod wants what it was not given, so that [`consider_resize`](Self::consider_resize) has to know how much room there
    /// is. The first call takes over what the API says that it was given.
    pub fn wants_resize(&mut self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        if self.allocation.is_none() {
            let (given, has) = recover(pod, spec);
            self.allocation = Some(given);
            for (name, has) in has {
                self.memory.entry(name.into()).or_default().resizing.has = Some(Arc::new(has));
            }
        }
        let Some(given) = &self.allocation else { return false };
        let nothing = ResourceRequirements::default();
        let is_settled = containers(spec).all(|container| {
            let given = given.get(&container.name).map_or(&nothing, |given| &**given);
            let wanted = container.resources.as_ref().unwrap_or(&nothing);
            given == wanted || same(given, wanted)
        });
        if is_settled {
            self.pending = None;
        }
        !is_settled
    }

    /// Gives the pod what it wants, if there is room. Says whether it was given something else: others may have room then.
    pub fn consider_resize(&mut self, pod: &Pod, is_static: bool, room: &Room) -> bool {
        let Some(spec) = pod.spec.as_ref().filter(|_| self.wants_resize(pod)) else { return false };
        let bound = Some(spec).filter(|spec| super::conditions::qos(spec) == "Guaranteed");
        let bound = bound.and_then(|spec| self.bound(spec, room));
        let decided = match bound {
            Some(why) if !is_static => Err(Pending::Infeasible(why.to_owned())),
            _ => decide(RESIZABLE.map(|name| demand::request(spec, name)), is_static, room),
        };
        match decided {
            Ok(()) => {
                self.pending = None;
                self.allocation = Some(wanted(spec));
                true
            }
            Err(pending) => {
                self.pending = Some(pending);
                false
            }
        }
    }

    /// Why what a pod has of its own can't be changed: of the first resource that it wants another amount of.
    fn bound(&self, spec: &PodSpec, room: &Room) -> Option<&'static str> {
        let requests = |resources: Option<&ResourceRequirements>, name: &str| {
            resources.and_then(|own| demand::amount(own.requests.as_ref(), name))
        };
        let is_changed = |name: &str| {
            containers(spec).any(|container| {
                let given = self.given(&container.name);
                requests(given.as_deref(), name) != requests(container.resources.as_ref(), name)
            })
        };
        RESIZABLE.iter().zip(room.bound).find_map(|(name, bound)| bound.filter(|_| is_changed(name)))
    }

    /// What the pod was given as a whole, its overhead included: thousandths of processors and bytes.
    #[must_use]
    pub fn allocated(&self, spec: &PodSpec) -> [i64; 2] {
        RESIZABLE.map(|name| {
            demand::request_with(spec, name, |container| {
                let own = container.resources.as_ref();
                let given = match &self.allocation {
                    Some(given) => given.get(&container.name).map(|given| &**given),
                    None => own,
                };
                demand::amount(given?.requests.as_ref(), name)
            })
        })
    }

    /// Whether the pod wants what it was not given.
    #[must_use]
    pub fn is_resize_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// What a container is to have: what a start was asked for with, or what it was given by now.
    #[must_use]
    pub fn resources_of(&self, container: &str, is_start: bool) -> Option<ResourceRequirements> {
        let starting = self.memory.get(container).and_then(|memory| memory.resizing.starting.clone());
        let found = if is_start { starting.or_else(|| self.given(container)) } else { self.given(container) };
        found.map(|found| (*found).clone())
    }

    fn given(&self, container: &str) -> Option<Arc<ResourceRequirements>> {
        Some(self.allocation.as_ref()?.get(container).cloned().unwrap_or_default())
    }

    /// Notes what came of a change: the container has these resources now, or the runtime refused.
    pub fn resized(
        &mut self,
        container: &Arc<str>,
        outcome: Result<ResourceRequirements, String>,
        now: Timestamp,
    ) {
        let resizing = &mut self.memory.entry(Arc::clone(container)).or_default().resizing;
        match outcome {
            Ok(has) => {
                resizing.has = Some(Arc::new(has));
                resizing.refused = None;
            }
            Err(why) => resizing.refused = Some((why, later(now, RETRY_AFTER))),
        }
    }

    /// Takes note that a container was begun anew.
    pub(super) fn began(&mut self, container: &Arc<str>) {
        let given = self.given(container);
        let resizing = &mut self.memory.entry(Arc::clone(container)).or_default().resizing;
        // An agent that comes back knows from the API what the container has.
        let has = resizing.starting.take().or_else(|| resizing.has.take()).or(given);
        *resizing = Resizing { has, ..Resizing::default() };
    }

    /// Takes note of a start that is asked for.
    pub(super) fn starts(&mut self, container: &Arc<str>) {
        let given = self.given(container);
        self.memory.entry(Arc::clone(container)).or_default().resizing.starting = given;
    }

    /// Whether the container ended because it gets more or less when it is started again.
    pub(super) fn restarts_to_resize(&self, container: &str) -> bool {
        self.memory.get(container).is_some_and(|memory| memory.resizing.restarts)
    }

    /// Changes a container that runs, if it has not what it was given.
    pub(super) fn plan_resize(
        &mut self,
        input: &Input<'_>,
        spec: &PodSpec,
        container: &Container,
        plan: &mut Plan,
    ) {
        let name: Arc<str> = container.name.as_str().into();
        if self.pending.as_ref().is_some_and(|pending| matches!(pending, Pending::Deferred(_))) {
            plan.wake(later(input.now, DEFERRED_FOR));
        }
        let Some(given) = self.given(&container.name) else { return };
        let resizing = &mut self.memory.entry(Arc::clone(&name)).or_default().resizing;
        let has = resizing.has.get_or_insert_with(|| given.clone());
        if Arc::ptr_eq(has, &given) || same(has, &given) {
            resizing.refused = None;
            return;
        }
        let busy =
            [Busy::Start(Arc::clone(&name)), Busy::Stop(Arc::clone(&name)), Busy::Resize(Arc::clone(&name))];
        if busy.iter().any(|busy| input.busy.contains(busy)) {
            return;
        }
        if needs_restart(container, has, &given) {
            resizing.restarts = true;
            let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT);
            let by = later(input.now, SignedDuration::from_secs(grace));
            return self.try_stop(input, &name, by, StopReason::Resize, plan);
        }
        match &resizing.refused {
            Some((_, retry_at)) if *retry_at > input.now => plan.wake(*retry_at),
            _ => plan.actions.push(Action::Resize { container: name }),
        }
    }

    /// What the status of a container shows: what it was given, and what it has.
    pub(super) fn shown_resources(
        &self,
        container: &Container,
    ) -> Option<(ResourceRequirements, ResourceRequirements)> {
        let given =
            self.allocation.as_ref().and_then(|given| given.get(&container.name)).map(|given| &**given);
        let given = given.or(container.resources.as_ref())?;
        if given.requests.is_none() && given.limits.is_none() {
            return None;
        }
        let has = self.memory.get(container.name.as_str()).and_then(|memory| memory.resizing.has.as_ref());
        Some((given.clone(), has.map_or(given, |has| &**has).clone()))
    }

    /// The change that is under way, and what went wrong with it.
    pub(super) fn resize_in_progress(&self, spec: &PodSpec) -> Option<Option<&str>> {
        let given = self.allocation.as_ref()?;
        let under_way: Vec<&Resizing> = containers(spec)
            .filter_map(|container| {
                let resizing = &self.memory.get(container.name.as_str())?.resizing;
                let given = given.get(&container.name)?;
                resizing.has.as_ref().filter(|has| !same(has, given)).map(|_| resizing)
            })
            .collect();
        let wrong = under_way.iter().find_map(|resizing| resizing.refused.as_ref());
        (!under_way.is_empty()).then(|| wrong.map(|(why, _)| why.as_str()))
    }
}

#[cfg(test)]
mod tests;
