//! TLS to extenders.

use std::{path::PathBuf, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use serde::Deserialize;

use crate::extender::ExtenderError;

/// How an extender is known, and how it knows the scheduler (`tlsConfig`). Data, which is PEM in base64, wins over files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsOptions {
    /// The extender's certificate is not looked at.
    pub insecure: bool,
    /// The name that the certificate must be for; the host of the URL when it is empty.
    pub server_name: String,
    /// The scheduler's own certificate, in PEM.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Who signs the extender's certificate; where nobody is named, the system's authorities are believed.
    #[serde(rename = "caFile")]
    pub ca_file: PathBuf,
    /// The certificate itself.
    pub cert_data: String,
    /// The key itself.
    pub key_data: String,
    /// The authority itself.
    #[serde(rename = "caData")]
    pub ca_data: String,
}

fn failed(what: &str, error: impl std::fmt::Display) -> ExtenderError {
    ExtenderError::new(format!("{what}: {error}"))
}

impl TlsOptions {
    fn read(what: &str, data: &str, file: &PathBuf) -> Result<Option<Vec<u8>>, ExtenderError> {
        if !data.is_empty() {
            return STANDARD.decode(data).map(Some).map_err(|error| failed(what, error));
        }
        if file.as_os_str().is_empty() {
            return Ok(None);
        }
        std::fs::read(file).map(Some).map_err(|error| failed(&file.display().to_string(), error))
    }

    /// As upstream: without an authority nothing is looked at when `enableHTTPS` asks for TLS.
    pub(super) fn client(&self, enable_https: bool) -> Result<ClientConfig, ExtenderError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| failed("TLS", error))?;
        let authority = Self::read("caData", &self.ca_data, &self.ca_file)?;
        let builder = match authority {
            _ if self.insecure => None,
            None if enable_https => None,
            None => {
                let mut roots = RootCertStore::empty();
                // Those of kinds that are not supported are not believed.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Some(roots)
            }
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|error| failed("caData", error))?;
                    roots.add(certificate).map_err(|error| failed("caData", error))?;
                }
                Some(roots)
            }
        }
        .map_or_else(
            || {
                let verifier = Arc::new(Unverified(provider));
                builder.clone().dangerous().with_custom_certificate_verifier(verifier)
            },
            |roots| builder.clone().with_root_certificates(roots),
        );
        let certificate = Self::read("certData", &self.cert_data, &self.cert_file)?;
        let key = Self::read("keyData", &self.key_data, &self.key_file)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
                let chain = chain.map_err(|error| failed("certData", error))?;
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| failed("keyData", error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| failed("certData", error))
            }
            (None, None) => Ok(builder.with_no_client_auth()),
            _ => Err(ExtenderError::new("a certificate and its key belong together")),
        }
    }
}

/// Takes any certificate.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
