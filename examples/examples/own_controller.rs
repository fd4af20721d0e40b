//! A controller of your own: every namespace with the label `quota` gets a ConfigMap that repeats it.
//!
//! It only holds a `kube::Client`, so the same code runs against any cluster.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kplane::Cluster;
use kreconcile::{
    Action, Controller, Informers, MapTo, ObjectKey, ReconcileError, Runnable, Selection, Trigger,
    reconcile_fn,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Watches namespaces and keeps the ConfigMap of each as its label says.
fn quota_controller(client: Client, informers: &Informers) -> Controller {
    let namespaces = informers.of::<Namespace>(Selection::all().labels("quota"));
    let lister = namespaces.clone();
    let reconciler = reconcile_fn(move |key: ObjectKey| {
        let (client, namespaces) = (client.clone(), lister.clone());
        async move {
            let Some(namespace) = namespaces.get("", &key.name) else {
                return Ok(Action::Done);
            };
            let quota = namespace
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get("quota"))
                .cloned()
                .unwrap_or_default();
            let maps: Api<ConfigMap> = Api::namespaced(client, &key.name);
            let wanted: ConfigMap =
                serde_json::from_value(json!({"metadata": {"name": "quota"}, "data": {"pods": quota}}))
                    .map_err(ReconcileError::other)?;
            if maps.get_opt("quota").await?.is_none() {
                maps.create(&PostParams::default(), &wanted).await?;
            } else {
                maps.patch("quota", &PatchParams::default(), &Patch::Merge(&wanted)).await?;
            }
            Ok(Action::Done)
        }
    });
    Controller::new("quota", reconciler).on(Trigger::new(&namespaces, MapTo::Itself))
}

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::builder()
        .nodes(0)
        .reconcilers(|context| {
            let client = context.informers().client().clone();
            vec![Arc::new(quota_controller(client, context.informers())) as Arc<dyn Runnable>]
        })
        .start()
        .await?;
    let team = json!({"metadata": {"name": "team", "labels": {"quota": "7"}}});
    Api::<Namespace>::all(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(team)?)
        .await?;
    let patience = Duration::from_secs(10);
    let map = cluster.wait_until::<ConfigMap>("team", "quota", patience, |map| map.is_some()).await?;
    let data = map.and_then(|map| map.data.clone()).unwrap_or_default();
    println!("team's quota: {data:?}");
    ensure!(data["pods"] == "7");

    let patch = Patch::Merge(json!({"metadata": {"labels": {"quota": "9"}}}));
    Api::<Namespace>::all(cluster.client()).patch("team", &PatchParams::default(), &patch).await?;
    let raised = |map: Option<&ConfigMap>| {
        map.and_then(|map| map.data.as_ref()).is_some_and(|data| data["pods"] == "9")
    };
    cluster.wait_until::<ConfigMap>("team", "quota", patience, raised).await?;
    println!("raised to 9");
    cluster.shutdown().await?;
    Ok(())
}
