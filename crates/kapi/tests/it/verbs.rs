//! Creating, reading, changing and deleting.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service},
};
use kapi::ApiServer;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::harness::{client, get, json as send, send as raw, server};

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}}})
}

#[tokio::test]
async fn a_fresh_server_has_what_every_cluster_has() {
    let server = server().await;
    for path in [
        "/api/v1/namespaces/default",
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/kube-public",
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
    ] {
        assert_eq!(get(&server, path).await.0, 200, "{path}");
    }
    let (_, service) = get(&server, "/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn an_object_lives_through_kube() {
    let server = server().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client(&server));
    let made =
        api.create(&PostParams::default(), &serde_json::from_value(config_map("a")).unwrap()).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let patch = json!({"data": {"b": "2"}});
    let patched = api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(patched.data.unwrap().len(), 2);
    let stale = made.clone();
    let error = api.replace("a", &PostParams::default(), &stale).await.unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 409 && status.message.starts_with("Operation cannot be fulfilled on configmaps \"a\"")),
        "{error}"
    );
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert!(api.get_opt("a").await.unwrap().is_none());
    let again = api.delete("a", &DeleteParams::default()).await.unwrap_err();
    assert!(matches!(&again, kube::Error::Api(status) if status.message == "configmaps \"a\" not found"));
}

#[tokio::test]
async fn a_second_object_of_the_same_name_is_refused() {
    let server = server().await;
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/configmaps", &config_map("a")).await.0, 201);
    let (code, status) =
        send(&server, "POST", "/api/v1/namespaces/default/configmaps", &config_map("a")).await;
    assert_eq!(
        (code, status["reason"].as_str(), status["message"].as_str()),
        (409, Some("AlreadyExists"), Some("configmaps \"a\" already exists"))
    );
    let (code, status) = send(&server, "POST", "/api/v1/namespaces/none/configmaps", &config_map("a")).await;
    assert_eq!((code, status["message"].as_str()), (404, Some("namespaces \"none\" not found")));
}

#[tokio::test]
async fn generation_counts_changes_of_the_specification_alone() {
    let server = server().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, made) = send(&server, "POST", path, &deployment("d")).await;
    assert_eq!(
        (code, &made["metadata"]["generation"], &made["spec"]["replicas"]),
        (201, &json!(1), &json!(1))
    );
    assert_eq!(
        made["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    let one = format!("{path}/d");
    let merge = "application/merge-patch+json";
    let generation = |value: &Value| value["metadata"]["generation"].as_i64();
    let (_, labelled) = raw(&server, "PATCH", &one, merge, r#"{"metadata":{"labels":{"x":"y"}}}"#).await;
    assert_eq!(generation(&labelled), Some(1));
    let (_, scaled) =
        raw(&server, "PATCH", &one, merge, r#"{"spec":{"replicas":3},"status":{"replicas":9}}"#).await;
    assert_eq!(
        (generation(&scaled), &scaled["status"]),
        (Some(2), &json!({})),
        "the status is not the caller's"
    );
    let (_, reported) = raw(
        &server,
        "PATCH",
        &format!("{one}/status"),
        merge,
        r#"{"spec":{"replicas":7},"status":{"replicas":3}}"#,
    )
    .await;
    assert_eq!(
        (generation(&reported), &reported["spec"]["replicas"], &reported["status"]["replicas"]),
        (Some(2), &json!(3), &json!(3))
    );
    let (_, scale) = get(&server, &format!("{one}/scale")).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(3), &json!("app=d")));
    let (code, scale) =
        raw(&server, "PATCH", &format!("{one}/scale"), merge, r#"{"spec":{"replicas":5}}"#).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)));
    assert_eq!(generation(&get(&server, &one).await.1), Some(3));
    let before = get(&server, &one).await.1["metadata"]["resourceVersion"].clone();
    let (_, same) = raw(&server, "PATCH", &one, merge, r#"{"spec":{"replicas":5}}"#).await;
    assert_eq!(same["metadata"]["resourceVersion"], before, "a change of nothing is no write");
}

#[tokio::test]
async fn pods_end_gracefully_and_finalizers_hold_objects() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/pods";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    send(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "finalizers": ["a.b/c"]}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let (code, made) = send(&server, "POST", path, &pod).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        (&made["status"]["phase"], &made["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(send(&server, "POST", &format!("{path}/p/binding"), &binding).await.0, 201);
    assert_eq!(send(&server, "POST", &format!("{path}/p/binding"), &binding).await.0, 409);
    let (_, on_node) = get(&server, &format!("{path}?fieldSelector=spec.nodeName%3Dn")).await;
    assert_eq!(on_node["items"].as_array().unwrap().len(), 1);
    let (code, ending) = send(&server, "DELETE", &format!("{path}/p"), &Value::Null).await;
    assert_eq!((code, &ending["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    let (_, ending) = send(&server, "DELETE", &format!("{path}/p?gracePeriodSeconds=0"), &Value::Null).await;
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], json!(0), "held by its finalizer");
    let merge = "application/merge-patch+json";
    let (code, _) =
        raw(&server, "PATCH", &format!("{path}/p"), merge, r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!((code, get(&server, &format!("{path}/p")).await.0), (200, 404));
}

#[tokio::test]
async fn services_get_addresses_that_nobody_else_has() {
    let server = server().await;
    let api: Api<Service> = Api::default_namespaced(client(&server));
    let service = |name: &str, spec: Value| -> Service {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    };
    let ports = json!([{"port": 80}]);
    let made = api
        .create(&PostParams::default(), &service("a", json!({"type": "NodePort", "ports": ports})))
        .await
        .unwrap()
        .spec
        .unwrap();
    let (address, port) = (made.cluster_ip.unwrap(), made.ports.unwrap()[0].node_port.unwrap());
    assert!((30_000..=32_767).contains(&port));
    let error = api
        .create(&PostParams::default(), &service("b", json!({"clusterIP": address, "ports": ports})))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 422 && status.message.contains("provided IP is already allocated")),
        "{error}"
    );
    api.delete("a", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &service("b", json!({"clusterIP": address, "ports": ports})))
        .await
        .unwrap();
}

async fn make_account(server: &ApiServer) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    send(server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
}

async fn make_node(server: &ApiServer, name: &str, labels: Value) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    assert_eq!(send(server, "POST", "/api/v1/nodes", &node).await.0, 201);
    let status = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"capacity": {"cpu": "2", "memory": "1Gi"}, "allocatable": {"cpu": "2", "memory": "1Gi"}}});
    let (code, answer) = send(server, "PUT", &format!("/api/v1/nodes/{name}/status"), &status).await;
    assert_eq!(code, 200, "{answer}");
}

fn pod_on(name: &str, node: Option<&str>) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}}]}});
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

/// KEP-4742: however a pod comes to its node, it has the node's zone and region.
#[tokio::test]
async fn pods_have_the_zone_of_their_node() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let server = server().await;
    make_account(&server).await;
    let (zone, region) = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region");
    make_node(&server, "n", json!({zone: "z1", region: "r1", "other": "x"})).await;
    assert_eq!(send(&server, "POST", PODS, &pod_on("made", Some("n"))).await.0, 201);
    assert_eq!(send(&server, "POST", PODS, &pod_on("bound", None)).await.0, 201);
    assert_eq!(send(&server, "POST", PODS, &pod_on("lost", Some("nowhere"))).await.0, 201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n"}});
    let (code, answer) = send(&server, "POST", &format!("{PODS}/bound/binding"), &binding).await;
    assert_eq!(code, 201, "{answer}");
    for (name, expected) in [
        ("made", json!({"app": "a", zone: "z1", region: "r1"})),
        ("bound", json!({"app": "a", zone: "z1", region: "r1"})),
        ("lost", json!({"app": "a"})),
    ] {
        assert_eq!(get(&server, &format!("{PODS}/{name}")).await.1["metadata"]["labels"], expected, "{name}");
    }
}

/// KEP-1287: a pod is not resized beyond what its node can give, nor where it can't be.
#[tokio::test]
async fn pods_are_resized_within_their_node() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let server = server().await;
    make_account(&server).await;
    make_node(&server, "n", json!({"kubernetes.io/os": "linux"})).await;
    make_node(&server, "w", json!({"kubernetes.io/os": "windows"})).await;
    for node in ["n", "w"] {
        assert_eq!(send(&server, "POST", PODS, &pod_on(node, Some(node))).await.0, 201);
    }
    for (pod, cpu, code, words) in [
        ("n", "2", 200, ""),
        (
            "n",
            "2001m",
            403,
            "node didn't have enough allocatable resources: cpu, requested: 2001, allocatable: 2000",
        ),
        ("w", "2", 403, "pod resize is only supported on linux nodes, node \"w\" is \"windows\""),
    ] {
        let path = format!("{PODS}/{pod}");
        let mut wanted = get(&server, &path).await.1;
        let resources = &mut wanted["spec"]["containers"][0]["resources"];
        *resources = json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
        let (found, answer) = send(&server, "PUT", &format!("{path}/resize"), &wanted).await;
        assert_eq!(found, code, "{answer}");
        assert!(code == 200 || answer["message"].as_str().unwrap().ends_with(words), "{answer}");
        let cause = answer["details"]["causes"][0]["reason"].as_str();
        let expected = [("n", Some("NodeCapacity")), ("w", Some("UnsupportedPlatform"))];
        assert!(code == 200 || expected.contains(&(pod, cause)), "{answer}");
    }
}

#[tokio::test]
async fn pages_show_one_revision() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for index in 0..10 {
        send(&server, "POST", path, &config_map(&format!("c{index}"))).await;
    }
    let (_, first) = get(&server, &format!("{path}?limit=4")).await;
    assert_eq!(
        (first["items"].as_array().unwrap().len(), &first["metadata"]["remainingItemCount"]),
        (4, &json!(6))
    );
    send(&server, "DELETE", &format!("{path}/c7"), &Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = get(&server, &format!("{path}?limit=400&continue={token}")).await;
    let names: Vec<&str> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c4", "c5", "c6", "c7", "c8", "c9"], "the page is as the list began");
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, exact) =
        get(&server, &format!("{path}?resourceVersion={revision}&resourceVersionMatch=Exact")).await;
    assert_eq!(exact["items"].as_array().unwrap().len(), 10);
    let (code, status) = get(&server, &format!("{path}?resourceVersion=99999")).await;
    assert_eq!((code, status["reason"].as_str()), (504, Some("Timeout")));
}

#[tokio::test]
async fn dry_runs_leave_nothing_behind() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let before = server.objects().snapshot().revision();
    assert_eq!(send(&server, "POST", &format!("{path}?dryRun=All"), &config_map("a")).await.0, 201);
    assert_eq!(server.objects().snapshot().revision(), before);
    send(&server, "POST", path, &config_map("a")).await;
    let before = server.objects().snapshot().revision();
    assert_eq!(send(&server, "DELETE", &format!("{path}/a?dryRun=All"), &Value::Null).await.0, 200);
    assert_eq!(
        raw(
            &server,
            "PATCH",
            &format!("{path}/a?dryRun=All"),
            "application/merge-patch+json",
            r#"{"data":null}"#
        )
        .await
        .0,
        200
    );
    assert_eq!(server.objects().snapshot().revision(), before);
}

#[tokio::test]
async fn typed_clients_read_what_the_server_writes() {
    let server = server().await;
    let api: Api<Deployment> = Api::default_namespaced(client(&server));
    let made: Deployment = serde_json::from_value(deployment("d")).unwrap();
    api.create(&PostParams::default(), &made).await.unwrap();
    let pods: Api<Pod> = Api::all(client(&server));
    assert!(pods.list(&ListParams::default().labels("app in (a,b),!c")).await.unwrap().items.is_empty());
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}});
    let patched = api.patch("d", &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap();
    let container = &patched.spec.template.spec.unwrap().containers[0];
    assert_eq!(
        (container.image.as_deref(), container.termination_message_policy.as_deref()),
        (Some("nginx:2"), Some("File"))
    );
    let collection = api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    assert_eq!(collection.left().unwrap().items.len(), 1);
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[derive(Debug)]
struct Nothing;

#[async_trait::async_trait]
impl kapi::authz::Authorizer for Nothing {
    async fn authorize(
        &self,
        _: &kapi::authn::UserInfo,
        request: &kapi::request::RequestInfo,
    ) -> kapi::authz::Verdict {
        // Only the review itself may be asked for.
        let none = kapi::authz::Reason::none();
        if request.verb == "create" {
            kapi::authz::Verdict::Allow(none)
        } else {
            kapi::authz::Verdict::NoOpinion(none)
        }
    }
}

#[tokio::test]
async fn a_rules_review_tells_what_the_authorizers_say() {
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review = json!({"spec": {"namespace": "default"}});
    let (_, open) = send(&server().await, "POST", path, &review).await;
    assert_eq!(open["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    let strict = ApiServer::builder().authorizer(std::sync::Arc::new(Nothing)).build().unwrap();
    let (code, closed) = send(&strict, "POST", path, &review).await;
    assert_eq!((code, &closed["status"]["resourceRules"]), (201, &json!([])));
}

/// Upstream's `Priority`: what it computes, what must not be given, and that there is one default.
#[tokio::test]
async fn priorities_come_from_classes() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let server = server().await;
    make_account(&server).await;
    let class = |name: &str, value: i64, is_default: bool| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "globalDefault": is_default, "preemptionPolicy": "Never"})
    };
    assert_eq!(send(&server, "POST", CLASSES, &class("first", 7, true)).await.0, 201);
    let (code, answer) = send(&server, "POST", CLASSES, &class("second", 8, true)).await;
    let words = "PriorityClass first is already marked as default. Only one default can exist";
    assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(words), "{answer}");
    assert_eq!(send(&server, "PUT", &format!("{CLASSES}/first"), &class("first", 7, true)).await.0, 200);
    let pod = |name: &str, more: Value| {
        let mut pod = pod_on(name, None);
        pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod
    };
    let (code, made) = send(&server, "POST", PODS, &pod("plain", json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let of = |made: &Value| {
        let spec = &made["spec"];
        (spec["priorityClassName"].clone(), spec["priority"].clone(), spec["preemptionPolicy"].clone())
    };
    assert_eq!(of(&made), (json!("first"), json!(7), json!("Never")));
    for (more, words) in [
        (json!({"priority": 8}), "computed 7 from the given PriorityClass name"),
        (
            json!({"preemptionPolicy": "PreemptLowerPriority"}),
            "computed Never from the given PriorityClass name",
        ),
        (json!({"priorityClassName": "none"}), "no PriorityClass with name none was found"),
    ] {
        let (code, answer) = send(&server, "POST", PODS, &pod("refused", more)).await;
        assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(words), "{answer}");
    }
    let mut older = made.clone();
    older["spec"].as_object_mut().unwrap().remove("priority");
    older["metadata"]["labels"] = json!({"a": "b"});
    let (code, kept) = send(&server, "PUT", &format!("{PODS}/plain"), &older).await;
    assert_eq!((code, of(&kept)), (200, of(&made)), "{kept}");
}

/// Upstream's `PodGroupProtection` and `PodGroupWorkloadExists`.
#[tokio::test]
async fn groups_of_pods_are_made_of_templates_that_are_there() {
    const SCHEDULING: &str = "/apis/scheduling.k8s.io/v1beta1/namespaces/default";
    let server = server().await;
    let group = |name: &str, made_of: Value| {
        json!({"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": name},
            "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}, "workloadRef": made_of}})
    };
    let workload = json!({"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "Workload", "metadata": {"name": "w"},
        "spec": {"podGroupTemplates": [{"name": "t", "schedulingPolicy": {"gang": {"minCount": 2}}}]}});
    let path = format!("{SCHEDULING}/workloads");
    let (code, answer) = send(&server, "POST", &path, &workload).await;
    assert_eq!(code, 201, "{answer}");
    let path = format!("{SCHEDULING}/podgroups");
    for (made_of, words) in [
        (json!({"workloadName": "v", "templateName": "t"}), "PodGroup rejected: Workload \"v\" not found"),
        (
            json!({"workloadName": "w", "templateName": "u"}),
            "PodGroup rejected: PodGroupTemplate \"u\" not found in Workload \"w\"",
        ),
    ] {
        let (code, answer) = send(&server, "POST", &path, &group("g", made_of)).await;
        assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(words), "{answer}");
    }
    for (name, made_of) in [("g", json!({"workloadName": "w", "templateName": "t"})), ("h", Value::Null)] {
        let (code, made) = send(&server, "POST", &path, &group(name, made_of)).await;
        assert_eq!(code, 201, "{made}");
        assert_eq!(made["metadata"]["finalizers"], json!(["scheduling.k8s.io/podgroup-protection"]));
        assert_eq!(made["spec"]["priority"], 0);
    }
}

/// Upstream's `NodeDeclaredFeatureValidator`.
#[tokio::test]
async fn pods_are_changed_to_what_their_node_can_do() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let server = server().await;
    make_account(&server).await;
    make_node(&server, "n", json!({})).await;
    let mut pod = pod_on("p", Some("n"));
    pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}});
    let (code, mut wanted) = send(&server, "POST", PODS, &pod).await;
    assert_eq!(code, 201, "{wanted}");
    wanted["spec"]["resources"] = json!({"requests": {"cpu": "1200m"}, "limits": {"cpu": "1200m"}});
    let resize = format!("{PODS}/p/resize");
    let (code, answer) = send(&server, "PUT", &resize, &wanted).await;
    let words = "pod update requires features InPlacePodLevelResourcesVerticalScaling which are not available on node \"n\"";
    assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(words), "{answer}");
    let mut node = get(&server, "/api/v1/nodes/n").await.1;
    node["status"]["declaredFeatures"] = json!(["InPlacePodLevelResourcesVerticalScaling"]);
    assert_eq!(send(&server, "PUT", "/api/v1/nodes/n/status", &node).await.0, 200);
    let (code, answer) = send(&server, "PUT", &resize, &wanted).await;
    assert_eq!(code, 200, "{answer}");
}

#[tokio::test]
async fn a_step_of_admission_that_is_not_there_can_not_be_taken_out() {
    let error = ApiServer::builder().without_admission("NoSuchStep").build().unwrap_err().to_string();
    assert!(
        error.starts_with("there is no admission step \"NoSuchStep\"; there are NamespaceLifecycle, "),
        "{error}"
    );
    assert_eq!(error.matches("NodeRestriction").count(), 1, "{error}");
}
