//! What routes refer to: Services with their endpoints, and certificates.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Secret, Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use kreconcile::{Change, Informer, Informers, Selection};

use crate::{
    agent::{BY_SERVICE, index_slices},
    http_proxy::{BackendProtocol, Certificate, CertificateError},
    rules::port_endpoints,
};

/// The objects that routes refer to.
pub trait Objects {
    /// A Service.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;

    /// The slices of a Service.
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>>;

    /// The certificate in a Secret of the type `kubernetes.io/tls`.
    ///
    /// # Errors
    /// When there is none, or it can't be used.
    fn certificate(&self, namespace: &str, name: &str) -> Result<Certificate, SecretError>;
}

/// Why a Secret has no certificate.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// There is no such Secret of the type `kubernetes.io/tls`.
    #[error("there is no secret {0:?} of the type kubernetes.io/tls")]
    Missing(String),
    /// It can't be used.
    #[error("the secret {name:?} can't be used: {source}")]
    Unusable {
        /// `namespace/name`.
        name: String,
        /// Why.
        #[source]
        source: Arc<CertificateError>,
    },
}

/// Reads the certificate of a Secret.
///
/// # Errors
/// When it can't be used.
pub fn certificate(secret: &Secret) -> Result<Certificate, SecretError> {
    let meta = &secret.metadata;
    let name = || {
        format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        )
    };
    if secret.type_.as_deref() != Some("kubernetes.io/tls") {
        return Err(SecretError::Missing(name()));
    }
    let part = |key: &str| {
        secret.data.as_ref().and_then(|data| data.get(key)).map(|part| part.0.as_slice()).unwrap_or_default()
    };
    Certificate::from_pem(part("tls.crt"), part("tls.key"))
        .map_err(|source| SecretError::Unusable { name: name(), source: Arc::new(source) })
}

/// Which port of a Service is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRef<'a> {
    /// The one of this number.
    Number(i32),
    /// The one of this name.
    Name(&'a str),
}

/// A port of a Service as a proxy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceBackend {
    /// What is spoken there, by the port's `appProtocol` (KEP-3726).
    pub protocol: BackendProtocol,
    /// Where it is served: by ready endpoints, else by those that end but still serve.
    pub endpoints: Arc<[SocketAddr]>,
}

/// Why a port of a Service can't be a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no such Service.
    #[error("there is no service {0:?}")]
    NoService(String),
    /// The Service has no such port.
    #[error("the service {0:?} has no such port")]
    NoPort(String),
    /// The Service is another name for something outside of the cluster, which has no endpoints.
    #[error("the service {0:?} is an ExternalName, which has no endpoints")]
    External(String),
    /// Something is spoken there that a proxy can't speak.
    #[error("the port of the service {service:?} speaks {protocol:?}, which is not supported")]
    Protocol {
        /// `namespace/name`.
        service: String,
        /// The port's `appProtocol`, or its `protocol`.
        protocol: String,
    },
}

/// The backend that a port of a Service is.
///
/// # Errors
/// When it can't be one.
pub fn service_backend(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: PortRef<'_>,
) -> Result<ServiceBackend, BackendError> {
    let found = find_backend(objects, namespace, name, port)?;
    match found.sealed {
        None => Ok(found.backend),
        Some(refused) => Err(refused),
    }
}

/// A port of a Service, of which it is not decided yet whether TLS is spoken there.
pub(crate) struct FoundBackend {
    pub(crate) backend: ServiceBackend,
    /// The port's name; may be empty.
    pub(crate) port: String,
    /// Why it can't be a backend in the clear, when its `appProtocol` is one within TLS.
    pub(crate) sealed: Option<BackendError>,
}

pub(crate) fn find_backend(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: PortRef<'_>,
) -> Result<FoundBackend, BackendError> {
    let key = || format!("{namespace}/{name}");
    let service = objects.service(namespace, name).ok_or_else(|| BackendError::NoService(key()))?;
    let spec = service.spec.as_ref().ok_or_else(|| BackendError::NoPort(key()))?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(BackendError::External(key()));
    }
    let is_meant = |own: &&ServicePort| match port {
        PortRef::Number(number) => own.port == number,
        PortRef::Name(name) => own.name.as_deref() == Some(name),
    };
    let found: Vec<_> = spec.ports.iter().flatten().filter(is_meant).collect();
    let tcp = |own: &&&ServicePort| own.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let own = found.iter().find(tcp).or(found.first()).ok_or_else(|| BackendError::NoPort(key()))?;
    let refuse = |protocol: &str| BackendError::Protocol { service: key(), protocol: protocol.to_owned() };
    if !tcp(&own) {
        return Err(refuse(own.protocol.as_deref().unwrap_or_default()));
    }
    let (protocol, sealed) = match own.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => (BackendProtocol::Http2, None),
        // Names of others mean nothing here, and those without a prefix are IANA's.
        Some(tls @ ("kubernetes.io/wss" | "https")) => (BackendProtocol::Http1, Some(refuse(tls))),
        _ => (BackendProtocol::Http1, None),
    };
    let slices = objects.slices(namespace, name);
    let backend = ServiceBackend { protocol, endpoints: port_endpoints(own, &slices).into() };
    Ok(FoundBackend { backend, port: own.name.clone().unwrap_or_default(), sealed })
}

/// The Service that a slice belongs to.
pub(crate) fn slice_owner(change: &Change) -> Option<String> {
    let header = change.header();
    let service = header.labels.get("kubernetes.io/service-name")?;
    Some(format!("{}/{service}", header.namespace))
}

/// [`Objects`] from informers. Remembers certificates, and what was asked for.
#[derive(Debug)]
pub(crate) struct InformerObjects {
    pub(crate) services: Informer<Service>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) secrets: Informer<Secret>,
}

/// What a compilation asked for, by kind.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) services: HashSet<String>,
    pub(crate) secrets: HashSet<String>,
}

/// Certificates that were read, by name, with the version of the Secret.
pub(crate) type Certificates = HashMap<String, (Option<String>, Result<Certificate, SecretError>)>;

/// One compilation's view of the objects.
pub(crate) struct View<'a> {
    objects: &'a InformerObjects,
    used: RefCell<Used>,
    certificates: RefCell<&'a mut Certificates>,
}

impl InformerObjects {
    pub(crate) fn new(informers: &Informers) -> Self {
        let slices = informers.of::<EndpointSlice>(Selection::all());
        index_slices(&slices);
        Self {
            services: informers.of(Selection::all()),
            slices,
            secrets: informers.of(Selection::all().fields("type=kubernetes.io/tls")),
        }
    }

    pub(crate) fn view<'a>(&'a self, certificates: &'a mut Certificates) -> View<'a> {
        View { objects: self, used: RefCell::default(), certificates: RefCell::new(certificates) }
    }
}

impl View<'_> {
    /// What was asked for. Certificates that were not are forgotten.
    pub(crate) fn finish(self) -> Used {
        let used = self.used.into_inner();
        self.certificates.into_inner().retain(|name, _| used.secrets.contains(name));
        used
    }
}

impl Objects for View<'_> {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.used.borrow_mut().services.insert(format!("{namespace}/{name}"));
        self.objects.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.objects.slices.by_index(BY_SERVICE, &format!("{namespace}/{name}"))
    }

    fn certificate(&self, namespace: &str, name: &str) -> Result<Certificate, SecretError> {
        let key = format!("{namespace}/{name}");
        self.used.borrow_mut().secrets.insert(key.clone());
        let secret = self.objects.secrets.get(namespace, name);
        let secret = secret.ok_or_else(|| SecretError::Missing(key.clone()))?;
        let mut known = self.certificates.borrow_mut();
        if let Some((version, read)) = known.get(&key)
            && *version == secret.metadata.resource_version
        {
            return read.clone();
        }
        let read = certificate(&secret);
        known.insert(key, (secret.metadata.resource_version.clone(), read.clone()));
        read
    }
}
