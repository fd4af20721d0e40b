//! Dynamic resources: `resource.k8s.io/v1beta1` says in one place what later versions say one level deeper or higher
//! (upstream's `pkg/apis/resource/v1beta1/conversion.go`).
//!
//! What a request of v1beta1 asks for stands in `exactly` (KEP-4816), and what a device of v1beta1 has in `basic` stands in the
//! device itself. v1beta2, v1alpha3 and v1 differ in nothing.

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// Turns an object of v1beta1 into the form of v1.
pub(super) fn to_hub(plural: &str, object: &mut Value) {
    each_request(plural, object, request_to_hub);
    if plural == "resourceslices"
        && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
    {
        // Where v1 has pointers, v1beta1 had plain values, whose zero says nothing.
        drop_zero(spec, "nodeName");
        drop_zero(spec, "allNodes");
        each(spec.get_mut("devices"), device_to_hub);
    }
}

/// Turns an object of v1 into the form of v1beta1.
pub(super) fn from_hub(plural: &str, object: &mut Value) {
    each_request(plural, object, request_from_hub);
    if plural == "resourceslices"
        && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
    {
        drop_zero(spec, "nodeName");
        drop_zero(spec, "allNodes");
        each(spec.get_mut("devices"), device_from_hub);
    }
}

fn each_request(plural: &str, object: &mut Value, change: fn(&mut Object)) {
    let path = match plural {
        "resourceclaims" => "/spec/devices/requests",
        "resourceclaimtemplates" => "/spec/spec/devices/requests",
        _ => return,
    };
    each(object.pointer_mut(path), change);
}

fn each(list: Option<&mut Value>, change: fn(&mut Object)) {
    let items = list.and_then(Value::as_array_mut).into_iter().flatten();
    items.filter_map(Value::as_object_mut).for_each(change);
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn drop_zero(object: &mut Object, key: &str) {
    if object.get(key).is_some_and(is_zero) {
        object.remove(key);
    }
}

/// What v1beta1 has as plain values: their zero is the same as nothing.
const PLAIN: [&str; 3] = ["deviceClassName", "allocationMode", "count"];

fn request_to_hub(request: &mut Object) {
    let kept = |key: &String| ["name", "firstAvailable"].contains(&key.as_str());
    let (rest, mut asked): (Object, Object) =
        std::mem::take(request).into_iter().partition(|(key, _)| kept(key));
    *request = rest;
    PLAIN.iter().for_each(|key| drop_zero(&mut asked, key));
    asked.retain(|_, value| !value.is_null());
    if !asked.is_empty() {
        // It may be wrong to have both this and alternatives; the rules say so.
        asked.entry("deviceClassName").or_insert_with(|| json!(""));
        request.insert("exactly".into(), Value::Object(asked));
    }
}

fn request_from_hub(request: &mut Object) {
    if let Some(Value::Object(mut asked)) = request.remove("exactly") {
        PLAIN.iter().for_each(|key| drop_zero(&mut asked, key));
        request.extend(asked);
    }
}

fn device_to_hub(device: &mut Object) {
    if let Some(Value::Object(basic)) = device.remove("basic") {
        device.extend(basic);
    }
}

fn device_from_hub(device: &mut Object) {
    let (rest, basic): (Object, Object) =
        std::mem::take(device).into_iter().partition(|(key, _)| key == "name");
    *device = rest;
    device.insert("basic".into(), Value::Object(basic));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// v1beta1, v1, and v1beta1 again where that is another thing (`pkg/apis/resource/v1beta1/conversion_test.go` and the
    /// functions it tests).
    #[test]
    fn requests_and_devices_are_nested_differently() {
        let same = None;
        for (plural, at, old, hub, back) in [
            (
                "resourceclaims",
                "/spec/devices/requests/0",
                json!({"name": "a"}),
                json!({"name": "a"}),
                same.clone(),
            ),
            (
                "resourceclaims",
                "/spec/devices/requests/0",
                json!({"name": "a", "deviceClassName": "c", "selectors": [{"cel": {"expression": "true"}}],
                    "allocationMode": "ExactCount", "count": 2, "adminAccess": false,
                    "tolerations": [{"key": "k"}], "capacity": {"requests": {"m": "1"}}}),
                json!({"name": "a", "exactly": {"deviceClassName": "c", "selectors": [{"cel": {"expression": "true"}}],
                    "allocationMode": "ExactCount", "count": 2, "adminAccess": false,
                    "tolerations": [{"key": "k"}], "capacity": {"requests": {"m": "1"}}}}),
                same.clone(),
            ),
            (
                "resourceclaims",
                "/spec/devices/requests/0",
                json!({"name": "a", "deviceClassName": "", "allocationMode": "", "count": 0}),
                json!({"name": "a"}),
                Some(json!({"name": "a"})),
            ),
            (
                "resourceclaims",
                "/spec/devices/requests/0",
                json!({"name": "a", "adminAccess": false}),
                json!({"name": "a", "exactly": {"deviceClassName": "", "adminAccess": false}}),
                same.clone(),
            ),
            (
                "resourceclaimtemplates",
                "/spec/spec/devices/requests/0",
                json!({"name": "a", "firstAvailable": [{"name": "b", "deviceClassName": "c"}], "count": 1}),
                json!({"name": "a", "firstAvailable": [{"name": "b", "deviceClassName": "c"}],
                    "exactly": {"deviceClassName": "", "count": 1}}),
                same.clone(),
            ),
            (
                "resourceslices",
                "/spec/devices/0",
                json!({"name": "d", "basic": {"attributes": {"a": {"int": 1}}, "allNodes": true, "nodeName": "n"}}),
                json!({"name": "d", "attributes": {"a": {"int": 1}}, "allNodes": true, "nodeName": "n"}),
                same.clone(),
            ),
            (
                "resourceslices",
                "/spec/devices/0",
                json!({"name": "d"}),
                json!({"name": "d"}),
                Some(json!({"name": "d", "basic": {}})),
            ),
        ] {
            let holder = |value: &Value| match plural {
                "resourceclaims" => json!({"spec": {"devices": {"requests": [value]}}}),
                "resourceclaimtemplates" => json!({"spec": {"spec": {"devices": {"requests": [value]}}}}),
                _ => json!({"spec": {"devices": [value]}}),
            };
            let mut object = holder(&old);
            to_hub(plural, &mut object);
            assert_eq!(object.pointer(at), Some(&hub), "{old}");
            from_hub(plural, &mut object);
            assert_eq!(object, holder(back.as_ref().unwrap_or(&old)), "{old}");
        }
    }

    #[test]
    fn the_zero_of_a_plain_value_says_nothing() {
        let mut slice = json!({"spec": {"nodeName": "", "allNodes": false, "driver": "d"}});
        to_hub("resourceslices", &mut slice);
        assert_eq!(slice, json!({"spec": {"driver": "d"}}));
        let mut slice = json!({"spec": {"nodeName": "n", "allNodes": true}});
        to_hub("resourceslices", &mut slice);
        from_hub("resourceslices", &mut slice);
        assert_eq!(slice, json!({"spec": {"nodeName": "n", "allNodes": true}}));
    }
}
