use std::{collections::BTreeMap, path::PathBuf};

use super::RuntimeError;

/// A device of the host that a container may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// The host's device, such as `/dev/fuse`.
    pub host_path: PathBuf,
    /// Where the container sees it.
    pub container_path: PathBuf,
    /// What it may do with it: any of `r`, `w` and `m` (to make such a device).
    pub permissions: String,
}

/// What a container was given of the node's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// By their paths.
    pub nodes: Vec<Device>,
    /// By their qualified names in the Container Device Interface, `vendor.com/class=name`. Servers of the CRI and OCI runtimes look them up;
    /// other runtimes refuse a container that has any.
    pub cdi: Vec<String>,
    /// Annotations for the container, which a server of the CRI passes on; other runtimes have no use for them.
    pub annotations: BTreeMap<String, String>,
}

impl Devices {
    /// For runtimes that know devices by their paths alone.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when there is a name of the Container Device Interface.
    pub(crate) fn without_cdi(&self) -> Result<&[Device], RuntimeError> {
        match self.cdi.first() {
            None => Ok(&self.nodes),
            Some(name) => {
                Err(RuntimeError::Config(format!("CDI device {name:?}: this runtime knows no CDI devices")))
            }
        }
    }
}
