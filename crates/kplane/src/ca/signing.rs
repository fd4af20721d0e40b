//! Certificates for requests of others (RFC 5280, RFC 2986), in DER.
//!
//! Subject, public key and alternative names are copied byte for byte, so that nothing is lost of them: a name may have
//! several organizations, which are the groups of its holder.

use rcgen::SigningKey;
use ring::rand::SecureRandom;
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    prelude::{FromDer, X509Certificate},
};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const UTF8_STRING: u8 = 0x0c;
const SET: u8 = 0x31;
/// Explicitly tagged fields of a certificate: its version and its extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// ECDSA with SHA-256, which the cluster's authority signs with.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const SERIAL_BYTES: usize = 16;

/// Why a certificate can't be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    #[error("the request is malformed")]
    Malformed,
    #[error("unable to verify certificate request signature")]
    Signature,
    #[error("unrecognized usage values: [{0}]")]
    Usages(String),
    #[error("the signer has expired")]
    Expired,
    #[error("the authority can't sign")]
    Sign,
}

/// What to sign.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    pub(crate) request: &'a [u8],
    pub(crate) usages: &'a [String],
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

/// A subject: the user as common name, and each group as an organization of its own.
pub(crate) fn subject(user: &str, groups: &[&str]) -> Vec<u8> {
    let part = |id: &[u8], text: &str| {
        der(SET, &[&der(SEQUENCE, &[&der(OBJECT_ID, &[id]), &der(UTF8_STRING, &[text.as_bytes()])])])
    };
    let groups: Vec<u8> = groups.iter().flat_map(|group| part(ORGANIZATION, group)).collect();
    der(SEQUENCE, &[&groups, &part(COMMON_NAME, user)])
}

/// A certificate to make, its parts in DER.
struct Parts<'a> {
    subject: &'a [u8],
    public_key: &'a [u8],
    extensions: &'a [u8],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// Signs a request with the key of an authority, whose certificate is given in DER. The answer is in DER.
pub(crate) fn sign(
    authority: &[u8],
    key: &impl SigningKey,
    order: &Order<'_>,
) -> Result<Vec<u8>, SigningError> {
    let (_, request) =
        X509CertificationRequest::from_der(order.request).map_err(|_parse_error| SigningError::Malformed)?;
    request.verify_signature().map_err(|_error| SigningError::Signature)?;
    let info = &request.certification_request_info;
    let mut extensions = usages_and_constraints(order.usages)?;
    extensions.extend(alternative_names(&request));
    let parts = Parts {
        subject: info.subject.as_raw(),
        public_key: info.subject_pki.raw,
        extensions: &extensions,
        not_before: order.not_before,
        not_after: order.not_after,
    };
    issue(authority, key, &parts)
}

/// Makes a client's certificate for this [`subject`] and public key, both in DER. The answer is in DER, too.
pub(crate) fn client(
    authority: &[u8],
    key: &impl SigningKey,
    (subject, public_key): (&[u8], &[u8]),
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
) -> Result<Vec<u8>, SigningError> {
    let usages = ["digital signature", "key encipherment", "client auth"].map(str::to_owned);
    let extensions = usages_and_constraints(&usages)?;
    issue(authority, key, &Parts { subject, public_key, extensions: &extensions, not_before, not_after })
}

fn issue(authority: &[u8], key: &impl SigningKey, parts: &Parts<'_>) -> Result<Vec<u8>, SigningError> {
    let (_, issuer) = X509Certificate::from_der(authority).map_err(|_parse_error| SigningError::Sign)?;
    let end = issuer.validity().not_after.to_datetime();
    if parts.not_before >= end {
        return Err(SigningError::Expired);
    }
    let mut serial = [0; SERIAL_BYTES];
    ring::rand::SystemRandom::new().fill(&mut serial).map_err(|_unspecified| SigningError::Sign)?;
    // A serial number is positive, and written without leading zeros.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let algorithm = der(SEQUENCE, &[&der(OBJECT_ID, &[ECDSA_WITH_SHA256])]);
    let to_sign = der(
        SEQUENCE,
        &[
            &der(VERSION, &[&der(INTEGER, &[&[2]])]),
            &der(INTEGER, &[&serial]),
            &algorithm,
            issuer.subject().as_raw(),
            &der(SEQUENCE, &[&time(parts.not_before), &time(parts.not_after.min(end))]),
            parts.subject,
            parts.public_key,
            &der(EXTENSIONS, &[&der(SEQUENCE, &[parts.extensions])]),
        ],
    );
    let signature = key.sign(&to_sign).map_err(|_error| SigningError::Sign)?;
    Ok(der(SEQUENCE, &[&to_sign, &algorithm, &der(BIT_STRING, &[&[0], &signature])]))
}

fn usages_and_constraints(usages: &[String]) -> Result<Vec<u8>, SigningError> {
    let (mut bits, mut purposes) = (0_u16, Vec::<&[u8]>::new());
    let mut unknown = Vec::new();
    for usage in usages {
        match (key_usage(usage), purpose(usage)) {
            (Some(bit), _) => bits |= 0x8000 >> bit,
            (None, Some(id)) if !purposes.contains(&id) => purposes.push(id),
            (None, Some(_)) => {}
            (None, None) => unknown.push(format!("{usage:?}")),
        }
    }
    if !unknown.is_empty() {
        return Err(SigningError::Usages(unknown.join(" ")));
    }
    let mut all = Vec::new();
    if bits != 0 {
        all.extend(extension(KEY_USAGE, true, &bit_string(bits)));
    }
    if !purposes.is_empty() {
        let ids: Vec<u8> = purposes.iter().flat_map(|id| der(OBJECT_ID, &[id])).collect();
        all.extend(extension(EXTENDED_KEY_USAGE, false, &der(SEQUENCE, &[&ids])));
    }
    all.extend(extension(BASIC_CONSTRAINTS, true, &der(SEQUENCE, &[])));
    Ok(all)
}

/// The alternative names that a request asks for.
fn alternative_names(request: &X509CertificationRequest<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { continue };
        let names = asked.extensions.iter().filter(|known| known.oid.as_bytes() == ALTERNATIVE_NAMES);
        for known in names.take(1) {
            all.extend(extension(ALTERNATIVE_NAMES, known.critical, known.value));
        }
    }
    all
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    der(SEQUENCE, &[&der(OBJECT_ID, &[id]), flag, &der(OCTET_STRING, &[value])])
}

/// A list of named bits, without the zeros at its end.
fn bit_string(bits: u16) -> Vec<u8> {
    let [first, second] = bits.to_be_bytes();
    let unused = |byte: u8| u8::try_from(byte.trailing_zeros().min(7)).unwrap_or(0);
    if second == 0 {
        der(BIT_STRING, &[&[unused(first), first]])
    } else {
        der(BIT_STRING, &[&[unused(second), first, second]])
    }
}

/// The number of the bit in a certificate's key usage.
fn key_usage(usage: &str) -> Option<u8> {
    Some(match usage {
        "signing" | "digital signature" => 0,
        "content commitment" => 1,
        "key encipherment" => 2,
        "data encipherment" => 3,
        "key agreement" => 4,
        "cert sign" => 5,
        "crl sign" => 6,
        "encipher only" => 7,
        "decipher only" => 8,
        _ => return None,
    })
}

/// The object identifier of an extended key usage.
fn purpose(usage: &str) -> Option<&'static [u8]> {
    Some(match usage {
        "any" => &[0x55, 0x1d, 0x25, 0x00],
        "server auth" => &[0x2b, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[0x2b, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[0x2b, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[0x2b, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[0x2b, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[0x2b, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[0x2b, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[0x2b, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[0x2b, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 3],
        "netscape sgc" => &[0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1],
        _ => return None,
    })
}

/// Two digits for the year until 2049, four from then on.
fn time(at: OffsetDateTime) -> Vec<u8> {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (month, day) = (u8::from(at.month()), at.day());
    let rest = format!("{month:02}{day:02}{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second());
    if (1950..2050).contains(&at.year()) {
        der(UTC_TIME, &[format!("{:02}{rest}", at.year() % 100).as_bytes()])
    } else {
        der(GENERALIZED_TIME, &[format!("{:04}{rest}", at.year()).as_bytes()])
    }
}

/// A value with its tag and length.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut all = Vec::with_capacity(length + 6);
    all.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => all.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let count = bytes.len() - zeros;
            all.push(0x80 | u8::try_from(count).unwrap_or(8));
            all.extend_from_slice(&bytes[zeros..]);
        }
    }
    for part in parts {
        all.extend_from_slice(part);
    }
    all
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SanType};
    use time::Duration;

    use super::*;

    /// Read back by a parser that is not ours.
    #[test]
    fn a_certificate_has_what_was_asked_for() {
        let now = OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.not_after = now + Duration::days(100);
        let authority = params.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::default();
        asked.distinguished_name.push(DnType::CommonName, "jane");
        asked.distinguished_name.push(DnType::OrganizationName, "dev");
        asked.subject_alt_names.push(SanType::DnsName("web.example".try_into().unwrap()));
        let request = asked.serialize_request(&key).unwrap();
        let usages =
            ["digital signature", "key encipherment", "client auth", "client auth"].map(str::to_owned);
        let order = |days| Order {
            request: request.der(),
            usages: &usages,
            not_before: now - Duration::minutes(5),
            not_after: now + Duration::days(days),
        };
        for (days, expected) in [(10, 10), (1000, 100)] {
            let made = sign(authority.der(), &authority_key, &order(days)).unwrap();
            let (rest, read) = X509Certificate::from_der(&made).unwrap();
            assert!(rest.is_empty());
            let (_, issuer) = X509Certificate::from_der(authority.der()).unwrap();
            read.verify_signature(Some(issuer.public_key())).unwrap();
            assert_eq!(read.issuer(), issuer.subject());
            assert_eq!(read.subject().to_string(), "CN=jane, O=dev");
            assert_eq!(read.public_key().raw, request_key(request.der()));
            assert_eq!(read.validity().not_after.to_datetime(), now + Duration::days(expected));
            assert!(!read.is_ca());
            let usage = read.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
            let purposes = read.extended_key_usage().unwrap().unwrap().value;
            assert!(purposes.client_auth && !purposes.server_auth);
            let names = read.subject_alternative_name().unwrap().unwrap().value;
            assert_eq!(names.general_names.len(), 1);
        }
        let mut broken = request.der().to_vec();
        let last = broken.len() - 1;
        broken[last] ^= 1;
        let order = |request| Order { request, ..order(1) };
        assert!(matches!(
            sign(authority.der(), &authority_key, &order(&broken)),
            Err(SigningError::Signature)
        ));
        assert!(matches!(sign(authority.der(), &authority_key, &order(b"x")), Err(SigningError::Malformed)));
        let strange = ["flying".to_owned()];
        let order = Order { usages: &strange, ..order(request.der()) };
        assert!(matches!(sign(authority.der(), &authority_key, &order), Err(SigningError::Usages(_))));
    }

    fn request_key(request: &[u8]) -> &[u8] {
        X509CertificationRequest::from_der(request).unwrap().1.certification_request_info.subject_pki.raw
    }
}
