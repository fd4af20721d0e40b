//! The ingress controller of a cluster: where it listens, and what it is told by.

use std::{io, net::SocketAddr, sync::Arc};

use k8s_openapi::api::networking::v1::{IngressClass, IngressClassSpec};
use kapi::ApiServer;
use kcore::Clock;
use knet::{
    Redirects,
    http_proxy::{Certificate, HttpProxy, ProxyOptions},
    ingress::{CONTROLLER, HTTP_PORT, HTTPS_PORT, IngressAgent},
};
use kreconcile::{EventRecorder, Informers};
use kube::{Api, Client, api::PostParams};
use tokio::net::TcpListener;

use crate::{builder::StartError, ca::Ca, defaults, identities, network::CLUSTER_DOMAIN};

/// Where Ingresses are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressAddresses {
    /// HTTP in the clear.
    pub http: SocketAddr,
    /// HTTP over TLS.
    pub https: SocketAddr,
}

/// The parts of a controller that listens.
pub(crate) struct OpenedIngress {
    pub(crate) proxy: HttpProxy,
    pub(crate) addresses: IngressAddresses,
    pub(crate) informers: Informers,
}

impl OpenedIngress {
    /// Listens at `wanted`; port 0 picks a free one.
    pub(crate) async fn open(
        wanted: IngressAddresses,
        server: &ApiServer,
        ca: &Ca,
        redirects: Redirects,
    ) -> Result<Self, StartError> {
        // Who asks for a name that no Ingress has a certificate for gets one of the cluster's own authority.
        let name = format!("ingress.{CLUSTER_DOMAIN}");
        let made = ca.server(&[&name], &[wanted.https.ip()])?;
        let default = Certificate::from_pem(made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
        let failed = StartError::Ingress;
        let default_certificate = Some(default.map_err(io::Error::other).map_err(failed)?);
        let proxy =
            HttpProxy::new(ProxyOptions { redirects, default_certificate, ..ProxyOptions::default() });
        let serve = async |port, address| {
            let listener = TcpListener::bind(address).await?;
            proxy.serve(port, listener)
        };
        let http = serve(HTTP_PORT, wanted.http).await.map_err(failed)?;
        let https = serve(HTTPS_PORT, wanted.https).await.map_err(failed)?;
        let informers = Informers::new(identities::client(server, identities::INGRESS));
        Ok(Self { proxy, addresses: IngressAddresses { http, https }, informers })
    }

    /// What keeps the proxy up to date.
    pub(crate) fn agent(&self, clock: &Arc<dyn Clock>) -> IngressAgent {
        let events =
            EventRecorder::new(self.informers.client().clone(), Arc::clone(clock), "ingress-controller");
        // An address that stands for all is none that anybody could ask at.
        let address = Some(self.addresses.http.ip()).filter(|address| !address.is_unspecified());
        let agent = IngressAgent::new(&self.informers, self.proxy.clone());
        agent.addresses(address.into_iter().collect()).events(events)
    }
}

/// Makes the IngressClass that is the default, unless a class of its name is there already.
pub(crate) async fn make_class(client: &Client) -> Result<(), kube::Error> {
    let mut class = IngressClass::default();
    class.metadata.name = Some(defaults::INGRESS_CLASS.to_owned());
    let default = ("ingressclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
    class.metadata.annotations = Some([default].into());
    class.spec = Some(IngressClassSpec { controller: Some(CONTROLLER.to_owned()), parameters: None });
    match Api::all(client.clone()).create(&PostParams::default(), &class).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}
