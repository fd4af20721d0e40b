//! One driver, as the node speaks to it.

use std::{path::Path, time::Duration};

use prost::Message;
use tonic::{Code, Status};

use super::proto::{
    AccessMode, Capability, CapacityRange, Empty, MountVolume, NodeExpandVolumeRequest,
    NodeExpandVolumeResponse, NodeGetCapabilitiesResponse, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use crate::{
    grpc::{SocketClient, words},
    plugins::MESSAGE_BYTES_MAX,
};

/// How long a call may take (upstream's `csiTimeout`).
const CALL_TIME_MAX: Duration = Duration::from_secs(120);

/// A driver's answer that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(crate) struct DriverError {
    words: String,
    code: Code,
}

impl DriverError {
    /// Whether the call is over for sure. After any other error it may still go on at the driver's, as upstream sees it.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(
            self.code,
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
        )
    }

    /// Whether there is no sense in asking for the same again.
    pub(crate) fn is_infeasible(&self) -> bool {
        matches!(self.code, Code::InvalidArgument | Code::OutOfRange | Code::NotFound)
    }

    /// Whether a volume can't be made larger while it is used.
    pub(crate) fn is_in_use(&self) -> bool {
        self.code == Code::FailedPrecondition
    }
}

impl From<Status> for DriverError {
    fn from(status: Status) -> Self {
        Self { words: words(&status), code: status.code() }
    }
}

/// What a driver can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities(Vec<i32>);

impl Capabilities {
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.0.contains(&(capability as i32))
    }
}

/// How a volume is to be used, in Kubernetes' words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Use<'a> {
    pub(crate) fs_type: &'a str,
    /// The first of the volume's access modes.
    pub(crate) access_mode: &'a str,
    pub(crate) mount_options: &'a [String],
    /// The group that the driver gives the volume to, if it does so itself.
    pub(crate) group: Option<i64>,
}

impl Use<'_> {
    fn message(&self, capabilities: &Capabilities) -> VolumeCapability {
        let is_precise = capabilities.has(Capability::SingleNodeMultiWriter);
        VolumeCapability {
            block: None,
            mount: Some(MountVolume {
                fs_type: self.fs_type.to_owned(),
                mount_flags: self.mount_options.to_vec(),
                volume_mount_group: self.group.map(|group| group.to_string()).unwrap_or_default(),
            }),
            access_mode: Some(AccessMode { mode: access_mode(self.access_mode, is_precise) }),
        }
    }
}

/// The number of an access mode (`VolumeCapability.AccessMode.Mode`). Only drivers with `SINGLE_NODE_MULTI_WRITER` tell one pod from several of
/// one node (KEP-2485).
fn access_mode(mode: &str, is_precise: bool) -> i32 {
    match (mode, is_precise) {
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => 1,
        ("ReadOnlyMany", _) => 3,
        ("ReadWriteMany", _) => 5,
        ("ReadWriteOncePod", true) => 6,
        ("ReadWriteOnce", true) => 7,
        _ => 0,
    }
}

/// The node service of a driver.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    client: SocketClient,
    /// The version that it registered with.
    pub(crate) version: Version,
    /// Its socket.
    pub(crate) endpoint: String,
}

/// A version such as 1.3.0.
pub(crate) type Version = [u64; 3];

impl Driver {
    pub(crate) fn new(endpoint: &str, version: Version) -> Self {
        let client = SocketClient::new(Path::new(endpoint), MESSAGE_BYTES_MAX);
        Self { client, version, endpoint: endpoint.to_owned() }
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, DriverError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        tracing::debug!(method, "calling a CSI driver");
        Ok(self.client.call(CALL_TIME_MAX, &format!("/csi.v1.Node/{method}"), request).await?)
    }

    pub(crate) async fn info(&self) -> Result<NodeGetInfoResponse, DriverError> {
        self.call("NodeGetInfo", Empty {}).await
    }

    pub(crate) async fn capabilities(&self) -> Result<Capabilities, DriverError> {
        let answer: NodeGetCapabilitiesResponse = self.call("NodeGetCapabilities", Empty {}).await?;
        Ok(Capabilities(answer.capabilities.iter().filter_map(|one| Some(one.rpc?.kind)).collect()))
    }

    /// The capability of the request is made of the last two.
    pub(crate) async fn stage(
        &self,
        request: NodeStageVolumeRequest,
        used: &Use<'_>,
        capabilities: &Capabilities,
    ) -> Result<(), DriverError> {
        let volume_capability = Some(used.message(capabilities));
        let request = NodeStageVolumeRequest { volume_capability, ..request };
        self.call("NodeStageVolume", request).await.map(|Empty {}| ())
    }

    pub(crate) async fn unstage(&self, volume: &str, staging: &Path) -> Result<(), DriverError> {
        let request =
            NodeUnstageVolumeRequest { volume_id: volume.to_owned(), staging_target_path: text(staging) };
        self.call("NodeUnstageVolume", request).await.map(|Empty {}| ())
    }

    /// As [`stage`](Self::stage).
    pub(crate) async fn publish(
        &self,
        request: NodePublishVolumeRequest,
        used: &Use<'_>,
        capabilities: &Capabilities,
    ) -> Result<(), DriverError> {
        let volume_capability = Some(used.message(capabilities));
        let request = NodePublishVolumeRequest { volume_capability, ..request };
        self.call("NodePublishVolume", request).await.map(|Empty {}| ())
    }

    pub(crate) async fn unpublish(&self, volume: &str, target: &Path) -> Result<(), DriverError> {
        let request = NodeUnpublishVolumeRequest { volume_id: volume.to_owned(), target_path: text(target) };
        self.call("NodeUnpublishVolume", request).await.map(|Empty {}| ())
    }

    pub(crate) async fn stats(
        &self,
        volume: &str,
        target: &Path,
    ) -> Result<NodeGetVolumeStatsResponse, DriverError> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: text(target),
            ..NodeGetVolumeStatsRequest::default()
        };
        self.call("NodeGetVolumeStats", request).await
    }

    /// Makes the file system of a volume so many bytes large.
    pub(crate) async fn expand(
        &self,
        request: NodeExpandVolumeRequest,
        bytes: i64,
        used: &Use<'_>,
        capabilities: &Capabilities,
    ) -> Result<(), DriverError> {
        let request = NodeExpandVolumeRequest {
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(used.message(capabilities)),
            ..request
        };
        self.call("NodeExpandVolume", request).await.map(|NodeExpandVolumeResponse { .. }| ())
    }
}

/// A path as a driver gets it. Those of this crate are made of names and of the node's directory.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The highest of `versions` that is spoken here, of CSI's first major version alone. What is no version is passed over, as upstream.
pub(crate) fn highest_version(versions: &[String]) -> Result<Version, String> {
    let known = versions.iter().filter_map(|text| parse(text)).filter(|version| version[0] < 2);
    let highest = known.max().ok_or_else(|| {
        format!("could not find a highest supported version from versions ({versions:?}) reported")
    })?;
    if highest[0] == 1 {
        return Ok(highest);
    }
    let [major, minor, patch] = highest;
    Err(format!("highest supported version reported is {major}.{minor}.{patch}, must be v1.x"))
}

/// The numbers that a text begins with, two at least; what follows them does not count.
fn parse(text: &str) -> Option<Version> {
    let text = text.trim();
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let mut version = [0; 3];
    let mut count = 0;
    for (slot, part) in version.iter_mut().zip(text[..end].trim_end_matches('.').split('.')) {
        *slot = part.parse().ok()?;
        count += 1;
    }
    (count >= 2).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_modes_depend_on_what_a_driver_tells_apart() {
        // Upstream's `TestClientNodePublishVolume` and KEP-2485.
        let cases = [
            ("ReadWriteOnce", 1, 7),
            ("ReadWriteOncePod", 1, 6),
            ("ReadOnlyMany", 3, 3),
            ("ReadWriteMany", 5, 5),
            ("", 0, 0),
        ];
        for (mode, plain, precise) in cases {
            assert_eq!((access_mode(mode, false), access_mode(mode, true)), (plain, precise), "{mode}");
        }
    }

    #[test]
    fn the_highest_version_that_is_spoken_counts() {
        // Upstream's `TestValidatePlugin`.
        let cases: [(&[&str], Option<Version>); 11] = [
            (&["v1.0.0"], Some([1, 0, 0])),
            (&["0.3.0"], None),
            (&["0.2.0", "v0.3.0"], None),
            (&["0.2.0", "v1.2.3"], Some([1, 2, 3])),
            (&["v1.2.3", "v0.3.0"], Some([1, 2, 3])),
            (&["v1.2.3", "4.9.12", "v0.3.0", "2.0.1"], Some([1, 2, 3])),
            (&["v1.2.3", "boo", "v1.10.0-alpha.1"], Some([1, 10, 0])),
            (&["4.9.12", "2.0.1"], None),
            (&["var", "boo", "foo"], None),
            (&["1"], None),
            (&[], None),
        ];
        for (versions, expected) in cases {
            let versions: Vec<String> = versions.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(highest_version(&versions).ok(), expected, "{versions:?}");
        }
    }

    #[test]
    fn only_some_errors_mean_that_a_call_is_over() {
        let cases = [
            (Code::Internal, true),
            (Code::InvalidArgument, true),
            (Code::Unimplemented, true),
            (Code::Cancelled, false),
            (Code::DeadlineExceeded, false),
            (Code::Unavailable, false),
            (Code::ResourceExhausted, false),
            (Code::Aborted, false),
        ];
        for (code, expected) in cases {
            let error = DriverError::from(Status::new(code, "why"));
            assert_eq!(error.is_final(), expected, "{code:?}");
        }
        let error = DriverError::from(Status::not_found("no such volume"));
        assert_eq!(error.to_string(), "rpc error: code = NotFound desc = no such volume");
    }
}
