//! ResourceQuotas: how much of what is limited is used.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use futures::stream;
use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service},
    resource::v1::ResourceClaim,
};
use kcore::{Clock, Stored};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    change::Change,
    controller::Controller,
    controllers::Context,
    discovery::{Discovered, discover},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::{Informer, Informers},
    key::ObjectKey,
    quota::{self, Amounts, Evaluator},
    reconciler::{Action, ReconcileError, Reconciler},
    request::Requests,
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// How often each quota is calculated anew though nothing seems to have changed (`--resource-quota-sync-period`).
pub const QUOTA_RESYNC_PERIOD: Duration = Duration::from_secs(300);
/// How long what the server has is taken to be the same (upstream looks every 30 s, too).
const DISCOVERY_AGE_MAX: Duration = Duration::from_secs(30);
/// When to look again at a quota that counts a kind which has not been listed yet.
const FIRST_LIST_RECHECK: Duration = Duration::from_secs(1);
/// How many kinds are counted at most beside pods, services and claims.
pub const COUNTED_KINDS_MAX: usize = 1000;
/// How many namespaces wait to be looked at again because an object of a counted kind came or went.
const WAITING_CHANGES_MAX: usize = 1024;

const NAME: &str = "resourcequota-controller";

/// The controller `resourcequota-controller`: keeps in the status of each ResourceQuota what is used of that which it
/// limits, by the rules of [`quota`](crate::quota).
///
/// A quota is looked at when its limits change, when an object that it charges comes or goes or is charged otherwise, and
/// every [`QUOTA_RESYNC_PERIOD`]. Kinds that are only counted are watched once a quota names them.
pub fn resource_quota(context: &Context) -> Controller {
    let informers = context.informers();
    let quotas = informers.of::<ResourceQuota>(Selection::all());
    let pods = informers.of::<Pod>(Selection::all());
    let services = informers.of::<Service>(Selection::all());
    let claims = informers.of::<PersistentVolumeClaim>(Selection::all());
    let devices = informers.of::<ResourceClaim>(Selection::all());
    let (sender, receiver) = mpsc::channel(WAITING_CHANGES_MAX);
    let counted = stream::unfold(receiver, |mut receiver: mpsc::Receiver<ObjectKey>| async move {
        receiver.recv().await.map(|key| (key, receiver))
    });
    let reconciler = Quotas {
        resource: ResourceType::of::<ResourceQuota>(),
        written: Expectations::new(quotas.lister().clone()),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        quotas: quotas.clone(),
        pods: pods.clone(),
        services: services.clone(),
        claims: claims.clone(),
        devices: devices.clone(),
        counted: Counted {
            informers: informers.clone(),
            quotas: quotas.clone(),
            sender,
            kinds: tokio::sync::Mutex::default(),
            watched: Mutex::default(),
        },
    };
    let limits = Predicate::when(|change| {
        let spec = |quota: Option<Arc<ResourceQuota>>| quota.and_then(|quota| quota.spec.clone());
        change.old.is_none() || spec(change.old_as()) != spec(change.new_as())
    });
    let charged = |evaluator: Evaluator| charged_quotas(&quotas, evaluator, Arc::clone(context.clock()));
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&quotas, MapTo::Itself).when(limits).priority(1))
        .on(Trigger::new(&pods, charged(Evaluator::Pods)))
        .on(Trigger::new(&services, charged(Evaluator::Services)))
        .on(Trigger::new(&claims, charged(Evaluator::Claims)))
        .on(Trigger::new(&devices, charged(Evaluator::Devices)))
        .on(Trigger::stream(counted))
}

/// The quotas of the namespace, if the change makes a difference to what is used.
fn charged_quotas(quotas: &Informer<ResourceQuota>, evaluator: Evaluator, clock: Arc<dyn Clock>) -> MapTo {
    let quotas = quotas.lister().clone();
    MapTo::Keys(Arc::new(move |change, keys| {
        let all = quotas.in_namespace(&change.header().namespace);
        if all.is_empty() || !is_charged_otherwise(change, &evaluator, &*clock) {
            return;
        }
        keys.extend(all.iter().map(|quota| ObjectKey::of(quota.header())));
    }))
}

fn is_charged_otherwise(change: &Change, evaluator: &Evaluator, clock: &dyn Clock) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let now = clock.now();
    let usage = |object: &Stored| evaluator.usage(object, now).ok();
    let scopes = |object: &Stored| evaluator.scope_facts(object).ok();
    usage(old) != usage(new) || scopes(old) != scopes(new)
}

struct Quotas {
    resource: ResourceType,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    devices: Informer<ResourceClaim>,
    counted: Counted,
    written: Expectations,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Quotas {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.quotas.lister().get(&key.namespace, &key.name) else {
            self.written.forget(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let quota = stored.typed::<ResourceQuota>()?;
        let spec = quota.spec.clone().unwrap_or_default();
        let (usage, complete) = self.usage(&key.namespace, &spec).await?;
        if let Some(status) = status_of(&spec, quota.status.as_ref(), usage) {
            let path = self.resource.path(&key.namespace, &key.name);
            let old = quota.status.as_ref();
            let written = self.requests.write_status(&path, stored.revision(), old, &status).await?;
            self.written.wrote(key, written);
        }
        Ok(Action::After(if complete { QUOTA_RESYNC_PERIOD } else { FIRST_LIST_RECHECK }))
    }
}

impl Quotas {
    /// What is used of all that the quota limits and that can be told (upstream's `CalculateUsage`), and whether that is
    /// all: a kind that can't be listed does not hold up the others.
    async fn usage(
        &self,
        namespace: &str,
        spec: &ResourceQuotaSpec,
    ) -> Result<(Amounts, bool), ReconcileError> {
        let mut complete = true;
        let limited: Vec<&String> = spec.hard.iter().flat_map(BTreeMap::keys).collect();
        let scopes = quota::scopes_of(spec);
        let now = self.clock.now();
        let mut usage = Amounts::new();
        let builtin = [
            (Evaluator::Pods, self.pods.lister()),
            (Evaluator::Services, self.services.lister()),
            (Evaluator::Claims, self.claims.lister()),
            (Evaluator::Devices, self.devices.lister()),
        ];
        for (evaluator, lister) in builtin {
            let names = evaluator.matching(&limited);
            if !names.is_empty() {
                let objects = lister.in_namespace(namespace);
                usage.extend(evaluator.total(objects, &scopes, &names, now)?);
            }
        }
        for name in limited {
            let Some((group, plural)) = quota::counted_kind(name).filter(|_| !usage.contains_key(name))
            else {
                continue;
            };
            let Some(evaluator) = Evaluator::of(group, plural) else { continue };
            let informer = match self.counted.informer(&self.requests, group, plural).await {
                Ok(Some(informer)) if informer.has_synced() => informer,
                Ok(None) => continue,
                Ok(Some(_)) => {
                    complete = false;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, name, "what a quota counts can't be found");
                    complete = false;
                    continue;
                }
            };
            let objects = informer.lister().in_namespace(namespace);
            usage.extend(evaluator.total(objects, &scopes, std::slice::from_ref(name), now)?);
        }
        Ok((usage, complete))
    }
}

/// The status that a quota has to have; `None` when it has it. What is used of a kind that can't be told stays as it was.
fn status_of(
    spec: &ResourceQuotaSpec,
    old: Option<&ResourceQuotaStatus>,
    usage: Amounts,
) -> Option<ResourceQuotaStatus> {
    let hard = quota::amounts(spec.hard.as_ref());
    let known = quota::amounts(old.and_then(|status| status.used.as_ref()));
    let mut used = known.clone();
    used.extend(usage);
    used.retain(|name, _| hard.contains_key(name));
    let complete = old.is_some_and(|status| status.hard.is_some() && status.used.is_some());
    let same_limits = hard == quota::amounts(old.and_then(|status| status.hard.as_ref()));
    if complete && same_limits && used == known {
        return None;
    }
    Some(ResourceQuotaStatus { hard: Some(quota::written(&hard)), used: Some(quota::written(&used)) })
}

/// The informers of kinds that are only counted, once a quota names them.
struct Counted {
    informers: Informers,
    quotas: Informer<ResourceQuota>,
    sender: mpsc::Sender<ObjectKey>,
    kinds: tokio::sync::Mutex<Kinds>,
    watched: Mutex<HashMap<ResourceType, AbortOnDropHandle<()>, RandomState>>,
}

/// What the server has, as of some time.
#[derive(Default)]
struct Kinds {
    found: Vec<Discovered>,
    at: Option<Instant>,
}

impl Counted {
    /// The informer of a kind; `None` when the server has none that can be counted.
    async fn informer(
        &self,
        requests: &Requests,
        group: &str,
        plural: &str,
    ) -> Result<Option<Informer<()>>, ReconcileError> {
        let Some(kind) = self.kind(requests, group, plural).await? else { return Ok(None) };
        let informer = self.informers.dynamic::<()>(kind.clone(), Selection::all().metadata_only());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.get(&kind).is_none_or(AbortOnDropHandle::is_finished) {
            if watched.len() >= COUNTED_KINDS_MAX {
                return Ok(None);
            }
            let reader = tell(informer.clone(), self.quotas.clone(), self.sender.clone());
            watched.insert(kind, AbortOnDropHandle::new(tokio::spawn(reader)));
        }
        Ok(Some(informer))
    }

    async fn kind(
        &self,
        requests: &Requests,
        group: &str,
        plural: &str,
    ) -> Result<Option<ResourceType>, ReconcileError> {
        let mut kinds = self.kinds.lock().await;
        if kinds.at.is_none_or(|at| at.elapsed() >= DISCOVERY_AGE_MAX) {
            let found = discover(requests).await?;
            // A group that does not answer is not one that is gone.
            let failed = |kind: &Discovered| {
                found.failures.iter().any(|(version, _)| *version == kind.resource.api_version())
            };
            let mut all = std::mem::take(&mut kinds.found);
            all.retain(|kind| failed(kind));
            all.extend(found.resources);
            *kinds = Kinds { found: all, at: Some(Instant::now()) };
        }
        let counts = |kind: &&Discovered| {
            let resource = &kind.resource;
            let can = ["create", "list", "watch", "delete"].iter().all(|verb| kind.can(verb));
            resource.group == group && resource.plural == plural && resource.namespaced && can
        };
        Ok(kinds.found.iter().find(counts).map(|kind| kind.resource.clone()))
    }
}

/// Tells of the quotas in each namespace where an object comes or goes.
async fn tell(informer: Informer<()>, quotas: Informer<ResourceQuota>, sender: mpsc::Sender<ObjectKey>) {
    let mut changes = informer.subscribe();
    while let Some(batch) = changes.next().await {
        let moved = batch.iter().filter(|change| change.old.is_none() || change.new.is_none());
        let mut namespaces: Vec<&str> = moved.map(|change| &*change.header().namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        for namespace in namespaces {
            for quota in quotas.lister().in_namespace(namespace) {
                if sender.send(ObjectKey::of(quota.header())).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Upstream's `TestSyncResourceQuota` and `TestAddQuota`, as far as the status goes.
    #[test]
    fn the_status_is_written_when_it_says_something_new() {
        let amounts = |list: Value| quota::amounts(Some(&serde_json::from_value(list).unwrap()));
        // Limits, the old status, what is used; the new status.
        let cases = [
            (
                json!({"pods": "5"}),
                json!(null),
                json!({"pods": "2"}),
                Some(json!({"hard": {"pods": "5"}, "used": {"pods": "2"}})),
            ),
            (
                json!({"pods": "5"}),
                json!({"hard": {"pods": "5"}, "used": {"pods": "2"}}),
                json!({"pods": "2"}),
                None,
            ),
            (
                json!({"cpu": "1000m"}),
                json!({"hard": {"cpu": "1"}, "used": {"cpu": "500m"}}),
                json!({"cpu": "0.5"}),
                None,
            ),
            (
                json!({"cpu": "2"}),
                json!({"hard": {"cpu": "1"}, "used": {"cpu": "500m", "pods": "1"}}),
                json!({"cpu": "1500m"}),
                Some(json!({"hard": {"cpu": "2"}, "used": {"cpu": "1500m"}})),
            ),
            // What can't be told stays.
            (
                json!({"cpu": "2", "example.com/x": "9"}),
                json!({"hard": {"cpu": "2", "example.com/x": "9"}, "used": {"cpu": "1", "example.com/x": "4"}}),
                json!({"cpu": "2"}),
                Some(
                    json!({"hard": {"cpu": "2", "example.com/x": "9"}, "used": {"cpu": "2", "example.com/x": "4"}}),
                ),
            ),
            (json!({}), json!({}), json!({}), Some(json!({"hard": {}, "used": {}}))),
        ];
        for (hard, old, used, expected) in cases {
            let spec = serde_json::from_value(json!({"hard": hard})).unwrap();
            let old: Option<ResourceQuotaStatus> = serde_json::from_value(old).unwrap();
            let status = status_of(&spec, old.as_ref(), amounts(used.clone()));
            assert_eq!(status.map(|status| serde_json::to_value(status).unwrap()), expected, "{hard} {used}");
        }
    }
}
