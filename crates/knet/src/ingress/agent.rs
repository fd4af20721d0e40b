//! Follows Ingresses and what they refer to, and tells a proxy.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kreconcile::{
    Change, EventRecorder, EventType, Informer, Informers, Regarding, RunError, Runnable, Selection,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Compiled, Problem, compile};
use crate::{
    backends::{InformerObjects, Used, slice_owner},
    http_proxy::HttpProxy,
};

/// How long after a failure a status is written again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Keeps a proxy up to date with the Ingresses of the class's controller [`CONTROLLER`](super::CONTROLLER), and writes where they
/// are served into their statuses.
///
/// A change of an object that no Ingress refers to costs nothing; any other makes the table anew.
///
/// ```no_run
/// # fn example(informers: &kreconcile::Informers) {
/// use kreconcile::{Manager, Start};
/// use knet::{http_proxy::{HttpProxy, ProxyOptions}, ingress::IngressAgent};
/// let proxy = HttpProxy::new(ProxyOptions::default());
/// let agent = IngressAgent::new(informers, proxy).addresses(vec!["192.0.2.1".parse().unwrap()]);
/// let manager = Manager::new().add(Start::Always, agent);
/// # }
/// ```
#[derive(Debug)]
pub struct IngressAgent {
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    objects: InformerObjects,
    proxy: HttpProxy,
    informers: Informers,
    addresses: Vec<IpAddr>,
    events: Option<EventRecorder>,
}

/// The Ingresses that are served, by namespace and name.
type Served = Arc<BTreeSet<(String, String)>>;

impl IngressAgent {
    /// An agent that tells `proxy`. Statuses are written by the informers' client.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers, proxy: HttpProxy) -> Self {
        Self {
            ingresses: informers.of(Selection::all()),
            classes: informers.of(Selection::all()),
            objects: InformerObjects::new(informers),
            proxy,
            informers: informers.clone(),
            addresses: Vec::new(),
            events: None,
        }
    }

    /// Where the proxy is reached, for `status.loadBalancer`. Default: nothing is written.
    #[must_use]
    pub fn addresses(mut self, addresses: Vec<IpAddr>) -> Self {
        self.addresses = addresses;
        self
    }

    /// Tells of what can't be done by events. Default: in the log only.
    #[must_use]
    pub fn events(mut self, events: EventRecorder) -> Self {
        self.events = Some(events);
        self
    }

    fn tell(&self, problem: &Problem) {
        let Problem { namespace, name, reason, message } = problem;
        tracing::warn!(%namespace, %name, %reason, %message, "an ingress is not served as it says");
        if let Some(events) = &self.events
            && let Some(object) = self.ingresses.lister().get(namespace, name)
        {
            let about = Regarding::of(&object, self.ingresses.resource());
            events.record(&about, EventType::Warning, reason, message.as_str());
        }
    }

    async fn follow(&self, served: &watch::Sender<Served>) {
        let mut ingresses = self.ingresses.subscribe();
        let mut classes = self.classes.subscribe();
        let mut services = self.objects.services.subscribe();
        let mut slices = self.objects.slices.subscribe();
        let mut secrets = self.objects.secrets.subscribe();
        // The first table is told when it is whole, so that nothing is refused for want of its endpoints.
        self.ingresses.synced().await;
        self.classes.synced().await;
        self.objects.services.synced().await;
        self.objects.slices.synced().await;
        self.objects.secrets.synced().await;
        let mut certificates = HashMap::new();
        let mut used: Option<Used> = None;
        let mut problems = BTreeSet::new();
        loop {
            let is_used = |batch: &[Change],
                           key: fn(&Change) -> Option<String>,
                           among: fn(&Used) -> &std::collections::HashSet<String>| {
                used.as_ref()
                    .is_none_or(|used| batch.iter().filter_map(key).any(|key| among(used).contains(&key)))
            };
            let object = |change: &Change| Some(change.key().to_string());
            if used.is_some() {
                let concerned = tokio::select! {
                    batch = ingresses.next() => batch.map(|_| true),
                    batch = classes.next() => batch.map(|_| true),
                    batch = services.next() => batch.map(|batch| is_used(&batch, object, |used| &used.services)),
                    batch = slices.next() => batch.map(|batch| is_used(&batch, slice_owner, |used| &used.services)),
                    batch = secrets.next() => batch.map(|batch| is_used(&batch, object, |used| &used.secrets)),
                };
                match concerned {
                    Some(true) => {}
                    Some(false) => continue,
                    None => return,
                }
            }
            let view = self.objects.view(&mut certificates);
            let compiled = compile(&self.ingresses.list(), &self.classes.list(), &view);
            used = Some(view.finish());
            let Compiled { table, served: now, problems: found } = compiled;
            self.proxy.set_table(table);
            for problem in found.difference(&problems) {
                self.tell(problem);
            }
            problems = found;
            served.send_replace(Arc::new(now));
        }
    }

    /// Writes the addresses into the statuses that lack them.
    async fn write_statuses(&self, mut served: watch::Receiver<Served>) {
        let addresses: Vec<Value> = self.addresses.iter().map(|address| json!({"ip": address})).collect();
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": addresses}}}));
        loop {
            let now = Arc::clone(&served.borrow_and_update());
            let mut failed = false;
            for (namespace, name) in now.iter() {
                let known = self.ingresses.get(namespace, name);
                if known.is_none_or(|ingress| self.has_addresses(&ingress)) {
                    continue;
                }
                let api = Api::<Ingress>::namespaced(self.informers.client().clone(), namespace);
                if let Err(error) = api.patch_status(name, &PatchParams::default(), &patch).await {
                    tracing::debug!(%namespace, %name, %error, "the status of an ingress is not written yet");
                    failed = true;
                }
            }
            tokio::select! {
                changed = served.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
        }
    }

    fn has_addresses(&self, ingress: &Ingress) -> bool {
        let balancer = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let listed = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
        let listed = listed.map(|one| one.ip.as_deref().and_then(|ip| ip.parse().ok()));
        listed.eq(self.addresses.iter().copied().map(Some))
    }
}

#[async_trait]
impl Runnable for IngressAgent {
    fn name(&self) -> &str {
        "ingress"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        let served = watch::Sender::default();
        let write = async {
            if !self.addresses.is_empty() {
                self.write_statuses(served.subscribe()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow(&served) => {}
            () = write => {}
        }
        Ok(())
    }
}
