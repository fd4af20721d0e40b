//! Several API servers over one etcd: every acknowledged write is seen by the watchers of the others, in order.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kapi::{ApiServer, authn::UserInfo};
use kstore::{EtcdStore, testing::RealEtcd};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

/// An API server that keeps its objects in this etcd, and a client of it.
async fn server(endpoints: Vec<String>) -> Client {
    let store = EtcdStore::builder(endpoints).prefix("/registry").connect().await.unwrap();
    let server = ApiServer::builder().store(Arc::new(store)).build().unwrap();
    server.bootstrap().await.unwrap();
    Client::new(server.as_user(UserInfo::new("admin", ["system:masters"])), "default")
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap()
}

/// What a watch is told from a resource version on: names and resource versions, in order.
async fn told(client: &Client, after: &str, count: usize) -> Vec<(String, String)> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let events = maps.watch(&WatchParams::default(), after).await.unwrap();
    let named = events.try_filter_map(async |event| match event {
        WatchEvent::Added(map) | WatchEvent::Modified(map) => {
            Ok(Some((map.metadata.name.unwrap(), map.metadata.resource_version.unwrap())))
        }
        WatchEvent::Bookmark(_) => Ok(None),
        other => panic!("{other:?}"),
    });
    named.take(count).try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_over_one_etcd_are_one_api() {
    let Some(etcd) = RealEtcd::start(1) else { return };
    let (one, other) = tokio::join!(server(etcd.endpoints()), server(etcd.endpoints()));
    let maps = |client: &Client| Api::<ConfigMap>::default_namespaced(client.clone());
    let begin = maps(&other).list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watching = {
        let (other, begin) = (other.clone(), begin.clone());
        tokio::spawn(async move { told(&other, &begin, 60).await })
    };
    let mut written = Vec::new();
    for number in 0..30 {
        let name = format!("m{number}");
        let made = maps(&one).create(&PostParams::default(), &map(&name)).await.unwrap();
        written.push((name.clone(), made.metadata.resource_version.clone().unwrap()));
        // At once, at the other: what was answered here is there.
        let found = maps(&other).get(&name).await.unwrap();
        assert_eq!(found.metadata.resource_version, made.metadata.resource_version);
        let again = maps(&other).create(&PostParams::default(), &map(&name)).await.unwrap_err();
        assert!(matches!(&again, kube::Error::Api(status) if status.reason == "AlreadyExists"), "{again}");
        let patch = Patch::Merge(json!({"data": {"k": number.to_string()}}));
        let patched = maps(&other).patch(&name, &PatchParams::default(), &patch).await.unwrap();
        written.push((name.clone(), patched.metadata.resource_version.clone().unwrap()));
        let replaced = maps(&one).replace(&name, &PostParams::default(), &made).await.unwrap_err();
        assert!(matches!(&replaced, kube::Error::Api(status) if status.reason == "Conflict"), "{replaced}");
        // As new as what the other server said.
        let at = ListParams::default().at(patched.metadata.resource_version.as_deref().unwrap());
        assert_eq!(maps(&one).list(&at).await.unwrap().items.len(), number + 1);
    }
    assert_eq!(watching.await.unwrap(), written);
    maps(&other).delete("m0", &DeleteParams::default()).await.unwrap();
    assert!(maps(&one).get_opt("m0").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_members_one_is_killed_and_nothing_is_lost() {
    const WRITES: usize = 60;
    let Some(mut etcd) = RealEtcd::start(3) else { return };
    let endpoints = etcd.endpoints();
    let turned = |by: usize| endpoints.iter().cycle().skip(by).take(3).cloned().collect::<Vec<_>>();
    let servers = tokio::join!(server(turned(0)), server(turned(1)), server(turned(2)));
    let servers = [servers.0, servers.1, servers.2];
    let begin = Api::<ConfigMap>::default_namespaced(servers[0].clone())
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let watching = servers.clone().map(|client| {
        let begin = begin.clone();
        tokio::spawn(async move { told(&client, &begin, WRITES).await })
    });
    let mut written = Vec::new();
    for number in 0..WRITES {
        if number == WRITES / 3 {
            etcd.kill(0);
        }
        let maps = Api::<ConfigMap>::default_namespaced(servers[number % 3].clone());
        let name = format!("m{number:03}");
        let revision = loop {
            match maps.create(&PostParams::default(), &map(&name)).await {
                Ok(made) => break made.metadata.resource_version.unwrap(),
                // The answer was lost, and it was done; or it was not, and is tried again.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    break maps.get(&name).await.unwrap().metadata.resource_version.unwrap();
                }
                Err(kube::Error::Api(status)) if status.code >= 500 => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        written.push((name, revision));
    }
    for watching in watching {
        assert_eq!(watching.await.unwrap(), written);
    }
}
