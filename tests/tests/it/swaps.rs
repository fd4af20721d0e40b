//! Every part of a cluster can be replaced through the builder.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service, ServiceAccount};
use kapi::{
    admission::{Admission, AdmissionRequest},
    error::ApiResult,
};
use knet::proxy::recording::RecordingProxy;
use kplane::Cluster;
use kreconcile::{Action, Controller, MapTo, ObjectKey, Runnable, Selection, Trigger, reconcile_fn};
use kruntime::runtime::simulated::SimulatedRuntime;
use ksched::{
    NodeView, PodInfo, Profile, Verdict,
    plugin::{CycleState, FilterPlugin, ScorePlugin},
};
use kstore::{
    MemoryStore,
    testing::{FaultPlan, FaultyStore},
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::support::PATIENCE;

#[tokio::test]
async fn the_store() {
    // A store that takes its time: every commit waits, and everything still holds.
    let plan = FaultPlan { seed: 7, delay_max: Duration::from_millis(2), ..FaultPlan::default() };
    let store = Arc::new(FaultyStore::new(MemoryStore::new(), plan));
    let cluster = Cluster::builder().store(Arc::clone(&store) as _).start().await.unwrap();
    cluster
        .wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some())
        .await
        .unwrap();
    let kept = kstore::Store::snapshot(&*store);
    let table =
        kstore::Store::tables(&*store).into_iter().find(|(name, _)| name == "serviceaccounts").unwrap().1;
    assert!(kept.get(table, b"default/default").is_some());
    cluster.shutdown().await.unwrap();
}

#[derive(Debug)]
struct Stamp;

#[async_trait]
impl Admission for Stamp {
    fn name(&self) -> &str {
        "Stamp"
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        object["metadata"]["annotations"]["by"] = json!(request.user.name);
        Ok(())
    }
}

#[tokio::test]
async fn admission() {
    let cluster = Cluster::builder().nodes(0).admission(Arc::new(Stamp)).start().await.unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let made = api
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap())
        .await
        .unwrap();
    assert_eq!(made.metadata.annotations.unwrap()["by"], "kubernetes-admin");
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_step_that_is_not_there_can_not_be_taken_out() {
    let wrong =
        Cluster::builder().nodes(0).api(|api| api.without_admission("Frob")).start().await.unwrap_err();
    assert!(
        wrong.to_string().starts_with("there is no admission step \"Frob\"; there are NamespaceLifecycle, "),
        "{wrong}"
    );
    let free = Cluster::builder()
        .nodes(0)
        .api(|api| api.without_admission("NamespaceLifecycle"))
        .start()
        .await
        .unwrap();
    let map = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
    Api::<ConfigMap>::namespaced(free.client(), "nowhere")
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    free.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_controller() {
    // A name that no controller has is refused, instead of leaving the controller in.
    let wrong = Cluster::builder().nodes(0).without("serviceaccount").start().await.unwrap_err();
    assert!(wrong.to_string().starts_with("there is no controller \"serviceaccount\"; there are namespace-controller, serviceaccount-controller, "), "{wrong}");
    // The built-in one is left out, another one makes the accounts, under another name.
    let cluster = Cluster::builder()
        .nodes(0)
        .without("serviceaccount-controller")
        .reconcilers(|context| {
            let namespaces =
                context.informers().of::<k8s_openapi::api::core::v1::Namespace>(Selection::all());
            let client = context.informers().client().clone();
            let make = reconcile_fn(move |key: ObjectKey| {
                let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &key.name);
                async move {
                    let account = serde_json::from_value(json!({"metadata": {"name": "mine"}})).unwrap();
                    if accounts.get_opt("mine").await?.is_none() {
                        accounts.create(&PostParams::default(), &account).await?;
                    }
                    Ok(Action::Done)
                }
            });
            vec![Arc::new(Controller::new("accounts", make).on(Trigger::new(&namespaces, MapTo::Itself)))
                as Arc<dyn Runnable>]
        })
        .start()
        .await
        .unwrap();
    cluster
        .wait_until::<ServiceAccount>("kube-system", "mine", PATIENCE, |found| found.is_some())
        .await
        .unwrap();
    let default =
        Api::<ServiceAccount>::namespaced(cluster.client(), "kube-system").get_opt("default").await.unwrap();
    assert!(default.is_none(), "the built-in controller is not there");
    cluster.shutdown().await.unwrap();
}

struct Third;

impl ScorePlugin for Third {
    fn name(&self) -> &str {
        "Third"
    }

    fn score(&self, _: &CycleState, _: &PodInfo, node: NodeView<'_>) -> i64 {
        if node.name() == "node-3" { 100 } else { 0 }
    }
}

async fn pod_on(cluster: &Cluster, nodes: usize) -> String {
    cluster
        .wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some())
        .await
        .unwrap();
    for number in 1..=nodes {
        let free = |node: Option<&Node>| {
            node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
        };
        cluster.wait_until::<Node>("", &format!("node-{number}"), PATIENCE, free).await.unwrap();
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    Api::<Pod>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
        .await
        .unwrap();
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref())
            .is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    let pod = cluster.wait_until::<Pod>("default", "p", PATIENCE, running).await.unwrap().unwrap();
    pod.spec.clone().unwrap().node_name.unwrap()
}

#[tokio::test]
async fn a_score_plugin() {
    let profile = Profile::builder().score(Arc::new(Third), 100).build().unwrap();
    let cluster = Cluster::builder().nodes(3).scheduler(profile).start().await.unwrap();
    assert_eq!(pod_on(&cluster, 3).await, "node-3");
    cluster.shutdown().await.unwrap();
}

struct OnlySecond;

impl FilterPlugin for OnlySecond {
    fn name(&self) -> &str {
        "OnlySecond"
    }

    fn filter(&self, _: &CycleState, _: &PodInfo, node: NodeView<'_>) -> Verdict {
        if node.name() == "node-2" { Verdict::Pass } else { Verdict::unresolvable("not the second node") }
    }
}

#[tokio::test]
async fn a_filter_plugin() {
    // The score wants another node, so only the filter can bring the pod here.
    let profile =
        Profile::builder().filter(Arc::new(OnlySecond)).score(Arc::new(Third), 100).build().unwrap();
    let cluster = Cluster::builder().nodes(3).scheduler(profile).start().await.unwrap();
    assert_eq!(pod_on(&cluster, 3).await, "node-2");
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_runtime() {
    let runtime = Arc::new(SimulatedRuntime::new(Arc::new(kcore::SystemClock)));
    let cluster = Cluster::builder().runtime(Arc::clone(&runtime) as _).start().await.unwrap();
    pod_on(&cluster, 1).await;
    assert_eq!(kruntime::ContainerRuntime::pods(&*runtime).len(), 1);
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_service_proxy() {
    let proxy = Arc::new(RecordingProxy::default());
    let mut tables = proxy.tables();
    let cluster = Cluster::builder().nodes(0).proxy(Arc::clone(&proxy) as _).start().await.unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 8123}]}});
    Api::<Service>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap();
    let told = tables.wait_for(|table| table.rules().any(|rule| rule.port == 8123));
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    cluster.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_clock() {
    let clock = kcore::TokioClock::starting_at(Timestamp::from_second(4_000_000_000).unwrap());
    let cluster = Cluster::builder().nodes(0).clock(Arc::new(clock)).start().await.unwrap();
    let namespace =
        Api::<k8s_openapi::api::core::v1::Namespace>::all(cluster.client()).get("default").await.unwrap();
    assert_eq!(namespace.metadata.creation_timestamp.unwrap().0.as_second(), 4_000_000_000);
    cluster.shutdown().await.unwrap();
}
