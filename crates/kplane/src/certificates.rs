//! Which certificate a server shows: the one for the name that the caller asked for (SNI, RFC 6066), or its usual one.

use std::sync::Arc;

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{CaError, Credentials};

/// A certificate for callers that ask for certain names.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// The names, of which the first label may be `*`. Empty: those of the certificate itself.
    pub(crate) names: Vec<String>,
    pub(crate) credentials: Credentials,
}

/// The certificates of a server.
#[derive(Debug)]
pub(crate) struct Certificates {
    usual: Arc<CertifiedKey>,
    named: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

impl Certificates {
    /// `None`: a text holds no certificate, or no key.
    pub(crate) fn new(usual: &Credentials, named: &[Named]) -> Result<Option<Self>, CaError> {
        let Some(usual) = read(usual)? else { return Ok(None) };
        let mut all = Vec::with_capacity(named.len());
        for one in named {
            let Some(key) = read(&one.credentials)? else { return Ok(None) };
            let names = if one.names.is_empty() { names_of(&key.cert[0]) } else { one.names.clone() };
            all.push((names.iter().map(|name| name.to_ascii_lowercase()).collect(), Arc::new(key)));
        }
        Ok(Some(Self { usual: Arc::new(usual), named: all }))
    }

    /// The first that is for the name; else the first that is for any name in its place; else the usual one (upstream's
    /// `dynamiccertificates`, and Go's `tls.Config.NameToCertificate`).
    fn choose(&self, asked: Option<&str>) -> &Arc<CertifiedKey> {
        let asked = asked.unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let any = asked.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let find = |name: &String| self.named.iter().find(|(names, _)| names.contains(name));
        let found = find(&asked).or_else(|| find(&any?));
        found.map_or(&self.usual, |(_, key)| key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.choose(hello.server_name())))
    }
}

/// `None`: there is no certificate, or no key.
fn read(credentials: &Credentials) -> Result<Option<CertifiedKey>, CaError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(credentials.certificate_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes());
    let (Ok(chain), Ok(key)) = (chain, key) else { return Ok(None) };
    if chain.is_empty() {
        return Ok(None);
    }
    let provider = rustls::crypto::ring::default_provider();
    Ok(Some(CertifiedKey::from_der(chain, key, &provider)?))
}

/// The DNS names that a certificate is for.
fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, read)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let names = read.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    dns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_names(names: &[&str]) -> Credentials {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Credentials { certificate_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    /// Upstream's `TestServerRunWithSNI`: exact names before wildcards, the first before later ones, else the usual one.
    #[test]
    fn the_certificate_is_that_of_the_name_asked_for() {
        let named = |names: &[&str], of: &[&str]| Named {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            credentials: for_names(of),
        };
        let all = [
            named(&[], &["a.example.com", "b.example.com"]),
            named(&[], &["*.example.com"]),
            named(&["given.example.com"], &["other.example.com"]),
            named(&[], &["a.example.com"]),
        ];
        let found = Certificates::new(&for_names(&["localhost"]), &all).unwrap().unwrap();
        for (asked, expected) in [
            (None, None),
            (Some("localhost"), None),
            (Some("a.example.com"), Some(0)),
            (Some("B.example.com."), Some(0)),
            (Some("c.example.com"), Some(1)),
            (Some("given.example.com"), Some(2)),
            (Some("other.example.com"), Some(1)),
            (Some("a.b.example.com"), None),
            (Some("example.com"), None),
        ] {
            let chosen = found.choose(asked);
            let expected = expected.map_or(&found.usual, |index: usize| &found.named[index].1);
            assert!(Arc::ptr_eq(chosen, expected), "{asked:?}");
        }
    }

    #[test]
    fn texts_without_a_certificate_are_told() {
        let good = for_names(&["localhost"]);
        let without = Credentials { certificate_pem: String::new(), ..good.clone() };
        assert!(Certificates::new(&without, &[]).unwrap().is_none());
        let keyless = Credentials { key_pem: "x".to_owned(), ..good.clone() };
        assert!(Certificates::new(&keyless, &[]).unwrap().is_none());
        let other = Credentials { key_pem: for_names(&["x"]).key_pem, ..good };
        assert!(Certificates::new(&other, &[]).is_err(), "the key is another's");
    }
}
