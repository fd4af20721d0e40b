//! kube-rs over each of the three ways into a cluster: the same body, three times.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kplane::Cluster;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use crate::support::PATIENCE;

/// Everything that a program on kube-rs does, through `client`.
async fn body(client: Client) {
    let version = client.apiserver_version().await.unwrap();
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "37"));
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut seen =
        watcher(api.clone(), watcher::Config::default().streaming_lists()).applied_objects().boxed();
    let map = |name: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"t": "1"}}})).unwrap()
    };
    let made = api.create(&PostParams::default(), &map("a")).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, async {
        loop {
            let object = seen.try_next().await.unwrap().unwrap();
            if object.name_any() == "a" {
                return object;
            }
        }
    });
    assert_eq!(next.await.unwrap().uid(), made.uid());
    let patched =
        api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "v"}}))).await.unwrap();
    assert_eq!(patched.data.unwrap()["k"], "v");
    let conflict = api.replace("a", &PostParams::default(), &made).await.unwrap_err();
    assert!(
        matches!(&conflict, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict"),
        "{conflict}"
    );
    api.create(&PostParams::default(), &map("b")).await.unwrap();
    let first = api.list(&ListParams::default().labels("t=1").limit(1)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (1, None));
    let token = first.metadata.continue_.unwrap();
    let rest = api.list(&ListParams::default().labels("t=1").limit(10).continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.iter().map(ResourceExtName::name).collect::<Vec<_>>(), ["b"]);
    let revision = rest.metadata.resource_version.unwrap();
    // The cluster's own map may come into the namespace only now.
    let mut watch = api.watch(&WatchParams::default().labels("t=1"), &revision).await.unwrap().boxed();
    api.delete("b", &DeleteParams::default()).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, watch.try_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Deleted(object) if object.name_any() == "b"));
    let missing = Api::<ConfigMap>::namespaced(client.clone(), "nowhere").get("a").await.unwrap_err();
    assert!(
        matches!(&missing, kube::Error::Api(status) if status.message == "configmaps \"a\" not found"),
        "{missing}"
    );
    let discovery = kube::discovery::Discovery::new(client.clone()).run_aggregated().await.unwrap();
    assert!(discovery.groups().any(|group| group.name() == "apps"));
    let partial = api.get_metadata("a").await.unwrap();
    assert_eq!(partial.metadata.uid, made.metadata.uid);
    api.delete("a", &DeleteParams::default()).await.unwrap();
}

trait ResourceExtName {
    fn name(&self) -> String;
}

impl ResourceExtName for ConfigMap {
    fn name(&self) -> String {
        self.name_any()
    }
}

#[tokio::test]
async fn straight_into_the_server() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    body(cluster.client()).await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn over_http_within_the_process() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    body(cluster.client_http()).await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn over_tls() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    body(tls(&serving.kubeconfig).await).await;
    cluster.shutdown().await.unwrap();
}

pub(crate) async fn tls(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn callers_without_a_certificate_see_only_what_tells_nothing() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut kubeconfig = Kubeconfig::from_yaml(&serving.kubeconfig).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(kube::config::AuthInfo::default());
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let anonymous = Client::try_from(config).unwrap();
    anonymous.apiserver_version().await.unwrap();
    let refused =
        Api::<Deployment>::default_namespaced(anonymous).list(&ListParams::default()).await.unwrap_err();
    let expected = "deployments.apps is forbidden: User \"system:anonymous\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"default\"";
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 403 && status.message == expected),
        "{refused}"
    );
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_bearer_token_is_a_user() {
    let tokens = kapi::authn::StaticTokens::new().with("s3cret", kapi::authn::UserInfo::new("ann", ["dev"]));
    let cluster = Cluster::builder()
        .nodes(0)
        .api(|api| api.authenticator(std::sync::Arc::new(tokens)))
        .start()
        .await
        .unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let with_token = async |token: &str| {
        let mut kubeconfig = Kubeconfig::from_yaml(&serving.kubeconfig).unwrap();
        let user = kube::config::AuthInfo { token: Some(token.to_owned().into()), ..Default::default() };
        kubeconfig.auth_infos[0].auth_info = Some(user);
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Api::<Deployment>::default_namespaced(Client::try_from(config).unwrap())
            .list(&ListParams::default())
            .await
    };
    let forbidden = with_token("s3cret").await.unwrap_err();
    assert!(matches!(&forbidden, kube::Error::Api(status) if status.code == 403), "{forbidden}");
    let binding = serde_json::json!({
        "metadata": {"name": "dev"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "dev"}],
    });
    let bindings = Api::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>::all(cluster.client());
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    with_token("s3cret").await.unwrap();
    let refused = with_token("wrong").await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 401 && status.reason == "Unauthorized"),
        "{refused}"
    );
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn waiting_for_an_object_ends_with_its_change() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let found = cluster
        .wait_until::<ConfigMap>("default", "kube-root-ca.crt", PATIENCE, |map| map.is_some())
        .await
        .unwrap();
    assert!(found.unwrap().data.as_ref().unwrap()["ca.crt"].starts_with("-----BEGIN CERTIFICATE-----"));
    let late = cluster
        .wait_until::<ConfigMap>("default", "never", Duration::from_millis(10), |map| map.is_some())
        .await;
    assert!(
        late.unwrap_err()
            .to_string()
            .starts_with("ConfigMap default/never did not come to be as wanted within 10ms")
    );
    cluster.shutdown().await.unwrap();
}
