//! Pods and nodes made by hand: for what-if questions, examples and tests.
//!
//! ```
//! use ksched::build::{node, pod};
//!
//! let node = node("a").resource("cpu", "4").label("zone", "north").info();
//! let pod = pod("p").request("cpu", "250m").node_selector("zone", "north").info();
//! assert!(pod.requests.milli_cpu <= node.allocatable.milli_cpu);
//! ```

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        ContainerImage, ContainerPort, Node, Pod, PodSchedulingGate, PodSchedulingGroup, Taint, Toleration,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{node::NodeInfo, pod::PodInfo};

/// Begins a pod with one container, in the namespace `default`; its uid is `uid-` and the name.
#[must_use]
pub fn pod(name: &str) -> PodBuilder {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some(format!("uid-{name}"));
    let spec = pod.spec.get_or_insert_default();
    spec.containers
        .push(k8s_openapi::api::core::v1::Container { name: "main".to_owned(), ..Default::default() });
    PodBuilder { pod }
}

/// A pod in the making.
#[derive(Clone, Debug)]
pub struct PodBuilder {
    pod: Pod,
}

impl PodBuilder {
    /// Asks for a resource.
    #[must_use]
    pub fn request(self, resource: &str, amount: &str) -> Self {
        self.edit(|pod| {
            let container = &mut pod.spec.get_or_insert_default().containers[0];
            let requests = container.resources.get_or_insert_default().requests.get_or_insert_default();
            requests.insert(resource.to_owned(), Quantity(amount.to_owned()));
        })
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        self.edit(|pod| pod.spec.get_or_insert_default().priority = Some(priority))
    }

    /// Adds a toleration; an empty `effect` means all.
    #[must_use]
    pub fn toleration(self, key: &str, operator: &str, value: &str, effect: &str) -> Self {
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let toleration = Toleration {
            key: set(key),
            operator: set(operator),
            value: set(value),
            effect: set(effect),
            toleration_seconds: None,
        };
        self.edit(|pod| {
            pod.spec.get_or_insert_default().tolerations.get_or_insert_default().push(toleration);
        })
    }

    /// Adds to `nodeSelector`.
    #[must_use]
    pub fn node_selector(self, key: &str, value: &str) -> Self {
        self.edit(|pod| {
            let selector = pod.spec.get_or_insert_default().node_selector.get_or_insert_default();
            selector.insert(key.to_owned(), value.to_owned());
        })
    }

    /// Takes a port of the host, on all addresses, TCP.
    #[must_use]
    pub fn host_port(self, port: i32) -> Self {
        self.edit(|pod| {
            let ports = pod.spec.get_or_insert_default().containers[0].ports.get_or_insert_default();
            ports.push(ContainerPort {
                container_port: port,
                host_port: Some(port),
                ..ContainerPort::default()
            });
        })
    }

    /// Sets the container's image.
    #[must_use]
    pub fn image(self, image: &str) -> Self {
        self.edit(|pod| pod.spec.get_or_insert_default().containers[0].image = Some(image.to_owned()))
    }

    /// Adds a scheduling gate.
    #[must_use]
    pub fn gate(self, name: &str) -> Self {
        let gate = PodSchedulingGate { name: name.to_owned() };
        self.edit(|pod| pod.spec.get_or_insert_default().scheduling_gates.get_or_insert_default().push(gate))
    }

    /// Makes it one of a `PodGroup`.
    #[must_use]
    pub fn group(self, name: &str) -> Self {
        let group = PodSchedulingGroup { pod_group_name: Some(name.to_owned()) };
        self.edit(|pod| pod.spec.get_or_insert_default().scheduling_group = Some(group))
    }

    /// Sets `spec.nodeName`.
    #[must_use]
    pub fn on(self, node: &str) -> Self {
        self.edit(|pod| pod.spec.get_or_insert_default().node_name = Some(node.to_owned()))
    }

    /// Changes anything else.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(&mut Pod)) -> Self {
        edit(&mut self.pod);
        self
    }

    /// The API object.
    #[must_use]
    pub fn object(self) -> Pod {
        self.pod
    }

    /// The pod as the scheduler sees it.
    #[must_use]
    pub fn info(self) -> PodInfo {
        PodInfo::new(self.pod)
    }
}

/// Begins a node that takes 110 pods.
#[must_use]
pub fn node(name: &str) -> NodeBuilder {
    let mut node = Node::default();
    node.metadata.name = Some(name.to_owned());
    NodeBuilder { node }.resource("pods", "110")
}

/// A node in the making.
#[derive(Clone, Debug)]
pub struct NodeBuilder {
    node: Node,
}

impl NodeBuilder {
    /// Sets what may be taken of a resource.
    #[must_use]
    pub fn resource(self, resource: &str, amount: &str) -> Self {
        self.edit(|node| {
            let allocatable: &mut BTreeMap<_, _> =
                node.status.get_or_insert_default().allocatable.get_or_insert_default();
            allocatable.insert(resource.to_owned(), Quantity(amount.to_owned()));
        })
    }

    /// Adds a label.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.edit(|node| {
            node.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        })
    }

    /// Adds a taint.
    #[must_use]
    pub fn taint(self, key: &str, value: &str, effect: &str) -> Self {
        let value = (!value.is_empty()).then(|| value.to_owned());
        let taint = Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None };
        self.edit(|node| node.spec.get_or_insert_default().taints.get_or_insert_default().push(taint))
    }

    /// Cordons it.
    #[must_use]
    pub fn unschedulable(self) -> Self {
        self.edit(|node| node.spec.get_or_insert_default().unschedulable = Some(true))
    }

    /// Gives it an image.
    #[must_use]
    pub fn image(self, name: &str, size_bytes: i64) -> Self {
        let image = ContainerImage { names: Some(vec![name.to_owned()]), size_bytes: Some(size_bytes) };
        self.edit(|node| node.status.get_or_insert_default().images.get_or_insert_default().push(image))
    }

    /// Changes anything else.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(&mut Node)) -> Self {
        edit(&mut self.node);
        self
    }

    /// The API object.
    #[must_use]
    pub fn object(self) -> Node {
        self.node
    }

    /// The node as the scheduler sees it.
    #[must_use]
    pub fn info(self) -> NodeInfo {
        NodeInfo::new(self.node)
    }
}
