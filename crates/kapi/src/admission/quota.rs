//! What is made in a namespace keeps to its ResourceQuotas (upstream's `admission/plugin/resourcequota`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ResourceQuota as Quota, ResourceQuotaStatus};
use kcore::Stored;
use kkinds::quota::{Amounts, Evaluator, add, amounts, scopes_of, written};
use kstore::Revision;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::{error::ApiResult, objects::stored, registry::Resource};

/// A change of a quota that is committed together with the object that it is charged for.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) resource: Arc<Resource>,
    pub(crate) replaced: Arc<Stored>,
    pub(crate) object: Value,
}

/// What one write is charged, and the turn that it holds until it is committed.
#[derive(Debug, Default)]
pub(crate) struct Charges {
    pub(crate) all: Vec<Charge>,
    #[allow(dead_code, reason = "held until the write is done, not read")]
    turn: Option<OwnedMutexGuard<()>>,
}

/// Where the step leaves what a write is charged.
#[derive(Debug, Default)]
pub(crate) struct Bill(Mutex<Charges>);

impl Bill {
    /// What is charged, which is gone from here.
    pub(crate) fn take(&self) -> Charges {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, charges: Charges) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = charges;
    }
}

/// Upstream's `ResourceQuota`. What an object uses is added to the status of its quotas in the same transaction that writes the
/// object: nothing is charged that is not made, and nothing is made that is not charged. Writes that are charged to one
/// namespace take turns, so that they don't race for its quotas.
#[derive(Debug, Default)]
pub struct ResourceQuota {
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl ResourceQuota {
    fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(namespace).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(namespace.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &str {
        "ResourceQuota"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && matches!(request.operation, Operation::Create | Operation::Update)
            && request.resource.def.namespaced
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        if !def.namespaced || request.namespace.is_empty() {
            return Ok(());
        }
        let Some(resource) = request.objects.registry().find("", "v1", "resourcequotas") else {
            return Ok(());
        };
        // Most namespaces have none, which is found out before anything is made for the kind.
        if quotas(request, &resource).is_empty() {
            return Ok(());
        }
        let Some(evaluator) = Evaluator::of(&def.group, &def.plural).filter(|of| handles(of, request)) else {
            return Ok(());
        };
        // The write before this one has to be committed before the quotas are looked at.
        let turn = self.turn(request.namespace).lock_owned().await;
        let asked = Asked::new(request, object);
        let mut all = Vec::new();
        for stored in quotas(request, &resource) {
            let charged = charge(&asked, &evaluator, object, &stored);
            if let Some(status) = charged.map_err(|why| asked.forbidden(&why))? {
                let mut quota = stored.value().map_err(kcore::Status::internal)?;
                quota["status"] = json!(status);
                crate::meta::drop_revision(&mut quota);
                all.push(Charge { resource: Arc::clone(&resource), replaced: stored, object: quota });
            }
        }
        if let Some(bill) = request.bill.filter(|_| !all.is_empty() && !request.dry_run) {
            bill.put(Charges { all, turn: Some(turn) });
        }
        Ok(())
    }
}

/// Whether a request can change what is used.
fn handles(evaluator: &Evaluator, request: &AdmissionRequest<'_>) -> bool {
    matches!(
        (evaluator, request.operation, request.subresource),
        (_, Operation::Create, "")
            | (Evaluator::Pods, Operation::Update, "resize")
            | (Evaluator::Services | Evaluator::Claims | Evaluator::Devices, Operation::Update, "")
    )
}

fn quotas(request: &AdmissionRequest<'_>, resource: &Arc<Resource>) -> Vec<Arc<Stored>> {
    let snapshot = request.objects.snapshot();
    if snapshot.table_revision(resource.table) == Revision::ZERO {
        return Vec::new();
    }
    let found = snapshot.range(resource.table, super::in_namespace(request));
    found.map(|entry| stored(&resource.def, &entry)).collect()
}

/// The status of a quota after an object has been charged to it, if it is. The error says why it can't be.
fn charge(
    asked: &Asked<'_>,
    evaluator: &Evaluator,
    object: &Value,
    stored: &Stored,
) -> Result<Option<ResourceQuotaStatus>, String> {
    let unfit = |error: serde_json::Error| error.to_string();
    let quota = stored.typed::<Quota>().map_err(unfit)?;
    let name = &*stored.header().name;
    let scopes = quota.spec.as_ref().map(scopes_of).unwrap_or_default();
    let status = quota.status.clone().unwrap_or_default();
    let (hard, used) = (amounts(status.hard.as_ref()), amounts(status.used.as_ref()));
    let limited: BTreeSet<String> = evaluator.matching(hard.keys()).into_iter().collect();
    if limited.is_empty() || !evaluator.value_in_scopes(object, &scopes).map_err(unfit)? {
        return Ok(None);
    }
    if let Some(why) = unsaid(evaluator, &limited, object) {
        return Err(format!("failed quota: {name}: {why}"));
    }
    if limited.iter().any(|resource| !used.contains_key(resource)) {
        let list = limited.into_iter().collect::<Vec<_>>().join(",");
        return Err(format!("status unknown for quota: {name}, resources: {list}"));
    }
    let now = asked.request.objects.clock().now();
    let mut delta = evaluator.usage_of_value(object, now).map_err(unfit)?;
    if let Some(old) = asked.request.old
        && evaluator.value_in_scopes(old, &scopes).map_err(unfit)?
    {
        for (resource, before) in evaluator.usage_of_value(old, now).map_err(unfit)? {
            if let Some(amount) = delta.get_mut(&resource) {
                *amount = if *amount > before { *amount - before } else { kcore::Quantity::ZERO };
            }
        }
    }
    delta.retain(|resource, amount| !amount.is_zero() && hard.contains_key(resource));
    if delta.is_empty() {
        return Ok(None);
    }
    let mut new = used.clone();
    add(&mut new, &delta);
    let exceeded: Vec<&String> = delta.keys().filter(|resource| new[*resource] > hard[*resource]).collect();
    if !exceeded.is_empty() {
        let list = |of: &Amounts| {
            let parts = exceeded
                .iter()
                .map(|resource| format!("{resource}={}", of.get(*resource).copied().unwrap_or_default()));
            parts.collect::<Vec<_>>().join(",")
        };
        let (requested, used, limited) = (list(&delta), list(&used), list(&hard));
        return Err(format!(
            "exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"
        ));
    }
    Ok(Some(ResourceQuotaStatus { used: Some(written(&new)), ..status }))
}

/// What the containers of a pod must say and don't: a quota on CPU or memory wants to know what each one takes.
fn unsaid(evaluator: &Evaluator, limited: &BTreeSet<String>, pod: &Value) -> Option<String> {
    const NAMES: [(&str, &str, &str); 6] = [
        ("cpu", "requests", "cpu"),
        ("limits.cpu", "limits", "cpu"),
        ("limits.memory", "limits", "memory"),
        ("memory", "requests", "memory"),
        ("requests.cpu", "requests", "cpu"),
        ("requests.memory", "requests", "memory"),
    ];
    let spec = &pod["spec"];
    let says = |of: &Value, kind: &str| of[kind].as_object().is_some_and(|list| !list.is_empty());
    let whole = &spec["resources"];
    if *evaluator != Evaluator::Pods || says(whole, "requests") || says(whole, "limits") {
        return None;
    }
    let lists = ["containers", "initContainers"].into_iter();
    let containers: Vec<&Value> = lists.flat_map(|key| spec[key].as_array().into_iter().flatten()).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, kind, resource) in NAMES.iter().filter(|(name, ..)| limited.contains(*name)) {
        for container in
            containers.iter().filter(|container| container["resources"][kind][resource].is_null())
        {
            missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
        }
    }
    let parts = missing.iter().map(|(name, containers)| {
        format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(","))
    });
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}
