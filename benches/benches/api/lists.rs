//! A list of 5,000 pods: to bytes in each form, and to Rust types. And what a list of 100,000 objects holds while it is sent.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kplane_benches::{Allocations, figure, measure};
use kube::{Api, api::ListParams};

use crate::{objects, paths::Bare};

const LISTED: usize = 5_000;
const MANY: usize = 100_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

pub(crate) async fn run() {
    let server = crate::server().await;
    let mut bare = Bare::new(&server);
    for index in 0..LISTED {
        let mut pod = objects::pod(&format!("pod-{index}"));
        pod["spec"]["nodeName"] = format!("node-{}", index % 100).into();
        let body = Bytes::from(serde_json::to_vec(&pod).expect("JSON"));
        bare.send(Method::POST, PODS, JSON, JSON, body).await;
    }
    // The first list in a form makes what later ones find ready.
    for (name, accept, times) in [("json", JSON, 20), ("protobuf", PROTOBUF, 20), ("table", TABLE, 5)] {
        let mut length = 0;
        let first = measure(1, async |_| length = bare.list(PODS, accept).await).await;
        first.print_long(&format!("list_5000_pods_{name}_first"));
        let later = measure(times, async |_| assert_eq!(bare.list(PODS, accept).await, length)).await;
        later.print_long(&format!("list_5000_pods_{name}"));
        figure(&format!("list_5000_pods_{name}_size"), length as f64 / 1e6, "MB");
    }
    let pods: Api<Pod> = Api::default_namespaced(crate::client(&server));
    let typed = measure(5, async |_| {
        let list = pods.list(&ListParams::default()).await.expect("a list");
        assert_eq!(list.items.len(), LISTED);
    });
    typed.await.print_long("list_5000_pods_typed");
    // One node's pods are found by an index, not by looking at all.
    let path = format!("{PODS}?fieldSelector=spec.nodeName%3Dnode-7");
    let indexed = measure(200, async |_| assert!(bare.list(&path, JSON).await > 0)).await;
    indexed.print("list_50_of_5000_pods_by_node_json");
    many().await;
}

/// How much more than before is on the heap at the most while a list of 100,000 ConfigMaps of 1 KiB is sent, and after it: what is
/// left are messages that the next list in protobuf finds ready.
async fn many() {
    let server = crate::server().await;
    let mut bare = Bare::new(&server);
    for index in 0..MANY {
        let map = objects::config_map(&format!("map-{index}"));
        let body = Bytes::from(serde_json::to_vec(&map).expect("JSON"));
        bare.send(Method::POST, MAPS, JSON, JSON, body).await;
    }
    for (name, accept) in [("json", JSON), ("metadata", METADATA), ("table", TABLE), ("protobuf", PROTOBUF)] {
        for time in ["first", "again"] {
            let before = Allocations::now().live_bytes;
            let (mut most, mut length) = (before, 0);
            let mut body = bare.send(Method::GET, MAPS, JSON, accept, Bytes::new()).await.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                most = most.max(Allocations::now().live_bytes);
                length += frame.into_data().map_or(0, |data| data.len());
            }
            drop(body);
            let left = Allocations::now().live_bytes - before;
            figure(&format!("list_100000_{name}_{time}_size"), length as f64 / 1e6, "MB");
            figure(&format!("list_100000_{name}_{time}_peak"), (most - before) as f64 / 1e6, "MB");
            figure(&format!("list_100000_{name}_{time}_left"), left as f64 / 1e6, "MB");
        }
    }
}
