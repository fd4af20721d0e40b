//! Images, statistics and the server itself.

use std::collections::BTreeMap;

use super::{ContainerMetadata, ContainerStatus, PodSandboxConfig, PodSandboxStatus, Value64};

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct VersionRequest {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct VersionResponse {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) version: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) runtime_version: String,
    #[prost(string, tag = "4")]
    pub(in crate::runtime::cri) runtime_api_version: String,
}

/// Names an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) image: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(in crate::runtime::cri) annotations: BTreeMap<String, String>,
    #[prost(string, tag = "18")]
    pub(in crate::runtime::cri) user_specified_image: String,
    #[prost(string, tag = "19")]
    pub(in crate::runtime::cri) runtime_handler: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) verbose: bool,
}

/// An image.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Image {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(string, repeated, tag = "2")]
    pub(in crate::runtime::cri) repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(in crate::runtime::cri) repo_digests: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub(in crate::runtime::cri) size: u64,
    #[prost(message, optional, tag = "5")]
    pub(in crate::runtime::cri) uid: Option<Value64>,
    #[prost(string, tag = "6")]
    pub(in crate::runtime::cri) username: String,
    #[prost(bool, tag = "8")]
    pub(in crate::runtime::cri) pinned: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListImagesRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) filter: Option<ImageFilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ImageFilter {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) images: Vec<Image>,
}

/// A name and a password, or a token. Not for logs.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(in crate::runtime::cri) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) username: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) password: String,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) auth: String,
    #[prost(string, tag = "4")]
    pub(in crate::runtime::cri) server_address: String,
    #[prost(string, tag = "5")]
    pub(in crate::runtime::cri) identity_token: String,
    #[prost(string, tag = "6")]
    pub(in crate::runtime::cri) registry_token: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) auth: Option<AuthConfig>,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct PullImageResponse {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct RemoveImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) image: Option<ImageSpec>,
}

/// A request or an answer without fields of its own.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Empty {}

/// A number that may be missing.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ValueU64 {
    #[prost(uint64, tag = "1")]
    pub(in crate::runtime::cri) value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct FilesystemId {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) mountpoint: String,
}

/// How full a file system is.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct FilesystemUsage {
    #[prost(int64, tag = "1")]
    pub(in crate::runtime::cri) timestamp: i64,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) fs_id: Option<FilesystemId>,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) used_bytes: Option<ValueU64>,
    #[prost(message, optional, tag = "4")]
    pub(in crate::runtime::cri) inodes_used: Option<ValueU64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ImageFsInfoResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) image_filesystems: Vec<FilesystemUsage>,
    #[prost(message, repeated, tag = "2")]
    pub(in crate::runtime::cri) container_filesystems: Vec<FilesystemUsage>,
}

/// `ContainerStatsFilter`.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct StatsFilter {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(string, tag = "2")]
    pub(in crate::runtime::cri) pod_sandbox_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(in crate::runtime::cri) label_selector: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListContainerStatsRequest {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) filter: Option<StatsFilter>,
}

/// Which container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerAttributes {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) id: String,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) metadata: Option<ContainerMetadata>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(in crate::runtime::cri) labels: BTreeMap<String, String>,
}

/// Processor time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct CpuUsage {
    #[prost(int64, tag = "1")]
    pub(in crate::runtime::cri) timestamp: i64,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) usage_core_nano_seconds: Option<ValueU64>,
}

/// Memory.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct MemoryUsage {
    #[prost(int64, tag = "1")]
    pub(in crate::runtime::cri) timestamp: i64,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) working_set_bytes: Option<ValueU64>,
}

/// What a container has used.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerStats {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) attributes: Option<ContainerAttributes>,
    #[prost(message, optional, tag = "2")]
    pub(in crate::runtime::cri) cpu: Option<CpuUsage>,
    #[prost(message, optional, tag = "3")]
    pub(in crate::runtime::cri) memory: Option<MemoryUsage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ListContainerStatsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) stats: Vec<ContainerStats>,
}

/// `ContainerEventResponse`: something happened to a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct ContainerEvent {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) container_id: String,
    #[prost(int32, tag = "2")]
    pub(in crate::runtime::cri) kind: i32,
    #[prost(int64, tag = "3")]
    pub(in crate::runtime::cri) created_at: i64,
    #[prost(message, optional, tag = "4")]
    pub(in crate::runtime::cri) pod_sandbox_status: Option<PodSandboxStatus>,
    #[prost(message, repeated, tag = "5")]
    pub(in crate::runtime::cri) containers_statuses: Vec<ContainerStatus>,
}

/// Whether a part of the server works.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub(in crate::runtime::cri) kind: String,
    #[prost(bool, tag = "2")]
    pub(in crate::runtime::cri) status: bool,
    #[prost(string, tag = "3")]
    pub(in crate::runtime::cri) reason: String,
    #[prost(string, tag = "4")]
    pub(in crate::runtime::cri) message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::runtime::cri) conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct StatusRequest {
    #[prost(bool, tag = "1")]
    pub(in crate::runtime::cri) verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::runtime::cri) status: Option<RuntimeStatus>,
}

/// Passwords are not for logs.
impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("username", &self.username).finish_non_exhaustive()
    }
}
