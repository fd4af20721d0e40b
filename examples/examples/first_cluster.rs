//! A cluster in this process: start it, use it with kube-rs, end it.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kplane::Cluster;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start().await?;
    for (part, took) in cluster.startup() {
        println!("{part}: {took:?}");
    }

    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    let web = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 5,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "server", "image": "example/server"}]},
            },
        },
    }))?;
    deployments.create(&PostParams::default(), &web).await?;

    let available = |web: Option<&Deployment>| {
        web.and_then(|web| web.status.as_ref()).is_some_and(|status| status.available_replicas == Some(5))
    };
    cluster.wait_until::<Deployment>("default", "web", Duration::from_secs(30), available).await?;

    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    for pod in pods.list(&ListParams::default().labels("app=web")).await? {
        let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        println!("{} runs on {node}", pod.metadata.name.unwrap_or_default());
    }
    cluster.shutdown().await?;
    Ok(())
}
