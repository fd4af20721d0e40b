//! Each verb through the in-process `kube::Client`, and what the objects weigh.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kplane_benches::{Growth, measure};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::objects;

/// How many objects are created and read, and weighed.
const OBJECTS: usize = 20_000;
/// How many objects are changed in each way.
const CHANGES: usize = 5_000;

/// A kind of object to measure with.
pub(crate) struct Subject<K> {
    /// What the figures are named after.
    pub(crate) name: &'static str,
    pub(crate) api: Api<K>,
    /// The object that is written; the verbs change its name.
    pub(crate) template: K,
    /// A merge patch that changes one field, differently for each number.
    pub(crate) patch: fn(usize) -> Value,
}

pub(crate) async fn run() {
    let server = crate::server().await;
    let client = crate::client(&server);
    let mut maps = Subject::<ConfigMap> {
        name: "configmap_1k",
        api: Api::default_namespaced(client.clone()),
        template: objects::typed(objects::config_map("map")),
        patch: |index| json!({"data": {"count": index.to_string()}}),
    };
    let mut pods = Subject::<Pod> {
        name: "pod_2k",
        api: Api::default_namespaced(client.clone()),
        template: objects::typed(objects::pod("pod")),
        patch: |index| json!({"metadata": {"labels": {"count": index.to_string()}}}),
    };
    // Both kinds are weighed before anything else leaves holes in the heap that would hide growth.
    let growth = Growth::start();
    maps.create(OBJECTS).await;
    growth.print(maps.name, OBJECTS);
    let growth = Growth::start();
    pods.create(OBJECTS).await;
    growth.print(pods.name, OBJECTS);
    maps.get(OBJECTS).await;
    pods.get(OBJECTS).await;
    objects::print_sizes(&client).await;
    maps.change(CHANGES).await;
    maps.patch_strategic(CHANGES).await;
    pods.change(CHANGES).await;
    pods.patch_strategic(CHANGES).await;
    maps.delete(CHANGES).await;
    pods.delete(CHANGES).await;
}

impl<K> Subject<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    fn name_of(index: usize) -> String {
        format!("object-{index}")
    }

    fn figure(&self, verb: &str) -> String {
        format!("{verb}_{}", self.name)
    }

    pub(crate) async fn create(&mut self, count: usize) {
        let parameters = PostParams::default();
        let cost = measure(count, async |index| {
            self.template.meta_mut().name = Some(Self::name_of(index));
            self.api.create(&parameters, &self.template).await.expect("created");
        });
        cost.await.print(&self.figure("create"));
    }

    pub(crate) async fn get(&self, count: usize) {
        let cost = measure(count, async |index| {
            self.api.get(&Self::name_of(index)).await.expect("found");
        });
        cost.await.print(&self.figure("get"));
    }

    /// Lists of one object, updates, merge patches and the three kinds of apply.
    pub(crate) async fn change(&mut self, count: usize) {
        let one = ListParams::default().limit(1);
        let cost = measure(count, async |_| {
            assert_eq!(self.api.list(&one).await.expect("a list").items.len(), 1);
        });
        cost.await.print(&self.figure("list_1"));
        self.update(count).await;
        let parameters = PatchParams::default();
        let cost = measure(count, async |index| {
            let patch = Patch::Merge((self.patch)(index));
            self.api.patch(&Self::name_of(index), &parameters, &patch).await.expect("patched");
        });
        cost.await.print(&self.figure("patch"));
        self.apply(count).await;
    }

    /// Puts whole objects with one field changed, each with the resource version that was read.
    async fn update(&self, count: usize) {
        let mut present = Vec::with_capacity(count);
        for index in 0..count {
            let mut object = self.api.get(&Self::name_of(index)).await.expect("found");
            object.annotations_mut().insert("example.com/count".to_owned(), index.to_string());
            present.push(object);
        }
        let parameters = PostParams::default();
        let cost = measure(count, async |index| {
            self.api.replace(&Self::name_of(index), &parameters, &present[index]).await.expect("updated");
        });
        cost.await.print(&self.figure("update"));
    }

    /// Server-side apply: what is not there yet, the same again, and with one field changed.
    async fn apply(&mut self, count: usize) {
        let parameters = PatchParams::apply("bench");
        for verb in ["apply_first", "apply_unchanged", "apply_changed"] {
            let cost = measure(count, async |index| {
                let name = format!("applied-{index}");
                if verb == "apply_changed" {
                    self.template.annotations_mut().insert("example.com/count".to_owned(), index.to_string());
                }
                self.template.meta_mut().name = Some(name.clone());
                let patch = Patch::Apply(&self.template);
                self.api.patch(&name, &parameters, &patch).await.expect("applied");
            });
            cost.await.print(&self.figure(verb));
        }
    }

    /// Strategic merge patches, which custom resources don't take.
    async fn patch_strategic(&self, count: usize) {
        let parameters = PatchParams::default();
        let cost = measure(count, async |index| {
            let patch = Patch::Strategic((self.patch)(index + count));
            self.api.patch(&Self::name_of(index), &parameters, &patch).await.expect("patched");
        });
        cost.await.print(&self.figure("patch_strategic"));
    }

    pub(crate) async fn delete(&self, count: usize) {
        let parameters = DeleteParams::default();
        let cost = measure(count, async |index| {
            self.api.delete(&Self::name_of(index), &parameters).await.expect("deleted");
        });
        cost.await.print(&self.figure("delete"));
    }
}
