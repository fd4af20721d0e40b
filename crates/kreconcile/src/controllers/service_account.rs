//! What every namespace has: the default ServiceAccount, and the ConfigMap with the cluster's CA.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kcore::Stored;
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::Context,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// The name of the ServiceAccount that every namespace has.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// The name of the ConfigMap with the cluster's CA that every namespace has.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

const DESCRIPTION: &str = "kubernetes.io/description";
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// The controller `serviceaccount-controller`: makes the ServiceAccount `default` in every active namespace.
pub fn service_account(context: &Context) -> Controller {
    const NAME: &str = "serviceaccount-controller";
    let accounts = context.informers().of::<ServiceAccount>(Selection::all());
    let object = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": DEFAULT_SERVICE_ACCOUNT},
    });
    per_namespace(context, NAME, DEFAULT_SERVICE_ACCOUNT, &accounts, object, |_| true)
}

/// The controller `root-ca-certificate-publisher-controller`: keeps the ConfigMap [`ROOT_CA_CONFIG_MAP`] in every active
/// namespace, with this bundle in PEM under `ca.crt`.
pub fn root_ca(context: &Context, bundle: &str) -> Controller {
    const NAME: &str = "root-ca-certificate-publisher-controller";
    let selection = Selection::all().fields(format!("metadata.name={ROOT_CA_CONFIG_MAP}"));
    let maps = context.informers().of::<ConfigMap>(selection);
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROOT_CA_CONFIG_MAP, "annotations": {DESCRIPTION: ROOT_CA_DESCRIPTION}},
        "data": {"ca.crt": bundle},
    });
    let data = object["data"].clone();
    per_namespace(context, NAME, ROOT_CA_CONFIG_MAP, &maps, object, move |known| {
        let described = known["metadata"]["annotations"][DESCRIPTION].as_str();
        known["data"] == data && described.is_some_and(|text| !text.is_empty())
    })
}

/// A controller that keeps one object in every namespace.
fn per_namespace<K: 'static>(
    context: &Context,
    name: &'static str,
    object_name: &'static str,
    informer: &Informer<K>,
    object: Value,
    is_right: impl Fn(&Value) -> bool + Send + Sync + 'static,
) -> Controller {
    let namespaces = context.informers().of::<Namespace>(Selection::all());
    let reconciler = PerNamespace {
        resource: informer.resource().clone(),
        name: object_name,
        object,
        is_right: Box::new(is_right),
        namespaces: namespaces.clone(),
        objects: informer.untyped(),
        requests: context.requests(name),
    };
    let of_object = MapTo::each(move |side: &Arc<Stored>, keys| {
        if *side.header().name == *object_name {
            keys.push(ObjectKey::cluster(&*side.header().namespace));
        }
    });
    Controller::new(name, reconciler)
        .workers(1)
        .on(Trigger::new(&namespaces, MapTo::Itself))
        .on(Trigger::new(informer, of_object))
}

struct PerNamespace {
    resource: ResourceType,
    name: &'static str,
    /// The object as it should be, without its namespace.
    object: Value,
    is_right: Box<dyn Fn(&Value) -> bool + Send + Sync>,
    namespaces: Informer<Namespace>,
    objects: Informer<()>,
    requests: Requests,
}

#[async_trait]
impl Reconciler for PerNamespace {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(namespace) = self.namespaces.get("", &key.name) else { return Ok(Action::Done) };
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        if namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating") {
            return Ok(Action::Done);
        }
        let result = match self.objects.lister().get(&key.name, self.name) {
            None => {
                let path = self.resource.path(&key.name, "");
                let body = serde_json::to_vec(&self.object)?;
                self.requests.create::<Value>(&path, body).await
            }
            Some(known) if (self.is_right)(&known.value()?) => return Ok(Action::Done),
            Some(known) => {
                let patch = json!({
                    "metadata": {
                        "resourceVersion": known.revision().to_string(),
                        "annotations": self.object["metadata"]["annotations"],
                    },
                    "data": request::merge_difference(&known.value()?["data"], &self.object["data"]),
                });
                let path = self.resource.path(&key.name, self.name);
                self.requests.patch::<Value>(&path, PatchKind::Merge, &patch).await
            }
        };
        match result {
            Ok(_) => Ok(Action::Done),
            // The namespace is on its way out, or the informer is behind and will show what is there.
            Err(error)
                if request::is_not_found(&error)
                    || request::is_namespace_terminating(&error)
                    || request::is_already_exists(&error) =>
            {
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}
