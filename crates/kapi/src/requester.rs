//! What a strategy can't know when an object is written: who asks, and what time it is.

use serde_json::{Value, json};

use crate::{authn::UserInfo, registry::ResourceDef, schema::fields::set_default};

fn is_certificate_request(def: &ResourceDef) -> bool {
    def.group == "certificates.k8s.io" && def.plural == "certificatesigningrequests"
}

/// A request for a certificate says who made it (`registry/certificates`, `PrepareForCreate`).
pub(crate) fn stamp(def: &ResourceDef, object: &mut Value, user: &UserInfo) {
    if !is_certificate_request(def) {
        return;
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for key in ["username", "uid", "groups", "extra"] {
        spec.remove(key);
    }
    spec.insert("username".to_owned(), json!(user.name));
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        spec.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
}

/// Fills in when something happened: conditions of certificate requests, and the last change of a volume's phase
/// (KEP-3762).
pub(crate) fn time(def: &ResourceDef, object: &mut Value, old: &Value, now: &str) {
    if is_certificate_request(def) {
        let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if !before.contains(condition) {
                set_default(condition, "lastUpdateTime", now);
            }
            let same =
                |old: &&Value| old["type"] == condition["type"] && old["status"] == condition["status"];
            let since = before.iter().find(same).map(|old| old["lastTransitionTime"].clone());
            set_default(condition, "lastTransitionTime", since.unwrap_or_else(|| json!(now)));
        }
    }
    if def.group.is_empty()
        && def.plural == "persistentvolumes"
        && object["status"]["phase"] != old["status"]["phase"]
    {
        object["status"]["lastPhaseTransitionTime"] = json!(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kinds::Strategies, registry::builtin, schema};

    fn def(plural: &str) -> ResourceDef {
        let defs = builtin::resources(&schema::builtin::catalog(), &Strategies::default());
        defs.into_iter().find(|def| def.plural == plural).unwrap()
    }

    #[test]
    fn certificate_requests_name_who_made_them() {
        let mut object = json!({"spec": {"username": "somebody else", "uid": "7"}});
        stamp(&def("certificatesigningrequests"), &mut object, &UserInfo::new("jane", ["dev"]));
        assert_eq!(object["spec"], json!({"username": "jane", "groups": ["dev"]}));
    }

    #[test]
    fn changes_have_their_time() {
        let condition = json!({"type": "Approved", "status": "True"});
        let mut object = json!({"status": {"conditions": [condition]}});
        time(&def("certificatesigningrequests"), &mut object, &json!({}), "now");
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "now");
        let mut volume = json!({"status": {"phase": "Bound"}});
        time(&def("persistentvolumes"), &mut volume, &json!({"status": {"phase": "Available"}}), "now");
        assert_eq!(volume["status"]["lastPhaseTransitionTime"], "now");
    }
}
