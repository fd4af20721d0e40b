// The official JavaScript client against a kplane cluster: typed calls, an informer, patches and a kind of one's own.
// Reads the cluster from KUBECONFIG; every failed expectation ends it with a trace.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const k8s = createRequire(process.env.CLIENT_ROOT + '/')('@kubernetes/client-node');
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const namespace = 'js';

await core.createNamespace({ body: { metadata: { name: namespace } } });

// An informer that sees everything that happens, in order.
const seen = [];
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, () => core.listNamespacedConfigMap({ namespace }));
const gone = new Promise((resolve, reject) => {
  informer.on('add', (map) => seen.push(`add ${map.metadata.name}`));
  informer.on('update', (map) => seen.push(`update ${map.metadata.name}`));
  informer.on('error', reject);
  informer.on('delete', (map) => { seen.push(`delete ${map.metadata.name}`); if (map.metadata.name === 'a') resolve(); });
});
await informer.start();
const made = await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'a' }, data: { x: '1' } } });
assert.ok(made.metadata.uid && made.metadata.creationTimestamp instanceof Date);
made.data.y = '2';
await core.replaceNamespacedConfigMap({ namespace, name: 'a', body: made });
await assert.rejects(core.replaceNamespacedConfigMap({ namespace, name: 'a', body: made }), (error) => error.code === 409);
await assert.rejects(core.readNamespacedConfigMap({ namespace, name: 'none' }), (error) => error.code === 404);
await core.deleteNamespacedConfigMap({ namespace, name: 'a' });
await gone;
await informer.stop();
assert.deepEqual(seen.filter((line) => line.endsWith(' a')), ['add a', 'update a', 'delete a']);

// Patches of each kind through the generic object client.
const deployment = {
  apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'web', namespace },
  spec: {
    replicas: 1, selector: { matchLabels: { app: 'web' } },
    template: { metadata: { labels: { app: 'web' } }, spec: { containers: [{ name: 'web', image: 'example/web:1' }] } },
  },
};
await objects.create(deployment);
const sidecar = { ...deployment, spec: { template: { spec: { containers: [{ name: 'sidecar', image: 'example/sidecar:1' }] } } } };
await objects.patch(sidecar, undefined, undefined, undefined, undefined, k8s.PatchStrategy.StrategicMergePatch);
const both = await apps.readNamespacedDeployment({ namespace, name: 'web' });
assert.deepEqual(both.spec.template.spec.containers.map((container) => container.name).sort(), ['sidecar', 'web']);
const owned = { apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'web', namespace }, spec: { replicas: 3 } };
const applied = await objects.patch(owned, undefined, undefined, 'js', true, k8s.PatchStrategy.ServerSideApply);
assert.equal(applied.spec.replicas, 3);
assert.ok(applied.metadata.managedFields.some((entry) => entry.manager === 'js' && entry.operation === 'Apply'));

// A watch that ends when the pods are there.
const watcher = new k8s.Watch(config);
await new Promise((resolve, reject) => {
  let request;
  const look = (_phase, found) => { if (found.status?.readyReplicas === 3) { resolve(); request?.abort(); } };
  const end = (error) => (error && error.name !== 'AbortError' ? reject(error) : resolve());
  watcher.watch(`/apis/apps/v1/namespaces/${namespace}/deployments`, {}, look, end).then((value) => { request = value; }, reject);
});

// A kind of one's own.
const versions = [{
  name: 'v1', served: true, storage: true,
  schema: { openAPIV3Schema: { type: 'object', properties: { spec: { type: 'object', properties: { legs: { type: 'integer', minimum: 0 } } } } } },
}];
const names = { plural: 'socks', singular: 'sock', kind: 'Sock', listKind: 'SockList' };
await extensions.createCustomResourceDefinition({
  body: { metadata: { name: 'socks.js.example.com' }, spec: { group: 'js.example.com', scope: 'Namespaced', names, versions } },
});
const sock = (name, legs) => ({ apiVersion: 'js.example.com/v1', kind: 'Sock', metadata: { name, namespace }, spec: { legs } });
await objects.create(sock('pair', 2));
await assert.rejects(objects.create(sock('odd', -1)), (error) => error.code === 422 && String(error.body).includes('spec.legs in body should be greater than or equal to 0'));
const list = await objects.list('js.example.com/v1', 'Sock', namespace);
assert.deepEqual(list.items.map((item) => item.metadata.name), ['pair']);
await extensions.deleteCustomResourceDefinition({ name: 'socks.js.example.com' });
await core.deleteNamespace({ name: namespace });
console.log('node: all good');
