//! The ways to the server: a bare call of the service, `kube::Client` in the process, and TLS over loopback. The CPU time is
//! that of both ends, which are in one process.

use std::{
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kapi::{
    ApiServer, AsUser,
    schema::{builtin, protobuf},
};
use kplane::Cluster;
use kplane_benches::{Cost, figure, measure};
use kube::{
    Api, Client, Config, Resource,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tower::Service as _;

use crate::objects;

const OBJECTS: usize = 5_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests to the service itself, with bodies of bytes.
pub(crate) struct Bare(AsUser);

impl Bare {
    pub(crate) fn new(server: &ApiServer) -> Self {
        Self(server.as_user(crate::admin()))
    }

    /// One request that must succeed.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content: &str,
        accept: &str,
        body: Bytes,
    ) -> Response<kapi::Body> {
        let request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        let request = request.header(header::CONTENT_TYPE, content).body(Full::new(body)).expect("a request");
        let response = self.0.call(request).await.expect("an answer");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response
    }

    /// The length of a list's bytes, all of them made.
    pub(crate) async fn list(&mut self, path: &str, accept: &str) -> usize {
        length(self.send(Method::GET, path, JSON, accept, Bytes::new()).await).await
    }
}

async fn length(response: Response<kapi::Body>) -> usize {
    let (mut body, mut length) = (response.into_body(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.into_data().map_or(0, |data| data.len());
    }
    length
}

pub(crate) async fn run() {
    let server = crate::server().await;
    let mut bare = Bare::new(&server);
    let json = through_bare(&mut bare, "configmap_1k", MAPS, objects::config_map, JSON).await;
    let protobuf = through_bare(&mut bare, "configmap_1k", MAPS, objects::config_map, PROTOBUF).await;
    let pods = Api::default_namespaced(crate::client(&server));
    through_kube::<Pod>(pods, "pod_2k", "kube", objects::pod).await;
    through_bare(&mut bare, "pod_2k", PODS, objects::pod, JSON).await;
    through_bare(&mut bare, "pod_2k", PODS, objects::pod, PROTOBUF).await;
    let maps = Api::default_namespaced(crate::client(&server));
    let kube = through_kube::<ConfigMap>(maps, "configmap_1k", "kube", objects::config_map).await;
    let tls = through_tls().await;
    for (name, path) in [("bare_protobuf", protobuf), ("kube", kube), ("tls", tls)] {
        figure(&format!("ratio_create_{name}_to_bare_json"), path.0.cpu_us / json.0.cpu_us, "x");
        figure(&format!("ratio_get_{name}_to_bare_json"), path.1.cpu_us / json.1.cpu_us, "x");
    }
}

/// Creates and gets as bytes; what is sent is encoded before the clock starts.
async fn through_bare(
    bare: &mut Bare,
    what: &str,
    path: &str,
    object: fn(&str) -> Value,
    media: &str,
) -> (Cost, Cost) {
    let form = if media == PROTOBUF { "bare_protobuf" } else { "bare_json" };
    let name = |index: usize| format!("{}-{index}", form.replace('_', "-"));
    let catalog = builtin::catalog();
    let encode = |index: usize| {
        let object = object(&name(index));
        let bytes = if media == PROTOBUF {
            protobuf::encode(&catalog, &object).expect("protobuf")
        } else {
            serde_json::to_vec(&object).expect("JSON")
        };
        Bytes::from(bytes)
    };
    let bodies: Vec<Bytes> = (0..OBJECTS).map(encode).collect();
    let create = measure(OBJECTS, async |index| {
        let response = bare.send(Method::POST, path, media, media, bodies[index].clone()).await;
        assert!(length(response).await > 0);
    });
    let create = create.await;
    create.print(&format!("create_{what}_{form}"));
    let paths: Vec<String> = (0..OBJECTS).map(|index| format!("{path}/{}", name(index))).collect();
    let get = measure(OBJECTS, async |index| assert!(bare.list(&paths[index], media).await > 0)).await;
    get.print(&format!("get_{what}_{form}"));
    // What a second reader pays: the bytes are there.
    let again = measure(OBJECTS, async |index| assert!(bare.list(&paths[index], media).await > 0)).await;
    again.print(&format!("get_{what}_{form}_again"));
    (create, get)
}

async fn through_kube<K>(api: Api<K>, what: &str, path: &str, object: fn(&str) -> Value) -> (Cost, Cost)
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let mut template: K = objects::typed(object(path));
    let parameters = PostParams::default();
    let create = measure(OBJECTS, async |index| {
        template.meta_mut().name = Some(format!("{path}-{index}"));
        api.create(&parameters, &template).await.expect("created");
    });
    let create = create.await;
    create.print(&format!("create_{what}_{path}"));
    let get = measure(OBJECTS, async |index| {
        api.get(&format!("{path}-{index}")).await.expect("found");
    });
    let get = get.await;
    get.print(&format!("get_{what}_{path}"));
    (create, get)
}

/// A cluster without anything that would use CPU beside the server, reached as kubectl reaches it.
async fn through_tls() -> (Cost, Cost) {
    let builder = Cluster::builder().without_controllers().without_scheduler().nodes(0);
    let cluster = builder.start().await.expect("a cluster");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let serving = cluster.serve(address).await.expect("a listener");
    let kubeconfig = Kubeconfig::from_yaml(&serving.kubeconfig).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("a configuration");
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let client = Client::try_from(config).expect("a client");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    // The handshake is not part of a request.
    maps.list(&ListParams::default()).await.expect("a first answer");
    let costs = through_kube::<ConfigMap>(maps, "configmap_1k", "tls", objects::config_map).await;
    cluster.shutdown().await.expect("a clean end");
    costs
}
