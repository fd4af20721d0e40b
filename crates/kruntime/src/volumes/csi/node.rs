//! What the API knows of the node's drivers: the CSINode, an annotation of the Node, and labels for where it is.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::Node,
        storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::proto::{NodeGetInfoResponse, Texts};

/// The annotation with the names that drivers have for the node.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// How often a write is tried that others interfere with.
const TRIES: u32 = 6;
/// How soon it is tried again at first; twice as long each time.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Tells of a driver.
pub(super) async fn install(
    client: &Client,
    node: &str,
    driver: &str,
    info: &NodeGetInfoResponse,
) -> Result<(), String> {
    if info.node_id.is_empty() {
        return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
    }
    let segments =
        info.accessible_topology.as_ref().map(|topology| topology.segments.clone()).unwrap_or_default();
    retried(|| update_node(client, node, driver, Some(&info.node_id), &segments))
        .await
        .map_err(|error| format!("error updating Node object with CSI driver node info: {error}"))?;
    let entry = entry(driver, info, &segments);
    retried(|| update_csi_node(client, node, driver, Some(&entry)))
        .await
        .map_err(|error| format!("error updating CSINode object with CSI driver node info: {error}"))
}

/// Tells that it is gone. The labels stay, as upstream.
pub(super) async fn uninstall(client: &Client, node: &str, driver: &str) -> Result<(), String> {
    retried(|| update_csi_node(client, node, driver, None))
        .await
        .map_err(|error| format!("error uninstalling CSI driver from CSINode object {error}"))?;
    let nowhere = Texts::new();
    retried(|| update_node(client, node, driver, None, &nowhere))
        .await
        .map_err(|error| format!("error removing CSI driver node info from Node object {error}"))
}

/// Makes the CSINode unless it is there. One of an earlier node of the name is replaced.
pub(super) async fn ensure(client: &Client, node: &str) -> Result<CSINode, String> {
    let all = Api::<CSINode>::all(client.clone());
    let owner = Api::<Node>::all(client.clone()).get(node).await.map_err(|error| error.to_string())?;
    let uid = owner.metadata.uid.unwrap_or_default();
    if let Some(found) = all.get_opt(node).await.map_err(|error| error.to_string())? {
        let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
        if owners.iter().any(|owner| owner.kind == "Node" && owner.name == node && owner.uid == uid) {
            return Ok(found);
        }
        all.delete(node, &DeleteParams::default()).await.map_err(|error| error.to_string())?;
    }
    let new = CSINode {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid,
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
        status: None,
    };
    all.create(&PostParams::default(), &new).await.map_err(|error| error.to_string())
}

async fn update_csi_node(
    client: &Client,
    node: &str,
    driver: &str,
    entry: Option<&CSINodeDriver>,
) -> Result<(), String> {
    let mut object = match entry {
        Some(_) => ensure(client, node).await?,
        None => match Api::<CSINode>::all(client.clone()).get_opt(node).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        },
    };
    let Some(drivers) = with_driver(&object.spec.drivers, driver, entry) else { return Ok(()) };
    object.spec.drivers = drivers;
    let all = Api::<CSINode>::all(client.clone());
    all.replace(node, &PostParams::default(), &object).await.map(drop).map_err(|error| error.to_string())
}

fn entry(driver: &str, info: &NodeGetInfoResponse, segments: &Texts) -> CSINodeDriver {
    let count = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(segments.keys().cloned().collect()).filter(|keys: &Vec<String>| !keys.is_empty()),
        allocatable: (info.max_volumes_per_node > 0).then_some(VolumeNodeResources { count: Some(count) }),
    }
}

/// The list with the driver's entry as it is to be, or without it; `None` when nothing changes.
fn with_driver(
    drivers: &[CSINodeDriver],
    name: &str,
    entry: Option<&CSINodeDriver>,
) -> Option<Vec<CSINodeDriver>> {
    let same = |known: &CSINodeDriver| {
        entry.is_some_and(|entry| {
            let keys = |of: &CSINodeDriver| {
                let mut keys = of.topology_keys.clone().unwrap_or_default();
                keys.sort();
                keys
            };
            let count = |of: &CSINodeDriver| of.allocatable.as_ref().and_then(|all| all.count);
            known.node_id == entry.node_id && keys(known) == keys(entry) && count(known) == count(entry)
        })
    };
    let known = drivers.iter().find(|known| known.name == name);
    if known.map_or(entry.is_none(), same) {
        return None;
    }
    let others = drivers.iter().filter(|known| known.name != name).cloned();
    Some(others.chain(entry.cloned()).collect())
}

async fn update_node(
    client: &Client,
    node: &str,
    driver: &str,
    id: Option<&str>,
    segments: &Texts,
) -> Result<(), String> {
    let all = Api::<Node>::all(client.clone());
    let object = match all.get_opt(node).await {
        Ok(Some(found)) => found,
        Ok(None) if id.is_none() => return Ok(()),
        Ok(None) => return Err(format!("nodes {node:?} not found")),
        Err(error) => return Err(error.to_string()),
    };
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(NODE_ID));
    let annotation = with_id(annotation.map(String::as_str), driver, id)?;
    let labels = new_labels(object.metadata.labels.as_ref(), segments)?;
    if annotation.is_none() && labels.is_empty() {
        return Ok(());
    }
    let mut metadata = json!({"resourceVersion": object.metadata.resource_version, "labels": labels});
    if let Some(annotation) = annotation {
        metadata["annotations"] = json!({NODE_ID: annotation});
    }
    let patch = Patch::Merge(json!({"metadata": metadata}));
    all.patch(node, &PatchParams::default(), &patch).await.map(drop).map_err(|error: Error| error.to_string())
}

/// The annotation as it is to be: `Some(None)` for none at all, `None` when it is as it should be.
fn with_id(
    annotation: Option<&str>,
    driver: &str,
    id: Option<&str>,
) -> Result<Option<Option<String>>, String> {
    let mut ids: BTreeMap<String, String> = match annotation.filter(|text| !text.is_empty()) {
        None => BTreeMap::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            format!("failed to parse node's {NODE_ID:?} annotation value ({text:?}) err={error}")
        })?,
    };
    if ids.get(driver).map(String::as_str) == id {
        return Ok(None);
    }
    match id {
        Some(id) => drop(ids.insert(driver.to_owned(), id.to_owned())),
        None => drop(ids.remove(driver)),
    }
    if ids.is_empty() {
        return Ok(Some(None));
    }
    serde_json::to_string(&ids).map(|text| Some(Some(text))).map_err(|error| error.to_string())
}

/// The labels that the node does not have yet. One that it has with another value is an error: two drivers, or a driver and a
/// person, see it at different places.
fn new_labels(labels: Option<&BTreeMap<String, String>>, segments: &Texts) -> Result<Texts, String> {
    let mut new = Texts::new();
    for (key, value) in segments {
        match labels.and_then(|labels| labels.get(key)) {
            Some(known) if known != value => {
                return Err(format!(
                    "detected topology value collision: driver reported {key:?}:{value:?} but existing label is \
                     {key:?}:{known:?}"
                ));
            }
            Some(_) => {}
            None => drop(new.insert(key.clone(), value.clone())),
        }
    }
    Ok(new)
}

async fn retried<F, T>(mut write: impl FnMut() -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
{
    let mut wait = RETRY_AFTER;
    for _ in 1..TRIES {
        match write().await {
            Ok(done) => return Ok(done),
            Err(error) => tracing::debug!(error, "a node's drivers are not told of yet"),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    write().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::csi::proto::Topology;

    fn info(id: &str, most: i64, keys: &[&str]) -> NodeGetInfoResponse {
        let segments = keys.iter().map(|key| ((*key).to_owned(), "here".to_owned())).collect();
        NodeGetInfoResponse {
            node_id: id.to_owned(),
            max_volumes_per_node: most,
            accessible_topology: Some(Topology { segments }),
        }
    }

    fn made(id: &str, most: i64, keys: &[&str]) -> CSINodeDriver {
        let info = info(id, most, keys);
        entry("d", &info, &info.accessible_topology.clone().unwrap().segments)
    }

    #[test]
    fn a_driver_stands_in_the_list_once() {
        // Upstream's `TestInstallCSIDriver`.
        let other = CSINodeDriver { name: "other".into(), node_id: "o".into(), ..CSINodeDriver::default() };
        let one = made("id", 0, &["zone", "rack"]);
        assert_eq!(one.topology_keys, Some(vec!["rack".to_owned(), "zone".to_owned()]));
        assert_eq!(one.allocatable, None);
        assert_eq!(made("id", i64::MAX, &[]).allocatable.unwrap().count, Some(i32::MAX));
        assert_eq!(made("id", -1, &[]).allocatable, None);
        let list = with_driver(std::slice::from_ref(&other), "d", Some(&one)).unwrap();
        assert_eq!(list, [other.clone(), one.clone()]);
        assert_eq!(with_driver(&list, "d", Some(&one)), None);
        for changed in
            [made("id2", 0, &["zone", "rack"]), made("id", 5, &["zone", "rack"]), made("id", 0, &["zone"])]
        {
            assert_eq!(with_driver(&list, "d", Some(&changed)).unwrap(), [other.clone(), changed]);
        }
        assert_eq!(with_driver(&list, "d", None).unwrap(), std::slice::from_ref(&other));
        assert_eq!(with_driver(&[other], "d", None), None);
    }

    #[test]
    fn the_annotation_has_an_entry_for_each_driver() {
        let cases = [
            (None, Some("i"), Ok(Some(Some("{\"d\":\"i\"}")))),
            (Some("{\"d\":\"i\"}"), Some("i"), Ok(None)),
            (Some("{\"a\":\"b\"}"), Some("i"), Ok(Some(Some("{\"a\":\"b\",\"d\":\"i\"}")))),
            (Some("{\"a\":\"b\",\"d\":\"i\"}"), None, Ok(Some(Some("{\"a\":\"b\"}")))),
            (Some("{\"d\":\"i\"}"), None, Ok(Some(None))),
            (None, None, Ok(None)),
            (Some("nonsense"), Some("i"), Err(())),
        ];
        for (before, id, expected) in cases {
            let found = with_id(before, "d", id).map_err(drop);
            let expected = expected.map(|changed| changed.map(|text| text.map(str::to_owned)));
            assert_eq!(found, expected, "{before:?} {id:?}");
        }
    }

    #[test]
    fn labels_are_added_and_never_changed() {
        let texts = |list: &[(&str, &str)]| -> Texts {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let labels = texts(&[("zone", "a")]);
        assert_eq!(
            new_labels(Some(&labels), &texts(&[("zone", "a"), ("rack", "r")])).unwrap(),
            texts(&[("rack", "r")])
        );
        assert!(new_labels(None, &Texts::new()).unwrap().is_empty());
        let refused = new_labels(Some(&labels), &texts(&[("zone", "b")])).unwrap_err();
        assert_eq!(
            refused,
            "detected topology value collision: driver reported \"zone\":\"b\" but existing label is \"zone\":\"a\""
        );
    }
}
