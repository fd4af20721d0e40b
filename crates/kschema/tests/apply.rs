//! Who owns what after writes of all kinds: tables of histories with their expected ends.

use std::sync::Arc;

use kschema::{
    Catalog, Type,
    apply::{
        ConvertError, FieldManager, PathElement, Set, Versions, keep_times,
        scale::{ReplicaPaths, to_parent, to_scale},
        validate_entries, validate_managed_fields,
    },
    builtin,
    structural::Structural,
};
use serde_json::{Value, json};

/// One kind in one version, with fields that are not the request's to change.
struct Kind {
    catalog: Arc<Catalog>,
    api_version: &'static str,
    name: &'static str,
    schema: Type,
    reset: Option<Set>,
}

impl Versions for Kind {
    fn schema(&self, api_version: &str) -> Option<&Type> {
        (api_version == self.api_version).then_some(&self.schema)
    }

    fn convert(&self, _: &Value, _: &str) -> Result<Value, ConvertError> {
        Err(ConvertError::NoSuchVersion)
    }

    fn reset_fields(&self, _: &str) -> Option<&Set> {
        self.reset.as_ref()
    }
}

impl Kind {
    fn builtin(api_version: &'static str, name: &'static str) -> Self {
        let catalog = builtin::catalog();
        let group_version = if api_version.contains('/') {
            api_version.replace('/', ".")
        } else {
            format!("core.{api_version}")
        };
        let schema = Type::Named(catalog.find(&format!("~{group_version}.{name}")).expect("a definition"));
        Self { catalog, api_version, name, schema, reset: None }
    }

    fn custom(schema: &Value) -> Self {
        let schema = Structural::compile(schema).expect("a schema");
        Self {
            catalog: builtin::catalog(),
            api_version: "example.com/v1",
            name: "Thing",
            schema: Type::Structural(Arc::new(schema)),
            reset: None,
        }
    }

    fn manager<'a>(&'a self, subresource: &'a str) -> FieldManager<'a> {
        FieldManager {
            catalog: &self.catalog,
            versions: self,
            api_version: self.api_version,
            kind: self.name,
            subresource,
        }
    }

    /// `fields` as an object of this kind.
    fn object(&self, fields: &Value) -> Value {
        let mut object = json!({"apiVersion": self.api_version, "kind": self.name, "metadata": {"name": "x", "namespace": "default"}});
        merge(&mut object, fields);
        object
    }
}

fn merge(into: &mut Value, from: &Value) {
    match from {
        Value::Object(map) if into.is_object() => {
            map.iter().for_each(|(key, value)| merge(&mut into[key], value))
        }
        value => *into = value.clone(),
    }
}

/// A write in a history.
enum Step {
    /// Who, what the whole object is then.
    Update(&'static str, Value),
    /// Who, what is applied.
    Apply(&'static str, Value),
    /// An apply that takes what it wants.
    Force(&'static str, Value),
    /// An apply that is refused, with the message.
    Refused(&'static str, Value, &'static str),
}

fn now(step: usize) -> jiff::Timestamp {
    format!("2026-01-01T00:00:{step:02}Z").parse().expect("a time")
}

fn play(kind: &Kind, steps: &[Step]) -> Value {
    let mut live = json!({});
    for (index, step) in steps.iter().enumerate() {
        let manager = kind.manager("");
        match step {
            Step::Update(who, object) => {
                let mut new = kind.object(object);
                new["metadata"]["uid"] = json!("u");
                manager.on_update(&live, &mut new, who, now(index));
                live = new;
            }
            Step::Apply(who, patch) | Step::Force(who, patch) => {
                let force = matches!(step, Step::Force(..));
                let applied = manager.on_apply(&live, &kind.object(patch), who, force, now(index));
                live = applied.expect("no conflict").unwrap_or(live);
                live["metadata"]["uid"] = json!("u");
            }
            Step::Refused(who, patch, message) => {
                let error = manager.on_apply(&live, &kind.object(patch), who, false, now(index)).unwrap_err();
                assert_eq!(error.0.message, *message);
            }
        }
    }
    live
}

/// Every entry in a line: who, how, which seconds of the clock, and the fields.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let line = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let fields = Set::from_fields_v1(&entry["fieldsV1"]).expect("fields").paths().join(" ");
        let time = text("time").get(17..19).unwrap_or("-");
        format!("{} {} {time} {fields}", text("manager"), text("operation"))
    };
    entries.into_iter().flatten().map(line).collect()
}

fn check(kind: &Kind, steps: &[Step], body: &Value, expected: &[&str]) {
    let end = play(kind, steps);
    assert_eq!(owners(&end), expected);
    validate_managed_fields(&end).expect("readable");
    let mut fields = end.clone();
    for key in ["apiVersion", "kind", "metadata"] {
        fields.as_object_mut().expect("an object").remove(key);
    }
    assert_eq!(fields, *body);
}

/// Kubernetes documentation, "Server-Side Apply": field management and conflicts.
#[test]
fn config_maps_are_shared_key_by_key() {
    use Step::{Apply, Force, Refused, Update};
    let kind = Kind::builtin("v1", "ConfigMap");
    let data = |data: Value| json!({ "data": data });
    check(
        &kind,
        &[
            Apply("alice", data(json!({"a": "1", "b": "1"}))),
            Apply("bob", data(json!({"b": "1", "c": "1"}))),
            Refused(
                "bob",
                data(json!({"a": "2", "b": "1", "c": "1"})),
                "Apply failed with 1 conflict: conflict with \"alice\": .data.a",
            ),
            Apply("alice", data(json!({"a": "1"}))),
        ],
        &data(json!({"a": "1", "b": "1", "c": "1"})),
        // The second apply of alice changed what she owns, not the object, so that the time stays.
        &["alice Apply 00 .data.a", "bob Apply 01 .data.b .data.c"],
    );
    check(
        &kind,
        &[
            Apply("alice", data(json!({"a": "1"}))),
            Update("controller", data(json!({"a": "2", "b": "1"}))),
            Refused(
                "alice",
                data(json!({"a": "1", "b": "3"})),
                "Apply failed with 2 conflicts: conflicts with \"controller\" using v1:\n- .data.a\n- .data.b",
            ),
            Force("alice", data(json!({"a": "1"}))),
        ],
        &data(json!({"a": "1", "b": "1"})),
        &["alice Apply 03 .data.a", "controller Update 01 .data.b"],
    );
}

/// structured-merge-diff, merge/multiple_appliers_test.go and default_keys_test.go.
#[test]
fn entries_of_lists_are_owned_by_their_keys() {
    use Step::{Apply, Refused, Update};
    let kind = Kind::builtin("v1", "Service");
    let ports = |ports: Value| json!({"spec": {"ports": ports}});
    check(
        &kind,
        &[
            Apply("alice", ports(json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]))),
            // The protocol that is not given is TCP.
            Apply("bob", ports(json!([{"port": 53}, {"port": 80, "protocol": "TCP", "name": "web"}]))),
            Apply("alice", ports(json!([{"port": 80}]))),
        ],
        &ports(json!([{"port": 53}, {"port": 80, "protocol": "TCP", "name": "web"}])),
        &[
            "bob Apply 01 .spec.ports[port=53,protocol=\"TCP\"] .spec.ports[port=80,protocol=\"TCP\"] .spec.ports[port=53,protocol=\"TCP\"].port .spec.ports[port=80,protocol=\"TCP\"].name .spec.ports[port=80,protocol=\"TCP\"].port .spec.ports[port=80,protocol=\"TCP\"].protocol",
            "alice Apply 02 .spec.ports[port=80,protocol=\"TCP\"] .spec.ports[port=80,protocol=\"TCP\"].port",
        ],
    );
    check(
        &kind,
        &[
            Update(
                "controller",
                ports(json!([{"port": 80, "protocol": "TCP", "nodePort": 30000, "targetPort": 80}])),
            ),
            Refused(
                "alice",
                ports(json!([{"port": 80, "nodePort": 30001}])),
                "Apply failed with 1 conflict: conflict with \"controller\" using v1: .spec.ports[port=80,protocol=\"TCP\"].nodePort",
            ),
            Apply("alice", json!({"spec": {"selector": {"a": "b"}}})),
            // An atomic map is one value.
            Refused(
                "bob",
                json!({"spec": {"selector": {"c": "d"}}}),
                "Apply failed with 1 conflict: conflict with \"alice\": .spec.selector",
            ),
        ],
        &json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000, "targetPort": 80}], "selector": {"a": "b"}}}),
        &[
            "alice Apply 02 .spec.selector",
            "controller Update 00 .spec.ports .spec.ports[port=80,protocol=\"TCP\"] .spec.ports[port=80,protocol=\"TCP\"].nodePort .spec.ports[port=80,protocol=\"TCP\"].port .spec.ports[port=80,protocol=\"TCP\"].protocol .spec.ports[port=80,protocol=\"TCP\"].targetPort",
        ],
    );
}

/// structured-merge-diff, merge/set_test.go and merge/nested_test.go: the order of what is merged.
#[test]
fn lists_are_merged_in_the_order_applied_with_the_others_in_place() {
    let kind = Kind::custom(&json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties":
            {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items":
                {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "integer"}}}}}}}));
    let set = |set: Value| json!({ "set": set });
    check(
        &kind,
        &[
            Step::Apply("alice", set(json!(["a", "c"]))),
            Step::Update("controller", set(json!(["a", "b", "c", "d"]))),
            Step::Apply("alice", set(json!(["a", "a2", "c", "c2"]))),
        ],
        &set(json!(["a", "b", "a2", "c", "d", "c2"])),
        &[
            "alice Apply 02 .set[=\"a\"] .set[=\"a2\"] .set[=\"c\"] .set[=\"c2\"]",
            "controller Update 01 .set[=\"b\"] .set[=\"d\"]",
        ],
    );
    let map = |map: Value| json!({ "map": map });
    check(
        &kind,
        &[
            Step::Apply(
                "alice",
                map(json!({"x": [{"name": "a", "value": 1}, {"name": "b", "value": 1}], "y": []})),
            ),
            Step::Apply("bob", map(json!({"x": [{"name": "b"}, {"name": "c"}]}))),
            Step::Apply("alice", map(json!({"x": [{"name": "b", "value": 2}]}))),
        ],
        &map(json!({"x": [{"name": "b", "value": 2}, {"name": "c"}]})),
        &[
            "bob Apply 01 .map.x .map.x[name=\"b\"] .map.x[name=\"c\"] .map.x[name=\"b\"].name .map.x[name=\"c\"].name",
            "alice Apply 02 .map.x .map.x[name=\"b\"] .map.x[name=\"b\"].name .map.x[name=\"b\"].value",
        ],
    );
}

/// structured-merge-diff, merge/duplicates_test.go, deduced_test.go and leaf_test.go.
#[test]
fn what_is_there_twice_and_what_has_no_schema() {
    let kind = Kind::custom(&json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}}}}));
    let set = |set: Value| json!({ "set": set });
    check(
        &kind,
        &[
            Step::Update("controller", set(json!([1, 1, 3, 4]))),
            Step::Refused(
                "alice",
                set(json!([1])),
                "Apply failed with 1 conflict: conflict with \"controller\" using example.com/v1: .set[=1]",
            ),
            Step::Refused(
                "alice",
                set(json!([5, 5])),
                "failed to create typed patch object (default/x; example.com/v1, Kind=Thing): .set: duplicate entries for key [=5]",
            ),
            Step::Force("alice", set(json!([1]))),
        ],
        &set(json!([1, 3, 4])),
        &["alice Apply 03 .set[=1]", "controller Update 00 .set .set[=3] .set[=4]"],
    );
    let bare = Kind { schema: Type::Any, ..Kind::custom(&json!({"type": "object"})) };
    check(
        &bare,
        &[
            Step::Apply("alice", json!({"spec": {"a": {"b": [1, 2]}, "c": 1, "e": {}}})),
            Step::Apply("bob", json!({"spec": {"d": 1.0}})),
            Step::Refused(
                "bob",
                json!({"spec": {"a": {"b": [1]}, "d": 1}}),
                "Apply failed with 1 conflict: conflict with \"alice\": .spec.a.b",
            ),
            Step::Apply("alice", json!({"spec": {"a": {"b": [3]}}})),
        ],
        &json!({"spec": {"a": {"b": [3]}, "d": 1.0}}),
        &["bob Apply 01 .spec .spec.d", "alice Apply 03 .spec .spec.a .spec.a.b"],
    );
}

/// What a Deployment created by `kubectl create deployment` shows on a real cluster: what Go writes whether it is set or not is
/// there before, and so is not said to be added.
#[test]
fn a_deployment_is_owned_as_upstream_says() {
    let kind = Kind::builtin("apps/v1", "Deployment");
    let container = json!({"image": "nginx", "imagePullPolicy": "Always", "name": "nginx", "resources": {},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"});
    let pod = json!({"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
        "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30});
    let spec = json!({"progressDeadlineSeconds": 600, "replicas": 1, "revisionHistoryLimit": 10,
        "selector": {"matchLabels": {"app": "nginx"}},
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}, "type": "RollingUpdate"},
        "template": {"metadata": {"labels": {"app": "nginx"}}, "spec": pod}});
    let end = play(
        &kind,
        &[Step::Update("kubectl-create", json!({"metadata": {"labels": {"app": "nginx"}}, "spec": spec}))],
    );
    let expected = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"nginx\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
                        "f:resources": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
                    "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                    "f:terminationGracePeriodSeconds": {}}}}});
    let entry = &end["metadata"]["managedFields"][0];
    assert_eq!(entry["fieldsV1"], expected);
    let rest = json!([
        entry["manager"],
        entry["operation"],
        entry["apiVersion"],
        entry["fieldsType"],
        entry["time"]
    ]);
    assert_eq!(rest, json!(["kubectl-create", "Update", "apps/v1", "FieldsV1", "2026-01-01T00:00:00Z"]));
}

/// apimachinery, util/managedfields: what is refused, in its words.
#[test]
fn patches_that_make_no_sense_are_refused() {
    let kind = Kind::builtin("apps/v1", "Deployment");
    let env =
        |env: Value| json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": env}]}}}});
    let typed = |rest: &str| {
        (500, format!("failed to create typed patch object (default/x; apps/v1, Kind=Deployment): {rest}"))
    };
    let cases = [
        (json!({"kind": "Pod"}), (400, "invalid object type: apps/v1, Kind=Pod".to_owned())),
        (json!({"apiVersion": "v1"}), (400, "invalid object type: /v1, Kind=Deployment".to_owned())),
        (json!({"metadata": {"managedFields": []}}), (400, "metadata.managedFields must be nil".to_owned())),
        (json!({"spec": {"foo": 1}}), typed(".spec.foo: field not declared in schema")),
        (
            json!({"spec": {"replicas": "3"}}),
            typed(".spec.replicas: expected numeric (int or float), got string"),
        ),
        (json!({"spec": {"paused": "x"}}), typed(".spec.paused: expected boolean, got &{x}")),
        (json!({"spec": []}), typed(".spec: expected map, got &{[]}")),
        (
            env(json!([{"name": "A", "value": 1}, {"name": "A"}])),
            typed(
                "errors:\n  .spec.template.spec.containers[name=\"a\"].env[name=\"A\"].value: expected string, got &value.valueUnstructured{Value:1}\n  .spec.template.spec.containers[name=\"a\"].env: duplicate entries for key [name=\"A\"]",
            ),
        ),
        (
            env(json!({"A": [true, null]})),
            typed(
                ".spec.template.spec.containers[name=\"a\"].env: expected list, got &{map[A:[true <nil>]]}",
            ),
        ),
        (
            env(json!([null])),
            typed(
                ".spec.template.spec.containers[name=\"a\"].env: element 0: associative list with keys may not have a null element",
            ),
        ),
    ];
    for (patch, (code, message)) in cases {
        let patch = kind.object(&patch);
        let error = kind.manager("").on_apply(&json!({}), &patch, "alice", false, now(0)).unwrap_err();
        assert_eq!((error.0.code, error.0.message), (code, message), "{patch}");
    }
}

/// apimachinery, util/managedfields/internal: conflict_test.go.
#[test]
fn a_conflict_is_a_status_with_a_cause_for_every_field() {
    let kind = Kind::builtin("apps/v1", "Deployment");
    let mut live = kind.object(&json!({"metadata": {"uid": "u"}, "spec": {"replicas": 1, "paused": true}}));
    let entry = |manager: &str, operation: &str, subresource: &str, field: &str| {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "subresource": subresource,
            "fieldsType": "FieldsV1", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {format!("f:{field}"): {}}}})
    };
    live["metadata"]["managedFields"] =
        json!([entry("hpa", "Update", "scale", "replicas"), entry("flux", "Apply", "", "paused")]);
    let patch = kind.object(&json!({"spec": {"replicas": 2, "paused": false}}));
    let status = kind.manager("").on_apply(&live, &patch, "alice", false, now(0)).unwrap_err().0;
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let causes: Vec<_> =
        status.details.unwrap().causes.into_iter().map(|c| (c.reason, c.message, c.field)).collect();
    let cause = |message: &str, field: &str| {
        ("FieldManagerConflict".to_owned(), message.to_owned(), field.to_owned())
    };
    assert_eq!(
        causes,
        [
            cause("conflict with \"flux\"", ".spec.paused"),
            cause("conflict with \"hpa\" with subresource \"scale\" using apps/v1", ".spec.replicas"),
        ]
    );
}

/// apimachinery, util/managedfields/internal: skipnonapplied_test.go, lastappliedmanager_test.go.
#[test]
fn objects_from_before_apply_and_from_client_side_apply() {
    let kind = Kind::builtin("v1", "ConfigMap");
    let data = |data: Value| json!({ "data": data });
    let mut live = kind.object(&data(json!({"a": "1"})));
    live["metadata"]["uid"] = json!("u");
    // Nobody has ever applied it: nothing is tracked.
    let mut new = live.clone();
    new["data"]["a"] = json!("2");
    kind.manager("").on_update(&live, &mut new, "controller", now(0));
    assert_eq!(owners(&new), [""; 0]);
    let patch = kind.object(&data(json!({"a": "2", "b": "1"})));
    let refused = kind.manager("").on_apply(&live, &patch, "alice", false, now(1)).unwrap_err();
    assert_eq!(
        refused.0.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    let applied = kind.manager("").on_apply(&live, &patch, "alice", true, now(1)).unwrap().unwrap();
    assert_eq!(owners(&applied), ["alice Apply 01 .data.a .data.b", "before-first-apply Update 01 .data"]);

    // What kubectl applied on the client's side is kubectl's, whoever is said to own it.
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}}).to_string();
    let object =
        json!({"metadata": {"uid": "u", "annotations": {annotation: last}}, "data": {"a": "1", "b": "1"}});
    let live = play(&kind, &[Step::Update("kubectl-client-side-apply", object)]);
    let patch = kind.object(&data(json!({"a": "2"})));
    assert!(kind.manager("").on_apply(&live, &patch, "someone", false, now(1)).is_err());
    let applied = kind.manager("").on_apply(&live, &patch, "kubectl", false, now(1)).unwrap().unwrap();
    assert_eq!(applied["data"], json!({"a": "2", "b": "1"}));
    assert_eq!(applied["metadata"]["annotations"][annotation], format!("{patch}\n"));
    let patch = kind.object(&data(json!({"a": "2", "b": "2"})));
    let refused = kind.manager("").on_apply(&live, &patch, "kubectl", false, now(1)).unwrap_err();
    assert_eq!(
        refused.0.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.b"
    );
}

/// apimachinery, util/managedfields/internal: managedfieldsupdater_test.go, capmanagers_test.go, fieldmanager_test.go.
#[test]
fn times_and_numbers_of_entries() {
    let kind = Kind::builtin("v1", "ConfigMap");
    let object = |value: usize| json!({"data": {"a": value.to_string()}});
    let live = play(&kind, &[Step::Update("c", object(1)), Step::Update("c", object(1))]);
    assert_eq!(owners(&live), ["c Update 00 .data .data.a"]);
    // A change of what nobody owns is nobody's.
    let mut new = live.clone();
    new["metadata"]["resourceVersion"] = json!("7");
    kind.manager("").on_update(&live, &mut new, "d", now(5));
    assert_eq!(owners(&new), ["c Update 00 .data .data.a"]);
    // Forgetting managedFields does not lose them; setting them empty does.
    for (brought, expected) in [
        (Value::Null, vec!["c Update 00 .data", "d Update 05 .data.a"]),
        (json!([{"manager": "x", "operation": "Nothing"}]), vec!["c Update 00 .data", "d Update 05 .data.a"]),
        (json!([]), vec![]),
        (json!([{}]), vec![]),
    ] {
        let mut new = kind.object(&object(2));
        new["metadata"]["uid"] = json!("u");
        new["metadata"]["managedFields"] = brought;
        kind.manager("").on_update(&live, &mut new, "d", now(5));
        assert_eq!(owners(&new), expected);
    }
    // The oldest of too many are put together.
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let mut data = serde_json::Map::new();
    let steps = names.map(|name| {
        data.insert(name.to_owned(), json!("1"));
        Step::Update(name, json!({ "data": data }))
    });
    let live = play(&kind, &steps);
    let mut expected = vec!["ancient-changes Update 02 .data .data.a .data.b .data.c".to_owned()];
    expected.extend(
        names
            .iter()
            .enumerate()
            .skip(3)
            .map(|(index, name)| format!("{name} Update {index:02} .data.{name}")),
    );
    assert_eq!(owners(&live), expected);
}

#[test]
fn fields_that_a_request_cannot_change_are_not_owned() {
    let mut kind = Kind::builtin("apps/v1", "Deployment");
    kind.reset = Some(Set::of([["status"].as_slice()]));
    let object = json!({"spec": {"replicas": 1}, "status": {"replicas": 1}});
    let live = play(&kind, &[Step::Update("c", object)]);
    assert_eq!(owners(&live), ["c Update 00 .spec.replicas"]);
    kind.reset = Some(Set::of([["spec"].as_slice()]));
    let mut new = live.clone();
    new["status"]["replicas"] = json!(2);
    kind.manager("status").on_update(&live, &mut new, "d", now(1));
    assert_eq!(new["metadata"]["managedFields"][1]["subresource"], "status");
    assert_eq!(owners(&new), ["c Update 00 .spec.replicas", "d Update 01 .status.replicas"]);
}

/// apiserver, endpoints/handlers/fieldmanager/equality_test.go.
#[test]
fn a_write_that_changes_only_times_is_none() {
    let kind = Kind::builtin("v1", "ConfigMap");
    let old = play(&kind, &[Step::Apply("alice", json!({"data": {"a": "1"}}))]);
    let mut later = old.clone();
    later["metadata"]["managedFields"][0]["time"] = json!("2026-02-02T00:00:00Z");
    let mut new = later.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, old);
    let mut changed = later.clone();
    changed["data"]["a"] = json!("2");
    let before = changed.clone();
    keep_times(&old, &mut changed);
    assert_eq!(changed, before);
}

/// Three versions of a kind whose field has another name in each, and one that is no more.
struct Renamed(Arc<Catalog>, [Type; 3]);

impl Renamed {
    fn new() -> Self {
        let schema = |version: usize| {
            let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties":
                {"name": {"type": "string"}, format!("field{version}"): {"type": "string"}}}}});
            Type::Structural(Arc::new(Structural::compile(&schema).expect("a schema")))
        };
        Self(builtin::catalog(), [1, 2, 3].map(schema))
    }

    fn number(api_version: &str) -> Option<usize> {
        ["g/v1", "g/v2", "g/v3"].iter().position(|known| *known == api_version)
    }
}

impl Versions for Renamed {
    fn schema(&self, api_version: &str) -> Option<&Type> {
        Some(&self.1[Self::number(api_version)?])
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, ConvertError> {
        let from = object["apiVersion"].as_str().and_then(Self::number).ok_or(ConvertError::NoSuchVersion)?;
        let to = Self::number(api_version).ok_or(ConvertError::NoSuchVersion)?;
        let mut converted = object.clone();
        converted["apiVersion"] = json!(api_version);
        if let Some(spec) = converted["spec"].as_object_mut()
            && let Some(value) = spec.remove(&format!("field{}", from + 1))
        {
            spec.insert(format!("field{}", to + 1), value);
        }
        Ok(converted)
    }
}

/// structured-merge-diff, merge/multiple_appliers_test.go and obsolete_versions_test.go.
#[test]
fn fields_are_owned_across_versions() {
    let kind = Renamed::new();
    let manager = |api_version| FieldManager {
        catalog: &kind.0,
        versions: &kind,
        api_version,
        kind: "Thing",
        subresource: "",
    };
    let object = |version: usize, spec: Value| json!({"apiVersion": format!("g/v{version}"), "kind": "Thing", "spec": spec});
    for (first, second, third) in [(1, 2, 3), (2, 1, 1), (3, 3, 2), (1, 1, 1)] {
        let api_versions = [first, second, third].map(|version: usize| ["g/v1", "g/v2", "g/v3"][version - 1]);
        let field = |version: usize| format!("field{version}");
        let one = object(first, json!({"name": "a", field(first): "x"}));
        let live =
            manager(api_versions[0]).on_apply(&json!({}), &one, "one", false, now(0)).unwrap().unwrap();
        let live = kind.convert(&live, api_versions[1]).unwrap();
        let two = object(second, json!({field(second): "x"}));
        let live = manager(api_versions[1]).on_apply(&live, &two, "two", false, now(1)).unwrap().unwrap();
        let live = kind.convert(&live, api_versions[2]).unwrap();
        // What the second manager took part in stays when the first lets go of it,
        let left = object(third, json!({"name": "a"}));
        let live = manager(api_versions[2]).on_apply(&live, &left, "one", false, now(2)).unwrap().unwrap();
        assert_eq!(live["spec"], json!({"name": "a", field(third): "x"}));
        // and is the second one's alone.
        let other = object(third, json!({field(third): "y"}));
        let refused = manager(api_versions[2]).on_apply(&live, &other, "three", false, now(3)).unwrap_err();
        let expected =
            format!("Apply failed with 1 conflict: conflict with \"two\": .spec.{}", field(second));
        assert_eq!(refused.0.message, expected);
        // Entries of versions that are no more are forgotten.
        let mut old = live.clone();
        old["metadata"]["managedFields"][0]["apiVersion"] = json!("g/v0");
        let applied =
            manager(api_versions[2]).on_apply(&old, &other, "three", true, now(3)).unwrap().unwrap();
        let entries = applied["metadata"]["managedFields"].as_array().expect("entries");
        assert!(entries.iter().all(|entry| entry["apiVersion"] != "g/v0"), "{entries:?}");
    }
}

/// structured-merge-diff, merge/schema_change_test.go.
#[test]
fn what_became_one_value_is_owned_as_one() {
    let schema = |map_type: &str| {
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-map-type": map_type,
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}}})
    };
    let before = Kind::custom(&schema("granular"));
    let live = play(
        &before,
        &[Step::Update("c", json!({"spec": {"a": "1"}})), Step::Apply("alice", json!({"spec": {"b": "1"}}))],
    );
    assert_eq!(owners(&live), ["alice Apply 01 .spec.b", "c Update 00 .spec .spec.a"]);
    let after = Kind::custom(&schema("atomic"));
    let patch = after.object(&json!({"spec": {"b": "2"}}));
    let refused = after.manager("").on_apply(&live, &patch, "alice", false, now(2)).unwrap_err();
    assert_eq!(
        refused.0.message,
        "Apply failed with 1 conflict: conflict with \"c\" using example.com/v1: .spec"
    );
    let applied = after.manager("").on_apply(&live, &patch, "alice", true, now(2)).unwrap().unwrap();
    assert_eq!(owners(&applied), ["alice Apply 02 .spec"]);
    assert_eq!(applied["spec"], json!({"b": "2"}));
    let mut new = live.clone();
    new["metadata"]["labels"] = json!({"x": "y"});
    after.manager("").on_update(&live, &mut new, "d", now(3));
    assert_eq!(
        owners(&new),
        ["alice Apply 01 .spec", "c Update 00 .spec", "d Update 03 .metadata.labels .metadata.labels.x"]
    );
}

/// apimachinery, util/managedfields/scalehandler_test.go.
#[test]
fn the_replicas_are_owned_through_the_scale() {
    let path = vec![PathElement::field("spec"), PathElement::field("replicas")];
    let paths = ReplicaPaths::from([("apps/v1".to_owned(), Some(path)), ("example.com/v1".to_owned(), None)]);
    let entry = |who: &str, how: &str, api_version: &str, subresource: &str, fields: &[&str]| {
        let fields: serde_json::Map<String, Value> =
            fields.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
        let mut entry = json!({"manager": who, "operation": how, "apiVersion": api_version, "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}});
        if !subresource.is_empty() {
            entry["subresource"] = json!(subresource);
        }
        entry
    };
    let parent = json!([
        entry("a", "Apply", "apps/v1", "", &["replicas", "selector"]),
        entry("b", "Apply", "apps/v1", "", &["template"]),
        entry("gone", "Apply", "apps/v9", "", &["replicas"]),
    ]);
    let shown = to_scale(&parent, &paths).unwrap().unwrap();
    assert_eq!(shown, json!([entry("a", "Apply", "autoscaling/v1", "", &["replicas"])]));
    for (scale, expected) in [
        // Nobody wrote: all stays but what is of no version.
        (
            shown.clone(),
            json!([
                entry("a", "Apply", "apps/v1", "", &["replicas", "selector"]),
                entry("b", "Apply", "apps/v1", "", &["template"])
            ]),
        ),
        // An update of the scale takes the replicas,
        (
            json!([entry("s", "Update", "autoscaling/v1", "scale", &["replicas"])]),
            json!([
                entry("a", "Apply", "apps/v1", "", &["selector"]),
                entry("b", "Apply", "apps/v1", "", &["template"]),
                entry("s", "Update", "apps/v1", "scale", &["replicas"]),
            ]),
        ),
        // an apply of the same value shares them.
        (
            json!([
                entry("a", "Apply", "autoscaling/v1", "", &["replicas"]),
                entry("s", "Apply", "autoscaling/v1", "scale", &["replicas"])
            ]),
            json!([
                entry("a", "Apply", "apps/v1", "", &["replicas", "selector"]),
                entry("b", "Apply", "apps/v1", "", &["template"]),
                entry("s", "Apply", "apps/v1", "scale", &["replicas"]),
            ]),
        ),
    ] {
        assert_eq!(to_parent(&parent, &scale, "apps/v1", &paths).unwrap().unwrap(), expected);
    }
}

/// apimachinery, apis/meta/v1/validation/validation_test.go.
#[test]
fn entries_have_a_form() {
    let object = json!({"metadata": {"managedFields": [
        {"operation": "Apply", "fieldsType": "FieldsV1", "manager": "a b"},
        {"operation": "RandomVerb", "fieldsType": "Invalid", "manager": "a\nb", "subresource": "x".repeat(257)},
        {"operation": "Update", "manager": "x".repeat(129)},
    ]}});
    let mut errors = Vec::new();
    validate_entries(&object, &mut errors);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "metadata.managedFields[1].operation: Invalid value: \"RandomVerb\": must be `Apply` or `Update`",
            "metadata.managedFields[1].fieldsType: Invalid value: \"Invalid\": must be `FieldsV1`",
            "metadata.managedFields[1].manager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
            "metadata.managedFields[1].subresource: Too long: may not be more than 256 bytes",
            "metadata.managedFields[2].manager: Too long: may not be more than 128 bytes",
        ]
    );
}
