use super::*;

const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {app: web}\nspec:\n  containers:\n  - name: c\n    image: web\n    resources: {limits: {cpu: 1}}\n";

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// After `applyDefaults` and `tryDecodeSinglePod` of upstream's `pkg/kubelet/config/common.go`.
#[test]
fn a_manifest_becomes_a_pod_of_its_node() {
    let pod = parse(WEB.as_bytes(), "/etc/web.yaml", "Node-1").unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    assert_eq!(key(&pod), ("default".to_owned(), "web-node-1".to_owned()));
    assert_eq!((uid.len(), annotation(&pod, HASH)), (32, Some(uid.as_str())));
    assert_eq!((annotation(&pod, SOURCE), annotation(&pod, MIRROR)), (Some("file"), None));
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
    let tolerations = serde_json::to_value(&spec.tolerations).unwrap();
    assert_eq!(tolerations, json!([{"operator": "Exists", "effect": "NoExecute"}]));
    let container = &spec.containers[0];
    assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
    let requests = container.resources.as_ref().unwrap().requests.as_ref().unwrap();
    assert_eq!(requests["cpu"].0, "1");
    assert!(crate::eviction::is_critical(&pod));

    // The uid is that of node, file and contents, and a file may say its own.
    let uid_of = |text: &str, source: &str, node: &str| {
        parse(text.as_bytes(), source, node).unwrap().metadata.uid.unwrap()
    };
    assert_eq!(uid_of(WEB, "/etc/web.yaml", "Node-1"), uid);
    for (text, source, node) in [
        (WEB.replace("image: web", "image: web:2").as_str(), "/etc/web.yaml", "Node-1"),
        (WEB, "/etc/other.yaml", "Node-1"),
        (WEB, "/etc/web.yaml", "node-2"),
    ] {
        assert_ne!(uid_of(text, source, node), uid);
    }
    let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j", "namespace": "kube-system", "uid": "own"},
        "spec": {"containers": [{"name": "c", "image": "registry:5000/c:1"}]}}"#;
    let pod = parse(json.as_bytes(), "j.json", "n").unwrap();
    assert_eq!((key(&pod).0.as_str(), pod.metadata.uid.as_deref()), ("kube-system", Some("own")));
    assert_eq!(pod.spec.unwrap().containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
}

#[test]
fn what_can_not_be_static_says_why() {
    let pod = |spec: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {spec}}}");
    let with = |more: &str| pod(&format!("{{containers: [{{name: c, image: i}}], {more}}}"));
    let cases = [
        ("]".to_owned(), "couldn't parse as pod: "),
        ("hello".to_owned(), "couldn't parse as pod: apiVersion is null, not \"v1\""),
        (
            "{apiVersion: v1, kind: Service}".to_owned(),
            "couldn't parse as pod: kind is \"Service\", not \"Pod\"",
        ),
        (with("terminationGracePeriodSeconds: soon"), "couldn't parse as pod: "),
        (pod("{containers: []}"), "invalid pod: spec.containers: Required value"),
        (pod("{containers: [{name: c}]}"), "invalid pod: the container \"c\" has no image"),
        (
            pod("{containers: [{name: c, image: i}, {name: c, image: i}]}"),
            "invalid pod: there are two containers \"c\"",
        ),
        (
            pod("{containers: [{name: c, image: i}]}").replace("name: web", "name: Web"),
            "invalid pod: metadata.name: \"Web\"",
        ),
        (
            pod("{containers: [{name: c, image: i}]}").replace("name: web", "name: web, uid: ../x"),
            "invalid pod: metadata.uid",
        ),
        (with("serviceAccountName: a"), "static pods may not reference serviceaccounts"),
        (with("imagePullSecrets: [{name: s}]"), "static pods may not reference secrets"),
        (
            with("volumes: [{name: v, configMap: {name: m}}]"),
            "static pods may not reference configmaps (via configmap volumes)",
        ),
        (
            with("volumes: [{name: v, projected: {sources: [{downwardAPI: {}}, {secret: {name: s}}]}}]"),
            "static pods may not reference secrets (via projected volumes)",
        ),
        (with("resourceClaims: [{name: r}]"), "static pods may not reference resourceclaims"),
        (
            pod(
                "{containers: [{name: c, image: i, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}",
            ),
            "static pods may not reference secrets",
        ),
        (
            pod("{containers: [{name: c, image: i, envFrom: [{configMapRef: {name: s}}]}]}"),
            "static pods may not reference configmaps",
        ),
        (
            with("ephemeralContainers: [{name: e, image: i}]"),
            "invalid pod: spec.ephemeralContainers: Forbidden",
        ),
    ];
    for (text, expected) in cases {
        let said = parse(text.as_bytes(), "f", "n").unwrap_err().to_string();
        assert!(said.starts_with(expected), "{text}: {said}");
    }
    assert!(parse(&[0xff, 0xfe], "f", "n").is_err());
    // These stay on the node.
    for more in [
        "volumes: [{name: v, hostPath: {path: /}}, {name: e, emptyDir: {}}]",
        "volumes: [{name: v, rbd: {image: x, monitors: []}}]",
    ] {
        parse(with(more).as_bytes(), "f", "n").unwrap();
    }
}

#[test]
fn a_folder_gives_its_pods_and_what_is_wrong_with_others() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("a.yaml", WEB);
    write("b.yaml", "kind: Pod");
    write(".hidden.yaml", "kind: Pod");
    write("z.yaml", &WEB.replace("image: web", "image: newer:1"));
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    let found = read(dir.path(), "n").unwrap();
    let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    assert_eq!(
        found.pods.values().map(image).collect::<Vec<_>>(),
        ["newer:1"],
        "the last file of a name counts"
    );
    let bad: Vec<_> = found
        .bad
        .iter()
        .map(|(path, why)| (path.rsplit('/').next().unwrap(), why.split(' ').next().unwrap()))
        .collect();
    assert_eq!(bad, [("b.yaml", "couldn't"), ("z.yaml", "it")]);
    assert_eq!(read(&dir.path().join("a.yaml"), "n").unwrap().pods.len(), 1, "a file alone");
    assert!(read(&dir.path().join("nowhere"), "n").unwrap().pods.is_empty());
    assert!(read(&dir.path().join("a.yaml/below"), "n").is_err());
}

#[test]
fn a_mirror_shows_the_pod_and_belongs_to_the_node() {
    let mut pod = parse(WEB.as_bytes(), "f", "n").unwrap();
    note_seen(&mut pod, Timestamp::UNIX_EPOCH);
    note_seen(&mut pod, Timestamp::MAX);
    let value = mirror(&pod, "n", "node-uid").unwrap();
    let meta = &value["metadata"];
    assert_eq!(meta["annotations"][MIRROR], *pod.metadata.uid.as_ref().unwrap());
    assert_eq!(meta["annotations"][SEEN], "1970-01-01T00:00:00Z");
    assert_eq!(meta["labels"]["app"], "web");
    let owner =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "node-uid", "controller": true}]);
    assert_eq!((&meta["ownerReferences"], &meta["uid"]), (&owner, &Value::Null));
    let mut shown: Pod = serde_json::from_value(value).unwrap();
    assert!(is_mirror(&shown) && is_mirror_of(&shown, &pod) && !is_mirror(&pod));
    let changed = parse(WEB.replace("image: web", "image: web:2").as_bytes(), "f", "n").unwrap();
    assert!(!is_mirror_of(&shown, &changed));
    shown.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    assert!(!is_mirror_of(&shown, &pod));
}
