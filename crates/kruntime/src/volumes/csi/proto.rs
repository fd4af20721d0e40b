//! The messages of a CSI driver's node service (`csi.proto` of the Container Storage Interface 1.11), as far as a kubelet speaks them. By
//! hand, so that nobody who builds this crate needs a protobuf compiler.

use std::collections::BTreeMap;

/// Names and values.
pub(crate) type Texts = BTreeMap<String, String>;

/// What a driver's node service can do (`NodeServiceCapability.RPC.Type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Capability {
    /// `STAGE_UNSTAGE_VOLUME`
    Stage = 1,
    /// `GET_VOLUME_STATS`
    Stats = 2,
    /// `EXPAND_VOLUME`
    Expand = 3,
    /// `SINGLE_NODE_MULTI_WRITER`
    SingleNodeMultiWriter = 5,
    /// `VOLUME_MOUNT_GROUP`
    MountGroup = 6,
}

/// `VolumeUsage.BYTES`
pub(crate) const BYTES: i32 = 1;
/// `VolumeUsage.INODES`
pub(crate) const INODES: i32 = 2;

/// A request or an answer without fields.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// What the driver calls the node, and how many of its volumes the node takes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeGetInfoResponse {
    #[prost(string, tag = "1")]
    pub(crate) node_id: String,
    #[prost(int64, tag = "2")]
    pub(crate) max_volumes_per_node: i64,
    #[prost(message, optional, tag = "3")]
    pub(crate) accessible_topology: Option<Topology>,
}

/// Where the node is, as the driver sees it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Topology {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) segments: Texts,
}

/// What the driver can do.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeGetCapabilitiesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) capabilities: Vec<NodeServiceCapability>,
}

/// One thing that it can do.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct NodeServiceCapability {
    #[prost(message, optional, tag = "1")]
    pub(crate) rpc: Option<Rpc>,
}

/// By the number of a [`Capability`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Rpc {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
}

/// How a volume is to be used: `block` or `mount`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VolumeCapability {
    #[prost(message, optional, tag = "1")]
    pub(crate) block: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub(crate) mount: Option<MountVolume>,
    #[prost(message, optional, tag = "3")]
    pub(crate) access_mode: Option<AccessMode>,
}

/// As a file system.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MountVolume {
    #[prost(string, tag = "1")]
    pub(crate) fs_type: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) mount_flags: Vec<String>,
    #[prost(string, tag = "3")]
    pub(crate) volume_mount_group: String,
}

/// Who may use it at the same time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AccessMode {
    #[prost(int32, tag = "1")]
    pub(crate) mode: i32,
}

/// Asks for a volume to be made ready for all pods of the node.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct NodeStageVolumeRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) publish_context: Texts,
    #[prost(string, tag = "3")]
    pub(crate) staging_target_path: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) volume_capability: Option<VolumeCapability>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) secrets: Texts,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(crate) volume_context: Texts,
}

/// Secrets are not for logs.
impl std::fmt::Debug for NodeStageVolumeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeStageVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("publish_context", &self.publish_context)
            .field("staging_target_path", &self.staging_target_path)
            .field("volume_capability", &self.volume_capability)
            .field("volume_context", &self.volume_context)
            .finish_non_exhaustive()
    }
}

/// And back.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeUnstageVolumeRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "2")]
    pub(crate) staging_target_path: String,
}

/// Asks for a volume to be made ready for one pod.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct NodePublishVolumeRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) publish_context: Texts,
    #[prost(string, tag = "3")]
    pub(crate) staging_target_path: String,
    #[prost(string, tag = "4")]
    pub(crate) target_path: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub(crate) readonly: bool,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(crate) secrets: Texts,
    #[prost(btree_map = "string, string", tag = "8")]
    pub(crate) volume_context: Texts,
}

/// Secrets are not for logs.
impl std::fmt::Debug for NodePublishVolumeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("publish_context", &self.publish_context)
            .field("staging_target_path", &self.staging_target_path)
            .field("target_path", &self.target_path)
            .field("volume_capability", &self.volume_capability)
            .field("readonly", &self.readonly)
            .field("volume_context", &self.volume_context)
            .finish_non_exhaustive()
    }
}

/// And back.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeUnpublishVolumeRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "2")]
    pub(crate) target_path: String,
}

/// Asks how full a volume is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeGetVolumeStatsRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "2")]
    pub(crate) volume_path: String,
    #[prost(string, tag = "3")]
    pub(crate) staging_target_path: String,
}

/// How full it is, in bytes and inodes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeGetVolumeStatsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) usage: Vec<VolumeUsage>,
}

/// In one of the two.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct VolumeUsage {
    #[prost(int64, tag = "1")]
    pub(crate) available: i64,
    #[prost(int64, tag = "2")]
    pub(crate) total: i64,
    #[prost(int64, tag = "3")]
    pub(crate) used: i64,
    #[prost(int32, tag = "4")]
    pub(crate) unit: i32,
}

/// Asks for a file system to be made as large as its volume.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct NodeExpandVolumeRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "2")]
    pub(crate) volume_path: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) capacity_range: Option<CapacityRange>,
    #[prost(string, tag = "4")]
    pub(crate) staging_target_path: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) volume_capability: Option<VolumeCapability>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(crate) secrets: Texts,
}

/// Secrets are not for logs.
impl std::fmt::Debug for NodeExpandVolumeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeExpandVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("volume_path", &self.volume_path)
            .field("capacity_range", &self.capacity_range)
            .field("staging_target_path", &self.staging_target_path)
            .field("volume_capability", &self.volume_capability)
            .finish_non_exhaustive()
    }
}

/// How large it is now.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct NodeExpandVolumeResponse {
    #[prost(int64, tag = "1")]
    pub(crate) capacity_bytes: i64,
}

/// How large it is to be.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct CapacityRange {
    #[prost(int64, tag = "1")]
    pub(crate) required_bytes: i64,
    #[prost(int64, tag = "2")]
    pub(crate) limit_bytes: i64,
}
