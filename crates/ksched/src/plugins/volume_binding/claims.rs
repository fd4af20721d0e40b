//! What a pod's claims ask of nodes (upstream's `GetPodVolumeClaims` and `FindPodVolumes`).

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kcore::{Labels, Quantity};
use smallvec::SmallVec;

use crate::{
    affinity::Term,
    node::NodeInfo,
    plugin::{Finality, Rejection},
    plugins::volume_binding::{
        assume::SELECTED_NODE,
        matching::Candidates,
        provision::{Impossible, Provisioning},
    },
    pod::PodInfo,
    snapshot::catalog::Catalog,
    volumes::{self, Standing},
};

pub(super) const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
pub(super) const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
pub(super) const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
pub(super) const NO_SPACE: &str = "node(s) did not have enough free storage";
pub(super) const NO_VOLUME: &str =
    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// From where a volume can be used.
#[derive(Debug)]
pub(super) struct Reach(Option<Vec<Term>>);

impl Reach {
    pub(super) fn of(volume: &PersistentVolume) -> Self {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| affinity.required.as_ref());
        Self(required.map(|required| required.node_selector_terms.iter().map(Term::read).collect()))
    }

    pub(super) fn is_everywhere(&self) -> bool {
        self.0.is_none()
    }

    /// Upstream compares labels only: a volume that asks for a node's name finds none.
    pub(super) fn includes(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches("", labels)))
    }
}

/// A claim that is bound when a pod needs it.
struct OnUse {
    claim: Arc<PersistentVolumeClaim>,
    /// Another pod has already chosen the node.
    selected_node: Option<String>,
    candidates: Candidates,
    provisioning: Provisioning,
}

/// The pod's claims, as far as they say anything about nodes.
#[derive(Default)]
pub(super) struct Claims {
    /// The volumes of bound claims; `None` for one that is not there.
    bound: Vec<Option<Reach>>,
    /// The smallest comes first, so that each gets the smallest volume that fits.
    on_use: Vec<OnUse>,
}

/// How the claims of a pod would be bound on a node.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// To these volumes.
    pub(super) bindings: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    /// By volumes that are still to be made.
    pub(super) provisions: Vec<Arc<PersistentVolumeClaim>>,
}

/// What a claim asks for; nothing when it does not say, or not in a way that can be read.
pub(super) fn size(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    storage.and_then(|storage| Quantity::parse(&storage.0).ok()).unwrap_or(Quantity::ZERO)
}

/// The pod's claims, each once; an error when one is not as it must be for any node.
fn checked<'a>(pod: &PodInfo, catalog: &'a Catalog) -> Result<Vec<&'a Arc<PersistentVolumeClaim>>, String> {
    let mut claims: Vec<&Arc<PersistentVolumeClaim>> = Vec::new();
    for wanted in volumes::claims(pod) {
        let name = &*wanted.name;
        let Some(claim) = catalog.get::<PersistentVolumeClaim>(&pod.namespace, name) else {
            return Err(if wanted.ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                volumes::not_found("persistentvolumeclaim", name)
            });
        };
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volumes::volume_name(claim);
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if wanted.ephemeral
            && let Some(text) = volumes::foreign(pod, claim)
        {
            return Err(text);
        }
        if !claims.iter().any(|known| Arc::ptr_eq(known, claim)) {
            claims.push(claim);
        }
    }
    Ok(claims)
}

impl Claims {
    /// Reads the pod's claims. An error says why no node will do.
    pub(super) fn read(pod: &PodInfo, catalog: &Catalog) -> Result<Self, String> {
        let (mut bound, mut on_use, mut immediate) = (Vec::new(), Vec::new(), false);
        for claim in checked(pod, catalog)? {
            match Standing::of(catalog, claim)? {
                Standing::Volume(volume) if volumes::is_bound(claim) => {
                    let reach = catalog.get::<PersistentVolume>("", volume).map(|volume| Reach::of(volume));
                    if reach.as_ref().is_none_or(|reach| !reach.is_everywhere()) {
                        bound.push(reach);
                    }
                }
                Standing::OnUse(class) => on_use.push((claim, class)),
                _ => immediate = true,
            }
        }
        if immediate {
            return Err(UNBOUND.to_owned());
        }
        on_use.sort_by_key(|(claim, _)| size(claim));
        let on_use = on_use.into_iter().map(|(claim, class)| OnUse::read(claim, class, catalog)).collect();
        Ok(Self { bound, on_use })
    }

    /// Whether every node will do, and nothing is to be bound.
    pub(super) fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.on_use.is_empty()
    }

    /// How the claims are bound on this node, or why they can't be.
    pub(super) fn on(&self, node: &NodeInfo) -> Result<Choice, Rejection> {
        let mut reasons: SmallVec<[Cow<'static, str>; 1]> = SmallVec::new();
        let out_of_reach = self.bound.iter().find_map(|reach| match reach {
            None => Some(NO_VOLUME),
            Some(reach) => (!reach.includes(&node.labels)).then_some(NODE_CONFLICT),
        });
        if out_of_reach == Some(NODE_CONFLICT) {
            reasons.push(NODE_CONFLICT.into());
        }
        let choice = match self.choose(node) {
            Ok(choice) => choice,
            Err(reason) => {
                reasons.push(reason.into());
                Choice::default()
            }
        };
        if out_of_reach == Some(NO_VOLUME) {
            reasons.push(NO_VOLUME.into());
        }
        if reasons.is_empty() {
            Ok(choice)
        } else {
            Err(Rejection { finality: Finality::Unresolvable, reasons })
        }
    }

    fn choose(&self, node: &NodeInfo) -> Result<Choice, &'static str> {
        let elsewhere =
            |claim: &OnUse| claim.selected_node.as_deref().is_some_and(|name| name != &*node.name);
        if self.on_use.iter().any(elsewhere) {
            return Err(BIND_CONFLICT);
        }
        let mut choice = Choice::default();
        // Those whose node is chosen come first, as upstream checks them.
        let (selected, open): (Vec<_>, Vec<_>) =
            self.on_use.iter().partition(|claim| claim.selected_node.is_some());
        let mut missing = selected;
        for wanted in open {
            let taken = |volume: &Arc<PersistentVolume>| {
                choice.bindings.iter().any(|(_, known)| Arc::ptr_eq(known, volume))
            };
            match wanted.candidates.find(&node.labels, taken) {
                Some(volume) => choice.bindings.push((Arc::clone(&wanted.claim), Arc::clone(volume))),
                None => missing.push(wanted),
            }
        }
        for wanted in missing {
            wanted.provisioning.on(&node.labels).map_err(|impossible| match impossible {
                Impossible::Here => BIND_CONFLICT,
                Impossible::NoSpace => NO_SPACE,
            })?;
            choice.provisions.push(Arc::clone(&wanted.claim));
        }
        Ok(choice)
    }
}

impl OnUse {
    fn read(claim: &Arc<PersistentVolumeClaim>, class: &StorageClass, catalog: &Catalog) -> Self {
        let annotations = claim.metadata.annotations.as_ref();
        let selected_node = annotations.and_then(|all| all.get(SELECTED_NODE)).cloned();
        let candidates = match selected_node {
            // A volume is being made for it.
            Some(_) => Candidates::default(),
            None => Candidates::of(claim, catalog),
        };
        let provisioning = Provisioning::of(claim, class, catalog);
        Self { claim: Arc::clone(claim), selected_node, candidates, provisioning }
    }
}
