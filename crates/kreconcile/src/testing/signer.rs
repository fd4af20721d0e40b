//! The conformance suite of [`CertificateSigner`].

use std::time::Duration;

use jiff::Timestamp;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::ParsedExtension,
    pem::Pem,
    prelude::{FromDer, X509Certificate},
};

use crate::controllers::{CertificateSigner, SigningRequest};

/// How far certificates that the suite asks for reach into the past and the future.
const SPAN: Duration = Duration::from_secs(600);

/// Checks the promises of a [`CertificateSigner`]: the certificate has the subject, the key and the alternative names of the request, the
/// usages that were asked for and no others, is valid within the time that was asked for, and is not an authority's; each one has a
/// number of its own, also when two are made at the same time; and what is malformed, is not signed by its key, or is to be used
/// for something unknown is refused.
///
/// `request` is a good one (PKCS #10) in DER, best with an alternative name; at `now` the authority must be valid for ten minutes to
/// both sides.
///
/// # Panics
/// When a promise is broken, or `request` can't be read.
pub async fn check_certificate_signer(signer: &dyn CertificateSigner, request: &[u8], now: Timestamp) {
    let usages = ["digital signature".to_owned(), "client auth".to_owned()];
    let good =
        SigningRequest { der: request, usages: &usages, not_before: now - SPAN, not_after: now + SPAN };
    let (one, other) = futures::join!(signer.sign(&good), signer.sign(&good));
    let numbers = [one, other].map(|made| {
        let pem = made.unwrap_or_else(|error| panic!("a good request is refused: {error}"));
        check_certificate(&pem, &good)
    });
    assert_ne!(numbers[0], numbers[1], "each certificate has a number of its own");

    let mut tampered = request.to_vec();
    if let Some(last) = tampered.last_mut() {
        // The signature is at the end.
        *last ^= 1;
    }
    let strange = ["flying".to_owned()];
    for (what, wrong) in [
        ("is not signed by its key", SigningRequest { der: &tampered, ..good }),
        ("is cut off", SigningRequest { der: &request[..request.len() / 2], ..good }),
        ("is nothing", SigningRequest { der: &[], ..good }),
        ("is for an unknown use", SigningRequest { usages: &strange, ..good }),
    ] {
        assert!(signer.sign(&wrong).await.is_err(), "a request that {what} is signed");
    }
}

/// Compares a certificate with what was asked for, and gives its serial number.
fn check_certificate(pem: &str, asked: &SigningRequest<'_>) -> Vec<u8> {
    let block = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok);
    let block = block.unwrap_or_else(|| panic!("the answer is not in PEM: {pem}"));
    assert_eq!(block.label, "CERTIFICATE", "the answer is a certificate");
    let (_, made) = X509Certificate::from_der(&block.contents).expect("a certificate can be read");
    let (_, request) = X509CertificationRequest::from_der(asked.der).expect("the request can be read");
    let info = &request.certification_request_info;
    assert_eq!(made.subject().as_raw(), info.subject.as_raw(), "the subject is that of the request");
    assert_eq!(made.public_key().raw, info.subject_pki.raw, "the key is that of the request");
    let mut wanted = request.requested_extensions().into_iter().flatten();
    let wanted = wanted.find_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(names.clone()),
        _ => None,
    });
    let names = made.subject_alternative_name().expect("names can be read").map(|found| found.value.clone());
    assert_eq!(names, wanted, "the alternative names are those of the request");
    assert!(!made.is_ca(), "a certificate is never that of an authority");
    let (from, until) = (made.validity().not_before.timestamp(), made.validity().not_after.timestamp());
    assert!(from >= asked.not_before.as_second(), "it is not valid before the time that was asked for");
    assert!(until <= asked.not_after.as_second(), "it is not valid for longer than was asked for");
    let usage = made.key_usage().expect("usages can be read").map(|found| found.value.flags);
    // Only the first bit, digitalSignature.
    assert_eq!(usage, Some(1), "the key may be used for what was asked for");
    let purposes = made.extended_key_usage().expect("purposes can be read").map(|found| found.value);
    let purposes = purposes.expect("what it is for is said");
    assert!(purposes.client_auth, "a client may show it");
    assert!(!(purposes.server_auth || purposes.any || purposes.code_signing), "nobody else may show it");
    made.raw_serial().to_vec()
}
