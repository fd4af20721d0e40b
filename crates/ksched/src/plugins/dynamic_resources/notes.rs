//! What is noted about a pod's claims while it is decided on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::RandomState;
use k8s_openapi::api::{
    core::v1::NodeSelector,
    resource::v1::{AllocationResult, DeviceClass, DeviceRequest, ResourceClaim},
};

use super::{
    Kept,
    bind::Booked,
    claims, conditions,
    conditions::Readiness,
    extended::{self, Extended, Mappings},
    in_flight,
};
use crate::{
    affinity::Term,
    devices::{Allocated, Demand, Inventory, allocate_within},
    node::NodeInfo,
    pod::PodInfo,
    snapshot::{NodeView, catalog::Catalog},
};

/// How many alternatives a request can have (`FirstAvailableDeviceRequestMaxSize`).
const ALTERNATIVES_MAX: usize = 8;

/// A pod's claims, and what each node has for them.
#[derive(Debug)]
pub(super) struct Notes {
    edition: u64,
    claims: Vec<ClaimNote>,
    /// The claims that have nothing yet.
    new: Vec<Arc<ResourceClaim>>,
    search: Option<Search>,
    extended: Option<Extended>,
    /// Filled by the filter, for score and booking; it says the same of a node whenever it is asked.
    found: Mutex<Found>,
}

#[derive(Debug)]
struct ClaimNote {
    claim: Arc<ResourceClaim>,
    /// Where an allocated claim can be used.
    reach: Option<Vec<Term>>,
    /// What another pod of the gang has taken for it.
    in_flight: Option<AllocationResult>,
    /// Whether its devices have failed to come up.
    failed: bool,
}

#[derive(Debug)]
struct Search {
    /// What the pod's own claims need.
    demand: Demand,
    inventory: Arc<Inventory>,
    allocated: Allocated,
}

#[derive(Debug, Default)]
struct Found {
    /// What each claim gets that has nothing yet, by node.
    by_node: HashMap<Arc<str>, Vec<AllocationResult>, RandomState>,
    /// The claims for what nodes lack of the extended resources.
    variants: HashMap<BTreeMap<Arc<str>, String>, Arc<Variant>, RandomState>,
    /// Which of them each node needs.
    extended: HashMap<Arc<str>, Arc<Variant>, RandomState>,
    /// The claims that can't be used from some node.
    unavailable: BTreeSet<usize>,
}

/// A claim for extended resources, and what it needs together with the pod's own claims.
#[derive(Debug)]
struct Variant {
    claim: Arc<ResourceClaim>,
    mappings: Mappings,
    demand: Demand,
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref().and_then(|status| status.allocation.as_ref())
}

fn requests(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequest> {
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    devices.and_then(|devices| devices.requests.as_ref()).into_iter().flatten()
}

fn reach(selector: Option<&NodeSelector>) -> Option<Vec<Term>> {
    selector.map(|selector| selector.node_selector_terms.iter().map(Term::read).collect())
}

/// Says which class is missing.
fn check_classes(claim: &ResourceClaim, catalog: &Catalog) -> Result<(), String> {
    let check = |class: &str, request: &str| match catalog.get::<DeviceClass>("", class) {
        None if class.is_empty() => Err(format!("request {request}: unsupported request type")),
        None => Err(format!("request {request}: device class {class} does not exist")),
        Some(_) => Ok(()),
    };
    for request in requests(claim) {
        if let Some(exactly) = &request.exactly {
            check(&exactly.device_class_name, &request.name)?;
        }
        for sub in request.first_available.iter().flatten() {
            check(&sub.device_class_name, &format!("{}/{}", request.name, sub.name))?;
        }
    }
    Ok(())
}

impl Notes {
    /// Reads the claims; an error says why no node will do.
    pub(super) fn read(kept: &Kept, pod: &PodInfo, catalog: &Catalog) -> Result<Self, String> {
        let mut notes = Vec::new();
        let mut to_allocate = Vec::new();
        for claim in claims::find(pod, catalog)? {
            let mut note = ClaimNote { reach: None, in_flight: None, failed: false, claim };
            let claim = &note.claim;
            if let Some(allocation) = allocation(claim) {
                note.reach = reach(allocation.node_selector.as_ref());
                note.failed = matches!(conditions::readiness(claim), Readiness::Failed(_));
            } else if let Some(in_flight) = in_flight::of(catalog, claim) {
                let Some(allocation) = in_flight.for_pod(pod) else {
                    let (namespace, name) = claims::key(claim);
                    return Err(format!(
                        "resource claim {namespace}/{name} is in the process of being allocated"
                    ));
                };
                note.reach = reach(allocation.node_selector.as_ref());
                note.in_flight = Some(allocation.clone());
            } else {
                check_classes(claim, catalog)?;
                to_allocate.push(Arc::clone(claim));
            }
            notes.push(note);
        }
        let extended = Extended::read(pod, catalog);
        let search = match to_allocate.is_empty() && extended.is_none() {
            true => None,
            false => Some(Search {
                demand: Demand::read(&to_allocate, catalog, &kept.offered.selectors)
                    .map_err(|error| error.to_string())?,
                inventory: kept.offered.inventory(catalog),
                allocated: in_flight::allocated(catalog),
            }),
        };
        Ok(Self {
            edition: catalog.edition(),
            claims: notes,
            new: to_allocate,
            search,
            extended,
            found: Mutex::default(),
        })
    }

    /// Whether no claim needs to be.
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.extended.is_none()
    }

    /// Whether nothing has changed since.
    pub(super) fn is_current(&self, catalog: &Catalog) -> bool {
        self.edition == catalog.edition()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim that an earlier try left behind.
    pub(super) fn stale(&self) -> Option<&Arc<ResourceClaim>> {
        self.extended.as_ref()?.stale.as_ref()
    }

    /// The claim for what a node lacks of the pod's extended resources; most nodes lack the same.
    fn variant(
        &self,
        kept: &Kept,
        pod: &PodInfo,
        catalog: &Catalog,
        node: &NodeInfo,
    ) -> Result<Option<Arc<Variant>>, String> {
        let Some(extended) = &self.extended else { return Ok(None) };
        if extended.stale.is_some() {
            return Err("cannot schedule extended resource claim".to_owned());
        }
        let missing = extended.missing(node)?;
        if missing.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.found().variants.get(&missing) {
            return Ok(Some(Arc::clone(known)));
        }
        let (claim, mappings) = extended::claim(pod, &missing);
        let claim = Arc::new(claim);
        let all: Vec<_> = self.new.iter().chain([&claim]).cloned().collect();
        let demand =
            Demand::read(&all, catalog, &kept.offered.selectors).map_err(|error| error.to_string())?;
        let variant = Arc::new(Variant { claim, mappings, demand });
        self.found().variants.insert(missing, Arc::clone(&variant));
        Ok(Some(variant))
    }

    /// Whether the claims can be had on a node, and why not.
    pub(super) fn on(&self, kept: &Kept, pod: &PodInfo, node: NodeView<'_>) -> Result<(), String> {
        let variant = self.variant(kept, pod, node.snapshot().catalog(), node.info())?;
        let node = node.info();
        let reaches = |note: &ClaimNote| {
            let terms = note.reach.as_ref();
            terms.is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)))
        };
        let claims = self.claims.iter().enumerate();
        let unavailable: Vec<_> =
            claims.filter(|(_, note)| note.failed || !reaches(note)).map(|(index, _)| index).collect();
        let results = self.search.as_ref().map(|search| {
            let Search { demand, inventory, allocated } = search;
            let demand = variant.as_ref().map_or(demand, |variant| &variant.demand);
            allocate_within(kept.steps_max, demand, inventory, allocated, node)
        });
        let results = match results.transpose().map_err(|error| error.to_string())? {
            Some(None) => return Err("cannot allocate all claims".to_owned()),
            Some(Some(results)) => Some(results),
            None => None,
        };
        let mut found = self.found();
        if !unavailable.is_empty() {
            found.unavailable.extend(unavailable);
            return Err("resourceclaim not available on the node".to_owned());
        }
        if let Some(results) = results {
            found.by_node.insert(Arc::clone(&node.name), results);
        }
        if let Some(variant) = variant {
            found.extended.insert(Arc::clone(&node.name), variant);
        }
        Ok(())
    }

    /// A claim that could be allocated anew: it can't be used from some node, and nobody else uses it. Any of them may be the
    /// one that helps.
    pub(super) fn to_deallocate(&self, pod: &PodInfo, seed: u64) -> Option<Arc<ResourceClaim>> {
        let found = self.found();
        let candidates = found.unavailable.iter().map(|index| &self.claims[*index]);
        let is_ours_alone = |note: &&ClaimNote| {
            let status = note.claim.status.as_ref();
            let mut users = status.iter().flat_map(|status| status.reserved_for.iter().flatten());
            allocation(&note.claim).is_some() && users.all(|user| user.uid == *pod.uid)
        };
        let candidates: Vec<_> = candidates.filter(is_ours_alone).collect();
        let chosen = usize::try_from(seed % u64::try_from(candidates.len().max(1)).unwrap_or(1)).unwrap_or(0);
        candidates.get(chosen).map(|note| Arc::clone(&note.claim))
    }

    /// Whether any request has alternatives.
    pub(super) fn has_alternatives(&self) -> bool {
        let mut requests = self.claims.iter().flat_map(|note| requests(&note.claim));
        requests.any(|request| request.first_available.as_ref().is_some_and(|subs| !subs.is_empty()))
    }

    /// The more, the earlier the alternatives are that the claims get (upstream's `computeScore`).
    pub(super) fn score(&self, node: &str) -> i64 {
        let found = self.found();
        let mut new = found.by_node.get(node).into_iter().flatten();
        let mut score = 0;
        for ClaimNote { claim, in_flight, .. } in &self.claims {
            let known = allocation(claim).or(in_flight.as_ref());
            let Some(allocation) = known.or_else(|| new.next()) else { continue };
            let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
            let results: BTreeSet<&str> = results.map(|result| result.request.as_str()).collect();
            for request in requests(claim) {
                let subs = request.first_available.iter().flatten().take(ALTERNATIVES_MAX).enumerate();
                for (index, sub) in subs {
                    if results.contains(format!("{}/{}", request.name, sub.name).as_str()) {
                        score += i64::try_from(ALTERNATIVES_MAX - index).unwrap_or_default();
                    }
                }
            }
        }
        score
    }

    /// What the claims get on the node that was chosen.
    pub(super) fn booked(&self, node: &str) -> Result<Booked, String> {
        let found = self.found();
        let mut new = found.by_node.get(node).into_iter().flatten();
        let mut booked = Booked::default();
        for ClaimNote { claim, in_flight, .. } in &self.claims {
            let result = match (allocation(claim), in_flight) {
                (Some(_), _) => None,
                (None, Some(in_flight)) => Some(in_flight.clone()),
                (None, None) => {
                    let new = new.next().ok_or("claim allocation not found for node")?;
                    Some(new.clone())
                }
            };
            booked.push(Arc::clone(claim), result);
        }
        if let Some(variant) = found.extended.get(node) {
            let result = new.next().ok_or("claim allocation not found for node")?;
            booked.extend(&variant.claim, result.clone(), &variant.mappings);
        }
        Ok(booked)
    }
}
