//! A service proxy of your own: this one programs nothing and tells what it would have to do.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
};
use knet::{ServiceProxy, proxy::SyncError, rules::Table};
use kplane::Cluster;
use kube::{Api, api::PostParams};
use serde_json::json;
use tokio::sync::watch;

#[derive(Debug)]
struct Telling(watch::Sender<Table>);

#[async_trait]
impl ServiceProxy for Telling {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        for rule in table.rules() {
            println!("{}: port {} -> {:?}", rule.service, rule.port, rule.endpoints);
        }
        self.0.send_replace(table.clone());
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let (told, mut tables) = watch::channel(Table::default());
    let cluster = Cluster::builder().proxy(Arc::new(Telling(told))).start().await?;
    let patience = Duration::from_secs(30);
    cluster.wait_until::<ServiceAccount>("default", "default", patience, |account| account.is_some()).await?;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    Api::<Service>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "example/c"}]}}}});
    Api::<Deployment>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(deployment)?)
        .await?;
    // The proxy hears of the service, and of its two pods once they are ready.
    let both =
        tables.wait_for(|table| table.rules().any(|rule| rule.port == 80 && rule.endpoints.len() == 2));
    let table = tokio::time::timeout(patience, both).await.context("the proxy was not told")??;
    let rule = table.rules().find(|rule| rule.port == 80).context("a rule")?;
    ensure!(rule.endpoints.iter().all(|endpoint| endpoint.port() == 8080));
    drop(table);
    cluster.shutdown().await?;
    Ok(())
}
