//! Volumes as the drivers that attach them know them.

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, GCEPersistentDiskVolumeSource, PersistentVolume,
    PortworxVolumeSource, Volume,
};

use crate::volumes::MANY_ZONES;

/// A volume as the driver that attaches it knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attachable {
    pub(crate) driver: String,
    pub(crate) handle: String,
}

impl Attachable {
    fn new(driver: &str, handle: impl Into<String>) -> Self {
        Self { driver: driver.to_owned(), handle: handle.into() }
    }

    /// Of a volume of the cluster.
    pub(crate) fn of_volume(volume: &PersistentVolume, node_has_drivers: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        if let Some(csi) = &spec.csi {
            let set = !csi.driver.is_empty() && !csi.volume_handle.is_empty();
            return set.then(|| Self::new(&csi.driver, csi.volume_handle.as_str()));
        }
        if !node_has_drivers {
            return None;
        }
        let ebs = spec.aws_elastic_block_store.as_ref().map(ebs);
        ebs.or_else(|| spec.gce_persistent_disk.as_ref().map(|disk| gce(disk, &zone_path(volume))))
            .or_else(|| spec.azure_disk.as_ref().map(azure))
            .or_else(|| spec.cinder.as_ref().map(|disk| Self::new(CINDER, disk.volume_id.as_str())))
            .or_else(|| spec.portworx_volume.as_ref().map(portworx))
    }

    /// Of a volume that stands in the pod, of a kind whose work CSI drivers have taken over.
    pub(crate) fn of_inline(volume: &Volume) -> Option<Self> {
        let ebs = volume.aws_elastic_block_store.as_ref().map(ebs);
        ebs.or_else(|| volume.gce_persistent_disk.as_ref().map(|disk| gce(disk, "zones/UNSPECIFIED")))
            .or_else(|| volume.azure_disk.as_ref().map(azure))
            .or_else(|| volume.cinder.as_ref().map(|disk| Self::new(CINDER, disk.volume_id.as_str())))
            .or_else(|| volume.portworx_volume.as_ref().map(portworx))
    }
}

const EBS: &str = "ebs.csi.aws.com";
const GCE: &str = "pd.csi.storage.gke.io";
const AZURE: &str = "disk.csi.azure.com";
const CINDER: &str = "cinder.csi.openstack.org";
const PORTWORX: &str = "pxd.portworx.com";

/// The driver that makes a class's volumes; `None` when they can't be counted. The provisioners that were part of
/// Kubernetes stand for the drivers that took their work over (upstream's `csi-translation-lib`).
pub(crate) fn driver_of_provisioner(provisioner: &str, node_has_drivers: bool) -> Option<&str> {
    let driver = match provisioner {
        "" | "kubernetes.io/azure-file" | "kubernetes.io/vsphere-volume" => return None,
        "kubernetes.io/aws-ebs" => EBS,
        "kubernetes.io/gce-pd" => GCE,
        "kubernetes.io/azure-disk" => AZURE,
        "kubernetes.io/cinder" => CINDER,
        "kubernetes.io/portworx-volume" => PORTWORX,
        other => return Some(other),
    };
    node_has_drivers.then_some(driver)
}

fn ebs(disk: &AWSElasticBlockStoreVolumeSource) -> Attachable {
    // "aws://zone/id", "aws:///id" and "id" are the same.
    let id = disk.volume_id.strip_prefix("aws://").and_then(|rest| rest.rsplit('/').next());
    Attachable::new(EBS, id.unwrap_or(&disk.volume_id))
}

fn gce(disk: &GCEPersistentDiskVolumeSource, place: &str) -> Attachable {
    Attachable::new(GCE, format!("projects/UNSPECIFIED/{place}/disks/{}", disk.pd_name))
}

fn azure(disk: &AzureDiskVolumeSource) -> Attachable {
    Attachable::new(AZURE, disk.disk_uri.as_str())
}

fn portworx(volume: &PortworxVolumeSource) -> Attachable {
    Attachable::new(PORTWORX, volume.volume_id.as_str())
}

fn zone_path(volume: &PersistentVolume) -> String {
    let label = |key: &str| volume.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let zones =
        label("topology.kubernetes.io/zone").or_else(|| label("failure-domain.beta.kubernetes.io/zone"));
    match zones.map(String::as_str) {
        None | Some("") => "zones/UNSPECIFIED".to_owned(),
        Some(zones) => match zones.split(MANY_ZONES).next() {
            // A region is its zones' name without the last part.
            Some(first) if zones.contains(MANY_ZONES) => {
                format!("regions/{}", first.rsplit_once('-').map_or(first, |(region, _)| region))
            }
            _ => format!("zones/{zones}"),
        },
    }
}
