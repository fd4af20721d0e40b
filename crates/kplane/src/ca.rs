//! The cluster's certificate authority: made at start, kept in memory, gone with the cluster.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kcore::Clock;
use kreconcile::controllers::{CertificateSigner, SignError, SigningRequest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use time::{Duration, OffsetDateTime};

mod signing;

use crate::certificates::{Certificates, Named};

/// How long the authority is valid, as kubeadm's.
const AUTHORITY_DAYS: i64 = 3650;
/// How long what it signs is valid.
const VALID_DAYS: i64 = 365;
/// When a serving certificate is made anew: at four fifths of its time.
pub(crate) const RENEWAL: std::time::Duration = std::time::Duration::from_secs(365 * 86_400 / 5 * 4);
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
    clock: Arc<dyn Clock>,
}

impl Ca {
    /// Makes an authority that is valid from now on.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let mut params = params(time(&*clock), "kplane", AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        let certificate_pem = certificate.pem();
        let certificate_der = certificate.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem, certificate_der, clock })
    }

    fn now(&self) -> OffsetDateTime {
        time(&*self.clock)
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
        let now = self.now();
        let times = (now - Duration::minutes(SKEW_MINUTES), now + Duration::days(VALID_DAYS));
        let whose = (&*subject, &*key.subject_public_key_info());
        let made = signing::client(&self.certificate_der, self.issuer.key(), whose, times)
            .map_err(|error| CaError::Sign(error.into()))?;
        Ok(Credentials { certificate_pem: to_pem(&made), key_pem: key.serialize_pem() })
    }

    /// A certificate for a server with these names.
    pub(crate) fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Credentials, CaError> {
        let key = KeyPair::generate()?;
        let mut params = params(self.now(), "kube-apiserver", VALID_DAYS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// TLS for a server with these names, which asks for client certificates of this authority and takes callers without. Callers
    /// that ask for other names see the certificates for those.
    pub(crate) fn server_config(
        &self,
        names: &[&str],
        addresses: &[IpAddr],
        others: &[Named],
    ) -> Result<ServerConfig, CaError> {
        let made = self.server(names, addresses)?;
        let config = from_pem(&made, others, Some(&self.certificate_pem), ClientCertificates::Optional)?;
        config.ok_or_else(|| rustls::Error::General("a certificate or a key can't be read".to_owned()).into())
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
pub(crate) fn to_pem(certificate: &[u8]) -> String {
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

/// TLS for a server with this certificate chain and key, and others for other names. `authority`: callers may show client
/// certificates that it signed; without one they are not asked. `None`: a text holds no certificate, or no key.
pub(crate) fn from_pem(
    usual: &Credentials,
    others: &[Named],
    authority: Option<&str>,
    clients: ClientCertificates,
) -> Result<Option<ServerConfig>, CaError> {
    let certificates =
        |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let Some(resolver) = Certificates::new(usual, others)? else { return Ok(None) };
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
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(config))
}

fn time(clock: &dyn Clock) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(clock.now().as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn params(now: OffsetDateTime, common_name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = now - Duration::minutes(SKEW_MINUTES);
    params.not_after = now + Duration::days(days);
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
    use kcore::testing::ManualClock;

    const NOW: i64 = 1_900_000_000;

    fn clock() -> Arc<ManualClock> {
        Arc::new(ManualClock::new(Timestamp::from_second(NOW).unwrap()))
    }

    /// A serving certificate that is made later is valid for longer, and the authority outlives many of them.
    #[test]
    fn certificates_are_valid_from_when_they_are_made() {
        let clock = clock();
        let ca = Ca::new(Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let ends = |pem: &str| {
            let block = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
            X509Certificate::from_der(&block.contents).unwrap().1.validity().not_after.timestamp()
        };
        let day = 86_400;
        assert_eq!(ends(&ca.server(&["a"], &[]).unwrap().certificate_pem), NOW + 365 * day);
        clock.advance(jiff::SignedDuration::try_from(RENEWAL).unwrap());
        assert_eq!(ends(&ca.server(&["a"], &[]).unwrap().certificate_pem), NOW + (365 + 292) * day);
        assert_eq!(ends(&ca.client("jane", &[]).unwrap().certificate_pem), NOW + (365 + 292) * day);
        assert_eq!(ends(ca.certificate_pem()), NOW + 3650 * day);
    }

    #[test]
    fn a_client_has_all_its_groups() {
        let ca = Ca::new(clock()).unwrap();
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
            let signer = Wrong { ca: Ca::new(clock()).unwrap(), rule, good: request.der().to_vec() };
            let checked = check_certificate_signer(&signer, request.der(), now);
            let held = std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_ok();
            assert_eq!(held, expected, "broken: {rule:?}");
        }
    }
}
