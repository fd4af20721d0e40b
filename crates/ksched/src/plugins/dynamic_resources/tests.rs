//! Cases from `plugins/dynamicresources/dynamicresources_test.go` and the messages of `dynamicresources.go`.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use serde_json::{Value, from_value, json};

use super::*;
use crate::plugins::{BalancedAllocation, NodeResourcesFit, ScoringStrategy};
use crate::{
    Decision, Profile, Snapshot,
    build::{PodBuilder, node, pod},
    decide,
};

/// Two nodes with a device each.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::new();
    for name in ["a", "b"] {
        snapshot.set_node(node(name).resource("cpu", "8").info());
        let catalog = snapshot.catalog_mut();
        catalog.set(Arc::new(from_value::<ResourceSlice>(slice(name, &["gpu"])).unwrap()));
    }
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'd'"}}
    ]}});
    snapshot.catalog_mut().set(Arc::new(from_value::<DeviceClass>(class).unwrap()));
    snapshot
}

fn slice(node: &str, devices: &[&str]) -> Value {
    let devices: Value = devices.iter().map(|name| json!({"name": name})).collect();
    json!({"metadata": {"name": node}, "spec": {
        "driver": "d", "nodeName": node, "devices": devices,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
    }})
}

fn claim(name: &str, status: Value) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}},
        "status": status,
    })
}

/// The status of a claim that has the device of a node.
fn on(node: &str, users: &[&str]) -> Value {
    let users: Value = users.iter().map(|uid| json!({"resource": "pods", "name": uid, "uid": uid})).collect();
    json!({"reservedFor": users, "allocation": {
        "devices": {"results": [{"request": "r", "driver": "d", "pool": node, "device": "gpu"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [node]}
        ]}]},
    }})
}

fn set(snapshot: &mut Snapshot, claim: Value) {
    snapshot.catalog_mut().set(Arc::new(from_value::<ResourceClaim>(claim).unwrap()));
}

fn with_claims(name: &str, claims: Value) -> PodBuilder {
    pod(name).edit(|pod| {
        pod.spec.get_or_insert_default().resource_claims = from_value(claims).unwrap();
    })
}

/// A pod that uses claims by their names.
fn user(name: &str, claims: &[&str]) -> PodBuilder {
    with_claims(name, claims.iter().map(|claim| json!({"name": claim, "resourceClaimName": claim})).collect())
}

fn failure(decision: &Decision) -> String {
    assert_eq!(decision.node(), None);
    decision.failure().unwrap()
}

#[test]
fn pods_wait_until_their_claims_can_be_allocated() {
    let mut other_class = claim("classless", Value::Null);
    other_class["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] = json!("fpga");
    let mut deleted = claim("deleted", Value::Null);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut snapshot = cluster();
    for claim in [claim("mine", Value::Null), other_class, deleted, claim("foreign", Value::Null)] {
        set(&mut snapshot, claim);
    }
    let template = json!([{"name": "c", "resourceClaimTemplateName": "t"}]);
    let made = |claim: Option<&str>| {
        let status = json!([{"name": "c", "resourceClaimName": claim}]);
        with_claims("p", template.clone()).edit(|pod| {
            pod.status.get_or_insert_default().resource_claim_statuses = from_value(status).unwrap();
        })
    };
    for (pod, expected) in [
        (user("p", &["missing"]), "could not find v1.ResourceClaim \"default/missing\""),
        (user("p", &["deleted"]), "resourceclaim \"deleted\" is being deleted"),
        (user("p", &["classless"]), "request r: device class fpga does not exist"),
        (with_claims("p", template.clone()), "pod \"default/p\": ResourceClaim not created yet"),
        (
            with_claims("p", json!([{"name": "c"}])),
            "pod \"default/p\", spec.resourceClaim \"c\": none of the supported fields are set",
        ),
        (
            made(Some("foreign")),
            "ResourceClaim default/foreign was not created for Pod default/p (Pod is not owner)",
        ),
    ] {
        let pod = pod.info();
        let message = failure(&decide(&Profile::default(), &snapshot, &pod));
        assert!(message.starts_with(&format!("0/2 nodes are available: {expected}.")), "{message}");
    }
    let needs_none = made(None).info();
    assert!(decide(&Profile::default(), &snapshot, &needs_none).node().is_some());
    let plugin = DynamicResources::default();
    let groups = Groups::default();
    let waits = with_claims("p", template.clone()).info();
    assert_ne!(plugin.pre_enqueue(&waits, &groups), Verdict::Pass, "its claim is not made yet");
    assert_eq!(plugin.pre_enqueue(&made(Some("foreign")).info(), &groups), Verdict::Pass);
}

#[test]
fn nodes_are_chosen_by_their_devices() {
    let profile = Profile::default();
    let mut snapshot = cluster();
    set(&mut snapshot, claim("taken", on("a", &["somebody"])));
    set(&mut snapshot, claim("mine", Value::Null));
    set(&mut snapshot, claim("also", Value::Null));
    assert_eq!(decide(&profile, &snapshot, &user("p", &["mine"]).info()).node(), Some("b"), "a's is taken");
    assert_eq!(
        decide(&profile, &snapshot, &user("p", &["taken"]).info()).node(),
        Some("a"),
        "shared claims stay"
    );
    let two = decide(&profile, &snapshot, &user("p", &["mine", "also"]).info());
    assert_eq!(
        failure(&two),
        "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are \
         available: 2 Preemption is not helpful for scheduling."
    );
    assert!(two.repairs.is_empty());
}

#[test]
fn a_claim_that_stands_in_the_way_is_deallocated() {
    let mut snapshot = cluster();
    set(&mut snapshot, claim("mine", on("a", &[])));
    set(&mut snapshot, claim("shared", on("b", &["somebody"])));
    let decision = decide(&Profile::default(), &snapshot, &user("p", &["mine", "shared"]).info());
    assert_eq!(
        failure(&decision),
        "0/2 nodes are available: 2 resourceclaim not available on the node. deallocation of ResourceClaim completed, \
         preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    let [repair] = &decision.repairs[..] else { panic!("{:?}", decision.repairs) };
    let repair = format!("{repair:?}");
    assert!(repair.contains("\"mine\"") && !repair.contains("\"shared\""), "{repair}");
}

#[test]
fn nodes_with_earlier_alternatives_are_better() {
    let mut snapshot = cluster();
    let big = json!({"name": "big", "attributes": {"d/size": {"int": 2}}});
    let mut slice = slice("b", &[]);
    slice["spec"]["devices"] = json!([big]);
    snapshot.catalog_mut().set(Arc::new(from_value::<ResourceSlice>(slice).unwrap()));
    let size = "has(device.attributes['d'].size)";
    let mut wish = claim("wish", Value::Null);
    wish["spec"]["devices"]["requests"] = json!([{"name": "r", "firstAvailable": [
        {"name": "big", "deviceClassName": "gpu", "selectors": [{"cel": {"expression": size}}]},
        {"name": "any", "deviceClassName": "gpu"},
    ]}]);
    set(&mut snapshot, wish);
    let decision = decide(&Profile::default(), &snapshot, &user("p", &["wish"]).info());
    let scores = |node| {
        let score = decision.scores(node).find(|score| score.plugin == NAME).unwrap();
        (score.raw, score.weighted)
    };
    assert_eq!((scores("a"), scores("b")), ((7, 174), (8, 200)));
    assert_eq!(decision.node(), Some("b"));
    let plain = decide(&Profile::default(), &snapshot, &pod("p").info());
    assert!(plain.scores("a").all(|score| score.plugin != NAME), "it says nothing about other pods");
}

/// What is decided about one pod counts for the next one before anything is written.
#[test]
fn devices_are_taken_with_the_decision() {
    let profile = Profile::default();
    let plugin = DynamicResources::default();
    let mut snapshot = cluster();
    for name in ["one", "two", "three"] {
        set(&mut snapshot, claim(name, Value::Null));
    }
    let take = |snapshot: &mut Snapshot, claim: &str| {
        let pod = Arc::new(user(claim, &[claim]).info());
        let decision = decide(&profile, snapshot, &pod);
        let Some(node) = decision.node_name().cloned() else { return Err(decision.failure()) };
        let mut cycle = decision.cycle;
        let mut booking = Booking::new(&mut cycle, &pod, &node, snapshot);
        assert_eq!(plugin.reserve(&mut booking), Verdict::Pass);
        Ok((pod, node, cycle))
    };
    let (first, first_node, mut cycle) = take(&mut snapshot, "one").unwrap();
    let (_, second_node, _) = take(&mut snapshot, "two").unwrap();
    assert_ne!(first_node, second_node);
    assert!(take(&mut snapshot, "three").is_err());
    let same = decide(&profile, &snapshot, &user("other", &["one"]).info());
    let expected =
        "0/2 nodes are available: resource claim default/one is in the process of being allocated.";
    assert!(failure(&same).starts_with(expected));

    // The finalizer comes before the status; the device stays taken.
    let mut written = claim("one", Value::Null);
    written["metadata"]["resourceVersion"] = json!("2");
    set(&mut snapshot, written);
    assert!(take(&mut snapshot, "three").is_err());
    plugin.unreserve(&mut Booking::new(&mut cycle, &first, &first_node, &mut snapshot));
    plugin.unreserve(&mut Booking::new(&mut cycle, &first, &first_node, &mut snapshot));
    assert_eq!(take(&mut snapshot, "three").unwrap().1, first_node);
}

/// Pods of a gang are decided on together and booked later: the second one finds the first one's device taken then.
#[test]
fn what_was_decided_is_looked_at_again_when_it_is_booked() {
    let profile = Profile::default();
    let plugin = DynamicResources::default();
    let mut snapshot = cluster();
    snapshot.remove_node("b");
    set(&mut snapshot, claim("one", Value::Null));
    set(&mut snapshot, claim("two", Value::Null));
    let reserve = |claim: &str, decision: Decision, snapshot: &mut Snapshot| {
        let (pod, node) = (Arc::new(user(claim, &[claim]).group("g").info()), Arc::from("a"));
        let mut cycle = decision.cycle;
        plugin.reserve(&mut Booking::new(&mut cycle, &pod, &node, snapshot))
    };
    let [one, two, shared] = [("one", "one"), ("two", "two"), ("three", "one")]
        .map(|(pod, claim)| decide(&profile, &snapshot, &user(pod, &[claim]).group("g").info()));
    assert_eq!(reserve("one", one, &mut snapshot), Verdict::Pass);
    assert_eq!(reserve("two", two, &mut snapshot), Verdict::unresolvable("cannot allocate all claims"));
    assert_eq!(reserve("one", shared, &mut snapshot), Verdict::Pass, "a gang shares what it is about to get");
}

#[test]
fn hints_tell_what_helps() {
    let plugin = DynamicResources::default();
    let waits = user("p", &["mine"]).info();
    let event = |old: Option<Value>, new: Option<Value>| {
        let read = |claim: Value| Arc::new(from_value::<ResourceClaim>(claim).unwrap());
        ClusterEvent::Object(ObjectEvent::new(old.map(read), new.map(read)))
    };
    let (free, allocated) = (|name| claim(name, Value::Null), |name| claim(name, on("a", &[])));
    for (old, new, helps, why) in [
        (None, Some(free("mine")), true, "the claim was made"),
        (None, Some(free("other")), false, "unrelated claim"),
        (Some(free("mine")), Some(free("mine")), false, "the status is the same"),
        (Some(free("mine")), Some(allocated("mine")), true, "it was allocated"),
        (Some(free("other")), Some(allocated("other")), false, "unrelated claim"),
        (Some(allocated("other")), Some(free("other")), true, "a device is free again"),
    ] {
        assert_eq!(plugin.hint(&waits, &event(old, new)), Hint::queue_if(helps), "{why}");
    }
    let slice: Arc<ResourceSlice> = Arc::new(from_value(slice("a", &["gpu"])).unwrap());
    let added = ClusterEvent::Object(ObjectEvent::new(None, Some(slice)));
    assert_eq!(plugin.hint(&waits, &added), Hint::Queue);
}

/// KEP-5004, and `filterExtendedResources` of `extendeddynamicresources.go`.
#[test]
fn devices_stand_for_extended_resources_that_nodes_lack() {
    let mut snapshot = cluster();
    let class = json!({"metadata": {"name": "gpu"}, "spec": {
        "extendedResourceName": "example.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'd'"}}],
    }});
    snapshot.catalog_mut().set(Arc::new(from_value::<DeviceClass>(class).unwrap()));
    set(&mut snapshot, claim("taken", on("a", &["other"])));
    let one = |name: &str| pod("p").request(name, "1").info();
    let chosen = |snapshot: &Snapshot, pod: &Arc<PodInfo>| {
        decide(&Profile::default(), snapshot, pod).node().map(str::to_owned)
    };
    let gpu = Arc::new(one("example.com/gpu"));
    assert_eq!(chosen(&snapshot, &gpu).as_deref(), Some("b"), "the device of the other node is taken");
    let by_class = Arc::new(one("deviceclass.resource.kubernetes.io/gpu"));
    assert_eq!(chosen(&snapshot, &by_class).as_deref(), Some("b"));
    let message =
        failure(&decide(&Profile::default(), &snapshot, &pod("p").request("example.com/gpu", "2").info()));
    assert!(message.starts_with("0/2 nodes are available: 2 cannot allocate all claims."), "{message}");
    let both = pod("p").request("example.com/gpu", "1").request("example.com/tpu", "1").info();
    let message = failure(&decide(&Profile::default(), &snapshot, &both));
    assert!(message.starts_with("0/2 nodes are available: 2 Insufficient example.com/tpu."), "{message}");

    // A node that has the resource itself gives that.
    snapshot.set_node(node("a").resource("cpu", "8").resource("example.com/gpu", "1").info());
    set(&mut snapshot, claim("taken-too", on("b", &["other"])));
    assert_eq!(chosen(&snapshot, &gpu).as_deref(), Some("a"));

    // What an earlier try left behind is removed first.
    let mut stale = claim("left", on("b", &[]));
    stale["metadata"]["annotations"] = json!({"resource.kubernetes.io/extended-resource-claim": "true"});
    stale["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": *gpu.uid, "controller": true}]);
    set(&mut snapshot, stale);
    let message = failure(&decide(&Profile::default(), &snapshot, &gpu));
    assert!(
        message.starts_with("0/2 nodes are available: 2 cannot schedule extended resource claim."),
        "{message}"
    );
}

/// `filterTimeout` of `DynamicResourcesArgs`: a search that takes too long rejects the node.
#[test]
fn a_search_ends_when_it_takes_too_long() {
    let mut snapshot = cluster();
    set(&mut snapshot, claim("c", json!(null)));
    let timed_out =
        "0/2 nodes are available: 1 node a: timed out trying to allocate devices, 1 node b: timed out";
    for (timeout, expected) in [
        (Duration::from_micros(1), Some(timed_out)),
        (FILTER_TIMEOUT, None),
        (Duration::from_secs(3600), None),
        (Duration::ZERO, None),
    ] {
        let plugin = Arc::new(DynamicResources::default().with_filter_timeout(timeout));
        let profile =
            Profile::builder().pre_filter(Arc::clone(&plugin) as Arc<_>).filter(plugin).build().unwrap();
        let failure = decide(&profile, &snapshot, &user("p", &["c"]).info()).failure();
        assert_eq!(failure.is_some(), expected.is_some(), "{timeout:?}: {failure:?}");
        assert!(failure.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{timeout:?}");
    }
}

/// `calculateDRAExtendedResourceAllocatableRequest` of `noderesources/resource_allocation.go`: where devices stand for a resource
/// that counts in the score, they are what there is of it.
#[test]
fn nodes_are_scored_by_the_devices_that_are_left() {
    let mut snapshot = Snapshot::new();
    let class = json!({"metadata": {"name": "gpu"}, "spec": {
        "extendedResourceName": "example.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'd'"}}],
    }});
    snapshot.catalog_mut().set(Arc::new(from_value::<DeviceClass>(class).unwrap()));
    for (name, devices) in [("a", &["gpu", "gpu2"][..]), ("b", &["gpu", "gpu2", "gpu3", "gpu4"][..])] {
        snapshot.set_node(node(name).resource("cpu", "8").info());
        snapshot.catalog_mut().set(Arc::new(from_value::<ResourceSlice>(slice(name, devices)).unwrap()));
    }
    snapshot.set_node(node("plain").resource("cpu", "8").resource("example.com/gpu", "10").info());
    set(&mut snapshot, claim("taken", on("b", &["other"])));
    let pod = pod("p").request("example.com/gpu", "1").info();
    let score = |strategy: ScoringStrategy, node: &str| {
        let fit = NodeResourcesFit::new(strategy, [("example.com/gpu", 1)]);
        let profile = Profile::builder().score(Arc::new(fit), 1).build().unwrap();
        let decision = decide(&profile, &snapshot, &pod);
        let found =
            decision.scores(node).find(|score| score.plugin == "NodeResourcesFit").map(|score| score.raw);
        found.unwrap()
    };
    for (node, least, most) in [("a", 50, 50), ("b", 50, 50), ("plain", 90, 10)] {
        assert_eq!(score(ScoringStrategy::LeastAllocated, node), least, "{node}");
        assert_eq!(score(ScoringStrategy::MostAllocated, node), most, "{node}");
    }
    set(
        &mut snapshot,
        claim(
            "more",
            json!({"allocation": {"devices": {"results": [
        {"request": "r", "driver": "d", "pool": "b", "device": "gpu2"}]}}}),
        ),
    );
    let balanced = Arc::new(BalancedAllocation::new(["cpu", "example.com/gpu"]));
    let profile =
        Profile::builder().pre_score(Arc::clone(&balanced) as Arc<_>).score(balanced, 1).build().unwrap();
    let decision = decide(&profile, &snapshot, &pod);
    let scores = ["a", "b", "plain"].map(|node| {
        let score = decision.scores(node).find(|score| score.plugin == "NodeResourcesBalancedAllocation");
        score.map(|score| score.raw).unwrap()
    });
    // No CPU is used: the more of the devices the pod takes, the less even it is. 0 of 2 to 1 of 2; 2 of 4 to 3 of 4; 0 to 1 of 10.
    assert_eq!(scores, [62, 68, 72]);
}
