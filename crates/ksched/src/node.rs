//! What the scheduler needs to know of a node.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Taint};
use kcore::Labels;

use crate::{
    plugins::Features,
    pod::normalized_image,
    resources::{self, Resources},
};

/// A node, prepared for scheduling. Made with [`NodeInfo::new`] and not changed afterwards.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// What pods may take of it.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub pods_max: i64,
    /// Its images by name, with their sizes in bytes.
    pub images: BTreeMap<Arc<str>, i64>,
    /// What it declares that it can do, as far as pods ask for it.
    pub features: Features,
    /// The object that it was read from, for plug-ins that need more.
    pub object: Arc<Node>,
}

impl NodeInfo {
    /// Reads a node.
    #[must_use]
    pub fn new(node: impl Into<Arc<Node>>) -> Self {
        let object: Arc<Node> = node.into();
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let allocatable = resources::amounts(status.and_then(|status| status.allocatable.as_ref()));
        let mut images = BTreeMap::new();
        for image in status.and_then(|status| status.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(normalized_image(name), image.size_bytes.unwrap_or_default());
            }
        }
        Self {
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
            labels: object.metadata.labels.iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            pods_max: allocatable.get("pods").map_or(0, kcore::Quantity::value),
            allocatable: Resources::of(allocatable.iter().map(|(name, quantity)| (name.as_str(), *quantity))),
            images,
            features: Features::declared(
                status.and_then(|status| status.declared_features.as_deref()).unwrap_or_default(),
            ),
            object: Arc::clone(&object),
        }
    }

    /// Whether the two differ at most in what they offer: rules that count pods over many nodes see no difference.
    pub(crate) fn same_for_rules(&self, other: &Self) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.features == other.features
    }

    /// Whether scheduling sees no difference between the two.
    #[must_use]
    pub fn same_for_scheduling(&self, other: &Self) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.allocatable == other.allocatable
            && self.pods_max == other.pods_max
            && self.images == other.images
            && self.features == other.features
    }
}
