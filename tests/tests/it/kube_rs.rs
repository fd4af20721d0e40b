//! kube-rs as operators use it: a kind of their own with its rules, apply, reflectors, finalizers and eviction, within the
//! process and over TLS. Expected words are Kubernetes' (`apiextensions-apiserver/pkg/apiserver/schema/cel`,
//! `apimachinery/pkg/api/errors`, `registry/core/pod/rest/eviction.go`).

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Namespace, Pod},
        policy::v1::PodDisruptionBudget,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kplane::Cluster;
use kube::{
    Api, Client, CustomResource, CustomResourceExt as _, KubeSchema, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        controller::Action,
        finalizer::{Event as FinalizerEvent, finalizer},
        reflector, wait, watcher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// A kind that uses what the derive can say: rules in CEL on the object, the specification and a field, a default, a list by
/// keys, columns, selectable fields, status and scale.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "lab.example",
    version = "v1",
    kind = "Sensor",
    namespaced,
    status = "SensorStatus",
    shortname = "sen",
    category = "lab",
    selectable = ".spec.site",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Site", type_ = "string", json_path = ".spec.site"),
    validation = Rule::new("self.metadata.name.size() <= 12").message("the name is too long")
)]
#[x_kube(validation = ("self.low <= self.high", "low is above high"))]
#[serde(rename_all = "camelCase")]
struct SensorSpec {
    #[x_kube(validation = Rule::new("self == oldSelf").message("a sensor does not move"))]
    site: String,
    #[schemars(range(min = -50))]
    low: i32,
    #[serde(default = "high_default")]
    high: i32,
    #[serde(default = "replicas_default")]
    replicas: i32,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    probes: Vec<Probe>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
struct Probe {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
struct SensorStatus {
    replicas: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
}

fn high_default() -> i32 {
    40
}

fn replicas_default() -> i32 {
    1
}

/// Refused, with this code and these words.
fn assert_refused<T: std::fmt::Debug>(result: kube::Result<T>, code: u16, words: &str) {
    match result {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.message.as_str()), (code, words), "{status:?}");
        }
        other => panic!("wanted {code} {words:?}, got {other:?}"),
    }
}

/// Runs `body` through the two ways into a cluster, each with a cluster of its own.
async fn both_ways(body: impl AsyncFn(Client)) {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    body(cluster.client()).await;
    cluster.shutdown().await.unwrap();
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    body(crate::clients::tls(&serving.kubeconfig).await).await;
    cluster.shutdown().await.unwrap();
}

/// Applies the definition and waits until its kind is served.
async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let manager = PatchParams::apply("operator").force();
    definitions.patch(Sensor::crd_name(), &manager, &Patch::Apply(Sensor::crd())).await.unwrap();
    let established =
        wait::await_condition(definitions, Sensor::crd_name(), wait::conditions::is_crd_established());
    tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
}

fn sensor(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "lab.example/v1", "kind": "Sensor", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn rules_of_a_derived_kind_are_kept() {
    both_ways(async |client| {
        define(&client).await;
        let api: Api<Sensor> = Api::default_namespaced(client.clone());
        let apply = PatchParams::apply("operator");
        let of = |name: &'static str, spec: Value| {
            let (api, apply) = (api.clone(), apply.clone());
            async move { api.patch(name, &apply, &Patch::Apply(sensor(name, spec))).await }
        };
        let made = of("roof", json!({"site": "north", "low": 1})).await.unwrap();
        assert_eq!((made.spec.high, made.spec.replicas), (40, 1), "defaults come from the schema");
        assert_eq!(made.metadata.generation, Some(1));
        for (name, spec, words) in [
            (
                "cellar",
                json!({"site": "north", "low": 41}),
                "Sensor.lab.example \"cellar\" is invalid: spec: Invalid value: low is above high",
            ),
            (
                "cellar",
                json!({"site": "north", "low": -51}),
                "Sensor.lab.example \"cellar\" is invalid: spec.low: Invalid value: -51: spec.low in body should be greater than or equal to -50",
            ),
            (
                "a-very-long-name",
                json!({"site": "north", "low": 1}),
                "Sensor.lab.example \"a-very-long-name\" is invalid: <nil>: Invalid value: the name is too long",
            ),
            (
                "roof",
                json!({"site": "south", "low": 1}),
                "Sensor.lab.example \"roof\" is invalid: spec.site: Invalid value: \"south\": a sensor does not move",
            ),
            (
                "cellar",
                json!({"low": 1}),
                "Sensor.lab.example \"cellar\" is invalid: [spec.site: Required value, <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]",
            ),
        ] {
            assert_refused(of(name, spec).await, 422, words);
        }
        // What the schema doesn't know is refused by apply, and dropped by a write that does not ask for strictness.
        let unknown = of("roof", json!({"site": "north", "low": 1, "colour": "red"})).await.unwrap_err();
        assert!(unknown.to_string().contains(".spec.colour: field not declared in schema"), "{unknown}");
        let pruned: Value = client
            .request(
                http::Request::patch("/apis/lab.example/v1/namespaces/default/sensors/roof")
                    .header("content-type", "application/merge-patch+json")
                    .body(br#"{"spec":{"colour":"red","low":2}}"#.to_vec())
                    .unwrap(),
            )
            .await
            .unwrap();
        assert_eq!((&pruned["spec"]["low"], &pruned["spec"]["colour"]), (&json!(2), &Value::Null));
        let selected = api.list(&ListParams::default().fields("spec.site=north")).await.unwrap();
        assert_eq!(selected.items.len(), 1);
        let elsewhere = api.list(&ListParams::default().fields("spec.site!=north")).await.unwrap();
        assert!(elsewhere.items.is_empty());
        assert_refused(
            api.list(&ListParams::default().fields("spec.low=2")).await,
            400,
            "field label not supported: spec.low",
        );
    })
    .await;
}

#[tokio::test]
async fn applies_own_fields_and_conflict() {
    both_ways(async |client| {
        define(&client).await;
        let api: Api<Sensor> = Api::default_namespaced(client.clone());
        let apply = async |manager: &PatchParams, spec: Value| {
            api.patch("roof", manager, &Patch::Apply(sensor("roof", spec))).await
        };
        let (first, second) = (PatchParams::apply("first"), PatchParams::apply("second"));
        apply(&first, json!({"site": "north", "low": 1, "probes": [{"name": "a", "unit": "C"}]}))
            .await
            .unwrap();
        let both =
            apply(&second, json!({"site": "north", "low": 1, "probes": [{"name": "b"}]})).await.unwrap();
        let names: Vec<_> = both.spec.probes.iter().map(|probe| probe.name.as_str()).collect();
        assert_eq!(names, ["a", "b"], "lists with keys are merged");
        let managers: Vec<_> =
            both.managed_fields().iter().filter_map(|entry| entry.manager.as_deref()).collect();
        assert_eq!(managers, ["first", "second"]);
        assert_refused(
            apply(&second, json!({"site": "north", "low": 2})).await,
            409,
            "Apply failed with 1 conflict: conflict with \"first\": .spec.low",
        );
        let forced = apply(&second.clone().force(), json!({"site": "north", "low": 2})).await.unwrap();
        assert_eq!(forced.spec.low, 2);
        assert_eq!(forced.spec.probes.len(), 1, "what its manager leaves out is removed");
        let released = apply(&first, json!({"site": "north"})).await.unwrap();
        assert_eq!(released.spec.low, 2, "what another manager owns stays");
        assert_eq!(released.spec.probes, []);
        // The same apply again changes nothing, not even the revision.
        let again = apply(&first, json!({"site": "north"})).await.unwrap();
        assert_eq!(again.resource_version(), released.resource_version());
        let status = Patch::Apply(
            json!({"apiVersion": "lab.example/v1", "kind": "Sensor", "status": {"replicas": 3}}),
        );
        let reported = api.patch_status("roof", &PatchParams::apply("agent"), &status).await.unwrap();
        assert_eq!(reported.status.as_ref().map(|status| status.replicas), Some(3));
        assert_eq!(reported.metadata.generation, released.metadata.generation, "status is no new generation");
        let entry = reported.managed_fields().iter().find(|entry| entry.manager.as_deref() == Some("agent"));
        assert_eq!(entry.and_then(|entry| entry.subresource.as_deref()), Some("status"));
        let scale = api
            .patch_scale("roof", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 5}})))
            .await
            .unwrap();
        let observed = (scale.spec.unwrap().replicas, scale.status.unwrap().replicas);
        assert_eq!(observed, (Some(5), 3));
        assert_eq!(api.get("roof").await.unwrap().spec.replicas, 5);
    })
    .await;
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"t": "1"}}, "data": {"v": value}}))
        .unwrap()
}

/// Waits until what a reflector keeps is as wanted; each event of its stream is a chance.
async fn until<K, S>(stream: &mut S, store: &reflector::Store<K>, wanted: &[(&str, &str)])
where
    K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    S: futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin,
{
    let seen = |store: &reflector::Store<K>| {
        let mut seen: Vec<_> = store
            .state()
            .iter()
            .map(|object| (object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        seen.sort();
        seen
    };
    let wanted: Vec<_> =
        wanted.iter().map(|(space, name)| ((*space).to_owned(), (*name).to_owned())).collect();
    let reach = async {
        while seen(store) != wanted {
            stream.try_next().await.unwrap().expect("a watcher does not end");
        }
    };
    if tokio::time::timeout(PATIENCE, reach).await.is_err() {
        panic!("wanted {wanted:?}, there is {:?}", seen(store));
    }
}

#[tokio::test]
async fn reflectors_follow_in_both_modes() {
    both_ways(async |client| {
        let spaces: Api<Namespace> = Api::all(client.clone());
        let other: Namespace = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
        spaces.create(&PostParams::default(), &other).await.unwrap();
        let (here, there): (Api<ConfigMap>, Api<ConfigMap>) =
            (Api::namespaced(client.clone(), "default"), Api::namespaced(client.clone(), "other"));
        let everywhere: Api<ConfigMap> = Api::all(client.clone());
        let list_watch = watcher::Config::default().labels("t=1").page_size(1);
        let streaming = watcher::Config::default().labels("t=1").streaming_lists();
        for config in [list_watch, streaming] {
            let post = PostParams::default();
            here.create(&post, &map("a", "1")).await.unwrap();
            there.create(&post, &map("b", "1")).await.unwrap();
            let (store, writer) = reflector::store();
            let mut stream = watcher(everywhere.clone(), config.clone()).reflect(writer).boxed();
            until(&mut stream, &store, &[("default", "a"), ("other", "b")]).await;
            here.create(&post, &map("c", "1")).await.unwrap();
            there.delete("b", &DeleteParams::default()).await.unwrap();
            until(&mut stream, &store, &[("default", "a"), ("default", "c")]).await;
            // An object that the selector no longer matches is one that is gone, for its watchers.
            let relabel = Patch::Merge(json!({"metadata": {"labels": {"t": "2"}}}));
            here.patch("a", &PatchParams::default(), &relabel).await.unwrap();
            until(&mut stream, &store, &[("default", "c")]).await;

            let (partials, writer) = reflector::store();
            let metadata = watcher(Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()), config);
            let mut metadata = metadata.reflect(writer).boxed();
            until(&mut metadata, &partials, &[("default", "c")]).await;
            let partial = partials.state().pop().unwrap();
            assert_eq!(partial.labels()["t"], "1");
            here.delete_collection(&DeleteParams::default(), &ListParams::default().labels("t in (1, 2)"))
                .await
                .unwrap();
            until(&mut metadata, &partials, &[]).await;
            until(&mut stream, &store, &[]).await;
        }
    })
    .await;
}

/// Steps through a finalizer's life; what the reconciler was told.
async fn step(api: &Api<ConfigMap>) -> Option<&'static str> {
    let object = Arc::new(api.get("a").await.unwrap());
    let mut told = None;
    finalizer(api, "lab.example/cleanup", object, |event| {
        told = Some(match event {
            FinalizerEvent::Apply(_) => "apply",
            FinalizerEvent::Cleanup(_) => "cleanup",
        });
        async { Ok::<_, std::io::Error>(Action::await_change()) }
    })
    .await
    .unwrap();
    told
}

#[tokio::test]
async fn a_finalizer_keeps_an_object_until_it_is_cleaned_up() {
    both_ways(async |client| {
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        api.create(&PostParams::default(), &map("a", "1")).await.unwrap();
        assert_eq!(step(&api).await, None, "the finalizer is added first");
        assert_eq!(api.get("a").await.unwrap().finalizers(), ["lab.example/cleanup"]);
        assert_eq!(step(&api).await, Some("apply"));
        let deleted = api.delete("a", &DeleteParams::default()).await.unwrap();
        assert!(deleted.left().is_some_and(|object| object.metadata.deletion_timestamp.is_some()));
        // A deletion in progress is no place for new finalizers (`ValidateObjectMetaUpdate`).
        let late = Patch::Merge(json!({"metadata": {"finalizers": ["lab.example/cleanup", "lab.example/late"]}}));
        assert_refused(
            api.patch("a", &PatchParams::default(), &late).await,
            422,
            "ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"lab.example/late\"}",
        );
        assert_eq!(step(&api).await, Some("cleanup"));
        assert_eq!(api.get_opt("a").await.unwrap(), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_keep_budgets() {
    // Nobody else writes the budget's status, so that the test says what it allows.
    let cluster = Cluster::builder().nodes(1).without("disruption-controller").start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    cluster
        .wait_until::<k8s_openapi::api::core::v1::ServiceAccount>("default", "default", PATIENCE, |found| {
            found.is_some()
        })
        .await
        .unwrap();
    for (name, client) in
        [("near", cluster.client()), ("far", crate::clients::tls(&serving.kubeconfig).await)]
    {
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "example/c"}]},
        }))
        .unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let ready = |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|conditions| {
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
            })
        };
        cluster.wait_until::<Pod>("default", name, PATIENCE, ready).await.unwrap();
        let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(client);
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": name}}},
        }))
        .unwrap();
        let budget = budgets.create(&PostParams::default(), &budget).await.unwrap();
        // A client with a retry layer would come back for a minute, as the answer asks for.
        if name == "near" {
            assert_refused(
                pods.evict(name, &EvictParams::default()).await,
                429,
                "Cannot evict pod as it would violate the pod's disruption budget.",
            );
        }
        let allow = Patch::Merge(json!({"status": {
            "observedGeneration": budget.metadata.generation, "disruptionsAllowed": 1,
            "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
        }}));
        budgets.patch_status(name, &PatchParams::default(), &allow).await.unwrap();
        pods.evict(name, &EvictParams::default()).await.unwrap();
        let spent = budgets.get_status(name).await.unwrap().status.unwrap();
        assert_eq!(spent.disruptions_allowed, Some(0));
        assert!(spent.disrupted_pods.is_some_and(|pods| pods.contains_key(name)));
        cluster
            .wait_until::<Pod>("default", name, Duration::from_secs(30), |pod| pod.is_none())
            .await
            .unwrap();
    }
    cluster.shutdown().await.unwrap();
}
