//! Follows Services and EndpointSlices and tells a proxy what to do.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kreconcile::{Index, Informer, Informers, RunError, Runnable, Selection};
use tokio_util::sync::CancellationToken;

use crate::{
    health::ProxyHealth,
    proxy::ServiceProxy,
    rules::{Place, Table, rules},
};

/// How long after a failure the proxy is told again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The index of slices by `namespace/service`.
pub(crate) const BY_SERVICE: &str = "service";

/// Keeps a proxy up to date. A change of one Service or slice computes the rules of that Service only.
///
/// ```no_run
/// # fn example(informers: &kreconcile::Informers) {
/// use std::sync::Arc;
/// use kreconcile::{Manager, Start};
/// use knet::{Redirects, ProxyAgent, proxy::userspace::UserspaceProxy, rules::Place};
/// let proxy = Arc::new(UserspaceProxy::new(Redirects::default()));
/// let manager = Manager::new().add(Start::Always, ProxyAgent::new(informers, proxy, Place::default()));
/// # }
/// ```
#[derive(Debug)]
pub struct ProxyAgent {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    proxy: Arc<dyn ServiceProxy>,
    place: Place,
    health: Option<Arc<ProxyHealth>>,
}

/// Adds the index of slices by Service, once.
pub(crate) fn index_slices(slices: &Informer<EndpointSlice>) {
    slices.add_index(Index::new(BY_SERVICE, |object, emit| {
        let header = object.header();
        if let Some(service) = header.labels.get("kubernetes.io/service-name") {
            emit(&format!("{}/{service}", header.namespace));
        }
    }));
}

impl ProxyAgent {
    /// An agent that tells `proxy`, which stands at `place`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers, proxy: Arc<dyn ServiceProxy>, place: Place) -> Self {
        let slices = informers.of::<EndpointSlice>(Selection::all());
        index_slices(&slices);
        Self { services: informers.of::<Service>(Selection::all()), slices, proxy, place, health: None }
    }

    /// Notes there how the proxy does. Default: nowhere.
    #[must_use]
    pub fn health(mut self, health: Arc<ProxyHealth>) -> Self {
        self.health = Some(health);
        self
    }

    /// Computes one Service's rules anew. Says whether they changed.
    fn compute(&self, table: &mut Table, key: &str) -> bool {
        let Some((namespace, name)) = key.split_once('/') else { return false };
        let Some(service) = self.services.get(namespace, name) else {
            return table.services.remove(key).is_some();
        };
        let slices = self.slices.by_index(BY_SERVICE, key);
        let rules = rules(&service, &slices, &self.place);
        let changed = table.services.get(key).is_none_or(|known| **known != *rules);
        if changed {
            table.services.insert(key.into(), rules.into());
        }
        changed
    }

    async fn follow(&self) {
        let mut services = self.services.subscribe();
        let mut slices = self.slices.subscribe();
        let mut table = Table::default();
        let mut failed = false;
        let mut synced = false;
        // What was told last of Services that can't be served, so that it is told once.
        let mut refused = None;
        loop {
            let mut dirty = BTreeSet::new();
            tokio::select! {
                batch = services.next() => {
                    let Some(batch) = batch else { return };
                    dirty.extend(batch.iter().map(|change| change.key().to_string()));
                }
                batch = slices.next() => {
                    let Some(batch) = batch else { return };
                    for side in batch.iter().flat_map(|change| change.sides()) {
                        let header = side.header();
                        if let Some(service) = header.labels.get("kubernetes.io/service-name") {
                            dirty.insert(format!("{}/{service}", header.namespace));
                        }
                    }
                }
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
            let mut changed = false;
            for key in &dirty {
                changed |= self.compute(&mut table, key);
            }
            // The first table is told when it is whole, so that nothing is refused for want of its endpoints.
            if !synced {
                self.services.synced().await;
                self.slices.synced().await;
                synced = true;
                let all: Vec<_> = self.services.list();
                for service in all {
                    let meta = &service.metadata;
                    let namespace = meta.namespace.as_deref().unwrap_or_default();
                    self.compute(
                        &mut table,
                        &format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default()),
                    );
                }
            } else if !changed && !failed {
                continue;
            }
            if let Some(health) = &self.health {
                health.pending();
            }
            failed = match self.proxy.sync(&table).await {
                Ok(()) => {
                    if let Some(health) = &self.health {
                        health.updated();
                    }
                    false
                }
                Err(error) if error.0.iter().all(|rule| rule.source.kind() == io::ErrorKind::Unsupported) => {
                    let text = error.to_string();
                    if refused.as_ref() != Some(&text) {
                        tracing::warn!(%error, "some services can't be served by this proxy");
                    }
                    refused = Some(text);
                    if let Some(health) = &self.health {
                        health.updated();
                    }
                    false
                }
                Err(error) => {
                    tracing::warn!(%error, "some services are not served yet");
                    true
                }
            };
        }
    }
}

#[async_trait]
impl Runnable for ProxyAgent {
    fn name(&self) -> &str {
        "service-proxy"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }
}
