use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    claims::{BIND_CONFLICT, Choice, NO_SPACE, NO_VOLUME, NODE_CONFLICT, UNBOUND},
    *,
};
use crate::build::{node, pod};

fn user(source: &Value) -> PodInfo {
    let mut volume = source.clone();
    volume["name"] = json!("v");
    let volume = serde_json::from_value(volume).unwrap();
    pod("p").edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info()
}

fn snapshot(claim: &Value, mode: &str, volume: &Value) -> Snapshot {
    let mut snapshot = Snapshot::new();
    snapshot.set_node(node("a").label("disk", "ssd").info());
    snapshot.set_node(node("b").info());
    let catalog = snapshot.catalog_mut();
    if !claim.is_null() {
        let mut claim = claim.clone();
        claim["metadata"]["namespace"] = json!("default");
        catalog.set(Arc::new(serde_json::from_value::<PersistentVolumeClaim>(claim).unwrap()));
    }
    if !mode.is_empty() {
        let class = json!({"metadata": {"name": "fast"}, "provisioner": "x", "volumeBindingMode": mode});
        catalog.set(Arc::new(serde_json::from_value::<StorageClass>(class).unwrap()));
    }
    if !volume.is_null() {
        let volume = json!({"metadata": {"name": "pv"}, "spec": volume});
        catalog.set(Arc::new(serde_json::from_value::<PersistentVolume>(volume).unwrap()));
    }
    snapshot
}

/// The cases of upstream's `TestVolumeBinding` (`volume_binding_test.go`) that end before a node is looked at.
#[test]
fn claims_that_are_not_ready_reject_the_pod() {
    let named = json!({"persistentVolumeClaim": {"claimName": "c"}});
    let own = json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
    let claim = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
    let fast = || claim(json!({"storageClassName": "fast"}));
    for (source, claim, mode, expected) in [
        (&named, Value::Null, "", "persistentvolumeclaim \"c\" not found"),
        (
            &own,
            Value::Null,
            "",
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"",
        ),
        (
            &own,
            json!({"metadata": {"name": "p-v"}, "spec": {}}),
            "",
            "PVC default/p-v was not created for pod default/p (pod is not owner)",
        ),
        (&named, claim(json!({})), "", UNBOUND),
        (&named, fast(), "", UNBOUND),
        (&named, fast(), "Immediate", UNBOUND),
        // Bound by hand, but not yet by the controller.
        (
            &named,
            claim(json!({"storageClassName": "fast", "volumeName": "pv"})),
            "WaitForFirstConsumer",
            UNBOUND,
        ),
        (
            &named,
            json!({"metadata": {"name": "c"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Lost"}}),
            "",
            "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"pv\"",
        ),
        (
            &named,
            json!({"metadata": {"name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}),
            "",
            "persistentvolumeclaim \"c\" is being deleted",
        ),
    ] {
        let snapshot = snapshot(&claim, mode, &Value::Null);
        let verdict =
            VolumeBinding::default().pre_filter(&mut CycleState::default(), &user(source), &snapshot);
        assert_eq!(verdict, PreFilterVerdict::Reject(Rejection::unresolvable(expected)), "{claim}");
    }
    let without = pod("p").info();
    let verdict = VolumeBinding::default().pre_filter(&mut CycleState::default(), &without, &Snapshot::new());
    assert_eq!(verdict, PreFilterVerdict::Skip);
}

/// The cases of upstream's `TestFindPodVolumesWithoutProvisioning` (`binder_test.go`) with bound claims.
#[test]
fn volumes_must_be_reachable_from_the_node() {
    let affinity = |values: &[&str]| {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "disk", "operator": "In", "values": values}]}]}}})
    };
    let reject = Verdict::unresolvable;
    for (volume, before, expected) in [
        (json!({}), PreFilterVerdict::Skip, [Verdict::Pass, Verdict::Pass]),
        (affinity(&["ssd"]), PreFilterVerdict::Pass, [Verdict::Pass, reject(NODE_CONFLICT)]),
        (affinity(&["hdd"]), PreFilterVerdict::Pass, [reject(NODE_CONFLICT), reject(NODE_CONFLICT)]),
        (Value::Null, PreFilterVerdict::Pass, [reject(NO_VOLUME), reject(NO_VOLUME)]),
    ] {
        let claim = json!({
            "metadata": {"name": "c", "annotations": {volumes::BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "pv"},
        });
        let snapshot = snapshot(&claim, "", &volume);
        let pod = user(&json!({"persistentVolumeClaim": {"claimName": "c"}}));
        let mut cycle = CycleState::default();
        assert_eq!(VolumeBinding::default().pre_filter(&mut cycle, &pod, &snapshot), before, "{volume}");
        let verdicts: Vec<_> =
            snapshot.nodes().map(|node| VolumeBinding::default().filter(&cycle, &pod, node)).collect();
        assert_eq!(verdicts, expected, "{volume}");
    }
}

/// A cluster for the cases below: class `local` has no provisioner, `net` makes volumes anywhere, `zoned` only in zone x,
/// `counted` tells its capacity. Node `a` is in zone x, `b` in y.
fn cluster(volumes: &[Value], claims: &[Value], pools: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for (name, zone) in [("a", "x"), ("b", "y")] {
        snapshot.set_node(node(name).label("kubernetes.io/hostname", name).label("zone", zone).info());
    }
    let catalog = snapshot.catalog_mut();
    let zones = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["x"]}]}]);
    for (name, provisioner, topologies) in [
        ("local", "kubernetes.io/no-provisioner", Value::Null),
        ("net", "example.com/net", Value::Null),
        ("zoned", "example.com/net", zones),
        ("nowhere", "example.com/net", json!([{}])),
        ("counted", "example.com/counted", Value::Null),
    ] {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies": topologies});
        catalog.set::<StorageClass>(Arc::new(serde_json::from_value(class).unwrap()));
    }
    let driver = json!({"metadata": {"name": "example.com/counted"}, "spec": {"storageCapacity": true}});
    catalog.set::<CSIDriver>(Arc::new(serde_json::from_value(driver).unwrap()));
    for volume in volumes {
        catalog.set::<PersistentVolume>(Arc::new(serde_json::from_value(volume.clone()).unwrap()));
    }
    for claim in claims {
        catalog.set::<PersistentVolumeClaim>(Arc::new(serde_json::from_value(claim.clone()).unwrap()));
    }
    for pool in pools {
        catalog.set::<CSIStorageCapacity>(Arc::new(serde_json::from_value(pool.clone()).unwrap()));
    }
    snapshot
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}}},
    })
}

fn volume(name: &str, class: &str, size: &str) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "capacity": {"storage": size}},
        "status": {"phase": "Available"},
    })
}

fn on_host(volume: Value, host: &str) -> Value {
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]);
    with(volume, "/spec/nodeAffinity", json!({"required": {"nodeSelectorTerms": terms}}))
}

fn reserved(volume: Value, name: &str, uid: &str) -> Value {
    with(volume, "/spec/claimRef", json!({"namespace": "default", "name": name, "uid": uid}))
}

fn user_of(claims: &[Value]) -> Arc<PodInfo> {
    let volumes = claims.iter().map(|claim| {
        let name = &claim["metadata"]["name"];
        serde_json::from_value(json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).unwrap()
    });
    let volumes = volumes.collect();
    Arc::new(pod("p").edit(|pod| pod.spec.get_or_insert_default().volumes = Some(volumes)).info())
}

/// `claim=volume` for what is bound, `claim+` for what is made, or the reasons against.
fn outcome(choice: Result<Choice, Rejection>) -> String {
    let name = |name: &Option<String>| name.clone().unwrap();
    match choice {
        Ok(choice) => {
            let bound = choice.bindings.iter();
            let bound = bound.map(|(claim, volume)| {
                format!("{}={}", name(&claim.metadata.name), name(&volume.metadata.name))
            });
            let made = choice.provisions.iter().map(|claim| format!("{}+", name(&claim.metadata.name)));
            bound.chain(made).collect::<Vec<_>>().join(" ")
        }
        Err(rejection) => rejection.message(),
    }
}

fn check(volumes: &[Value], claims: &[Value], pools: &[Value], expected: [&str; 2]) {
    let snapshot = cluster(volumes, claims, pools);
    let read = Claims::read(&user_of(claims), snapshot.catalog()).unwrap();
    let found: Vec<_> = snapshot.nodes().map(|node| outcome(read.on(node.info()))).collect();
    assert_eq!(found, expected, "{volumes:?} {claims:?} {pools:?}");
}

/// The cases of upstream's `TestFindPodVolumesWithoutProvisioning` (`binder_test.go`) and `TestMatchVolume`
/// (`pkg/controller/volume/persistentvolume/index_test.go`).
#[test]
fn the_smallest_volume_that_fits_and_is_free_is_found() {
    let one = || claim("c", "local", "5Gi");
    let disk = |name: &str, size: &str| volume(name, "local", size);
    let none = [BIND_CONFLICT, BIND_CONFLICT];
    let found = ["c=v", "c=v"];
    check(&[], &[one()], &[], none);
    check(&[disk("v", "5Gi")], &[one()], &[], found);
    check(&[disk("v", "4Gi")], &[one()], &[], none);
    check(&[disk("big", "9Gi"), disk("v", "6Gi"), disk("w", "7Gi")], &[one()], &[], found);
    check(&[volume("v", "net", "5Gi")], &[one()], &[], none);
    let annotated = with(
        volume("v", "net", "5Gi"),
        "/metadata/annotations",
        json!({"volume.beta.kubernetes.io/storage-class": "local"}),
    );
    check(&[annotated], &[one()], &[], found);
    // On one host only.
    check(&[on_host(disk("v", "5Gi"), "a")], &[one()], &[], ["c=v", BIND_CONFLICT]);
    check(&[on_host(disk("v", "6Gi"), "a"), disk("w", "7Gi")], &[one()], &[], ["c=v", "c=w"]);
    check(&[on_host(disk("v", "8Gi"), "a"), disk("w", "7Gi")], &[one()], &[], ["c=w", "c=w"]);
    // What is in use, on its way, or of another sort.
    for (pointer, value) in [
        ("/status/phase", json!("Bound")),
        ("/status/phase", json!("Pending")),
        ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ("/spec/volumeMode", json!("Block")),
        ("/spec/accessModes", json!(["ReadOnlyMany"])),
        ("/spec/volumeAttributesClassName", json!("gold")),
        ("/spec/claimRef", json!({"namespace": "default", "name": "other"})),
    ] {
        check(&[with(disk("v", "5Gi"), pointer, value)], &[one()], &[], none);
    }
    let block = with(one(), "/spec/volumeMode", json!("Block"));
    check(&[disk("v", "5Gi")], std::slice::from_ref(&block), &[], none);
    check(&[with(disk("v", "5Gi"), "/spec/volumeMode", json!("Block"))], &[block], &[], found);
    let gold = |object| with(object, "/spec/volumeAttributesClassName", json!("gold"));
    check(&[gold(disk("v", "5Gi"))], &[gold(one())], &[], found);
    let selecting = with(one(), "/spec/selector", json!({"matchLabels": {"tier": "fast"}}));
    check(&[disk("v", "5Gi")], std::slice::from_ref(&selecting), &[], none);
    let labelled = with(disk("v", "5Gi"), "/metadata/labels", json!({"tier": "fast"}));
    check(&[labelled], &[selecting], &[], found);
}

/// As above: volumes that somebody has bound to the claim by hand, or that the scheduler has chosen for another pod.
#[test]
fn a_volume_that_is_bound_to_the_claim_is_the_only_one() {
    let one = || claim("c", "local", "5Gi");
    let disk = |name: &str| volume(name, "local", "9Gi");
    let none = [BIND_CONFLICT, BIND_CONFLICT];
    let better = || volume("better", "local", "5Gi");
    for uid in ["uid-c", ""] {
        check(&[better(), reserved(disk("v"), "c", uid)], &[one()], &[], ["c=v", "c=v"]);
        let here = on_host(reserved(disk("v"), "c", uid), "a");
        check(&[better(), here], &[one()], &[], ["c=v", BIND_CONFLICT]);
    }
    check(&[reserved(disk("v"), "c", "another")], &[one()], &[], none);
    // Its phase and labels do not matter, its size and mode do.
    let used = with(reserved(disk("v"), "c", "uid-c"), "/status/phase", json!("Bound"));
    check(&[used], &[one()], &[], ["c=v", "c=v"]);
    let small = reserved(volume("v", "local", "1Gi"), "c", "uid-c");
    check(&[small], &[one()], &[], none);
}

#[test]
fn claims_of_one_pod_get_a_volume_each() {
    let claims = [claim("large", "local", "8Gi"), claim("small", "local", "1Gi")];
    let disk = |name: &str, size: &str| volume(name, "local", size);
    check(&[disk("v", "2Gi"), disk("w", "9Gi")], &claims, &[], ["small=v large=w", "small=v large=w"]);
    check(&[disk("w", "9Gi")], &claims, &[], [BIND_CONFLICT, BIND_CONFLICT]);
    let both = [claim("c", "local", "1Gi"), claim("d", "net", "1Gi")];
    check(&[disk("v", "2Gi")], &both, &[], ["c=v d+", "c=v d+"]);
    // One is bound to a volume on host a, the other has a volume on host b.
    let bound = with(
        with(claim("bound", "local", "1Gi"), "/spec/volumeName", json!("there")),
        "/metadata/annotations",
        json!({volumes::BIND_COMPLETED: "yes"}),
    );
    let there = on_host(reserved(disk("there", "2Gi"), "bound", "uid-bound"), "a");
    let both = [bound, claim("c", "local", "1Gi")];
    let either = format!("{NODE_CONFLICT}, {BIND_CONFLICT}");
    check(std::slice::from_ref(&there), &both, &[], [BIND_CONFLICT, &either]);
    check(&[there, on_host(disk("v", "2Gi"), "b")], &both, &[], [BIND_CONFLICT, NODE_CONFLICT]);
    check(
        &[],
        &both,
        &[],
        [&format!("{BIND_CONFLICT}, {NO_VOLUME}"), &format!("{BIND_CONFLICT}, {NO_VOLUME}")],
    );
}

/// The cases of upstream's `TestFindPodVolumesWithProvisioning` and `TestCapacity` (`binder_test.go`).
#[test]
fn volumes_are_made_where_their_class_and_their_driver_can() {
    let made = ["c+", "c+"];
    let one = |class: &str| [claim("c", class, "5Gi")];
    check(&[], &one("net"), &[], made);
    check(&[volume("v", "net", "5Gi")], &one("net"), &[], ["c=v", "c=v"]);
    check(&[], &one("zoned"), &[], ["c+", BIND_CONFLICT]);
    check(&[], &one("nowhere"), &[], [BIND_CONFLICT, BIND_CONFLICT]);
    // Another pod has chosen the node; volumes are not looked at any more.
    let selected = |class: &str| {
        [with(claim("c", class, "5Gi"), "/metadata/annotations", json!({assume::SELECTED_NODE: "a"}))]
    };
    check(&[volume("v", "net", "5Gi")], &selected("net"), &[], ["c+", BIND_CONFLICT]);
    check(&[volume("v", "local", "5Gi")], &selected("local"), &[], [BIND_CONFLICT, BIND_CONFLICT]);
    let pool = |name: &str, class: &str, capacity: &str, zone: &str| {
        json!({"metadata": {"namespace": "default", "name": name}, "storageClassName": class, "capacity": capacity,
            "nodeTopology": {"matchLabels": {"zone": zone}}})
    };
    let full = [NO_SPACE, NO_SPACE];
    check(&[], &one("counted"), &[], full);
    check(&[], &one("counted"), &[pool("p", "counted", "5Gi", "x")], ["c+", NO_SPACE]);
    check(&[], &one("counted"), &[pool("p", "counted", "4Gi", "x")], full);
    check(&[], &one("counted"), &[pool("p", "net", "5Gi", "x")], full);
    let two = [pool("p", "counted", "4Gi", "x"), pool("q", "counted", "5Gi", "y")];
    check(&[], &one("counted"), &two, [NO_SPACE, "c+"]);
    let limited = with(pool("p", "counted", "50Gi", "x"), "/maximumVolumeSize", json!("4Gi"));
    check(&[], &one("counted"), &[limited], full);
    let everywhere = with(pool("p", "counted", "5Gi", "x"), "/nodeTopology", json!({}));
    check(&[], &one("counted"), &[everywhere], made);
    let unreachable = with(pool("p", "counted", "5Gi", "x"), "/nodeTopology", Value::Null);
    check(&[], &one("counted"), &[unreachable], full);
    let unsized_claim = with(claim("c", "counted", "5Gi"), "/spec/resources", json!({}));
    check(&[], &[unsized_claim], &[], made);
}

/// What one pod has chosen is not there for the next, until it is given back.
#[test]
fn what_is_chosen_counts_for_others() {
    let claims = [claim("c", "local", "1Gi"), claim("d", "net", "1Gi")];
    let mut snapshot = cluster(&[volume("v", "local", "2Gi")], &claims, &[]);
    let plugin = VolumeBinding::default();
    let (pod, node) = (user_of(&claims), Arc::<str>::from("b"));
    let mut cycle = CycleState::default();
    assert!(Reserve::concerns(&plugin, &pod, snapshot.catalog()));
    assert_eq!(plugin.pre_filter(&mut cycle, &pod, &snapshot), PreFilterVerdict::Pass);
    let mut booking = Booking::new(&mut cycle, &pod, &node, &mut snapshot);
    assert_eq!(plugin.reserve(&mut booking), Verdict::Pass);
    let other = [claim("e", "local", "1Gi")];
    let others = |snapshot: &mut Snapshot, claims: &[Value]| {
        for claim in claims {
            let claim: PersistentVolumeClaim = serde_json::from_value(claim.clone()).unwrap();
            if snapshot
                .catalog()
                .get::<PersistentVolumeClaim>("default", claim.metadata.name.as_deref().unwrap())
                .is_none()
            {
                snapshot.catalog_mut().set(Arc::new(claim));
            }
        }
        let read = Claims::read(&user_of(claims), snapshot.catalog()).unwrap();
        snapshot.nodes().map(|node| outcome(read.on(node.info()))).collect::<Vec<_>>()
    };
    assert_eq!(others(&mut snapshot, &other), [BIND_CONFLICT, BIND_CONFLICT]);
    // Another pod with the same claims gets the same volume, and must go to the same node.
    assert_eq!(others(&mut snapshot, &claims[..1]), ["c=v", "c=v"]);
    assert_eq!(others(&mut snapshot, &claims[1..]), [BIND_CONFLICT, "d+"]);
    for _ in 0..2 {
        plugin.unreserve(&mut Booking::new(&mut cycle, &pod, &node, &mut snapshot));
        assert_eq!(others(&mut snapshot, &other), ["e=v", "e=v"]);
        assert_eq!(others(&mut snapshot, &claims[1..]), ["d+", "d+"]);
    }
}

/// Upstream's loop over all volumes, for each node anew.
fn naive<'a>(all: &'a [PersistentVolume], claim: &PersistentVolumeClaim, host: &str) -> Option<&'a str> {
    let text = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
    let size = |volume: &PersistentVolume| {
        kcore::Quantity::parse(&volume.spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0)
            .unwrap()
    };
    let wanted = super::claims::size(claim);
    let mut best: Option<&PersistentVolume> = None;
    for volume in all {
        let spec = volume.spec.as_ref().unwrap();
        let reserved = matching::reserved_for(volume, claim);
        if (spec.claim_ref.is_some() && !reserved) || size(volume) < wanted {
            continue;
        }
        let reachable = spec.node_affinity.as_ref().is_none_or(|affinity| {
            let mut terms = affinity.required.as_ref().unwrap().node_selector_terms.iter();
            terms.any(|term| {
                term.match_expressions.iter().flatten().all(|wanted| {
                    let has = wanted.values.iter().flatten().any(|value| value == host);
                    if wanted.operator == "In" { has } else { !has }
                })
            })
        });
        if reserved {
            return reachable.then_some(text(&volume.metadata.name));
        }
        if reachable && best.is_none_or(|best| size(volume) < size(best)) {
            best = Some(volume);
        }
    }
    best.map(|volume| text(&volume.metadata.name))
}

proptest::proptest! {
    #[test]
    fn the_index_by_host_finds_what_a_look_at_each_volume_finds(
        volumes in proptest::collection::vec((1_u8..5, 0_u8..6, 0_u8..12), 0..12), wanted in 1_u8..5,
    ) {
        let term = |operator: &str, hosts: &[&str]| json!({"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": operator, "values": hosts}]});
        let volumes: Vec<Value> = volumes.iter().enumerate().map(|(number, &(size, place, owner))| {
            let volume = volume(&format!("v{number:02}"), "local", &format!("{size}Gi"));
            let terms = match place {
                0 => json!([term("In", &["a"])]),
                1 => json!([term("In", &["b"])]),
                2 => json!([term("In", &["a", "a", "b"])]),
                3 => json!([term("NotIn", &["a"])]),
                4 => json!([term("In", &["a"]), term("NotIn", &["a", "b"])]),
                _ => Value::Null,
            };
            let volume = if terms.is_null() { volume } else {
                with(volume, "/spec/nodeAffinity", json!({"required": {"nodeSelectorTerms": terms}}))
            };
            match owner { 0 => reserved(volume, "c", "uid-c"), 1 | 2 => reserved(volume, "d", ""), _ => volume }
        }).collect();
        let claims = [claim("c", "local", &format!("{wanted}Gi"))];
        let snapshot = cluster(&volumes, &claims, &[]);
        let read = Claims::read(&user_of(&claims), snapshot.catalog()).unwrap();
        let all: Vec<PersistentVolume> = volumes.iter().map(|it| serde_json::from_value(it.clone()).unwrap()).collect();
        let object = serde_json::from_value(claims[0].clone()).unwrap();
        for host in ["a", "b"] {
            let expected = naive(&all, &object, host).map_or(BIND_CONFLICT.to_owned(), |name| format!("c={name}"));
            let node = snapshot.node(snapshot.find(host).unwrap());
            proptest::prop_assert_eq!(outcome(read.on(node.info())), expected, "{:?} on {}", volumes, host);
        }
    }
}

/// The cases of upstream's `TestIsSchedulableAfter...` functions (`volume_binding_test.go`).
#[test]
fn events_that_may_help_wake_the_pod() {
    fn event<K: serde::de::DeserializeOwned + Send + Sync + 'static>(old: Value, new: Value) -> ClusterEvent {
        let read =
            |value: Value| (!value.is_null()).then(|| Arc::new(serde_json::from_value::<K>(value).unwrap()));
        ClusterEvent::Object(ObjectEvent::new(read(old), read(new)))
    }
    let uses = |name: &str, namespace: &str| {
        with(claim(name, "net", "1Gi"), "/metadata/namespace", json!(namespace))
    };
    let class = |zone: &str| {
        json!({"metadata": {"name": "net"}, "provisioner": "x",
        "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": [zone]}]}]})
    };
    let pool = |capacity: Value, most: Value| {
        json!({"metadata": {"name": "p"}, "storageClassName": "net",
        "capacity": capacity, "maximumVolumeSize": most})
    };
    let node = |migrated: &str| {
        json!({"metadata": {"name": "a", "annotations": {MIGRATED_PLUGINS: migrated}},
        "spec": {"drivers": []}})
    };
    let driver =
        |name: &str, counts: Value| json!({"metadata": {"name": name}, "spec": {"storageCapacity": counts}});
    let mut cases = vec![
        (event::<PersistentVolumeClaim>(Value::Null, uses("c", "default")), true),
        (event::<PersistentVolumeClaim>(uses("c", "default"), uses("c", "default")), true),
        (event::<PersistentVolumeClaim>(Value::Null, uses("d", "default")), false),
        (event::<PersistentVolumeClaim>(Value::Null, uses("c", "other")), false),
        (event::<PersistentVolumeClaim>(uses("c", "default"), Value::Null), false),
        (event::<PersistentVolume>(Value::Null, volume("v", "net", "1Gi")), true),
        (event::<PersistentVolume>(volume("v", "net", "1Gi"), Value::Null), false),
        (event::<StorageClass>(Value::Null, class("x")), true),
        (event::<StorageClass>(class("x"), class("y")), true),
        (event::<StorageClass>(class("x"), class("x")), false),
        (event::<CSINode>(Value::Null, node("one")), true),
        (event::<CSINode>(node("one"), node("two")), true),
        (event::<CSINode>(node("one"), node("one")), false),
    ];
    let gib = |number: u8| json!(format!("{number}Gi"));
    for (old, new, expected) in [
        (Value::Null, pool(gib(1), Value::Null), true),
        (pool(gib(1), Value::Null), pool(gib(2), Value::Null), true),
        (pool(gib(2), Value::Null), pool(gib(1), Value::Null), false),
        (pool(gib(1), Value::Null), pool(gib(1), Value::Null), false),
        (pool(Value::Null, Value::Null), pool(gib(1), Value::Null), true),
        (pool(gib(1), Value::Null), pool(Value::Null, Value::Null), false),
        // The largest volume counts more than what is there in all.
        (pool(gib(5), gib(1)), pool(gib(9), gib(1)), false),
        (pool(gib(5), gib(1)), pool(gib(5), gib(2)), true),
    ] {
        cases.push((event::<CSIStorageCapacity>(old, new), expected));
    }
    for (name, old, new, expected) in [
        ("inline", json!(true), json!(false), true),
        ("inline", json!(true), Value::Null, true),
        ("inline", json!(false), json!(true), false),
        ("inline", json!(true), json!(true), false),
        ("other", json!(true), json!(false), false),
    ] {
        cases.push((event::<CSIDriver>(driver(name, old), driver(name, new)), expected));
    }
    let volumes = json!([{"name": "c", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "i", "csi": {"driver": "inline"}}]);
    let volumes = serde_json::from_value(volumes).unwrap();
    let pod = pod("p").edit(|pod| pod.spec.get_or_insert_default().volumes = Some(volumes)).info();
    for (event, expected) in cases {
        assert_eq!(VolumeBinding::default().hint(&pod, &event), Hint::queue_if(expected), "{event:?}");
    }
}
