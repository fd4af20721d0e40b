//! Certificates, by the name that the client asks for.

use std::{fmt, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use super::table::RouteTable;

/// A certificate chain with its private key. Cheap to clone.
#[derive(Clone)]
pub struct Certificate(Arc<CertifiedKey>);

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The chain is not PEM.
    #[error("the certificate is not PEM: {0}")]
    Chain(rustls::pki_types::pem::Error),
    /// There is no certificate in it.
    #[error("there is no certificate")]
    Empty,
    /// The key is not PEM, or none is there.
    #[error("the private key is not PEM: {0}")]
    Key(rustls::pki_types::pem::Error),
    /// Key and certificate can't be used, or not together.
    #[error(transparent)]
    Unusable(#[from] rustls::Error),
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its key: what a Secret of the type `kubernetes.io/tls` holds.
    ///
    /// # Errors
    /// When they can't be read, or don't belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Chain)?;
        if chain.is_empty() {
            return Err(CertificateError::Empty);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::Key)?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // Some keys do not say what their public half is.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self(Arc::new(certified)))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

/// Looks the certificate up in the table of the moment, so that a new one counts from the next handshake on.
#[derive(Debug)]
struct Resolver {
    table: watch::Receiver<Arc<RouteTable>>,
    port: u16,
    default: Option<Certificate>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let table = self.table.borrow();
        let own = table.ports.get(&self.port).and_then(|port| port.tls.as_ref());
        let own = own.and_then(|certificates| certificates.matching(&name).next());
        own.or(self.default.as_ref()).map(|certificate| Arc::clone(&certificate.0))
    }
}

/// How TLS is spoken at a port.
pub(super) fn config(
    table: watch::Receiver<Arc<RouteTable>>,
    port: u16,
    default: Option<Certificate>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config =
        builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver { table, port, default }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
