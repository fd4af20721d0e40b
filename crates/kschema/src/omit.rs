//! What Go's encoder leaves out: lists and maps that are empty, in fields with `omitempty`.

use serde_json::Value;

use crate::types::{Catalog, Type};

/// Drops the lists and maps that an encoder of Go types would not write (`omitempty`). An object is checked with them, as Go's
/// validation tells an empty list from none, and stored, answered and shown to others without.
///
/// ```
/// use kschema::{Type, builtin, omit::omit_empty};
/// use serde_json::json;
///
/// let catalog = builtin::catalog();
/// let pod = Type::Named(catalog.find("~core.v1.Pod").unwrap());
/// let mut object = json!({"metadata": {"labels": {}}, "spec": {"securityContext": {}, "tolerations": []}});
/// omit_empty(&catalog, &pod, &mut object);
/// assert_eq!(object, json!({"metadata": {}, "spec": {"securityContext": {}}}));
/// ```
pub fn omit_empty(catalog: &Catalog, ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::List(item), Value::Array(list)) if holds_objects(item) => {
            list.iter_mut().for_each(|value| omit_empty(catalog, item, value));
        }
        (Type::Map(item), Value::Object(map)) if holds_objects(item) => {
            map.values_mut().for_each(|value| omit_empty(catalog, item, value));
        }
        (Type::Named(_) | Type::Object(_), Value::Object(map)) => {
            let Some(object) = catalog.resolve(ty) else { return };
            map.retain(|key, value| {
                if !matches!(value, Value::Object(_) | Value::Array(_) | Value::String(_)) {
                    return true;
                }
                let Some(field) = object.field(key) else { return true };
                if field.omits(value) {
                    return false;
                }
                omit_empty(catalog, &field.ty, value);
                true
            });
        }
        _ => {}
    }
}

/// Whether there may be an object in it.
fn holds_objects(ty: &Type) -> bool {
    match ty {
        Type::List(item) | Type::Map(item) => holds_objects(item),
        Type::Named(_) | Type::Object(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{builtin, check::check};

    /// By the tags of upstream's Go types: pointers, structs and fields without `omitempty` stay, whatever they are.
    #[test]
    fn what_go_takes_for_empty_is_not_there() {
        let mut pod = json!({
            "metadata": {"name": "a", "labels": {}, "finalizers": [], "ownerReferences": [], "annotations": {"kept": ""}},
            "spec": {"hostNetwork": false, "priority": 0, "automountServiceAccountToken": false, "nodeName": "", "nodeSelector": {},
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "", "items": [], "optional": false}}],
                "containers": [{"name": "c", "env": [{"name": "E", "value": ""}], "command": [], "stdin": false, "resources": {},
                    "securityContext": {}, "ports": [{"containerPort": 80, "hostPort": 0, "protocol": ""}]}]}});
        let catalog = builtin::catalog();
        let ty = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        assert_eq!(check(&catalog, &ty, &mut pod).unwrap(), [""; 0]);
        // Validation tells these from nothing, so decoding leaves them.
        assert_eq!(pod["spec"]["containers"][0]["command"], json!([]));
        omit_empty(&catalog, &ty, &mut pod);
        assert_eq!(pod["metadata"], json!({"name": "a", "annotations": {"kept": ""}}));
        let spec = &pod["spec"];
        for absent in ["hostNetwork", "nodeName", "nodeSelector"] {
            assert_eq!(spec.get(absent), None, "{absent}");
        }
        assert_eq!((&spec["priority"], &spec["automountServiceAccountToken"]), (&json!(0), &json!(false)));
        let volumes = json!([{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"optional": false, "defaultMode": 420}}]);
        assert_eq!(spec["volumes"], volumes);
        let container = &spec["containers"][0];
        assert_eq!(container["env"], json!([{"name": "E"}]));
        assert_eq!((container.get("command"), container.get("stdin")), (None, None));
        assert_eq!((&container["resources"], &container["securityContext"]), (&json!({}), &json!({})));
        assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    }

    #[test]
    fn what_stands_in_maps_and_without_omitempty_stays() {
        let catalog = builtin::catalog();
        for (name, object) in [
            ("~core.v1.ConfigMap", json!({"data": {"a": ""}, "immutable": false})),
            ("~rbac.v1.ClusterRole", json!({"rules": []})),
            ("~networking.v1.NetworkPolicy", json!({"spec": {"podSelector": {}, "ingress": [{}]}})),
        ] {
            let mut kept = object.clone();
            let ty = Type::Named(catalog.find(name).unwrap());
            check(&catalog, &ty, &mut kept).unwrap();
            omit_empty(&catalog, &ty, &mut kept);
            assert_eq!(kept, object, "{name}");
        }
    }
}
