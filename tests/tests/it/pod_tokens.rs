//! A pod that calls the API as its account, with what it finds in its own files (KEP-1205).

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    rbac::v1::{Role, RoleBinding},
};
use kplane::Cluster;
use kube::{Api, api::PostParams, runtime::wait::await_condition};
use serde_json::json;

use crate::support::{PATIENCE, tool};

/// Asks the server who it is, by the token, authority and namespace that every container has, and tells it in a ConfigMap.
const PROGRAM: &str = "import json, os, ssl, urllib.request
base = '/var/run/secrets/kubernetes.io/serviceaccount/'
read = lambda name: open(base + name).read()
context = ssl.create_default_context(cafile=base + 'ca.crt')
def call(path, body):
    request = urllib.request.Request(os.environ['API'] + path, json.dumps(body).encode(), method='POST',
        headers={'Authorization': 'Bearer ' + read('token'), 'Content-Type': 'application/json'})
    return json.load(urllib.request.urlopen(request, context=context))
review = call('/apis/authentication.k8s.io/v1/selfsubjectreviews', {'kind': 'SelfSubjectReview', 'apiVersion': 'authentication.k8s.io/v1'})
user = review['status']['userInfo']
data = {'name': user['username'], 'pod': user['extra']['authentication.kubernetes.io/pod-name'][0]}
call('/api/v1/namespaces/' + read('namespace') + '/configmaps', {'metadata': {'name': 'told'}, 'data': data})
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_calls_the_api_with_the_token_in_its_files() {
    if tool("python3", "KPLANE_PYTHON").is_none() {
        return;
    }
    let cluster = Cluster::builder().nodes(1).processes().unwrap().start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let client = cluster.client();
    let role = json!({"metadata": {"name": "teller"}, "rules": [
        {"verbs": ["create"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let roles = Api::<Role>::default_namespaced(client.clone());
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let binding = json!({"metadata": {"name": "teller"}, "subjects": [{"kind": "ServiceAccount", "name": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "teller"}});
    let bindings = Api::<RoleBinding>::default_namespaced(client.clone());
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    // With a loopback of its own the pod would find itself at this address.
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "teller"}, "spec": {
        "restartPolicy": "OnFailure", "hostNetwork": true,
        "containers": [{"name": "c", "image": "none", "command": ["python3", "-c", PROGRAM],
            "env": [{"name": "API", "value": format!("https://{}", serving.address)}]}]}}))
    .unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let told = await_condition(maps, "told", |map: Option<&ConfigMap>| map.is_some());
    let pods: Api<Pod> = Api::default_namespaced(client);
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, told).await;
    let pod = pods.get("teller").await.unwrap();
    let map = told.unwrap_or_else(|_| panic!("{:?}", pod.status)).unwrap().unwrap();
    let data = map.data.unwrap();
    assert_eq!(data["name"], "system:serviceaccount:default:default");
    assert_eq!(data["pod"], "teller");
    cluster.shutdown().await.unwrap();
}
