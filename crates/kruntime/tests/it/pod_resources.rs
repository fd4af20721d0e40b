//! Who has what, as agents on the node ask for it: over the socket, with messages of the tests' own.

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use kruntime::{
    pod_resources::SOCKET,
    testing::{device::DevicePluginOptions, dra::DraDriverOptions},
};
use prost::Message;
use tonic::{Code, Request, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::{devices, dra};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<PodResources>,
}

#[derive(Clone, PartialEq, Message)]
struct Got {
    #[prost(message, optional, tag = "1")]
    pod: Option<PodResources>,
}

#[derive(Clone, PartialEq, Message)]
struct PodResources {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerResources {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<Devices>,
    #[prost(message, repeated, tag = "5")]
    claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, Message)]
struct Devices {
    #[prost(string, tag = "1")]
    resource: String,
    #[prost(string, repeated, tag = "2")]
    ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    topology: Option<Topology>,
}

#[derive(Clone, PartialEq, Message)]
struct Topology {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NumaNode>,
}

#[derive(Clone, PartialEq, Message)]
struct NumaNode {
    #[prost(int64, tag = "1")]
    id: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Claim {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<ClaimResource>,
}

#[derive(Clone, PartialEq, Message)]
struct ClaimResource {
    #[prost(string, tag = "2")]
    driver: String,
    #[prost(string, tag = "3")]
    pool: String,
    #[prost(string, tag = "4")]
    device: String,
}

async fn ask<A: Message + Default + 'static>(
    dir: &Path,
    method: &'static str,
    request: impl Message + 'static,
) -> Result<A, Status> {
    let socket = dir.join(SOCKET);
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let asked = async {
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = ProstCodec::<_, A>::default();
        grpc.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

async fn list(dir: &Path) -> Vec<PodResources> {
    ask::<Listed>(dir, "/v1.PodResourcesLister/List", Empty {}).await.unwrap().pods
}

/// Devices with their NUMA nodes.
type Placed<'a> = Vec<(&'a str, Vec<i64>)>;

/// Containers with their devices.
fn devices_of(pod: &PodResources) -> Vec<(&str, Placed<'_>)> {
    pod.containers
        .iter()
        .map(|container| {
            let devices = container.devices.iter().map(|device| {
                let nodes = device.topology.iter().flat_map(|all| all.nodes.iter().map(|node| node.id));
                (device.ids[0].as_str(), nodes.collect())
            });
            (container.name.as_str(), devices.collect())
        })
        .collect()
}

#[tokio::test]
async fn devices_are_told_of() {
    let world = devices::World::new().await;
    let mut options = DevicePluginOptions::new(devices::RESOURCE);
    options.nodes = [("a".to_owned(), vec![0]), ("b".to_owned(), vec![0, 1])].into();
    let _plugin = world.plugin(options, &[("a", true), ("b", true), ("c", true), ("sick", false)]).await;
    world.put_pod("pod", &[("init", 1), ("one", 2)]);
    world.put_pod("plain", &[("one", 0)]);
    world.phase("pod", "Running").await;
    world.phase("plain", "Running").await;
    let dir = world.node_dir();
    let pods = list(&dir).await;
    let names: Vec<_> = pods.iter().map(|pod| (&*pod.namespace, &*pod.name)).collect();
    assert_eq!(names, [("default", "plain"), ("default", "pod")]);
    assert_eq!(devices_of(&pods[0]), [("one", vec![])]);
    // An init container that has ended is not told of; one entry for each device and node.
    assert_eq!(devices_of(&pods[1]), [("one", vec![("a", vec![0]), ("b", vec![0]), ("b", vec![1])])]);
    assert_eq!(pods[1].containers[0].devices[0].resource, devices::RESOURCE);

    let get = async |name: &str| {
        let asked = Asked { name: name.to_owned(), namespace: "default".to_owned() };
        ask::<Got>(&dir, "/v1.PodResourcesLister/Get", asked).await
    };
    assert_eq!(get("pod").await.unwrap().pod.as_ref(), Some(&pods[1]));
    let error = get("none").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, "pod none in namespace default not found"));
    let all: ContainerAllocatable =
        ask(&dir, "/v1.PodResourcesLister/GetAllocatableResources", Empty {}).await.unwrap();
    let ids: Vec<_> = all.devices.iter().map(|device| device.ids.join(",")).collect();
    assert_eq!(ids, ["a", "b", "b", "c"], "those that are well, whether they are given or not");
    let error = ask::<Empty>(&dir, "/v1alpha1.PodResourcesLister/List", Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    world.delete("pod").await;
    assert_eq!(list(&dir).await.len(), 1);
}

#[derive(Clone, PartialEq, Message)]
struct ContainerAllocatable {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Devices>,
}

#[tokio::test]
async fn claims_are_told_of() {
    let world = dra::World::new();
    let _driver = world.driver(DraDriverOptions::new(dra::DRIVER)).await;
    world.put_claim("shared", &["one"]);
    world.put_pod("one", "shared", "exec sleep 1000");
    world.phase("one", "Running").await;
    let pods = list(&world.node_dir()).await;
    let resource = ClaimResource {
        driver: dra::DRIVER.to_owned(),
        pool: "pool".to_owned(),
        device: "shared".to_owned(),
    };
    let claim =
        Claim { name: "shared".to_owned(), namespace: "default".to_owned(), resources: vec![resource] };
    assert_eq!(pods[0].containers[0].claims, [claim]);
}
