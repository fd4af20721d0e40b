//! The claims that are prepared on a node, in a file that outlives the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use k8s_openapi::api::{core::v1::Pod, resource::v1::ResourceClaim};
use serde::{Deserialize, Serialize};

use super::proto;
use crate::pod_resources::proto::{CdiDevice, ClaimResource, DynamicResource};

/// The file in the node's directory, of a form of its own.
pub(super) const CHECKPOINT: &str = "dra_manager_state";

/// Claims by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known(pub(super) BTreeMap<(String, String), Info>);

/// A claim that pods of the node use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Info {
    pub(super) uid: String,
    name: String,
    namespace: String,
    pub(super) pods: BTreeSet<String>,
    /// The devices by the drivers that prepared them.
    pub(super) drivers: BTreeMap<String, Vec<Device>>,
    /// Whether all drivers have prepared it, since the agent is there.
    #[serde(skip)]
    pub(super) is_prepared: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    requests: Vec<String>,
    pool: String,
    name: String,
    cdi: Vec<String>,
    share: Option<String>,
}

impl From<proto::Device> for Device {
    fn from(device: proto::Device) -> Self {
        Self {
            requests: device.request_names,
            pool: device.pool_name,
            name: device.device_name,
            cdi: device.cdi_device_ids,
            share: device.share_id,
        }
    }
}

impl Info {
    /// A claim that nothing is prepared of.
    ///
    /// # Errors
    /// It is not allocated.
    pub(super) fn new(claim: &ResourceClaim) -> Result<Self, String> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
        let allocation = allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
        let devices = allocation.devices.as_ref();
        let results = devices.into_iter().flat_map(|devices| devices.results.iter().flatten());
        Ok(Self {
            uid: claim.metadata.uid.clone().unwrap_or_default(),
            namespace: claim.metadata.namespace.clone().unwrap_or_default(),
            drivers: results.map(|result| (result.driver.clone(), Vec::new())).collect(),
            name,
            ..Self::default()
        })
    }

    pub(super) fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }

    pub(super) fn claim(&self) -> proto::Claim {
        proto::Claim { namespace: self.namespace.clone(), uid: self.uid.clone(), name: self.name.clone() }
    }

    /// Whether no driver has prepared anything.
    pub(super) fn is_empty(&self) -> bool {
        self.drivers.values().all(Vec::is_empty)
    }

    /// It for others on the node. Each device has its own names; upstream's has those of the driver's devices before it, too.
    pub(super) fn tell(&self) -> DynamicResource {
        let devices = self
            .drivers
            .iter()
            .flat_map(|(driver, devices)| devices.iter().map(move |device| (driver, device)));
        let tell = |(driver, device): (&String, &Device)| ClaimResource {
            cdi_devices: device.cdi.iter().map(|name| CdiDevice { name: name.clone() }).collect(),
            driver_name: driver.clone(),
            pool_name: device.pool.clone(),
            device_name: device.name.clone(),
            share_id: device.share.clone(),
        };
        DynamicResource {
            claim_name: self.name.clone(),
            claim_namespace: self.namespace.clone(),
            claim_resources: devices.map(tell).collect(),
        }
    }

    /// The names in the Container Device Interface of what is for this request; for the empty one of all.
    pub(super) fn cdi(&self, request: &str) -> impl Iterator<Item = &String> {
        let is_meant = move |device: &&Device| {
            request.is_empty()
                || device.requests.is_empty()
                || device.requests.iter().any(|one| one == request)
        };
        self.drivers.values().flatten().filter(is_meant).flat_map(|device| &device.cdi)
    }
}

impl Known {
    pub(super) fn read(dir: &Path) -> Self {
        let read =
            fs::read(dir.join(CHECKPOINT)).and_then(|bytes| Ok(serde_json::from_slice::<Vec<Info>>(&bytes)?));
        let all = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(dir = %dir.display(), %error, "it is not known any more which claims are prepared");
            }
            Vec::new()
        });
        Self(all.into_iter().map(|info| (info.key(), info)).collect())
    }

    pub(super) fn keep(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let new = tempfile::NamedTempFile::new_in(dir)?;
        fs::write(new.path(), serde_json::to_vec(&self.0.values().collect::<Vec<_>>())?)?;
        new.persist(dir.join(CHECKPOINT)).map_err(|error| error.error)?;
        Ok(())
    }
}

/// A claim that a pod names: by which of its entries, the claim's name, and whether it must have been made for the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) entry: String,
    pub(super) claim: String,
    pub(super) is_own: bool,
}

/// The claims that a pod names, that of its extended resources (KEP-5004) last. One that is not needed is left out.
///
/// # Errors
/// Upstream's words (`resourceclaim.Name`).
pub(super) fn named(pod: &Pod) -> Result<Vec<Named>, String> {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let status = pod.status.as_ref();
    let mut found = Vec::new();
    for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
        let mut add = |claim: &str, is_own| {
            found.push(Named { entry: entry.name.clone(), claim: claim.to_owned(), is_own });
        };
        match (&entry.resource_claim_name, &entry.resource_claim_template_name) {
            (Some(claim), _) => add(claim, false),
            (None, Some(_)) => {
                let mut statuses =
                    status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
                let made = statuses
                    .find(|status| status.name == entry.name)
                    .ok_or_else(|| format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))?;
                if let Some(claim) = &made.resource_claim_name {
                    add(claim, true);
                }
            }
            (None, None) => {
                let entry = &entry.name;
                return Err(format!(
                    "pod \"{namespace}/{name}\", spec.resourceClaim {entry:?}: none of the supported fields are set"
                ));
            }
        }
    }
    if let Some(extended) = status.and_then(|status| status.extended_resource_claim_status.as_ref()) {
        let claim = extended.resource_claim_name.clone();
        found.push(Named { entry: String::new(), claim, is_own: false });
    }
    Ok(found)
}

/// Whether a pod may use a claim, in upstream's words.
///
/// # Errors
/// Why not.
pub(super) fn check(pod: &Pod, named: &Named, claim: &ResourceClaim) -> Result<(), String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let claim_name = &named.claim;
    if named.is_own {
        let owners = claim.metadata.owner_references.iter().flatten();
        if !owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == uid) {
            return Err(format!(
                "ResourceClaim {namespace}/{claim_name} was not created for Pod {namespace}/{name} (Pod is not owner)"
            ));
        }
    }
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !reserved.into_iter().any(|reserved| reserved.uid == uid) {
        let claim_uid = text(&claim.metadata.uid);
        return Err(format!(
            "pod {name} ({uid}) is not allowed to use ResourceClaim {claim_name} ({claim_uid})"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(claims: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "resourceClaims": claims}, "status": status,
        }))
        .unwrap()
    }

    /// Upstream's `TestName` of `resourceclaim`.
    #[test]
    fn pods_name_claims_or_have_them_made() {
        let template = json!([{"name": "e", "resourceClaimTemplateName": "t"}]);
        let one =
            |claim: &str, is_own| Ok(vec![Named { entry: "e".to_owned(), claim: claim.to_owned(), is_own }]);
        let cases = [
            (json!([]), json!({}), Ok(Vec::new())),
            (json!([{"name": "e", "resourceClaimName": "c"}]), json!({}), one("c", false)),
            (template.clone(), json!({}), Err("pod \"n/p\": ResourceClaim not created yet")),
            (
                template.clone(),
                json!({"resourceClaimStatuses": [{"name": "e", "resourceClaimName": "made"}]}),
                one("made", true),
            ),
            (template, json!({"resourceClaimStatuses": [{"name": "e"}]}), Ok(Vec::new())),
            (
                json!([{"name": "e"}]),
                json!({}),
                Err("pod \"n/p\", spec.resourceClaim \"e\": none of the supported fields are set"),
            ),
        ];
        for (claims, status, expected) in cases {
            assert_eq!(named(&pod(claims, status)), expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn pods_use_only_what_is_theirs() {
        let pod = pod(json!([]), json!({}));
        let claim = |owner: &str, reserved: &str| -> ResourceClaim {
            serde_json::from_value(json!({
                "metadata": {"name": "c", "namespace": "n", "uid": "cu", "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": reserved}]},
            }))
            .unwrap()
        };
        let of = |is_own| Named { entry: "e".to_owned(), claim: "c".to_owned(), is_own };
        assert_eq!(check(&pod, &of(true), &claim("u", "u")), Ok(()));
        assert_eq!(check(&pod, &of(false), &claim("other", "u")), Ok(()));
        assert_eq!(
            check(&pod, &of(true), &claim("other", "u")).unwrap_err(),
            "ResourceClaim n/c was not created for Pod n/p (Pod is not owner)"
        );
        assert_eq!(
            check(&pod, &of(false), &claim("u", "other")).unwrap_err(),
            "pod p (u) is not allowed to use ResourceClaim c (cu)"
        );
        assert_eq!(Info::new(&claim("u", "u")).unwrap_err(), "ResourceClaim c: not allocated");
    }

    #[test]
    fn devices_are_for_their_requests() {
        let device = |requests: &[&str], cdi: &str| Device {
            requests: requests.iter().map(|text| (*text).to_owned()).collect(),
            cdi: vec![cdi.to_owned()],
            ..Device::default()
        };
        let devices = vec![device(&["a"], "v/c=a"), device(&["b", "c/sub"], "v/c=b"), device(&[], "v/c=all")];
        let info = Info { drivers: [("d".to_owned(), devices)].into(), ..Info::default() };
        for (request, expected) in [
            ("", vec!["v/c=a", "v/c=b", "v/c=all"]),
            ("a", vec!["v/c=a", "v/c=all"]),
            ("c/sub", vec!["v/c=b", "v/c=all"]),
            ("x", vec!["v/c=all"]),
        ] {
            assert_eq!(info.cdi(request).collect::<Vec<_>>(), expected, "{request}");
        }
    }
}
