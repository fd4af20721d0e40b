//! The API server through `kube::Client`, on one core: creates, gets, updates, lists.

use k8s_openapi::api::core::v1::ConfigMap;
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kplane_benches::{cpu_time, figure, resident_bytes};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

const OBJECTS: usize = 20_000;
const LISTED: usize = 5_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = ApiServer::builder().build().expect("a server");
    server.bootstrap().await.expect("a cluster's objects");
    let client = Client::new(server.as_user(UserInfo::new("bench", [MASTERS])), "default");
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let map = |name: String| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": "x".repeat(1024)}}))
            .expect("a map")
    };
    let parameters = PostParams::default();
    let before = resident_bytes();
    let (begin, cpu) = (Instant::now(), cpu_time());
    for index in 0..OBJECTS {
        api.create(&parameters, &map(format!("map-{index}"))).await.expect("created");
    }
    rate("create_configmap_1k", OBJECTS, begin, cpu);
    figure("resident_per_configmap_1k", (resident_bytes() - before) as f64 / OBJECTS as f64, "bytes");
    let (begin, cpu) = (Instant::now(), cpu_time());
    for index in 0..OBJECTS {
        api.get(&format!("map-{index}")).await.expect("found");
    }
    rate("get_configmap_1k", OBJECTS, begin, cpu);
    let (begin, cpu) = (Instant::now(), cpu_time());
    for index in 0..OBJECTS {
        let patch = Patch::Merge(json!({"data": {"count": index.to_string()}}));
        api.patch(&format!("map-{index}"), &PatchParams::default(), &patch).await.expect("patched");
    }
    rate("patch_configmap_1k", OBJECTS, begin, cpu);
    let begin = Instant::now();
    let list = api.list(&ListParams::default().limit(LISTED as u32)).await.expect("a list");
    assert_eq!(list.items.len(), LISTED);
    figure("list_5000_configmaps_typed", begin.elapsed().as_secs_f64() * 1000.0, "ms");
}

fn rate(name: &str, count: usize, begin: Instant, cpu: std::time::Duration) {
    let (took, cpu) = (begin.elapsed(), cpu_time() - cpu);
    figure(&format!("{name}_per_second"), count as f64 / took.as_secs_f64(), "1/s");
    figure(&format!("{name}_cpu"), cpu.as_secs_f64() * 1e6 / count as f64, "us");
}
