//! The cluster's certificate authority: made at start, kept in memory, gone with the cluster.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kreconcile::controllers::{CertificateSigner, SignError, SigningRequest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use time::{Duration, OffsetDateTime};

mod signing;

/// How long the authority and what it signs are valid.
const VALID_DAYS: i64 = 365;
/// How far the begin of validity lies in the past, for machines whose clocks differ.
const SKEW_MINUTES: i64 = 5;
/// How long the lines of a text in PEM are.
const PEM_LINE_LENGTH: usize = 64;

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
}

/// What went wrong with a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A certificate could not be made.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// A certificate could not be signed.
    #[error("a certificate could not be signed")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// TLS could not be set up with it.
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
    /// Client certificates could not be checked with it.
    #[error("client certificates could not be set up")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate authority for one cluster.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate_der: Vec<u8>,
    now: OffsetDateTime,
}

impl Ca {
    /// Makes an authority that is valid from `now` (in seconds since 1970) on.
    pub(crate) fn new(now_seconds: i64) -> Result<Self, CaError> {
        let now = OffsetDateTime::from_unix_timestamp(now_seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let key = KeyPair::generate()?;
        let mut params = params(now, "kplane");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        let certificate_pem = certificate.pem();
        let certificate_der = certificate.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem, certificate_der, now })
    }

    /// The authority's certificate, in PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A client certificate: the common name is the user, the organizations are the groups.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Credentials, CaError> {
        let key = KeyPair::generate()?;
        // A name of rcgen's has one organization at most.
        let subject = signing::subject(user, groups);
        let times = (self.now - Duration::minutes(SKEW_MINUTES), self.now + Duration::days(VALID_DAYS));
        let whose = (&*subject, &*key.subject_public_key_info());
        let made = signing::client(&self.certificate_der, self.issuer.key(), whose, times)
            .map_err(|error| CaError::Sign(error.into()))?;
        Ok(Credentials { certificate_pem: to_pem(&made), key_pem: key.serialize_pem() })
    }

    /// A certificate for a server with these names.
    pub(crate) fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Credentials, CaError> {
        let key = KeyPair::generate()?;
        let mut params = params(self.now, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// TLS for a server with these names, which asks for client certificates of this authority and takes callers without.
    pub(crate) fn server_config(
        &self,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Result<ServerConfig, CaError> {
        let made = self.server(names, addresses)?;
        let config = from_pem(
            &made.certificate_pem,
            &made.key_pem,
            Some(&self.certificate_pem),
            ClientCertificates::Optional,
        )?;
        config.ok_or_else(|| {
            rustls::Error::General("a certificate that was just made can't be read".to_owned()).into()
        })
    }
}

#[async_trait]
impl CertificateSigner for Ca {
    async fn sign(&self, request: &SigningRequest<'_>) -> Result<String, SignError> {
        let time = |at: i64| OffsetDateTime::from_unix_timestamp(at).map_err(SignError::new);
        let order = signing::Order {
            request: request.der,
            usages: request.usages,
            not_before: time(request.not_before.as_second())?,
            not_after: time(request.not_after.as_second())?,
        };
        let made = signing::sign(&self.certificate_der, self.issuer.key(), &order).map_err(SignError::new)?;
        Ok(to_pem(&made))
    }
}

/// A certificate as text.
fn to_pem(certificate: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in STANDARD.encode(certificate).as_bytes().chunks(PEM_LINE_LENGTH) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientCertificates {
    /// They may; one that is shown must be good.
    Optional,
    /// They must.
    Required,
}

/// TLS for a server with this certificate chain and key. `authority`: callers may show client certificates that it signed;
/// without one they are not asked. `None`: the texts hold no certificate, or no key.
pub(crate) fn from_pem(
    certificate: &str,
    key: &str,
    authority: Option<&str>,
    clients: ClientCertificates,
) -> Result<Option<ServerConfig>, CaError> {
    let certificates =
        |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let (Ok(chain), Ok(key)) = (certificates(certificate), PrivateKeyDer::from_pem_slice(key.as_bytes()))
    else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authority).unwrap_or_default() {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match clients {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(config))
}

fn params(now: OffsetDateTime, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = now - Duration::minutes(SKEW_MINUTES);
    params.not_after = now + Duration::days(VALID_DAYS);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use jiff::Timestamp;
    use kreconcile::testing::check_certificate_signer;
    use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::FromDer as _};

    use super::*;

    const NOW: i64 = 1_900_000_000;

    #[test]
    fn a_client_has_all_its_groups() {
        let ca = Ca::new(NOW).unwrap();
        for groups in [&[][..], &["system:masters"], &["dev", "ops", "a group with spaces", "größer"]] {
            let made = ca.client("jane", groups).unwrap();
            let block = Pem::iter_from_buffer(made.certificate_pem.as_bytes()).next().unwrap().unwrap();
            let (_, read) = X509Certificate::from_der(&block.contents).unwrap();
            let (_, issuer) = X509Certificate::from_der(&ca.certificate_der).unwrap();
            read.verify_signature(Some(issuer.public_key())).unwrap();
            let seen: Vec<_> = read.subject().iter_organization().map(|one| one.as_str().unwrap()).collect();
            assert_eq!(seen, groups);
            assert_eq!(read.subject().iter_common_name().next().unwrap().as_str().unwrap(), "jane");
            assert!(read.extended_key_usage().unwrap().unwrap().value.client_auth && !read.is_ca());
        }
    }

    /// A signer that keeps to the rules but for one.
    struct Wrong {
        ca: Ca,
        rule: &'static str,
        good: Vec<u8>,
    }

    #[async_trait]
    impl CertificateSigner for Wrong {
        async fn sign(&self, request: &SigningRequest<'_>) -> Result<String, SignError> {
            let mut request = *request;
            let usages = ["digital signature", "client auth", "server auth"].map(str::to_owned);
            match self.rule {
                "signature" => request.der = &self.good,
                "usage" => request.usages = &usages,
                "time" => request.not_after = "2100-01-01T00:00:00Z".parse().unwrap(),
                _ => {}
            }
            self.ca.sign(&request).await
        }
    }

    #[tokio::test]
    async fn the_authority_keeps_its_promises_and_others_are_found() {
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::default();
        asked.distinguished_name.push(DnType::CommonName, "jane");
        asked.subject_alt_names.push(SanType::DnsName("web.example".try_into().unwrap()));
        let request = asked.serialize_request(&key).unwrap();
        let now = Timestamp::from_second(NOW).unwrap();
        for (rule, expected) in [("", true), ("signature", false), ("usage", false), ("time", false)] {
            let signer = Wrong { ca: Ca::new(NOW).unwrap(), rule, good: request.der().to_vec() };
            let checked = check_certificate_signer(&signer, request.der(), now);
            let held = std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_ok();
            assert_eq!(held, expected, "broken: {rule:?}");
        }
    }
}
