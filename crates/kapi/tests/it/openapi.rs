//! OpenAPI documents: what `kubectl` looks for in them.

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use kapi::{
    ApiServer, Body,
    authn::{MASTERS, UserInfo},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, server};

async fn ask(server: &ApiServer, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap()
}

/// Every `$ref` in a document, without what stands before the name.
fn references(value: &Value, prefix: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(path)) = map.get("$ref") {
                found.push(path.strip_prefix(prefix).unwrap_or_else(|| panic!("{path}")).to_owned());
            }
            map.values().for_each(|value| references(value, prefix, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, prefix, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_document_of_the_index_is_there_and_whole() {
    let server = server().await;
    let (code, index) = get(&server, "/openapi/v3").await;
    assert_eq!(code, 200);
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for (root, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let response = ask(&server, url, &[]).await;
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(url, format!("/openapi/v3/{root}?hash={}", tag.trim_matches('"')));
        let document: Value =
            serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.values().all(Value::is_object), "{root}");
        let mut found = Vec::new();
        references(&document, "#/components/schemas/", &mut found);
        assert!(found.iter().all(|name| schemas.contains_key(name)), "{root}");
        assert!(
            document["paths"].as_object().unwrap().keys().all(|path| path.starts_with(&format!("/{root}")))
        );
    }
    assert_eq!(get(&server, "/openapi/v3/apis/nothing.example.com/v1").await.0, 404);
}

#[tokio::test]
async fn the_second_form_is_one_whole_document() {
    let server = server().await;
    let (code, document) = get(&server, "/openapi/v2").await;
    assert_eq!(code, 200);
    assert_eq!(document["swagger"], "2.0");
    let definitions = document["definitions"].as_object().unwrap();
    assert!(definitions.len() > 700, "{}", definitions.len());
    let mut found = Vec::new();
    references(&document, "#/definitions/", &mut found);
    assert!(found.iter().all(|name| definitions.contains_key(name)));
    assert_eq!(
        document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]["operationId"],
        "patchCoreV1NamespacedPod"
    );
    let exec = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"]["get"];
    assert_eq!(exec["operationId"], "connectCoreV1GetNamespacedPodExec");
    let roles = &document["paths"]["/apis/rbac.authorization.k8s.io/v1/clusterroles"]["delete"];
    assert_eq!(roles["operationId"], "deleteRbacAuthorizationV1CollectionClusterRole");
    assert_eq!(definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"], "int-or-string");
}

#[tokio::test]
async fn a_definition_says_what_clients_need() {
    let server = server().await;
    let (_, document) = get(&server, "/openapi/v3/api/v1").await;
    let schemas = &document["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["x-kubernetes-group-version-kind"],
        json!([{"group": "", "version": "v1", "kind": "Pod"}])
    );
    assert_eq!(
        pod["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.PodSpec"
    );
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    let containers = &spec["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(spec["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(
        schemas["io.k8s.api.core.v1.ServiceSpec"]["properties"]["selector"]["x-kubernetes-map-type"],
        "atomic"
    );
    assert_eq!(schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["containerPort"]["format"], "int32");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "", "version": "v1", "kind": "Pod"})
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let names: Vec<_> =
        patch["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let scale =
        &document["paths"]["/api/v1/namespaces/{namespace}/replicationcontrollers/{name}/scale"]["get"];
    assert_eq!(
        scale["x-kubernetes-group-version-kind"],
        json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    );
}

#[tokio::test]
#[cfg(feature = "openapi-docs")]
async fn definitions_and_fields_have_words() {
    let server = server().await;
    let (_, core) = get(&server, "/openapi/v3/api/v1").await;
    let list = &core["components"]["schemas"]["io.k8s.api.core.v1.PodList"];
    assert!(list["properties"]["items"]["description"].is_string());
    for (document, definition, field) in [
        ("api/v1", "core.v1.Container", "image"),
        ("apis/apps/v1", "apps.v1.DeploymentSpec", "replicas"),
        ("apis/rbac.authorization.k8s.io/v1", "rbac.v1.RoleRef", "name"),
        ("apis/apps/v1", "autoscaling.v1.ScaleSpec", "replicas"),
        ("apis/resource.k8s.io/v1beta1", "resource.v1beta1.ResourceClaimSpec", "devices"),
    ] {
        let (_, document) = get(&server, &format!("/openapi/v3/{document}")).await;
        let schema = &document["components"]["schemas"][format!("io.k8s.api.{definition}")];
        for words in [&schema["description"], &schema["properties"][field]["description"]] {
            assert!(words.as_str().is_some_and(|words| words.len() > 10), "{definition}: {schema}");
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_current_is_not_sent_again() {
    let server = server().await;
    for path in ["/openapi/v2", "/openapi/v3", "/openapi/v3/apis/batch/v1"] {
        let tag = ask(&server, path, &[]).await.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(ask(&server, path, &[("if-none-match", &tag)]).await.status(), 304, "{path}");
        assert_eq!(ask(&server, path, &[("if-none-match", "\"old\"")]).await.status(), 200, "{path}");
    }
}

/// kube-openapi `pkg/handler3/handler.go`: the list is JSON for everybody, a document is what is asked for, and an address with
/// a hash is kept for ever or leads to the newest.
#[tokio::test]
async fn the_third_form_is_given_as_protobuf_and_kept_by_its_hash() {
    const OLD: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";
    const NEW: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    const JSON: &str = "application/json";
    let server = server().await;
    let list = ask(&server, "/openapi/v3", &[("accept", NEW)]).await;
    assert_eq!((list.status().as_u16(), &list.headers()["content-type"]), (200, &JSON.parse().unwrap()));
    let (_, list) = get(&server, "/openapi/v3").await;
    let address = list["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    for (accept, expected) in [(OLD, NEW), (NEW, NEW), (JSON, JSON), ("*/*", JSON)] {
        let response = ask(&server, &address, &[("accept", accept)]).await;
        let head = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            (response.status().as_u16(), head("content-type")),
            (200, expected.to_owned()),
            "{accept}"
        );
        assert_eq!((head("cache-control").as_str(), head("vary").as_str()), ("public, immutable", "Accept"));
        assert!(head("expires").ends_with(" GMT"), "{}", head("expires"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let start: &[u8] = if expected == NEW { b"\x0a\x053.0.0\x12" } else { b"{" };
        assert!(body.starts_with(start) && body.len() > 100_000, "{accept}: {}", body.len());
    }
    let plain = address.split('?').next().unwrap();
    assert_eq!(ask(&server, plain, &[]).await.headers()["cache-control"], "no-cache, private");
    let old = ask(&server, &format!("{plain}?hash=0"), &[]).await;
    assert_eq!((old.status().as_u16(), old.headers()["location"].to_str().unwrap()), (301, address.as_str()));
    assert_eq!(ask(&server, plain, &[("accept", "application/cbor")]).await.status(), 406);
}

/// Which form each caller gets (kube-openapi `pkg/handler/handler.go`, `RegisterOpenAPIVersionedService`).
#[tokio::test]
async fn the_second_form_is_given_as_protobuf() {
    const OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    const NEW: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    const JSON: &str = "application/json";
    let server = server().await;
    for (accept, expected) in [
        (OLD.to_owned(), NEW),
        (NEW.to_owned(), NEW),
        (format!("{JSON}, {OLD}"), JSON),
        (format!("{OLD}, {JSON}"), NEW),
        (format!("{OLD};q=0.5, {JSON}"), JSON),
        (format!("{JSON};q=0.5, {OLD};q=0.9"), NEW),
        (format!("{OLD};q=0, {JSON};q=0.1"), JSON),
        ("*/*".to_owned(), JSON),
    ] {
        let response = ask(&server, "/openapi/v2", &[("accept", &accept)]).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()),
            (200, expected),
            "{accept}"
        );
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        let again = ask(&server, "/openapi/v2", &[("accept", &accept), ("if-none-match", &tag)]).await;
        assert_eq!(again.status(), 304, "{accept}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let start: &[u8] = if expected == NEW { b"\x0a\x032.0\x12" } else { b"{" };
        assert!(body.starts_with(start), "{accept}");
        assert!(body.len() > 1_000_000, "{accept}");
    }
    assert_eq!(ask(&server, "/openapi/v2", &[("accept", "application/cbor")]).await.status(), 406);
}

/// Documents are kept under the registry's revision; a kind that is added later must be seen.
#[tokio::test]
async fn a_new_kind_is_in_the_next_document() {
    let server = server().await;
    let path = "/openapi/v3/apis/batch/v1";
    let before = ask(&server, path, &[]).await.headers()["etag"].clone();
    let registry = server.objects().registry();
    let jobs = registry.find("batch", "v1", "jobs").unwrap();
    let def = kapi::registry::ResourceDef {
        group: "batch".to_owned(),
        versions: jobs.def.versions.clone(),
        plural: "chores".to_owned(),
        singular: "chore".to_owned(),
        kind: "Chore".to_owned(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: jobs.def.verbs,
        subresources: Vec::new(),
        selectable: Vec::new(),
        indexed: Vec::new(),
        traits: jobs.def.traits,
        strategy: std::sync::Arc::clone(&jobs.def.strategy),
        origin: kapi::registry::Origin::BuiltIn,
        seal: None,
    };
    registry.extend([(std::sync::Arc::new(def), jobs.table)]);
    let response = ask(&server, path, &[]).await;
    assert_ne!(response.headers()["etag"], before);
    let (_, document) = get(&server, path).await;
    assert!(document["paths"]["/apis/batch/v1/namespaces/{namespace}/chores"]["get"].is_object());
}

/// Whoever has the newest aggregated discovery is not sent it again (KEP-3352); a kind that comes changes the tag.
#[tokio::test]
async fn discovery_that_is_known_is_not_sent_again() {
    let server = server().await;
    let accept = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    for root in ["/api", "/apis"] {
        let response = ask(&server, root, &[accept]).await;
        assert_eq!(response.status(), 200, "{root}");
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        for (known, status) in
            [(tag.clone(), 304), (format!("\"other\", W/{tag}"), 304), ("\"other\"".to_owned(), 200)]
        {
            let again = ask(&server, root, &[accept, ("if-none-match", &known)]).await;
            assert_eq!(
                (again.status().as_u16(), again.headers()["etag"].to_str().unwrap()),
                (status, &*tag),
                "{root} {known}"
            );
            let body = again.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.is_empty(), status == 304, "{root} {known}");
        }
    }
}
