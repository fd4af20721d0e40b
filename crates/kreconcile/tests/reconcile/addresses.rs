//! Ranges of addresses: of nodes' pods, and of services.

use std::time::Duration;

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_some, start_with},
    fake::FakeApi,
};

fn ranges(api: &FakeApi, node: &str) -> Value {
    api.get("nodes", "", node).unwrap_or_default()["spec"]["podCIDRs"].clone()
}

/// As `range_allocator_test.go` has it, over a restart's state: what a node has already is not given away.
#[tokio::test(start_paused = true)]
async fn nodes_get_ranges_for_their_pods() {
    let (api, running) = start_with(
        TokioClock::new(),
        |name| name == "node-ipam-controller",
        |settings| {
            settings.cluster_ranges = vec!["10.244.0.0/22".to_owned(), "fd00:10::/62".to_owned()];
            settings.service_ranges = vec!["10.244.3.0/24".to_owned()];
        },
    );
    let node = |name: &str, spec: Value| json!({"metadata": {"name": name, "uid": name}, "spec": spec});
    let has = json!({"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:10::/64"]});
    api.add("nodes", node("old", has));
    api.add("nodes", node("a", json!({})));
    api.until("a's ranges", |api| ranges(api, "a") == json!(["10.244.1.0/24", "fd00:10:0:1::/64"])).await;
    assert_eq!(api.get("nodes", "", "a").unwrap()["spec"]["podCIDR"], "10.244.1.0/24");
    api.add("nodes", node("b", json!({})));
    api.until("b's ranges", |api| ranges(api, "b") == json!(["10.244.2.0/24", "fd00:10:0:2::/64"])).await;
    api.add("nodes", node("c", json!({})));
    let told = "Node c status is now: CIDRNotAvailable";
    api.until("the refusal", |api| api.list("events").iter().any(|event| event["message"] == told)).await;
    assert!(ranges(&api, "c").is_null());
    api.remove("nodes", "", "old");
    api.until("c's ranges", |api| ranges(api, "c")[0] == "10.244.0.0/24").await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn networks_and_addresses_of_services_have_objects() {
    let start = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let names = ["service-cidr-controller", "ipallocator-repair-controller"];
    let (api, running) = start_some(start, |name| names.contains(&name));
    let network = |name: &str, range: &str| json!({"metadata": {"name": name}, "spec": {"cidrs": [range]}});
    let ready = |api: &FakeApi, name: &str| {
        let network = api.get("servicecidrs", "", name).unwrap_or_default();
        network["status"]["conditions"][0].clone()
    };
    api.add("servicecidrs", network("kubernetes", "10.96.0.0/24"));
    api.until("the condition", |api| ready(api, "kubernetes")["status"] == "True").await;
    let object = api.get("servicecidrs", "", "kubernetes").unwrap();
    assert_eq!(object["metadata"]["finalizers"], json!(["networking.k8s.io/service-cidr-finalizer"]));
    assert_eq!(ready(&api, "kubernetes")["message"], "Kubernetes Service CIDR is ready");

    let service = |name: &str, address: &str| {
        json!({"metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]}})
    };
    api.add("services", service("web", "10.96.0.10"));
    api.add("services", service("headless", "None"));
    api.until("the address", |api| api.get("ipaddresses", "", "10.96.0.10").is_some()).await;
    let address = api.get("ipaddresses", "", "10.96.0.10").unwrap();
    let parent = json!({"resource": "services", "namespace": "shop", "name": "web"});
    assert_eq!(address["spec"]["parentRef"], parent);
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(address["metadata"]["labels"], labels);
    at_rest(&api).await;
    api.remove("ipaddresses", "", "10.96.0.10");
    api.until("the address again", |api| api.get("ipaddresses", "", "10.96.0.10").is_some()).await;
    // One that lies elsewhere is told about until a network has it.
    api.add("services", service("far", "10.97.0.10"));
    let told =
        "Cluster IP [IPv4]: 10.97.0.10 is not within any configured Service CIDR; please recreate service";
    api.until("the event", |api| api.list("events").iter().any(|event| event["message"] == told)).await;
    api.add("servicecidrs", network("more", "10.97.0.0/24"));
    api.until("the far address", |api| api.count("ipaddresses") == 2).await;

    let deleted =
        |object: &mut Value| object["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    api.edit("servicecidrs", "", "kubernetes", deleted);
    api.until("the refusal", |api| ready(api, "kubernetes")["reason"] == "Terminating").await;
    at_rest(&api).await;
    assert!(api.get("servicecidrs", "", "kubernetes").is_some(), "a service is in it");
    api.remove("services", "shop", "web");
    api.until("address and network to go", |api| {
        api.get("ipaddresses", "", "10.96.0.10").is_none()
            && api.get("servicecidrs", "", "kubernetes").is_none()
    })
    .await;
    assert!(api.get("servicecidrs", "", "more").is_some());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_that_nobody_uses_go_in_time() {
    let start = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    let name = |name: &str| name == "legacy-serviceaccount-token-cleaner-controller";
    let (api, running) = start_with(start, name, |settings| settings.legacy_token_age = days(10));
    let token = |name: &str| {
        let annotations = json!({"kubernetes.io/service-account.name": "robot"});
        json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "type": "kubernetes.io/service-account-token"})
    };
    for name in ["unused", "mounted", "manual"] {
        api.add("secrets", token(name));
    }
    let names = json!([{"name": "unused"}, {"name": "mounted"}]);
    api.add("serviceaccounts", json!({"metadata": {"name": "robot", "namespace": "shop"}, "secrets": names}));
    let volumes = json!([{"name": "v", "secret": {"secretName": "mounted"}}]);
    api.add("pods", json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"containers": [], "volumes": volumes}}));
    tokio::time::sleep(days(15)).await;
    let marks = |name: &str| {
        api.get("secrets", "shop", name).unwrap()["metadata"]["labels"]["kubernetes.io/legacy-token-invalid-since"].clone()
    };
    assert!(marks("unused").is_null(), "nobody says which tokens are used");
    let name = "kube-apiserver-legacy-service-account-token-tracking";
    api.add(
        "configmaps",
        json!({"metadata": {"name": name, "namespace": "kube-system"}, "data": {"since": "2030-01-01"}}),
    );
    tokio::time::sleep(days(2)).await;
    assert!(marks("unused").as_str().unwrap().starts_with("2030-01-1"), "{}", marks("unused"));
    assert!(marks("mounted").is_null() && marks("manual").is_null());
    tokio::time::sleep(days(8)).await;
    assert_eq!(api.count("secrets"), 3);
    tokio::time::sleep(days(4)).await;
    assert_eq!(api.count("secrets"), 2, "the unused one has gone");
    running.stop().await;
}
