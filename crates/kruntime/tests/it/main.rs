//! The runtimes as their users see them.

mod agent;
#[cfg(all(feature = "cri", target_os = "linux"))]
mod cri;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod csi;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod devices;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod dra;
mod fake;
mod http_probes;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod image_volumes;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod images;
mod managers;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod oci;
#[cfg(all(feature = "plugins", target_os = "linux"))]
mod pod_resources;
mod pressure;
mod probes;
mod process;
#[cfg(all(feature = "oci", target_os = "linux"))]
mod registry;
mod resize;
mod serve;
mod simulated;
mod spdy;
mod static_pods;
mod storage;
