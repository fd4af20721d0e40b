//! What is written into the status of a claim that got its devices.

use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
    resource::v1::{
        AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
        DeviceRequestAllocationResult,
    },
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::{
    cycle::mix,
    devices::{
        demand::{ClaimDemand, Wanted},
        search::{Candidate, Pick},
    },
    node::NodeInfo,
    snapshot::hash,
};

pub(super) fn of(
    claim: &ClaimDemand,
    picks: &[Pick<'_>],
    candidates: &[Candidate<'_>],
    alternatives: &[usize],
    node: &NodeInfo,
) -> Result<AllocationResult, String> {
    let uid = claim.claim.metadata.uid.as_deref().unwrap_or(&claim.label);
    let results = picks.iter().enumerate().map(|(index, pick)| {
        let Candidate { slice, device, .. } = &candidates[pick.candidate];
        let text = |amount: &kcore::Quantity| ApiQuantity(amount.to_string());
        let consumed = pick.consumed.as_ref().filter(|consumed| !consumed.is_empty());
        DeviceRequestAllocationResult {
            request: pick.wanted.full_name.clone(),
            driver: device.driver.to_string(),
            pool: slice.spec().pool.name.clone(),
            device: device.object.name.clone(),
            admin_access: pick.wanted.admin.then_some(true),
            tolerations: pick.wanted.tolerations.clone(),
            share_id: pick.consumed.as_ref().map(|_| share_id(uid, device.id.as_str(), index)),
            consumed_capacity: consumed
                .map(|consumed| consumed.iter().map(|(name, amount)| (name.clone(), text(amount))).collect()),
            binding_conditions: device.object.binding_conditions.clone(),
            binding_failure_conditions: device.object.binding_failure_conditions.clone(),
            skip_node_operations: None,
        }
    });
    let (results, config) = (results.collect::<Vec<_>>(), config(claim, alternatives));
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            config: (!config.is_empty()).then_some(config),
            results: (!results.is_empty()).then_some(results),
        }),
        node_selector: node_selector(picks, candidates, node)?,
    })
}

/// Tells shares of a device apart, in the form of a random UUID. The claim, the device and the number of the result are no
/// others' together.
fn share_id(claim: &str, device: &str, index: usize) -> String {
    let both = hash(claim.as_bytes()) ^ hash(device.as_bytes()).rotate_left(23) ^ index as u64;
    let (high, low) = (mix(hash(claim.as_bytes()).rotate_left(7) ^ both), mix(both));
    let high = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let low = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// The configuration of each class once, with the requests that it is for; then the claim's.
fn config(claim: &ClaimDemand, alternatives: &[usize]) -> Vec<DeviceAllocationConfiguration> {
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut seen: Vec<(Option<&str>, std::ops::Range<usize>)> = Vec::new();
    let chosen: Vec<&Wanted> = claim
        .requests
        .iter()
        .zip(alternatives)
        .filter_map(|(request, chosen)| request.alternatives.get(*chosen))
        .collect();
    for wanted in &chosen {
        let class = wanted.class.metadata.name.as_deref();
        if let Some((_, range)) = seen.iter().find(|(known, _)| *known == class) {
            for entry in &mut config[range.clone()] {
                entry.requests.get_or_insert_default().push(wanted.full_name.clone());
            }
            continue;
        }
        let start = config.len();
        let of_class = wanted.class.spec.iter().flat_map(|spec| spec.config.iter().flatten());
        config.extend(of_class.map(|of_class| DeviceAllocationConfiguration {
            opaque: of_class.opaque.clone(),
            requests: Some(vec![wanted.full_name.clone()]),
            source: "FromClass".to_owned(),
        }));
        seen.push((class, start..config.len()));
    }
    let devices = claim.claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    for of_claim in devices.and_then(|devices| devices.config.as_ref()).into_iter().flatten() {
        let entry = DeviceAllocationConfiguration {
            opaque: of_claim.opaque.clone(),
            requests: of_claim.requests.clone(),
            source: "FromClaim".to_owned(),
        };
        let requests = of_claim.requests.as_deref().unwrap_or_default();
        // As upstream: once for each request that it names.
        let times = match requests {
            [] => 1,
            requests => {
                let named = |wanted: &&&Wanted| {
                    requests.contains(&wanted.request) || requests.contains(&wanted.full_name)
                };
                chosen.iter().filter(named).count()
            }
        };
        config.extend(std::iter::repeat_n(entry, times));
    }
    config
}

/// Where the claim can be used; `None` when that is everywhere.
fn node_selector(
    picks: &[Pick<'_>],
    candidates: &[Candidate<'_>],
    node: &NodeInfo,
) -> Result<Option<NodeSelector>, String> {
    let (mut fields, mut labels) = (Vec::new(), Vec::new());
    for pick in picks {
        let Candidate { slice, device, .. } = &candidates[pick.candidate];
        let (name, selector) = if slice.is_per_device() {
            (&device.object.node_name, &device.object.node_selector)
        } else {
            (&slice.spec().node_name, &slice.spec().node_selector)
        };
        if name.is_some() || device.object.binds_to_node == Some(true) {
            return Ok(Some(only(&node.name)));
        }
        let terms = selector.as_ref().map(|selector| selector.node_selector_terms.as_slice());
        match terms {
            None | Some([]) => {}
            Some([term]) => {
                add(&mut fields, term.match_fields.as_deref().unwrap_or_default());
                add(&mut labels, term.match_expressions.as_deref().unwrap_or_default());
            }
            Some(terms) => {
                let count = terms.len();
                return Err(format!("unsupported ResourceSlice.NodeSelector with {count} terms"));
            }
        }
    }
    let set = |list: Vec<NodeSelectorRequirement>| (!list.is_empty()).then_some(list);
    let term = NodeSelectorTerm { match_expressions: set(labels), match_fields: set(fields) };
    let any = term.match_expressions.is_some() || term.match_fields.is_some();
    Ok(any.then(|| NodeSelector { node_selector_terms: vec![term] }))
}

fn only(node: &str) -> NodeSelector {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![requirement]) };
    NodeSelector { node_selector_terms: vec![term] }
}

fn add(to: &mut Vec<NodeSelectorRequirement>, from: &[NodeSelectorRequirement]) {
    let values = |requirement: &NodeSelectorRequirement| {
        let mut values = requirement.values.clone().unwrap_or_default();
        values.sort();
        values.dedup();
        values
    };
    for requirement in from {
        let same = |known: &NodeSelectorRequirement| {
            known.key == requirement.key
                && known.operator == requirement.operator
                && values(known) == values(requirement)
        };
        if !to.iter().any(same) {
            to.push(requirement.clone());
        }
    }
}
