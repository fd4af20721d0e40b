//! The volumes that a claim could be bound to (upstream's `FindMatchingVolume`).

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim};
use kcore::{Labels, Quantity};

use crate::{
    plugins::volume_binding::claims::{Reach, size},
    pod_affinity::read_selector,
    snapshot::catalog::Catalog,
    volumes,
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The volumes that fit a claim but for where they can be used, so that a look at a node is cheap: volumes on the disks of
/// nodes, of which there may be as many as nodes, are found by the node's host name.
#[derive(Default)]
pub(super) struct Candidates {
    /// The one that somebody has already bound to the claim; then no other will do.
    reserved: Option<Volume>,
    /// The smallest first; by name among equals.
    free: Vec<Volume>,
    /// The places in `free` of those that are bound to hosts, ascending.
    on_host: HashMap<String, Vec<usize>, RandomState>,
    /// The places of the others, ascending.
    elsewhere: Vec<usize>,
}

struct Volume {
    object: Arc<PersistentVolume>,
    reach: Reach,
}

impl Volume {
    fn new(object: &Arc<PersistentVolume>) -> Self {
        Self { object: Arc::clone(object), reach: Reach::of(object) }
    }
}

impl Candidates {
    /// Those in the catalog.
    pub(super) fn of(claim: &PersistentVolumeClaim, catalog: &Catalog) -> Self {
        let Some(wanted) = Wanted::of(claim) else { return Self::default() };
        let mut free: Vec<(Quantity, &Arc<PersistentVolume>)> = Vec::new();
        for volume in catalog.list::<PersistentVolume>() {
            match wanted.judge(volume) {
                Fit::No => {}
                Fit::Reserved => {
                    return Self { reserved: Some(Volume::new(volume)), ..Self::default() };
                }
                Fit::Free(capacity) => free.push((capacity, volume)),
            }
        }
        free.sort_by_key(|(capacity, _)| *capacity);
        let mut all = Self::default();
        for (at, (_, volume)) in free.iter().enumerate() {
            match hosts(volume) {
                Some(hosts) => {
                    for host in hosts {
                        let places = all.on_host.entry(host).or_default();
                        if places.last() != Some(&at) {
                            places.push(at);
                        }
                    }
                }
                None => all.elsewhere.push(at),
            }
        }
        all.free = free.into_iter().map(|(_, volume)| Volume::new(volume)).collect();
        all
    }

    /// The smallest one that can be used from a node with these labels and is not `taken`.
    pub(super) fn find(
        &self,
        labels: &Labels,
        taken: impl Fn(&Arc<PersistentVolume>) -> bool,
    ) -> Option<&Arc<PersistentVolume>> {
        if let Some(volume) = &self.reserved {
            let usable = !taken(&volume.object) && volume.reach.includes(labels);
            return usable.then_some(&volume.object);
        }
        let first = |places: &[usize]| {
            places.iter().copied().find(|&at| {
                let volume = &self.free[at];
                volume.reach.includes(labels) && !taken(&volume.object)
            })
        };
        let here = labels.get(HOSTNAME).and_then(|host| self.on_host.get(host));
        let here = here.and_then(|places| first(places));
        let at = [here, first(&self.elsewhere)].into_iter().flatten().min()?;
        Some(&self.free[at].object)
    }
}

/// The only host names with which nodes can reach the volume, when it names them.
fn hosts(volume: &PersistentVolume) -> Option<Vec<String>> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let of_term = |term: &NodeSelectorTerm| {
        let mut all = term.match_expressions.iter().flatten();
        all.find(|wanted| wanted.key == HOSTNAME && wanted.operator == "In")?.values.clone()
    };
    let terms = affinity.required.as_ref()?.node_selector_terms.iter();
    let hosts: Option<Vec<Vec<String>>> = terms.map(of_term).collect();
    hosts.map(|hosts| hosts.concat())
}

/// What a claim asks of a volume.
struct Wanted<'a> {
    claim: &'a PersistentVolumeClaim,
    size: Quantity,
    class: &'a str,
    mode: &'a str,
    attributes: &'a str,
    access: &'a [String],
    selector: Option<kcore::selector::LabelSelector>,
}

enum Fit {
    No,
    Reserved,
    Free(Quantity),
}

const FILESYSTEM: &str = "Filesystem";

impl<'a> Wanted<'a> {
    /// `None` when the claim's selector can't be read, which the API server does not let pass.
    fn of(claim: &'a PersistentVolumeClaim) -> Option<Self> {
        let spec = claim.spec.as_ref()?;
        let selector = match &spec.selector {
            Some(selector) => Some(read_selector(Some(selector))?),
            None => None,
        };
        Some(Self {
            claim,
            size: size(claim),
            class: volumes::class_name(claim),
            mode: spec.volume_mode.as_deref().unwrap_or(FILESYSTEM),
            attributes: spec.volume_attributes_class_name.as_deref().unwrap_or_default(),
            access: spec.access_modes.as_deref().unwrap_or_default(),
            selector,
        })
    }

    fn judge(&self, volume: &PersistentVolume) -> Fit {
        let Some(spec) = &volume.spec else { return Fit::No };
        let reserved = reserved_for(volume, self.claim);
        let capacity = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
        let capacity = capacity.and_then(|capacity| Quantity::parse(&capacity.0).ok()).unwrap_or_default();
        let attributes = spec.volume_attributes_class_name.as_deref().unwrap_or_default();
        if volumes::class_of_volume(volume) != self.class
            || (spec.claim_ref.is_some() && !reserved)
            || capacity < self.size
            || spec.volume_mode.as_deref().unwrap_or(FILESYSTEM) != self.mode
            || attributes != self.attributes
            || volume.metadata.deletion_timestamp.is_some()
        {
            return Fit::No;
        }
        if reserved {
            return Fit::Reserved;
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let label = |key: &str| volume.metadata.labels.as_ref()?.get(key).map(String::as_str);
        let selected = self.selector.as_ref().is_none_or(|selector| selector.matches_with(label));
        let access = spec.access_modes.as_deref().unwrap_or_default();
        if phase == Some("Available") && selected && self.access.iter().all(|mode| access.contains(mode)) {
            Fit::Free(capacity)
        } else {
            Fit::No
        }
    }
}

/// Whether the volume is bound to this claim, by its side (upstream's `IsVolumeBoundToClaim`).
pub(super) fn reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_deref())
}
