//! What is inside of requests for certificates and of certificates (RFC 2986, RFC 5280), with the words of Go's
//! `crypto/x509` where it says why it refuses one as a whole.

use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    oid_registry,
    prelude::FromDer as _,
    public_key::PublicKey,
};

use crate::{der, pem::blocks};

/// Why the text is no request for a certificate that its own key has signed.
pub(crate) fn request_fault(text: &str) -> Option<String> {
    let Some(block) = blocks(text).next().filter(|block| block.kind == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    if let Some(why) = der::request_fault(&block.bytes) {
        return Some(why);
    }
    // A key or an algorithm that is not known here cannot be checked, so that it is refused, too.
    let verified = X509CertificationRequest::from_der(&block.bytes)
        .is_ok_and(|(_, request)| request.verify_signature().is_ok());
    (!verified).then(|| der::signature_fault(&block.bytes))
}

/// Why the text is no chain of certificates; an empty text may be one.
pub(crate) fn chain_fault(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let mut count = 0;
    for block in blocks(text) {
        if block.kind != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.kind));
        }
        if block.headers {
            return Some("no PEM block headers are permitted".to_owned());
        }
        if block.bytes.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        // A block may have several.
        let mut rest = &*block.bytes;
        while !rest.is_empty() {
            if let Some(why) = der::certificate_fault(rest) {
                return Some(why);
            }
            match X509Certificate::from_der(rest) {
                Ok((after, _)) => rest = after,
                Err(_) => return Some("x509: malformed certificate".to_owned()),
            }
        }
        count += 1;
    }
    (count == 0).then(|| "must contain at least one CERTIFICATE PEM block".to_owned())
}

/// Why bytes are not the certificate of an authority.
fn anchor_fault(bytes: &[u8]) -> Option<&'static str> {
    const MALFORMED: &str = "does not parse as X.509";
    let Ok(([], certificate)) = X509Certificate::from_der(bytes) else {
        return Some(MALFORMED);
    };
    let broken = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::ParseError { .. });
    if certificate.extensions().iter().any(|extension| broken(extension.parsed_extension())) {
        return Some(MALFORMED);
    }
    match certificate.basic_constraints() {
        Err(_) => Some(MALFORMED),
        Ok(Some(constraints)) if constraints.value.ca => None,
        Ok(_) => Some("does not have the CA bit set"),
    }
}

/// What is wrong with a bundle of certificates to trust.
pub(crate) fn bundle_faults(text: &str) -> Vec<String> {
    let (mut faults, mut anchors) = (Vec::new(), Vec::<Vec<usize>>::new());
    let mut known = std::collections::HashMap::<Vec<u8>, usize>::new();
    for (index, block) in blocks(text).enumerate() {
        if block.kind != "CERTIFICATE" {
            faults.push(format!("entry {index} has bad block type: {}", block.kind));
        } else if block.headers {
            faults.push(format!("entry {index} has PEM block headers"));
        } else if let Some(why) = anchor_fault(&block.bytes) {
            faults.push(format!("entry {index} {why}"));
        } else if let Some(at) = known.get(&block.bytes) {
            anchors[*at].push(index);
        } else {
            known.insert(block.bytes, anchors.len());
            anchors.push(vec![index]);
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    if anchors.is_empty() {
        return vec!["at least one trust anchor must be provided".to_owned()];
    }
    let twice = anchors.iter().filter(|indexes| indexes.len() > 1);
    twice
        .map(|indexes| {
            let indexes: Vec<String> = indexes.iter().map(ToString::to_string).collect();
            format!("duplicate trust anchor (indices [{}])", indexes.join(" "))
        })
        .collect()
}

/// Why a pod's request for a certificate is refused.
pub(crate) enum StubFault {
    /// As a whole.
    Whole(&'static str),
    /// For the curve of its key.
    Curve(&'static str),
    /// For the size of its key, in bits.
    Modulus(usize),
}

/// Why bytes are no request for a pod's certificate. Keys on P-521 can't be verified here, so that they are refused.
pub(crate) fn stub_fault(bytes: &[u8]) -> Option<StubFault> {
    let Ok(([], request)) = X509CertificationRequest::from_der(bytes) else {
        return Some(StubFault::Whole("must be a valid PKCS#10 CSR"));
    };
    let key = &request.certification_request_info.subject_pki;
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            // The first byte may only be there for the sign.
            let bits = rsa.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            if bits != 3072 && bits != 4096 {
                return Some(StubFault::Modulus(bits));
            }
        }
        Ok(PublicKey::EC(point)) => match point.key_size() {
            256 | 384 | 521..=528 => {}
            _ => return Some(StubFault::Curve("P-224")),
        },
        _ if key.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => {}
        _ => {
            return Some(StubFault::Whole(
                "unknown public key type; supported types are Ed25519, ECDSA, and RSA",
            ));
        }
    }
    request.verify_signature().err().map(|_| StubFault::Whole("invalid signature"))
}

/// The key that a request is for, as it is encoded.
pub(crate) fn stub_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, request) = X509CertificationRequest::from_der(bytes).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

/// Whether bytes are one certificate.
pub(crate) fn is_certificate(bytes: &[u8]) -> bool {
    matches!(X509Certificate::from_der(bytes), Ok(([], _)))
}

/// What is looked at in a certificate that has been issued.
pub(crate) struct Leaf {
    /// Its names in DNS.
    pub(crate) dns: Vec<String>,
    /// Its mail addresses.
    pub(crate) emails: Vec<String>,
    /// When it begins, in seconds since 1970.
    pub(crate) not_before: i64,
    /// When it ends, in seconds since 1970.
    pub(crate) not_after: i64,
    /// Its key, as it is encoded.
    pub(crate) key: Vec<u8>,
}

impl Leaf {
    /// Reads a certificate; `None` if it is none.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let Ok(([], certificate)) = X509Certificate::from_der(bytes) else {
            return None;
        };
        let (mut dns, mut emails) = (Vec::new(), Vec::new());
        if let Some(names) = certificate.subject_alternative_name().ok()? {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                    GeneralName::RFC822Name(name) => emails.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        let validity = certificate.validity();
        Some(Self {
            dns,
            emails,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            key: certificate.public_key().raw.to_vec(),
        })
    }
}
