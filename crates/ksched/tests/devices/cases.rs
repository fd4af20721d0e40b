//! Cases from `structured/internal/allocatortesting/allocator_testing.go`, under upstream's names. Where devices are of
//! node `n1`, every result ends with that.

use serde_json::{Value, json};

use super::{World, show};

fn class(name: &str, driver: &str) -> Value {
    let selector = json!({"cel": {"expression": format!("device.driver == '{driver}'")}});
    json!({"metadata": {"name": name}, "spec": {"selectors": [selector]}})
}

/// A slice of node `n1`, the only one of its pool.
fn slice(driver: &str, pool: &str, devices: Value) -> Value {
    json!({
        "metadata": {"name": format!("{driver}-{pool}")},
        "spec": {
            "driver": driver, "nodeName": "n1", "devices": devices,
            "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1},
        }
    })
}

fn with(mut object: Value, spec: Value) -> Value {
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    object
}

fn named(mut object: Value, name: &str) -> Value {
    object["metadata"]["name"] = json!(name);
    object
}

fn in_pool(object: Value, pool: &str, generation: i64, count: i64) -> Value {
    with(object, json!({"pool": {"name": pool, "generation": generation, "resourceSliceCount": count}}))
}

fn claim(devices: Value) -> Value {
    json!({"metadata": {"namespace": "default", "name": "c", "uid": "c"}, "spec": {"devices": devices}})
}

fn exactly(name: &str, spec: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "a"});
    for (field, value) in spec.as_object().unwrap() {
        exactly[field] = value.clone();
    }
    json!({"name": name, "exactly": exactly})
}

fn requests(requests: Value) -> Value {
    claim(json!({"requests": requests}))
}

fn selects(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

fn devices(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

fn sized(sizes: &[(&str, &str)]) -> Value {
    let device = |(name, size): &(&str, &str)| json!({"name": name, "capacity": {"memory": {"value": size}}});
    sizes.iter().map(device).collect()
}

fn result(driver: &str, pool: &str, device: &str) -> Value {
    json!({"request": "r", "driver": driver, "pool": pool, "device": device})
}

fn check(name: &str, slices: &[Value], allocated: &[Value], claims: &[Value], expected: &str) {
    let world = World {
        classes: vec![class("a", "d"), class("b", "e")],
        slices: slices.to_vec(),
        allocated: allocated.to_vec(),
        claims: claims.to_vec(),
    };
    let shown = show(world.allocate("n1"));
    assert_eq!(shown.replace("; @metadata.name In n1", ""), expected, "{name}");
}

const LARGE: &str = "device.capacity['d'].memory.compareTo(quantity('2Gi')) >= 0";

#[test]
fn devices_are_found() {
    let one = || requests(json!([exactly("r", json!({}))]));
    let two =
        || requests(json!([exactly("r", json!({})), exactly("s", json!({"selectors": selects(LARGE)}))]));
    let gpus = |names: &[&str]| slice("d", "p", devices(names));
    let large = || slice("d", "p", sized(&[("big", "2Gi"), ("small", "1Gi")]));
    check("simple", &[gpus(&["x"])], &[], &[one()], "r=d/p/x");
    check("other-node", &[with(gpus(&["x"]), json!({"nodeName": "n2"}))], &[], &[one()], "none");
    check("small-and-large-backtrack-requests", &[large()], &[], &[two()], "r=d/p/small; s=d/p/big");
    let wants_large = requests(json!([exactly("r", json!({"selectors": selects(LARGE)}))]));
    check(
        "small-and-large-backtrack-claims",
        &[large()],
        &[],
        &[one(), wants_large],
        "r=d/p/small | r=d/p/big",
    );
    check("no-slices", &[], &[], &[one()], "none");
    let count = |count: i64| requests(json!([exactly("r", json!({"count": count}))]));
    check("not-enough-suitable-devices", &[gpus(&["x", "y"])], &[], &[count(3)], "none");
    check("count", &[gpus(&["x", "y", "z"])], &[], &[count(2)], "r=d/p/x; r=d/p/y");
    check("no-claims-to-allocate", &[gpus(&["x"])], &[], &[], "");
    check("already-allocated-devices", &[gpus(&["x"])], &[result("d", "p", "x")], &[one()], "none");
    let other = requests(json!([exactly("r", json!({})), exactly("s", json!({"deviceClassName": "b"}))]));
    let both = [gpus(&["x"]), slice("e", "q", devices(&["y"]))];
    check("several-different-drivers", &both, &[], &[other], "r=d/p/x; s=e/q/y");
    let too_many = "error: claim default/c: number of requested devices 33 exceeds the claim limit of 32";
    check("too-many-devices-single-request", &[gpus(&["x"])], &[], &[count(33)], too_many);
    let many: Vec<String> = (0..32).map(|number| format!("x{number:02}")).collect();
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    let all: Vec<String> = many.iter().map(|name| format!("r=d/p/{name}")).collect();
    check("max-number-devices", &[gpus(&names)], &[], &[count(32)], &all.join("; "));
}

#[test]
fn pools_may_be_on_the_way_to_another_generation() {
    let one = || requests(json!([exactly("r", json!({}))]));
    let all = || requests(json!([exactly("r", json!({"allocationMode": "All"}))]));
    let part = |name: &str, device: &str, generation: i64, count: i64| {
        named(in_pool(slice("d", "p", devices(&[device])), "p", generation, count), name)
    };
    let elsewhere = |slice: Value| with(slice, json!({"nodeName": "n2"}));
    let (old, new) = (part("old", "x", 1, 1), part("new", "y", 2, 1));
    check("obsolete-slice", &[old, new.clone()], &[], &[one()], "r=d/p/y");
    check("incomplete", &[part("one", "x", 1, 2)], &[], &[one()], "none");
    check(
        "all-devices-of-the-incomplete-pool",
        &[part("one", "x", 1, 2)],
        &[],
        &[all()],
        "error: claim default/c, request r: asks for all devices, but resource pool d/p is currently being updated",
    );
    let hosts = [part("one", "x", 1, 2), elsewhere(part("two", "y", 1, 2))];
    check("allocation-mode-all-with-multi-host-resource-pool", &hosts, &[], &[all()], "r=d/p/x");
    let moved = [part("old", "x", 1, 2), elsewhere(new)];
    check("multi-host-resource-pool-with-stale-slice-for-current-node", &moved, &[], &[all()], "none");
    let twice = [part("one", "x", 1, 2), part("two", "x", 1, 2)];
    check(
        "invalid-pool-is-error-if-no-other-device-can-be-allocated",
        &twice,
        &[],
        &[one()],
        "error: invalid resource pools were encountered",
    );
    let [first, second] = twice;
    let other = slice("d", "q", devices(&["y"]));
    let three = [first, second, other];
    check("invalid-pool-is-ok-if-devices-can-be-allocated-from-other", &three, &[], &[one()], "r=d/q/y");
}

#[test]
fn all_devices_or_none() {
    let all = |more: Value| {
        let mut spec = json!({"allocationMode": "All"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        exactly("r", spec)
    };
    let two = [slice("d", "p", devices(&["x", "y"]))];
    let taken = [result("d", "p", "x")];
    check("all-devices-many", &two, &[], &[requests(json!([all(json!({}))]))], "r=d/p/x; r=d/p/y");
    check("all-devices-some-allocated", &two, &taken, &[requests(json!([all(json!({}))]))], "none");
    check(
        "all-devices-some-allocated-admin-access",
        &two,
        &taken,
        &[requests(json!([all(json!({"adminAccess": true}))]))],
        "r=d/p/x (admin); r=d/p/y (admin)",
    );
    let and_one = requests(json!([exactly("s", json!({})), all(json!({}))]));
    check("all-devices-no-solution", &two, &[], &[and_one], "none");
    check("all-devices-no-slices", &[], &[], &[requests(json!([all(json!({}))]))], "none");
}

#[test]
fn admin_access_takes_nothing_away() {
    let one = [slice("d", "p", devices(&["x"]))];
    let admin = |name: &str| exactly(name, json!({"adminAccess": true}));
    let claims = [requests(json!([admin("r")])), requests(json!([admin("r")]))];
    let twice = "r=d/p/x (admin) | r=d/p/x (admin)";
    check("separate-claims-share-device-admin-access", &one, &[], &claims, twice);
    check("same-claim", &one, &[], &[requests(json!([admin("r"), admin("s")]))], "none");
    let mut seen = result("d", "p", "x");
    seen["adminAccess"] = json!(true);
    check("admins-don't-count", &one, &[seen], &[requests(json!([exactly("r", json!({}))]))], "r=d/p/x");
}

#[test]
fn devices_can_be_reached_from_several_nodes() {
    let zone = |zone: &str| {
        json!({"nodeName": null, "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": [zone]}
        ]}]}})
    };
    let one = || requests(json!([exactly("r", json!({}))]));
    let near = with(slice("d", "p", devices(&["x"])), zone("east"));
    let far = with(slice("d", "p", devices(&["x"])), zone("west"));
    check("network-attached-device", std::slice::from_ref(&near), &[], &[one()], "r=d/p/x; @zone In east");
    check("unsuccessful-allocation-network-attached-device", &[far], &[], &[one()], "none");
    let both = requests(json!([exactly("r", json!({"count": 2}))]));
    let local = slice("d", "q", devices(&["y"]));
    check("local-and-network-attached-devices", &[near, local], &[], &[both], "r=d/p/x; r=d/q/y");
    let everywhere = with(slice("d", "p", devices(&["x"])), json!({"nodeName": null, "allNodes": true}));
    check("all-nodes", std::slice::from_ref(&everywhere), &[], &[one()], "r=d/p/x");
    let each = json!([
        {"name": "x", "nodeName": "n2"}, {"name": "y", "nodeName": "n1"}, {"name": "z", "allNodes": true}
    ]);
    let each = with(everywhere, json!({"allNodes": null, "perDeviceNodeSelection": true, "devices": each}));
    let two = requests(json!([exactly("r", json!({"count": 2}))]));
    check("partitionable-devices-per-device-node-selection", &[each], &[], &[two], "r=d/p/y; r=d/p/z");
    let bound = slice("d", "p", json!([{"name": "x", "bindsToNode": true}]));
    let bound = with(bound, json!({"nodeName": null, "allNodes": true}));
    check("node-restriction", &[bound], &[], &[one()], "r=d/p/x");
}

#[test]
fn constraints_hold_between_devices() {
    let attribute = |name: &str, value: Value| json!({"name": name, "attributes": {"d/numa": value}});
    let numa = |name: &str, node: i64| attribute(name, json!({"int": node}));
    let want = |count: i64, constraint: Value| {
        claim(json!({"requests": [exactly("r", json!({"count": count}))], "constraints": [constraint]}))
    };
    let same = || json!({"matchAttribute": "d/numa"});
    let distinct = || json!({"distinctAttribute": "d/numa"});
    let three = [slice("d", "p", json!([numa("x", 0), numa("y", 1), numa("z", 1)]))];
    check("with-constraint", &three, &[], &[want(2, same())], "r=d/p/y; r=d/p/z");
    check("with-constraint-not-matching-int-attribute", &three, &[], &[want(3, same())], "none");
    check("with-distinct-constraints", &three, &[], &[want(2, distinct())], "r=d/p/x; r=d/p/y");
    check("distinct-of-three", &three, &[], &[want(3, distinct())], "none");
    let missing = json!({"matchAttribute": "d/other"});
    check("with-constraint-non-existent-attribute", &three, &[], &[want(1, missing)], "none");
    for (a, b) in [
        (json!({"string": "m"}), json!({"string": "n"})),
        (json!({"bool": true}), json!({"bool": false})),
        (json!({"version": "1.0.0"}), json!({"version": "1.0.1"})),
        (json!({"int": 1}), json!({"string": "1"})),
    ] {
        let two = [slice("d", "p", json!([attribute("x", a), attribute("y", b)]))];
        check("with-constraint-not-matching", &two, &[], &[want(2, same())], "none");
        check("with-distinct-constraints", &two, &[], &[want(2, distinct())], "r=d/p/x; r=d/p/y");
    }
    let lists = [slice(
        "d",
        "p",
        json!([attribute("x", json!({"ints": [1]})), attribute("y", json!({"ints": [1]}))]),
    )];
    check(
        "list-attributes-disabled-match-constraint-with-lists",
        &lists,
        &[],
        &[want(2, same())],
        "error: class a: \
        selector #0: CEL runtime error: attribute d/numa: unsupported attribute value",
    );
    let short = json!([{"name": "x", "attributes": {"numa": {"int": 0}}}, numa("y", 0)]);
    check("names-of-the-driver", &[slice("d", "p", short)], &[], &[want(2, same())], "r=d/p/x; r=d/p/y");
    let some = claim(json!({
        "requests": [exactly("r", json!({})), exactly("s", json!({})), exactly("t", json!({}))],
        "constraints": [{"requests": ["s", "t"], "matchAttribute": "d/numa"}]
    }));
    check("with-constraint-for-request", &three, &[], &[some], "r=d/p/x; s=d/p/y; t=d/p/z");
    let all =
        claim(json!({"requests": [exactly("r", json!({"allocationMode": "All"}))], "constraints": [same()]}));
    check(
        "with-constraint-not-matching-int-attribute-all-devices",
        &three,
        &[],
        &[all],
        "error: claim default/c, request r: cannot add device d/p/y because a claim constraint would not be satisfied",
    );
    let unknown = want(1, json!({}));
    check(
        "unknown-constraint",
        &three,
        &[],
        &[unknown],
        "error: claim default/c, constraint #0: empty constraint (unsupported constraint type?)",
    );
}

#[test]
fn what_is_asked_for_may_be_wrong() {
    let one = [slice("d", "p", devices(&["x"]))];
    for (name, spec, expected) in [
        (
            "unknown-class",
            json!({"deviceClassName": "c"}),
            "could not retrieve device class c: \
            deviceclass.resource.k8s.io \"c\" not found",
        ),
        (
            "empty-class",
            json!({"deviceClassName": ""}),
            "missing device class name (unsupported request type?)",
        ),
        ("unknown-allocation-mode", json!({"allocationMode": "Some"}), "unsupported count mode Some"),
    ] {
        let expected = format!("error: claim default/c, request r: {expected}");
        check(name, &one, &[], &[requests(json!([exactly("r", spec)]))], &expected);
    }
    let unknown = requests(json!([exactly("r", json!({"selectors": [{}]}))]));
    check(
        "unknown-selector",
        &one,
        &[],
        &[unknown],
        "error: claim default/c, request r, selector #0: CEL expression empty (unsupported selector type?)",
    );
    let invalid =
        |expression: &str| requests(json!([exactly("r", json!({"selectors": selects(expression)}))]));
    check(
        "invalid-CEL-one-device",
        &one,
        &[],
        &[invalid("device.attributes['d'].none")],
        "error: claim default/c: selector #0: CEL runtime error: no such key: none",
    );
}

#[test]
fn alternatives_are_tried_in_their_order() {
    let first = |subs: Value| requests(json!([{"name": "r", "firstAvailable": subs}]));
    let sub = |name: &str, class: &str| json!({"name": name, "deviceClassName": class});
    let config = |driver: &str| json!([{"opaque": {"driver": driver, "parameters": {}}}]);
    let one = [slice("d", "p", devices(&["x"]))];
    check(
        "prioritized-list",
        &one,
        &[],
        &[first(json!([sub("big", "a"), sub("small", "b")]))],
        "r/big=d/p/x",
    );
    let other = || first(json!([sub("big", "b"), sub("small", "a")]));
    check("prioritized-list-first-unavailable", &one, &[], &[other()], "r/small=d/p/x");
    check("prioritized-list-non-available", &one, &[], &[first(json!([sub("big", "b")]))], "none");
    let mut too_many = sub("big", "a");
    too_many["count"] = json!(33);
    check(
        "prioritized-list-too-many-in-first-subrequest",
        &one,
        &[],
        &[first(json!([too_many, sub("small", "a")]))],
        "r/small=d/p/x",
    );
    // The first alternative of the first request takes what the second one needs.
    let both = [slice("d", "p", devices(&["x"])), slice("e", "q", devices(&["y"]))];
    let two = requests(json!([
        {"name": "r", "firstAvailable": [sub("big", "a"), sub("small", "b")]}, exactly("s", json!({}))
    ]));
    check("prioritized-list-with-backtracking", &both, &[], &[two], "r/small=e/q/y; s=d/p/x");
    let mut configured = other();
    configured["spec"]["devices"]["config"] = json!([
        {"requests": ["r/big"], "opaque": {"driver": "for-big", "parameters": {}}},
        {"requests": ["r/small"], "opaque": {"driver": "for-small", "parameters": {}}},
        {"requests": ["r"], "opaque": {"driver": "for-both", "parameters": {}}},
    ]);
    let mut world = World {
        classes: vec![with(class("a", "d"), json!({"config": config("of-a")})), class("b", "e")],
        slices: one.to_vec(),
        allocated: Vec::new(),
        claims: vec![configured],
    };
    let expected = "r/small=d/p/x; FromClass[\"r/small\"]:of-a; FromClaim[\"r/small\"]:for-small; FromClaim[\"r\"]:for-both; \
                    @metadata.name In n1";
    assert_eq!(show(world.allocate("n1")), expected, "prioritized-list-class-config");
    world.claims = vec![claim(json!({
        "requests": [exactly("r", json!({})), exactly("s", json!({}))],
        "config": config("for-all")
    }))];
    world.slices = vec![slice("d", "p", devices(&["x", "y"]))];
    let expected =
        "r=d/p/x; s=d/p/y; FromClass[\"r\", \"s\"]:of-a; FromClaim[]:for-all; @metadata.name In n1";
    assert_eq!(
        show(world.allocate("n1")),
        expected,
        "with-class-device-config-with-multiple-request-and-configs"
    );
}

#[test]
fn taints_keep_claims_away() {
    let taint = |key: &str, effect: &str| json!({"key": key, "value": "v", "effect": effect});
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists"});
    let tainted = |taints: Value| [slice("d", "p", json!([{"name": "x", "taints": taints}]))];
    let (a, b) = (|| taint("a", "NoSchedule"), || taint("b", "NoExecute"));
    for (name, taints, tolerations, expected) in [
        ("tainted-one-device", json!([a()]), json!([]), "none"),
        ("tainted-one-device-two-taints", json!([a(), b()]), json!([tolerate("a")]), "none"),
        (
            "tainted-one-device-two-taints-both-tolerated",
            json!([a(), b()]),
            json!([tolerate("a"), tolerate("b")]),
            "r=d/p/x",
        ),
        ("tainted-no-effect", json!([taint("a", "None")]), json!([]), "r=d/p/x"),
        ("equal", json!([a()]), json!([{"key": "a", "operator": "Equal", "value": "v"}]), "r=d/p/x"),
        ("not-equal", json!([a()]), json!([{"key": "a", "operator": "Equal", "value": "w"}]), "none"),
        ("all", json!([a(), b()]), json!([{"operator": "Exists"}]), "r=d/p/x"),
        ("other-effect", json!([a()]), json!([{"operator": "Exists", "effect": "NoExecute"}]), "none"),
    ] {
        let wants = requests(json!([exactly("r", json!({"tolerations": tolerations}))]));
        check(name, &tainted(taints), &[], &[wants], expected);
    }
}

#[test]
fn partitions_share_counters() {
    let counters = |memory: &str| json!({"memory": {"value": memory}});
    let takes = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "gpu", "counters": counters(memory)}]});
    let sets = named(in_pool(slice("d", "p", json!(null)), "p", 1, 2), "sets");
    let sets = with(sets, json!({"sharedCounters": [{"name": "gpu", "counters": counters("40Gi")}]}));
    let pool = |devices: Value| [in_pool(slice("d", "p", devices), "p", 1, 2), sets.clone()];
    let parts = || pool(json!([takes("full", "40Gi"), takes("half-0", "20Gi"), takes("half-1", "20Gi")]));
    let count = |count: i64| requests(json!([exactly("r", json!({"count": count}))]));
    check("partitionable-devices-single-device", &parts(), &[], &[count(1)], "r=d/p/full");
    check("partitionable-devices-multiple-devices", &parts(), &[], &[count(2)], "r=d/p/half-0; r=d/p/half-1");
    check("partitionable-devices-too-many", &parts(), &[], &[count(3)], "none");
    let taken = [result("d", "p", "half-0")];
    check("partitionable-devices-some-allocated", &parts(), &taken, &[count(1)], "r=d/p/half-1");
    let full = [result("d", "p", "full")];
    check("partitionable-devices-no-capacity-available", &parts(), &full, &[count(1)], "none");
    let unknown =
        json!([{"name": "x", "consumesCounters": [{"counterSet": "other", "counters": counters("1Gi")}]}]);
    check(
        "unknown-counter-set",
        &pool(unknown),
        &[],
        &[count(1)],
        "error: invalid resource pools were encountered",
    );
    // A device of another node takes of the same counters.
    let here = named(in_pool(slice("d", "p", json!([takes("here", "30Gi")])), "p", 1, 3), "here");
    let there = named(
        with(in_pool(slice("d", "p", json!([takes("there", "30Gi")])), "p", 1, 3), json!({"nodeName": "n2"})),
        "there",
    );
    let hosts = [here, there, in_pool(sets.clone(), "p", 1, 3)];
    check("other-hosts", &hosts, &[], &[count(1)], "r=d/p/here");
    check("other-hosts-allocated", &hosts, &[result("d", "p", "there")], &[count(1)], "none");
}

#[test]
fn capacity_is_consumed() {
    let shared = |policy: Value| {
        let capacity = json!({"memory": {"value": "10Gi", "requestPolicy": policy}});
        [slice("d", "p", json!([{"name": "x", "allowMultipleAllocations": true, "capacity": capacity}]))]
    };
    let asks =
        |memory: &str| requests(json!([exactly("r", json!({"capacity": {"requests": {"memory": memory}}}))]));
    let plain = || requests(json!([exactly("r", json!({}))]));
    let range = || json!({"default": "1Gi", "validRange": {"min": "2Gi", "max": "8Gi", "step": "2Gi"}});
    let values = || json!({"default": "1Gi", "validValues": ["1Gi", "4Gi"]});
    let used = |memory: &str| {
        let mut used = result("d", "p", "x");
        used["shareID"] = json!("00000000-0000-4000-8000-000000000000");
        used["consumedCapacity"] = json!({"memory": memory});
        [used]
    };
    for (name, policy, allocated, claims, expected) in [
        (
            "without-policy-without-capacity-request",
            json!(null),
            &[][..],
            vec![plain()],
            "r=d/p/x memory:10Gi (share)",
        ),
        (
            "without-policy-without-capacity-request-block",
            json!(null),
            &[][..],
            vec![plain(), plain()],
            "none",
        ),
        (
            "without-policy-with-capacity-request",
            json!(null),
            &[],
            vec![asks("4Gi")],
            "r=d/p/x memory:4Gi (share)",
        ),
        ("with-policy-without-capacity-request", range(), &[], vec![plain()], "r=d/p/x memory:1Gi (share)"),
        (
            "with-range-policy-with-capacity-request",
            range(),
            &[],
            vec![asks("1Gi")],
            "r=d/p/x memory:2Gi (share)",
        ),
        ("with-range-policy-step", range(), &[], vec![asks("3Gi")], "r=d/p/x memory:4Gi (share)"),
        ("with-request-over-max-sharing-policy", range(), &[], vec![asks("9Gi")], "none"),
        ("with-valid-values-policy-round-up", values(), &[], vec![asks("2Gi")], "r=d/p/x memory:4Gi (share)"),
        ("over-valid-values", values(), &[], vec![asks("5Gi")], "none"),
        ("with-exceeded-consumable-capacity-request", json!(null), &[], vec![asks("11Gi")], "none"),
        (
            "with-allocated-capacity-use-remaining",
            json!(null),
            &used("4Gi"),
            vec![asks("6Gi")],
            "r=d/p/x memory:6Gi (share)",
        ),
        ("with-no-available-consumable-capacity", json!(null), &used("4Gi"), vec![asks("7Gi")], "none"),
        (
            "two-shares",
            json!(null),
            &[],
            vec![asks("4Gi"), asks("6Gi")],
            "r=d/p/x memory:4Gi (share) | r=d/p/x memory:6Gi (share)",
        ),
        ("two-shares-too-many", json!(null), &[], vec![asks("4Gi"), asks("7Gi")], "none"),
    ] {
        check(name, &shared(policy), allocated, &claims, expected);
    }
    let unknown = requests(json!([exactly("r", json!({"capacity": {"requests": {"cores": "1"}}}))]));
    check("unknown-capacity", &shared(json!(null)), &[], &[unknown], "none");
    let dedicated = [slice("d", "p", sized(&[("x", "10Gi")]))];
    check("dedicated-device-with-consumable-capacity-request", &dedicated, &[], &[asks("4Gi")], "r=d/p/x");
    let taken = [result("d", "p", "x")];
    check(
        "not-allocate-multi-allocatable-device-which-already-dedicated",
        &shared(json!(null)),
        &taken,
        &[asks("1Gi")],
        "none",
    );
}

#[test]
fn devices_that_may_fail_to_come_up_come_last() {
    let conditions =
        json!([{"name": "x", "bindingConditions": ["Ready"], "bindingFailureConditions": ["Broken"]}]);
    let slices = [slice("d", "a", conditions), slice("d", "b", devices(&["y"]))];
    let count = |count: i64| requests(json!([exactly("r", json!({"count": count}))]));
    check("binding-conditions-with-and-without", &slices, &[], &[count(1)], "r=d/b/y");
    check("binding-conditions-multiple-devices", &slices, &[], &[count(2)], "r=d/b/y; r=d/a/x");
}

#[test]
fn a_search_without_end_is_given_up() {
    // Sixteen of thirty, half of which differ from the other half in the last attribute only: no solution, and no shortcut.
    let devices: Value = (0..30)
        .map(|number| json!({"name": format!("x{number:02}"), "attributes": {"d/side": {"int": number % 2}}}))
        .collect();
    let wants = claim(json!({
        "requests": [exactly("r", json!({"count": 15})), exactly("s", json!({"count": 15}))],
        "constraints": [{"requests": ["r"], "matchAttribute": "d/side"}, {"requests": ["s"], "distinctAttribute": "d/side"}]
    }));
    let slices = [slice("d", "p", devices)];
    let world = World {
        classes: vec![class("a", "d")],
        slices: slices.to_vec(),
        allocated: vec![],
        claims: vec![wants],
    };
    assert_eq!(show(world.allocate("n1")), "none", "constraints end it early");
    let free: Value = (0..30).map(|number| json!({"name": format!("x{number:02}")})).collect();
    let wants = requests(json!([exactly("r", json!({"count": 15})), exactly("s", json!({"count": 16}))]));
    let world = World { slices: vec![slice("d", "p", free)], claims: vec![wants], ..world };
    assert_eq!(show(world.allocate("n1")), "error: node n1: timed out trying to allocate devices");
}
