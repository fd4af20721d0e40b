"""The official Python client against a kplane cluster: what an operator or a script of the usual kind does.

Reads the cluster from KUBECONFIG; every failed expectation ends it with a trace.
"""

import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

config.load_kube_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()
extensions, custom = client.ApiextensionsV1Api(), client.CustomObjectsApi()


def refused(code, call, *arguments, **named):
    """The call must fail with this code; what it says."""
    try:
        call(*arguments, **named)
    except ApiException as error:
        assert error.status == code, error
        return error.body
    raise AssertionError(f"{call.__name__} succeeded")


# Objects through their typed models.
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="py")))
meta = client.V1ObjectMeta(name="settings", labels={"tier": "one"})
made = core.create_namespaced_config_map("py", client.V1ConfigMap(metadata=meta, data={"a": "1"}))
assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo is not None
assert made.metadata.managed_fields[0].manager, "every write is owned"
made.data["b"] = "2"
core.replace_namespaced_config_map("settings", "py", made)
assert "the object has been modified" in refused(409, core.replace_namespaced_config_map, "settings", "py", made)
core.patch_namespaced_config_map("settings", "py", {"data": {"a": None}})
assert core.read_namespaced_config_map("settings", "py").data == {"b": "2"}
assert "already exists" in refused(409, core.create_namespaced_config_map, "py", client.V1ConfigMap(metadata=meta))
assert "not found" in refused(404, core.read_namespaced_config_map, "none", "py")
bad = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Bad_Name"))
assert "RFC 1123 subdomain" in refused(422, core.create_namespaced_config_map, "py", bad)

# Pages, selectors and a watch that goes on from a list.
for number in range(5):
    core.create_namespaced_secret("py", client.V1Secret(metadata=client.V1ObjectMeta(name=f"s{number}"), string_data={"k": "v"}))
page = core.list_namespaced_secret("py", limit=2)
assert len(page.items) == 2 and page.metadata.remaining_item_count == 3
names = [item.metadata.name for item in page.items]
while page.metadata._continue:
    page = core.list_namespaced_secret("py", limit=2, _continue=page.metadata._continue)
    names += [item.metadata.name for item in page.items]
assert names == [f"s{number}" for number in range(5)], names
assert len(core.list_namespaced_config_map("py", label_selector="tier in (one)").items) == 1
assert not core.list_namespaced_config_map("py", field_selector="metadata.name=none").items
since = core.list_namespaced_config_map("py").metadata.resource_version


def later():
    core.create_namespaced_config_map("py", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="late")))
    core.delete_namespaced_config_map("late", "py")


threading.Thread(target=later).start()
seen = []
watcher = watch.Watch()
for event in watcher.stream(core.list_namespaced_config_map, "py", resource_version=since, timeout_seconds=20):
    if event["object"].metadata.name == "late":
        seen.append(event["type"])
        if event["type"] == "DELETED":
            watcher.stop()
assert seen == ["ADDED", "DELETED"], seen

# A deployment until it is there, scaled through its subresource.
labels = {"app": "web"}
container = client.V1Container(name="web", image="example/web:1", ports=[client.V1ContainerPort(container_port=80)])
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container]))
spec = client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)
apps.create_namespaced_deployment("py", client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
apps.patch_namespaced_deployment_scale("web", "py", {"spec": {"replicas": 3}})
for event in watch.Watch().stream(apps.list_namespaced_deployment, "py", timeout_seconds=30):
    if event["object"].status.ready_replicas == 3:
        break
else:
    raise AssertionError("the deployment did not get ready")
assert len(core.list_namespaced_pod("py", label_selector="app=web").items) == 3
pod = core.list_namespaced_pod("py", label_selector="app=web").items[0]
eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name, namespace="py"))
core.create_namespaced_pod_eviction(pod.metadata.name, "py", eviction)

# Server-side apply and a kind of one's own, through the dynamic client.
dynamic_client = dynamic.DynamicClient(client.ApiClient())
schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
    "color": {"type": "string", "enum": ["red", "blue"]}, "size": {"type": "string", "default": "M"}}}}}}
extensions.create_custom_resource_definition({
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "hats.py.example.com"},
    "spec": {"group": "py.example.com", "scope": "Namespaced", "names": {"plural": "hats", "singular": "hat", "kind": "Hat", "listKind": "HatList"},
             "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}]}})
hat = {"apiVersion": "py.example.com/v1", "kind": "Hat", "metadata": {"name": "bowler", "namespace": "py"}, "spec": {"color": "red"}}
made = custom.create_namespaced_custom_object("py.example.com", "v1", "py", "hats", hat)
assert made["spec"] == {"color": "red", "size": "M"}, made
hat["metadata"]["name"], hat["spec"]["color"] = "green", "green"
said = refused(422, custom.create_namespaced_custom_object, "py.example.com", "v1", "py", "hats", hat)
assert 'spec.color: Unsupported value: \\"green\\": supported values: \\"red\\", \\"blue\\"' in said, said
hats = dynamic_client.resources.get(api_version="py.example.com/v1", kind="Hat")
applied = hats.server_side_apply(body={"apiVersion": "py.example.com/v1", "kind": "Hat", "metadata": {"name": "bowler"}, "spec": {"color": "blue"}},
                                 name="bowler", namespace="py", field_manager="python", force_conflicts=True)
assert applied.spec.color == "blue"
custom.patch_namespaced_custom_object_status("py.example.com", "v1", "py", "hats", "bowler", {"status": {"worn": True}})
extensions.delete_custom_resource_definition("hats.py.example.com")

assert client.VersionApi().get_code().minor == "37"
core.delete_namespace("py")
print("python: all good")
