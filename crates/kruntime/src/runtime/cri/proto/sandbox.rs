//! Sandboxes.

use std::collections::BTreeMap;

use super::{ContainerStatus, LinuxContainerResources, SecurityProfile, Value64};

/// The resolver's configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    pub(in crate::runtime::cri) servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(in crate::runtime::cri) searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(in crate::runtime::cri) options: Vec<String>,
}

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum Protocol {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
}

/// A port of the node that leads to the pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PortMapping {
    #[prost(enumeration = "Protocol", tag = "1")]
    pub(in crate::runtime::cri) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(in crate::runtime::cri) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(in crate::runtime::cri) host_port: i32,
    #[prost(string, tag = "4")]
    pub(in crate::runtime::cri) host_ip: String,
}

/// Whose namespace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum NamespaceMode {
    Pod = 0,
    Container = 1,
    Node = 2,
    Target = 3,
}

/// Whose namespaces a pod or a container has.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct NamespaceOption {
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub(in crate::runtime::cri) network: i32,
    #[prost(enumeration = "NamespaceMode", tag = "2")]
    pub(in crate::runtime::cri) pid: i32,
    #[prost(enumeration = "NamespaceMode", tag = "3")]
    pub(in crate::runtime::cri) ipc: i32,
    #[prost(string, tag = "4")]
    pub(in crate::runtime::cri) target_id: String,
}

/// `LinuxSandboxSecurityContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) namespace_options: Option<NamespaceOption>,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) run_as_user: Option<Value64>,
    #[prost(bool, tag = "4")]
    pub(in crate::runtime::cri) readonly_rootfs: bool,
    #[prost(int64, repeated, tag = "5")]
    pub(in crate::runtime::cri) supplemental_groups: Vec<i64>,
    #[prost(bool, tag = "6")]
    pub(in crate::runtime::cri) privileged: bool,
    #[prost(message, optional, tag = "8")]
    pub(in crate::runtime::cri) run_as_group: Option<Value64>,
    #[prost(message, optional, tag = "9")]
    pub(in crate::runtime::cri) seccomp: Option<SecurityProfile>,
}

/// What is Linux's of a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) security_context: Option<SandboxSecurity>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(in crate::runtime::cri) sysctls: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub(in crate::runtime::cri) overhead: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "5")]
    pub(in crate::runtime::cri) resources: Option<LinuxContainerResources>,
}

/// Names a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) name: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) uid: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(in crate::runtime::cri) attempt: u32,
}

/// A pod without its containers.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) hostname: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) log_directory: String,
    #[prost(message, optional, tag = "4")]
    pub(in crate::runtime::cri) dns_config: Option<DnsConfig>,
    #[prost(message, repeated, tag = "5")]
    pub(in crate::runtime::cri) port_mappings: Vec<PortMapping>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(in crate::runtime::cri) linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) config: Option<PodSandboxConfig>,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) runtime_handler: String,
}

/// Names a sandbox in requests and answers that have nothing else.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxId {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) verbose: bool,
}

/// One more address of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodIp {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) ip: String,
}

/// The addresses of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) ip: String,
    #[prost(message, repeated, tag = "2")]
    pub(in crate::runtime::cri) additional_ips: Vec<PodIp>,
}

/// Whether a sandbox is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum PodSandboxState {
    Ready = 0,
    NotReady = 1,
}

/// A sandbox as it is.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxStatus {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) metadata: Option<PodSandboxMetadata>,
    #[prost(enumeration = "PodSandboxState", tag = "3")]
    pub(in crate::runtime::cri) state: i32,
    #[prost(int64, tag = "4")]
    pub(in crate::runtime::cri) created_at: i64,
    #[prost(message, optional, tag = "5")]
    pub(in crate::runtime::cri) network: Option<PodSandboxNetworkStatus>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "8")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) status: Option<PodSandboxStatus>,
    #[prost(message, repeated, tag = "3")]
    pub(in crate::runtime::cri) containers_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandboxFilter {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(in crate::runtime::cri) label_selector: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) filter: Option<PodSandboxFilter>,
}

/// A sandbox in a list.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) metadata: Option<PodSandboxMetadata>,
    #[prost(enumeration = "PodSandboxState", tag = "3")]
    pub(in crate::runtime::cri) state: i32,
    #[prost(int64, tag = "4")]
    pub(in crate::runtime::cri) created_at: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) items: Vec<PodSandbox>,
}
