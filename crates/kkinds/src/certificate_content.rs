//! What is inside of requests for certificates and of certificates (RFC 2986, RFC 5280), with the words of Go's
//! `crypto/x509` where it says why it refuses one as a whole.

use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest,
    extensions::ParsedExtension, oid_registry, prelude::FromDer as _,
};

use crate::pem::blocks;

/// Whether bytes are one complete sequence in DER, and nothing after it.
fn sequence_fault(bytes: &[u8]) -> Option<&'static str> {
    match x509_parser::asn1_rs::Sequence::from_der(bytes) {
        Ok(([], _)) => None,
        Ok(_) => Some("asn1: syntax error: trailing data"),
        Err(_) if bytes.is_empty() => Some("asn1: syntax error: sequence truncated"),
        Err(_) if bytes.len() == 1 => Some("asn1: syntax error: truncated tag or length"),
        Err(_) if bytes[0] == 0x30 => Some("asn1: syntax error: data truncated"),
        Err(_) => Some("asn1: structure error: tags don't match"),
    }
}

/// Why the text is no request for a certificate that its own key has signed.
pub(crate) fn request_fault(text: &str) -> Option<&'static str> {
    let Some(block) = blocks(text).next().filter(|block| block.kind == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST");
    };
    if let Some(why) = sequence_fault(&block.bytes) {
        return Some(why);
    }
    let Ok((_, request)) = X509CertificationRequest::from_der(&block.bytes) else {
        return Some("asn1: structure error: sequence tag mismatch");
    };
    // A key or an algorithm that is not known here cannot be checked, so that it is refused, too.
    request.verify_signature().err().map(|error| {
        let algorithm = &request.certification_request_info.subject_pki.algorithm.algorithm;
        if error == x509_parser::error::X509Error::SignatureUnsupportedAlgorithm {
            "x509: cannot verify signature: algorithm unimplemented"
        } else if *algorithm == oid_registry::OID_PKCS1_RSAENCRYPTION {
            "crypto/rsa: verification error"
        } else if *algorithm == oid_registry::OID_SIG_ED25519 {
            "x509: Ed25519 verification failure"
        } else {
            "x509: ECDSA verification failure"
        }
    })
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
