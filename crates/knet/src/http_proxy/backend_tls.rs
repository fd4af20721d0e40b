//! TLS to backends: whom they have to prove to be, and by whose word.

use std::{fmt, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::rule::BackendProtocol;

/// Why TLS to a backend can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendTlsError {
    /// The authorities are not PEM.
    #[error("the authorities are not PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// A certificate can't be an authority's.
    #[error("a certificate is no authority's: {0}")]
    Authority(rustls::Error),
    /// There is no authority.
    #[error("there is no certificate of an authority")]
    NoAuthority,
    /// The name can't be asked for.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// The machine has no way to speak TLS.
    #[error(transparent)]
    Unusable(#[from] rustls::Error),
}

/// Whose word counts. Cheap to clone.
#[derive(Clone)]
pub struct Authorities {
    roots: Arc<RootCertStore>,
    id: [u8; 32],
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("count", &self.roots.len()).finish_non_exhaustive()
    }
}

impl Authorities {
    fn new(roots: RootCertStore) -> Result<Self, BackendTlsError> {
        if roots.is_empty() {
            return Err(BackendTlsError::NoAuthority);
        }
        let mut hash = Sha256::new();
        for root in &roots.roots {
            for part in [&*root.subject, &*root.subject_public_key_info] {
                hash.update(part.len().to_be_bytes());
                hash.update(part);
            }
        }
        Ok(Self { id: hash.finalize().into(), roots: Arc::new(roots) })
    }

    /// Those of a bundle in PEM: what a ConfigMap has as `ca.crt`.
    ///
    /// # Errors
    /// When there is none, or one of them can't be read.
    pub fn from_pem(bundle: &[u8]) -> Result<Self, BackendTlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(BackendTlsError::Pem)?;
            roots.add(certificate).map_err(BackendTlsError::Authority)?;
        }
        Self::new(roots)
    }

    /// All of these.
    ///
    /// # Errors
    /// When there is none.
    pub fn all<'a>(some: impl IntoIterator<Item = &'a Self>) -> Result<Self, BackendTlsError> {
        let mut roots = RootCertStore::empty();
        roots.extend(some.into_iter().flat_map(|one| one.roots.roots.iter().cloned()));
        Self::new(roots)
    }

    /// Those that the machine believes. Reads files.
    ///
    /// # Errors
    /// When it has none.
    pub fn of_system() -> Result<Self, BackendTlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::new(roots)
    }
}

/// A name that a certificate has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectName {
    /// The name of a host. One that begins with `*.` has to be in the certificate like that; else wildcards of certificates count.
    Host(Box<str>),
    /// A URI, such as a SPIFFE id: this very one.
    Uri(Box<str>),
}

/// How a backend is spoken to by TLS. Cheap to clone; connections are shared by those that are equal.
#[derive(Clone)]
pub struct BackendTls {
    id: [u8; 32],
    inner: Arc<Inner>,
}

struct Inner {
    name: ServerName<'static>,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTls").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for BackendTls {}

impl BackendTls {
    /// Asks for `host` (RFC 6066). The certificate has to be of one of the authorities, and to have that name, or, when there are `names`, one of
    /// those instead.
    ///
    /// # Errors
    /// When `host` or one of the names is none.
    pub fn new(
        host: &str,
        names: &[SubjectName],
        authorities: &Authorities,
    ) -> Result<Self, BackendTlsError> {
        let bad = |name: &str| BackendTlsError::Name(name.to_owned());
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad(host))?;
        let mut hash = Sha256::new();
        hash.update(authorities.id);
        let texts = names.iter().map(|name| match name {
            SubjectName::Host(name) => ("host", &**name),
            SubjectName::Uri(name) => ("uri", &**name),
        });
        for (kind, text) in texts.chain([("asked", host)]) {
            hash.update(kind);
            hash.update(text.len().to_be_bytes());
            hash.update(text);
        }
        for name in names {
            if let SubjectName::Host(name) = name
                && ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_err()
            {
                return Err(bad(name));
            }
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier {
            known: WebPkiServerVerifier::builder_with_provider(
                Arc::clone(&authorities.roots),
                Arc::clone(&provider),
            )
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?,
            roots: Arc::clone(&authorities.roots),
            provider: Arc::clone(&provider),
            names: names.to_vec(),
        });
        let connector = |protocol: &[u8]| -> Result<TlsConnector, rustls::Error> {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
            let builder = builder.with_safe_default_protocol_versions()?.dangerous();
            let verifier: Arc<dyn ServerCertVerifier> = Arc::<Verifier>::clone(&verifier);
            let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(TlsConnector::from(Arc::new(config)))
        };
        let inner = Inner { name, http1: connector(b"http/1.1")?, http2: connector(b"h2")? };
        Ok(Self { id: hash.finalize().into(), inner: Arc::new(inner) })
    }

    /// What is equal for equal ones.
    pub(super) fn id(&self) -> [u8; 32] {
        self.id
    }

    pub(super) async fn connect(
        &self,
        protocol: BackendProtocol,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let connector = match protocol {
            BackendProtocol::Http1 => &self.inner.http1,
            BackendProtocol::Http2 => &self.inner.http2,
        };
        connector.connect(self.inner.name.clone(), stream).await
    }
}

/// Verifies chains as rustls does, and names as the policy says.
#[derive(Debug)]
struct Verifier {
    known: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    names: Vec<SubjectName>,
}

impl Verifier {
    fn has_name(&self, certificate: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
        let exact = |wanted: &SubjectName| match wanted {
            SubjectName::Host(host) if !host.starts_with("*.") => {
                ServerName::try_from(&**host).is_ok_and(|name| verify_server_name(parsed, &name).is_ok())
            }
            _ => false,
        };
        if self.names.iter().any(exact) {
            return true;
        }
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
        let Ok(Some(own)) = parsed.subject_alternative_name() else { return false };
        own.value.general_names.iter().any(|own| match own {
            GeneralName::DNSName(own) => self.names.iter().any(|wanted| {
                matches!(wanted, SubjectName::Host(host) if host.starts_with("*.") && host.eq_ignore_ascii_case(own))
            }),
            GeneralName::URI(own) => self.names.contains(&SubjectName::Uri((*own).into())),
            _ => false,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.names.is_empty() {
            return self.known.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        if self.has_name(end_entity, &parsed) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
