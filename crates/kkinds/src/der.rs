//! What is wrong with the encoding of requests and certificates, in the words of Go's `encoding/asn1` and `crypto/x509`.

mod certificate;
mod curve;
mod request;
mod signature;

pub(crate) use self::{certificate::certificate_fault, request::request_fault, signature::signature_fault};

/// Bytes of which element after element is read, as Go's `cryptobyte.String` does it; tags are single bytes.
#[derive(Clone, Copy)]
struct Bytes<'b>(&'b [u8]);

const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OBJECT_ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

impl<'b> Bytes<'b> {
    /// The next element: its tag, its header's length, and all of it.
    fn element(&mut self) -> Option<(u8, usize, &'b [u8])> {
        let (tag, first) = (*self.0.first()?, *self.0.get(1)?);
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (header, length) = if first < 0x80 {
            (2, usize::from(first))
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let digits = self.0.get(2..2 + count)?;
            let length = digits.iter().fold(0, |length: usize, byte| length << 8 | usize::from(*byte));
            if length < 0x80 || digits[0] == 0 {
                return None;
            }
            (2 + count, length)
        };
        let whole = self.0.get(..header.checked_add(length)?)?;
        self.0 = &self.0[whole.len()..];
        Some((tag, header, whole))
    }

    /// The content of the next element, if it has this tag.
    fn read(&mut self, tag: u8) -> Option<Self> {
        let mut ahead = *self;
        let (found, header, whole) = ahead.element()?;
        (found == tag).then(|| {
            *self = ahead;
            Self(&whole[header..])
        })
    }

    /// The next element as a whole, if it has this tag.
    fn read_whole(&mut self, tag: u8) -> Option<Self> {
        let start = self.0;
        self.read(tag)?;
        Some(Self(&start[..start.len() - self.0.len()]))
    }

    /// The next element, whatever it is.
    fn any(&mut self) -> Option<(u8, Self)> {
        let (tag, header, whole) = self.element()?;
        Some((tag, Self(&whole[header..])))
    }

    /// An integer, encoded as short as can be.
    fn integer(&mut self) -> Option<&'b [u8]> {
        let bytes = self.read(INTEGER)?.0;
        let long = match bytes {
            [0, next, ..] => next & 0x80 == 0,
            [0xff, next, ..] => next & 0x80 != 0,
            _ => bytes.is_empty(),
        };
        (!long).then_some(bytes)
    }

    /// An object identifier.
    fn object_id(&mut self) -> Option<&'b [u8]> {
        let bytes = self.read(OBJECT_ID)?.0;
        let starts = |index: usize| index == 0 || bytes[index - 1] & 0x80 == 0;
        let good = bytes.last().is_some_and(|last| last & 0x80 == 0)
            && !bytes.iter().enumerate().any(|(index, byte)| *byte == 0x80 && starts(index));
        good.then_some(bytes)
    }

    /// A string of bits, without the unused ones at its end.
    fn bits(&mut self) -> Option<&'b [u8]> {
        let bytes = self.read(BITS)?.0;
        let (padding, rest) = bytes.split_first()?;
        let good =
            *padding <= 7 && rest.last().map_or(*padding == 0, |last| last & ((1_u8 << padding) - 1) == 0);
        good.then_some(rest)
    }

    const fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// What is wrong with a name (`parseName`); what its parts hold is not looked into.
fn name_fault(mut name: Bytes<'_>) -> Option<&'static str> {
    const WHOLE: &str = "x509: invalid RDNSequence";
    let Some(mut sets) = name.read(SEQUENCE) else {
        return Some(WHOLE);
    };
    while !sets.is_empty() {
        let Some(mut set) = sets.read(SET) else {
            return Some(WHOLE);
        };
        while !set.is_empty() {
            let Some(mut pair) = set.read(SEQUENCE) else {
                return Some("x509: invalid RDNSequence: invalid attribute");
            };
            if pair.object_id().is_none() {
                return Some("x509: invalid RDNSequence: invalid attribute type");
            }
            let text_fault = match pair.any() {
                None => Some("x509: invalid RDNSequence: invalid attribute value: invalid ASN.1 element"),
                Some((0x13, text)) if !text.0.iter().all(|byte| is_printable(*byte)) => {
                    Some("x509: invalid RDNSequence: invalid attribute value: invalid PrintableString")
                }
                Some((0x0c, text)) if std::str::from_utf8(text.0).is_err() => {
                    Some("x509: invalid RDNSequence: invalid attribute value: invalid UTF-8 string")
                }
                Some((0x01, value)) if !matches!(value.0, [0 | 0xff]) => {
                    Some("x509: invalid RDNSequence: invalid attribute value: invalid ASN.1 BOOLEAN")
                }
                Some((0x16, text)) if !text.0.is_ascii() => {
                    Some("x509: invalid RDNSequence: invalid attribute value: invalid IA5String")
                }
                Some(_) => None,
            };
            if text_fault.is_some() {
                return text_fault;
            }
        }
    }
    None
}

/// A letter of a PrintableString, and those that Go lets pass, too.
fn is_printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"'()+,-./ :=?*&".contains(&byte)
}

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const CURVES: [&[u8]; 4] = [
    &[0x2b, 0x81, 0x04, 0x00, 0x21],
    &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
    &[0x2b, 0x81, 0x04, 0x00, 0x22],
    &[0x2b, 0x81, 0x04, 0x00, 0x23],
];
const ED25519_BYTES: usize = 32;

/// What is wrong with a public key (`parsePublicKey`): its algorithm, the whole element of the parameters, its bits.
fn key_fault(algorithm: &[u8], parameters: &[u8], key: &[u8]) -> Option<&'static str> {
    let positive = |number: &[u8]| number.first().is_some_and(|first| first & 0x80 == 0) && number != [0];
    match algorithm {
        RSA => {
            if parameters != [5, 0] {
                return Some("x509: RSA key missing NULL parameters");
            }
            let Some(mut pair) = Bytes(key).read(SEQUENCE) else {
                return Some("x509: invalid RSA public key");
            };
            let Some(modulus) = pair.integer() else {
                return Some("x509: invalid RSA modulus");
            };
            let Some(exponent) = pair.integer() else {
                return Some("x509: invalid RSA public exponent");
            };
            if !positive(modulus) {
                return Some("x509: RSA modulus is not a positive number");
            }
            (!positive(exponent)).then_some("x509: RSA public exponent is not a positive number")
        }
        ECDSA => match Bytes(parameters).object_id() {
            None => Some("x509: invalid ECDSA parameters"),
            Some(curve) if !CURVES.contains(&curve) => Some("x509: unsupported elliptic curve"),
            Some(_) => None,
        },
        ED25519 if !parameters.is_empty() => Some("x509: Ed25519 key encoded with illegal parameters"),
        ED25519 if key.len() != ED25519_BYTES => Some("x509: wrong Ed25519 public key size"),
        _ => None,
    }
}
