//! Protobuf: the bytes of some objects, and the way there and back for every built-in kind.

use kschema::{
    Catalog, builtin,
    protobuf::{ProtobufError, decode, encode, encode_message, list_frame, put_item, watch_frame},
    testing::object_of,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn put(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let length = bytes.len();
    if length < 128 {
        out.push(u8::try_from(length).unwrap());
    } else {
        out.extend([u8::try_from(length & 127).unwrap() | 128, u8::try_from(length >> 7).unwrap()]);
    }
    out.extend(bytes);
    out
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// Metadata of which only the name is given: Go writes every field that is no pointer.
fn metadata(name: &str) -> Vec<u8> {
    let empty = |number| put(number, b"");
    let parts =
        [put(1, name.as_bytes()), empty(2), empty(3), empty(4), empty(5), empty(6), number(7, 0), empty(8)];
    join(&parts)
}

fn enveloped(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let kind = join(&[put(1, api_version.as_bytes()), put(2, kind.as_bytes())]);
    join(&[b"k8s\0".to_vec(), put(1, &kind), put(2, message), put(3, b""), put(4, b"")])
}

/// A list of revision 7, put together in pieces.
fn listed(catalog: &Catalog, kind: &str, items: &[&[u8]]) -> Vec<u8> {
    let meta = json!({"resourceVersion": "7"});
    let frame = list_frame(catalog, "v1", kind, &meta, items.iter().map(|item| item.len())).unwrap();
    let mut encoded = frame.head;
    items.iter().for_each(|item| put_item(&mut encoded, item));
    [encoded, frame.tail].concat()
}

/// The envelope tells how long a list is before its items are there: the sum has to be right for lengths of one and more bytes.
#[test]
fn lists_of_any_length_are_read_again() {
    let catalog = builtin::catalog();
    for length in [0, 1, 100, 127, 128, 200, 16_383, 16_384, 70_000, 2_100_000] {
        let item = json!({"metadata": {"name": "a"}, "data": {"x": "y".repeat(length)}});
        let mut whole = item.clone();
        whole["apiVersion"] = json!("v1");
        whole["kind"] = json!("ConfigMap");
        let message = encode_message(&catalog, &whole).unwrap();
        for count in 0..3 {
            let encoded = listed(&catalog, "ConfigMapList", &vec![message.as_slice(); count]);
            let list = decode(&catalog, &encoded).unwrap();
            assert_eq!(list["items"].as_array().map_or(0, Vec::len), count, "{length}");
            assert!(
                list["items"]
                    .as_array()
                    .is_none_or(|items| items.iter().all(|found| found["data"] == item["data"]))
            );
        }
    }
}

/// The field numbers of `k8s.io/api/core/v1/generated.proto`; what is written when nothing is said is what the generated
/// marshalers do.
#[test]
fn objects_have_upstreams_bytes() {
    let catalog = builtin::catalog();
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"y": "", "x": "1"}, "immutable": false});
    let message = join(&[
        put(1, &metadata("a")),
        put(2, &join(&[put(1, b"x"), put(2, b"1")])),
        put(2, &join(&[put(1, b"y"), put(2, b"")])),
        number(4, 0),
    ]);
    assert_eq!(encode_message(&catalog, &config_map).unwrap(), message);
    let envelope = enveloped("v1", "ConfigMap", &message);
    assert_eq!(encode(&catalog, &config_map).unwrap(), envelope);

    // A list holds the objects without their envelopes.
    let list_meta = join(&[put(1, b""), put(2, b"7"), put(3, b"")]);
    let list = join(&[put(1, &list_meta), put(2, &message), put(2, &message)]);
    let encoded = listed(&catalog, "ConfigMapList", &[&message, &message]);
    assert_eq!(encoded, enveloped("v1", "ConfigMapList", &list));
    let mut item = config_map.clone();
    item.as_object_mut().unwrap().retain(|key, _| key != "apiVersion" && key != "kind");
    let whole = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": [item, item]});
    assert_eq!(encode(&catalog, &whole).unwrap(), encoded);

    // An event of a watch holds it with the envelope.
    let event = join(&[put(1, b"ADDED"), put(2, &put(1, &envelope))]);
    let length = u32::try_from(event.len()).unwrap().to_be_bytes().to_vec();
    assert_eq!(watch_frame("ADDED", &envelope), join(&[length, event]));

    // Metadata alone, as informers for metadata ask for it.
    let partial =
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "a"}});
    let expected = enveloped("meta.k8s.io/v1", "PartialObjectMetadata", &put(1, &metadata("a")));
    assert_eq!(encode(&catalog, &partial).unwrap(), expected);
}

#[test]
fn times_quantities_and_ports_are_messages() {
    let catalog = builtin::catalog();
    let bytes = |object: Value| encode_message(&catalog, &object).unwrap();
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"},
        "spec": {"renewTime": "1970-01-01T00:00:05.000007Z", "leaseDurationSeconds": 3}});
    let time = join(&[number(1, 5), vec![2 << 3, 0xd8, 0x36]]);
    let expected = join(&[put(1, &metadata("a")), put(2, &join(&[number(2, 3), put(4, &time)]))]);
    assert_eq!(bytes(lease), expected);
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "a"}, "spec": {"hard": {"cpu": "500m"}}});
    let entry = join(&[put(1, b"cpu"), put(2, &put(1, b"500m"))]);
    let expected = join(&[put(1, &metadata("a")), put(2, &put(1, &entry)), put(3, b"")]);
    assert_eq!(bytes(quota), expected);
}

#[test]
fn what_has_no_message_is_refused() {
    let catalog = builtin::catalog();
    for (object, is_unknown) in [
        (json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"}), true),
        (json!({"apiVersion": "example.com/v1", "kind": "Thing"}), true),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}}), false),
        (json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "%"}}), false),
    ] {
        let error = encode(&catalog, &object).unwrap_err();
        assert_eq!(matches!(error, ProtobufError::Unknown(_)), is_unknown, "{object}: {error}");
    }
}

/// apiextensions: what may be a schema or something else has messages of its own.
#[test]
fn schemas_of_custom_kinds_survive() {
    let catalog = builtin::catalog();
    let schema = json!({"type": "object", "additionalProperties": true, "properties": {
        "a": {"type": "array", "items": {"type": "string"}, "default": []},
        "b": {"type": "object", "additionalProperties": {"type": "integer", "default": 3, "enum": [1, "x"]}},
        "c": {"additionalProperties": false}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
        "spec": {"group": "g", "scope": "Namespaced", "names": {"plural": "ps", "kind": "P"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]}});
    let back = decode(&catalog, &encode(&catalog, &crd).unwrap()).unwrap();
    assert_eq!(back["spec"]["versions"], crd["spec"]["versions"]);
}

/// Fields that are newer than the messages that the table was made from; they are left out.
const NUMBERLESS: [&str; 3] = ["compatibilityGroups", "derivedAttributes", "runningInUserNamespace"];

/// What a message carries of an object: objects within it without kinds of their own, and all but [`NUMBERLESS`] fields.
fn carried(value: &mut Value, depth: usize) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !NUMBERLESS.contains(&key.as_str()));
            map.values_mut().for_each(|value| carried(value, depth + 1));
            if depth > 0
                && ["metadata", "gracePeriodSeconds", "preferredVersion"]
                    .iter()
                    .any(|key| map.contains_key(*key))
            {
                map.retain(|key, _| key != "apiVersion" && key != "kind");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| carried(item, depth + 1)),
        _ => {}
    }
}

/// Without what is there but empty: Go does not tell it from what is not.
fn stripped(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map = map.into_iter().map(|(key, value)| (key, stripped(value)));
            Value::Object(map.filter(|(_, value)| *value != json!({}) && *value != json!([])).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(stripped).collect()),
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn every_kind_survives_the_way_through_protobuf(seed in any::<u64>()) {
        let catalog = builtin::catalog();
        let mut count = 0;
        for (group, version, kind, id) in builtin::kinds(&catalog) {
            let mut object = object_of(&catalog, (group, version, kind), id, seed);
            carried(&mut object, 0);
            let bytes = match encode(&catalog, &object) {
                Err(ProtobufError::Unknown(_)) => continue,
                encoded => encoded.map_err(|error| TestCaseError::fail(format!("{kind}: {error}")))?,
            };
            count += 1;
            let back = decode(&catalog, &bytes).map_err(|error| TestCaseError::fail(format!("{kind}: {error}")))?;
            prop_assert_eq!(encode(&catalog, &back).unwrap(), bytes, "{}", kind);
            let (back, object) = (stripped(back), stripped(object));
            prop_assert_eq!(back, object, "{}", kind);
        }
        prop_assert!(count > 200, "only {} kinds have messages", count);
    }
}
