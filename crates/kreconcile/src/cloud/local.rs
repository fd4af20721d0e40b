//! The provider of one machine: load balancers are addresses of it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};

use super::{CloudError, CloudProvider, LoadBalancers};

/// How many load balancers a [`LocalCloud`] has at most.
pub const LOCAL_BALANCERS_MAX: usize = 65_536;

/// Gives each service of the type LoadBalancer an address of this machine: of the loopback network, where nobody needs to be asked,
/// or of the host's network. The service proxy listens on it; nothing else has to be done.
///
/// A service keeps its address as long as it lives, also when the controller starts anew. `spec.loadBalancerIP` is given if it is
/// one of the addresses and free.
///
/// ```
/// use std::sync::Arc;
/// use kreconcile::cloud::{CloudProvider, LocalCloud};
/// let cloud = LocalCloud::new((1..=100).map(|last| [127, 0, 8, last].into()));
/// assert!(cloud.load_balancers().is_some() && cloud.instances().is_none());
/// ```
#[derive(Clone, Debug)]
pub struct LocalCloud {
    addresses: Arc<Addresses>,
}

#[derive(Debug)]
struct Addresses {
    all: Vec<IpAddr>,
    /// Who has them, by the services' uids.
    given: Mutex<BTreeMap<IpAddr, String>>,
}

impl LocalCloud {
    /// A provider that gives out these addresses, in their order; at most [`LOCAL_BALANCERS_MAX`].
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let all = addresses.into_iter().take(LOCAL_BALANCERS_MAX).collect();
        Self { addresses: Arc::new(Addresses { all, given: Mutex::default() }) }
    }
}

impl CloudProvider for LocalCloud {
    fn name(&self) -> &str {
        "local"
    }

    fn load_balancers(&self) -> Option<Arc<dyn LoadBalancers>> {
        Some(Arc::clone(&self.addresses) as _)
    }
}

fn uid(service: &Service) -> &str {
    service.metadata.uid.as_deref().unwrap_or_default()
}

/// The addresses that a service has by its status.
fn has(service: &Service) -> impl Iterator<Item = IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

impl Addresses {
    fn given(&self) -> MutexGuard<'_, BTreeMap<IpAddr, String>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service's address: the one it has, the one it wants, or the first that is free.
    fn give(&self, service: &Service) -> Result<IpAddr, CloudError> {
        let mut given = self.given();
        let uid = uid(service);
        let wanted = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
        let wanted = wanted.filter(|wanted| !wanted.is_empty());
        let known = given.iter().find(|(_, owner)| *owner == uid).map(|(address, _)| *address);
        let is_free = |address: &IpAddr| given.get(address).is_none_or(|owner| owner == uid);
        let chosen = match (wanted, known) {
            (Some(wanted), _) => {
                let parsed =
                    wanted.parse().ok().filter(|wanted| self.all.contains(wanted) && is_free(wanted));
                parsed.ok_or_else(|| CloudError::new(format!("address {wanted} is not to be had")))?
            }
            (None, Some(known)) => known,
            (None, None) => {
                let before = has(service).find(|address| self.all.contains(address) && is_free(address));
                let free = before.or_else(|| self.all.iter().find(|address| is_free(address)).copied());
                free.ok_or_else(|| CloudError::new(format!("all {} addresses are taken", self.all.len())))?
            }
        };
        given.retain(|_, owner| owner != uid);
        given.insert(chosen, uid.to_owned());
        Ok(chosen)
    }
}

#[async_trait]
impl LoadBalancers for Addresses {
    async fn adopt(&self, services: &[Arc<Service>]) {
        let mut given = self.given();
        for service in services {
            for address in has(service).filter(|address| self.all.contains(address)) {
                given.entry(address).or_insert_with(|| uid(service).to_owned());
            }
        }
    }

    async fn exists(&self, service: &Service) -> Result<bool, CloudError> {
        Ok(self.given().values().any(|owner| owner == uid(service)))
    }

    async fn ensure(&self, service: &Service, _: &[Arc<Node>]) -> Result<LoadBalancerStatus, CloudError> {
        let address = self.give(service)?.to_string();
        let ingress =
            LoadBalancerIngress { ip: Some(address), ip_mode: Some("VIP".to_owned()), ..Default::default() };
        Ok(LoadBalancerStatus { ingress: Some(vec![ingress]) })
    }

    async fn update(&self, _: &Service, _: &[Arc<Node>]) -> Result<(), CloudError> {
        Ok(())
    }

    async fn delete(&self, service: &Service) -> Result<(), CloudError> {
        self.given().retain(|_, owner| owner != uid(service));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(uid: &str, wanted: &str, has: &str) -> Service {
        let ingress = if has.is_empty() { json!([]) } else { json!([{"ip": has}]) };
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"loadBalancerIP": wanted},
            "status": {"loadBalancer": {"ingress": ingress}}}))
        .unwrap()
    }

    /// What the documentation of the type promises, step by step.
    #[tokio::test]
    async fn addresses_are_given_and_kept() {
        let cloud = LocalCloud::new((1..=3).map(|last| [127, 0, 8, last].into()));
        let balancers = cloud.load_balancers().unwrap();
        balancers
            .adopt(&[Arc::new(service("old", "", "127.0.8.1")), Arc::new(service("far", "", "10.0.0.1"))])
            .await;
        let cases = [
            (service("a", "", ""), "127.0.8.2"),
            (service("old", "", "127.0.8.1"), "127.0.8.1"),
            (service("a", "", "127.0.8.2"), "127.0.8.2"),
            (service("a", "127.0.8.3", "127.0.8.2"), "127.0.8.3"),
            (service("b", "127.0.8.1", ""), "address 127.0.8.1 is not to be had"),
            (service("b", "10.0.0.9", ""), "address 10.0.0.9 is not to be had"),
            (service("b", "", "127.0.8.1"), "127.0.8.2"),
            (service("c", "", ""), "all 3 addresses are taken"),
        ];
        for (service, expected) in cases {
            let seen = match balancers.ensure(&service, &[]).await {
                Ok(status) => status.ingress.unwrap()[0].ip.clone().unwrap(),
                Err(error) => error.to_string(),
            };
            assert_eq!(seen, expected, "{service:?}");
        }
        let old = service("old", "", "");
        assert!(balancers.exists(&old).await.unwrap());
        balancers.delete(&old).await.unwrap();
        assert!(!balancers.exists(&old).await.unwrap());
        assert!(balancers.ensure(&service("c", "", ""), &[]).await.is_ok(), "the address is free again");
    }
}
