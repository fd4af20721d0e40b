//! Containers.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{ImageSpec, NamespaceOption, PodSandboxConfig, Value64};

/// Which profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum ProfileType {
    RuntimeDefault = 0,
    Unconfined = 1,
    Localhost = 2,
}

/// A profile of seccomp or AppArmor.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct SecurityProfile {
    #[prost(enumeration = "ProfileType", tag = "1")]
    pub(in crate::runtime::cri) profile_type: i32,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) localhost_ref: String,
}

/// A variable of the environment.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(in crate::runtime::cri) value: Bytes,
}

/// Which way later mounts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum MountPropagation {
    Private = 0,
    HostToContainer = 1,
    Bidirectional = 2,
}

/// A file or directory of the node in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Mount {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_path: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) host_path: String,
    #[prost(bool, tag = "3")]
    pub(in crate::runtime::cri) readonly: bool,
    #[prost(enumeration = "MountPropagation", tag = "5")]
    pub(in crate::runtime::cri) propagation: i32,
    #[prost(message, optional, tag = "9")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(string, tag = "10")]
    pub(in crate::runtime::cri) image_sub_path: String,
}

/// What a container may use.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct LinuxContainerResources {
    #[prost(int64, tag = "1")]
    pub(in crate::runtime::cri) cpu_period: i64,
    #[prost(int64, tag = "2")]
    pub(in crate::runtime::cri) cpu_quota: i64,
    #[prost(int64, tag = "3")]
    pub(in crate::runtime::cri) cpu_shares: i64,
    #[prost(int64, tag = "4")]
    pub(in crate::runtime::cri) memory_limit_in_bytes: i64,
    #[prost(int64, tag = "5")]
    pub(in crate::runtime::cri) oom_score_adj: i64,
    #[prost(string, tag = "6")]
    pub(in crate::runtime::cri) cpuset_cpus: String,
    #[prost(string, tag = "7")]
    pub(in crate::runtime::cri) cpuset_mems: String,
}

/// Gives a container that runs other shares.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct UpdateContainerResourcesRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) linux: Option<LinuxContainerResources>,
}

/// Changes to a container's capabilities.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Capability {
    #[prost(string, repeated, tag = "1")]
    pub(in crate::runtime::cri) add_capabilities: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(in crate::runtime::cri) drop_capabilities: Vec<String>,
}

/// Whether the image's groups count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum SupplementalGroupsPolicy {
    Merge = 0,
    Strict = 1,
}

/// `LinuxContainerSecurityContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerSecurity {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) capabilities: Option<Capability>,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) privileged: bool,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) namespace_options: Option<NamespaceOption>,
    #[prost(message, optional, tag = "5")]
    pub(in crate::runtime::cri) run_as_user: Option<Value64>,
    #[prost(string, tag = "6")]
    pub(in crate::runtime::cri) run_as_username: String,
    #[prost(bool, tag = "7")]
    pub(in crate::runtime::cri) readonly_rootfs: bool,
    #[prost(int64, repeated, tag = "8")]
    pub(in crate::runtime::cri) supplemental_groups: Vec<i64>,
    #[prost(bool, tag = "11")]
    pub(in crate::runtime::cri) no_new_privs: bool,
    #[prost(message, optional, tag = "12")]
    pub(in crate::runtime::cri) run_as_group: Option<Value64>,
    #[prost(string, repeated, tag = "13")]
    pub(in crate::runtime::cri) masked_paths: Vec<String>,
    #[prost(string, repeated, tag = "14")]
    pub(in crate::runtime::cri) readonly_paths: Vec<String>,
    #[prost(message, optional, tag = "15")]
    pub(in crate::runtime::cri) seccomp: Option<SecurityProfile>,
    #[prost(message, optional, tag = "16")]
    pub(in crate::runtime::cri) apparmor: Option<SecurityProfile>,
    #[prost(enumeration = "SupplementalGroupsPolicy", tag = "17")]
    pub(in crate::runtime::cri) supplemental_groups_policy: i32,
}

/// What is Linux's of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct LinuxContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) resources: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) security_context: Option<ContainerSecurity>,
}

/// Names a start of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) name: String,
    #[prost(uint32, tag = "2")]
    pub(in crate::runtime::cri) attempt: u32,
}

/// A device of the node in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Device {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_path: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) host_path: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) permissions: String,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub(in crate::runtime::cri) command: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(in crate::runtime::cri) args: Vec<String>,
    #[prost(string, tag = "5")]
    pub(in crate::runtime::cri) working_dir: String,
    #[prost(message, repeated, tag = "6")]
    pub(in crate::runtime::cri) envs: Vec<KeyValue>,
    #[prost(message, repeated, tag = "7")]
    pub(in crate::runtime::cri) mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "8")]
    pub(in crate::runtime::cri) devices: Vec<Device>,
    #[prost(btree_map = "string, string", tag = "9")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "10")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
    #[prost(string, tag = "11")]
    pub(in crate::runtime::cri) log_path: String,
    #[prost(bool, tag = "12")]
    pub(in crate::runtime::cri) stdin: bool,
    #[prost(bool, tag = "13")]
    pub(in crate::runtime::cri) stdin_once: bool,
    #[prost(bool, tag = "14")]
    pub(in crate::runtime::cri) tty: bool,
    #[prost(message, optional, tag = "15")]
    pub(in crate::runtime::cri) linux: Option<LinuxContainerConfig>,
    #[prost(message, repeated, tag = "17")]
    pub(in crate::runtime::cri) cdi_devices: Vec<CdiDevice>,
    #[prost(int32, tag = "18")]
    pub(in crate::runtime::cri) stop_signal: i32,
}

/// A device by its name in the Container Device Interface.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct CdiDevice {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) sandbox_config: Option<PodSandboxConfig>,
}

/// Names a container in requests and answers that have nothing else.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerId {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
}

/// The timeout is in seconds.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct StopContainerRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(int64, tag = "2")]
    pub(in crate::runtime::cri) timeout: i64,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(in crate::runtime::cri) enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerFilter {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(in crate::runtime::cri) label_selector: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListContainersRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) filter: Option<ContainerFilter>,
}

/// A container in a list.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Container {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(string, tag = "5")]
    pub(in crate::runtime::cri) image_ref: String,
    #[prost(enumeration = "ContainerState", tag = "6")]
    pub(in crate::runtime::cri) state: i32,
    #[prost(int64, tag = "7")]
    pub(in crate::runtime::cri) created_at: i64,
    #[prost(btree_map = "string, string", tag = "8")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "9")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) verbose: bool,
}

/// A container as it is; times are nanoseconds since 1970.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerStatus {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) metadata: Option<ContainerMetadata>,
    #[prost(enumeration = "ContainerState", tag = "3")]
    pub(in crate::runtime::cri) state: i32,
    #[prost(int64, tag = "4")]
    pub(in crate::runtime::cri) created_at: i64,
    #[prost(int64, tag = "5")]
    pub(in crate::runtime::cri) started_at: i64,
    #[prost(int64, tag = "6")]
    pub(in crate::runtime::cri) finished_at: i64,
    #[prost(int32, tag = "7")]
    pub(in crate::runtime::cri) exit_code: i32,
    #[prost(message, optional, tag = "8")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(string, tag = "9")]
    pub(in crate::runtime::cri) image_ref: String,
    #[prost(string, tag = "10")]
    pub(in crate::runtime::cri) reason: String,
    #[prost(string, tag = "11")]
    pub(in crate::runtime::cri) message: String,
    #[prost(btree_map = "string, string", tag = "12")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "13")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
    #[prost(string, tag = "15")]
    pub(in crate::runtime::cri) log_path: String,
    #[prost(string, tag = "17")]
    pub(in crate::runtime::cri) image_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ExecRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub(in crate::runtime::cri) cmd: Vec<String>,
    #[prost(bool, tag = "3")]
    pub(in crate::runtime::cri) tty: bool,
    #[prost(bool, tag = "4")]
    pub(in crate::runtime::cri) stdin: bool,
    #[prost(bool, tag = "5")]
    pub(in crate::runtime::cri) stdout: bool,
    #[prost(bool, tag = "6")]
    pub(in crate::runtime::cri) stderr: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct AttachRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) stdin: bool,
    #[prost(bool, tag = "3")]
    pub(in crate::runtime::cri) tty: bool,
    #[prost(bool, tag = "4")]
    pub(in crate::runtime::cri) stdout: bool,
    #[prost(bool, tag = "5")]
    pub(in crate::runtime::cri) stderr: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PortForwardRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(int32, repeated, tag = "2")]
    pub(in crate::runtime::cri) port: Vec<i32>,
}

/// Where streams are to be had.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct StreamUrl {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) url: String,
}
