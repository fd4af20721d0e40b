//! The zone as informers know it.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kreconcile::{Index, Informer, Informers, Selection};

use super::{Zone, is_ready};
use crate::agent::{BY_SERVICE, index_slices};

const BY_ADDRESS: &str = "address";

/// Answers from informers: as fresh as their watches, without asking the API server.
#[derive(Clone, Debug)]
pub struct InformerZone {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
}

impl InformerZone {
    /// A zone of all Services, slices and namespaces.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers) -> Self {
        let services = informers.of::<Service>(Selection::all());
        services.add_index(Index::new(BY_ADDRESS, |object, emit| {
            let Ok(service) = object.typed::<Service>() else { return };
            let Some(spec) = &service.spec else { return };
            super::cluster_ips(spec).iter().for_each(|ip| emit(&ip.to_string()));
        }));
        let slices = informers.of::<EndpointSlice>(Selection::all());
        index_slices(&slices);
        slices.add_index(Index::new(BY_ADDRESS, |object, emit| {
            let Ok(slice) = object.typed::<EndpointSlice>() else { return };
            let named = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.hostname.is_some());
            named.flat_map(|endpoint| &endpoint.addresses).for_each(|address| emit(address));
        }));
        Self { services, slices, namespaces: informers.of::<Namespace>(Selection::all()) }
    }

    /// Waits until the zone is whole.
    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.namespaces.synced().await;
    }
}

impl Zone for InformerZone {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get("", namespace).is_some()
    }

    fn service_at(&self, address: IpAddr) -> Option<(String, String)> {
        let found = self.services.by_index(BY_ADDRESS, &address.to_string()).into_iter().next()?;
        Some((found.metadata.namespace.clone()?, found.metadata.name.clone()?))
    }

    fn version(&self) -> Option<[u64; 3]> {
        // Each is told after the changes that lead there can be seen.
        Some([self.services.revision(), self.slices.revision(), self.namespaces.revision()])
    }

    fn hosts_at(&self, address: IpAddr) -> Vec<(String, String, String)> {
        let text = address.to_string();
        let mut hosts = Vec::new();
        for slice in self.slices.by_index(BY_ADDRESS, &text) {
            let namespace = slice.metadata.namespace.clone().unwrap_or_default();
            let Some(service) = crate::rules::slice_service(&slice) else { continue };
            let own = |endpoint: &&Endpoint| is_ready(endpoint) && endpoint.addresses.contains(&text);
            for endpoint in slice.endpoints.iter().flatten().filter(own) {
                if let Some(host) = &endpoint.hostname {
                    hosts.push((namespace.clone(), service.to_owned(), host.clone()));
                }
            }
        }
        hosts
    }
}
