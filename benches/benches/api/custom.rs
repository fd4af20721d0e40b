//! The verbs for a custom resource whose definition has a schema, defaults and a CEL rule.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{objects, verbs::Subject};

const OBJECTS: usize = 5_000;

fn definition() -> Value {
    let spec = json!({
        "type": "object", "required": ["image"],
        "properties": {
            "image": {"type": "string", "minLength": 1},
            "replicas": {"type": "integer", "minimum": 0, "default": 1},
            "replicasMax": {"type": "integer", "default": 10},
            "mode": {"type": "string", "enum": ["Rolling", "Recreate"], "default": "Rolling"},
            "environment": {"type": "array", "maxItems": 32, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "maxLength": 64},
                    "value": {"type": "string", "maxLength": 1024, "default": ""}}}},
        },
        "x-kubernetes-validations": [
            {"rule": "self.replicas <= self.replicasMax", "message": "replicas must not exceed replicasMax"}],
    });
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    json!({
        "metadata": {"name": "gadgets.bench.example.com"},
        "spec": {"group": "bench.example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]},
    })
}

fn object() -> Value {
    let environment: Vec<Value> =
        (0..8).map(|index| json!({"name": format!("SETTING_{index}"), "value": "x".repeat(64)})).collect();
    json!({
        "apiVersion": "bench.example.com/v1", "kind": "Gadget", "metadata": {"name": "gadget"},
        "spec": {"image": "registry.example.com/web:1.27.4", "replicas": 3, "environment": environment},
    })
}

pub(crate) async fn run() {
    let server = crate::server().await;
    let client = crate::client(&server);
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &objects::typed(definition())).await.expect("a definition");
    let kind = GroupVersionKind::gvk("bench.example.com", "v1", "Gadget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "gadgets");
    let mut gadgets = Subject::<DynamicObject> {
        name: "custom_1k",
        api: Api::default_namespaced_with(client, &resource),
        template: objects::typed(object()),
        patch: |index| json!({"spec": {"replicasMax": 10 + index}}),
    };
    gadgets.create(OBJECTS).await;
    gadgets.get(OBJECTS).await;
    gadgets.change(OBJECTS).await;
    gadgets.delete(OBJECTS).await;
}
