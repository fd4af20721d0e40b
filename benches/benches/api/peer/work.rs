//! The work that every server does: one client, one request after the other.

use std::fmt::Debug;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::Instant;

use super::{Figures, servers::Server};
use crate::objects;

/// How many requests of a kind are made.
const REQUESTS: usize = 1_000;
/// How many lists, of all objects that there are then.
const LISTS: usize = 30;
/// Requests that are made before any is counted, so that connections and caches are there.
const WARM: usize = 200;

type Rows = Vec<(String, Figures)>;

pub(super) async fn all(server: &Server) -> Rows {
    let mut rows = Rows::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client.clone());
    let template: ConfigMap = objects::typed(objects::config_map("warm"));
    for index in 0..WARM {
        let mut map = template.clone();
        map.metadata.name = Some(format!("warm-{index}"));
        maps.create(&PostParams::default(), &map).await.expect("created");
        maps.delete(&map.name_any(), &DeleteParams::default()).await.expect("deleted");
    }
    verbs(server, &mut rows, "configmap_1k", &maps, template).await;
    let pods: Api<Pod> = Api::default_namespaced(server.client.clone());
    verbs(server, &mut rows, "pod_2k", &pods, objects::typed(objects::pod("pod"))).await;
    rows
}

/// How long `count` rounds take, and what they cost the servers.
async fn measure(
    server: &Server,
    rows: &mut Rows,
    name: String,
    count: usize,
    mut round: impl AsyncFnMut(usize),
) {
    let (cpu, began) = (server.cpu(), Instant::now());
    for index in 0..count {
        round(index).await;
    }
    let (took, cpu) = (began.elapsed(), server.cpu() - cpu);
    let figures = Figures {
        per_second: count as f64 / took.as_secs_f64(),
        server_cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
    };
    rows.push((name, figures));
}

async fn verbs<K>(server: &Server, rows: &mut Rows, what: &str, api: &Api<K>, mut template: K)
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let name = |index: usize| format!("object-{index}");
    let row = |verb: &str| format!("{verb}_{what}");
    let post = PostParams::default();
    measure(server, rows, row("create"), REQUESTS, async |index| {
        template.meta_mut().name = Some(name(index));
        api.create(&post, &template).await.expect("created");
    })
    .await;
    measure(server, rows, row("get"), REQUESTS, async |index| {
        api.get(&name(index)).await.expect("found");
    })
    .await;
    measure(server, rows, row(&format!("list_{REQUESTS}")), LISTS, async |_| {
        assert!(api.list(&ListParams::default()).await.expect("a list").items.len() >= REQUESTS);
    })
    .await;
    measure(server, rows, row("patch"), REQUESTS, async |index| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"count": index.to_string()}}}));
        api.patch(&name(index), &PatchParams::default(), &patch).await.expect("patched");
    })
    .await;
    let parameters = PatchParams::apply("bench").force();
    for verb in ["apply_new", "apply_unchanged"] {
        measure(server, rows, row(verb), REQUESTS, async |index| {
            let name = format!("applied-{index}");
            template.meta_mut().name = Some(name.clone());
            api.patch(&name, &parameters, &Patch::Apply(&template)).await.expect("applied");
        })
        .await;
    }
    watch(server, rows, row("patch_to_event"), api, &name(0)).await;
    measure(server, rows, row("delete"), REQUESTS, async |index| {
        api.delete(&name(index), &DeleteParams::default().grace_period(0)).await.expect("deleted");
    })
    .await;
}

/// From a change to its event at a watcher, which waits for it before the next change.
async fn watch<K>(server: &Server, rows: &mut Rows, row: String, api: &Api<K>, name: &str)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let revision = api.get(name).await.expect("found").resource_version().unwrap_or_default();
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let events = api.watch(&parameters, &revision).await.expect("a watch");
    let mut events =
        events.try_filter(|event| std::future::ready(matches!(event, WatchEvent::Modified(_)))).boxed();
    measure(server, rows, row, REQUESTS / 4, async |index| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"watched": index.to_string()}}}));
        api.patch(name, &PatchParams::default(), &patch).await.expect("patched");
        events.next().await.expect("an event").expect("no error");
    })
    .await;
}
