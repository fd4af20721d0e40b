//! The few bytes of DER (X.690) that keys are wrapped in.

/// The tags that occur.
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const PARAMETERS: u8 = 0xa0;
pub(super) const PUBLIC_KEY: u8 = 0xa1;
pub(super) const BITS: u8 = 0x03;

/// `rsaEncryption` with its parameters (RFC 3279).
pub(super) const RSA: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// `id-ecPublicKey` on `secp256r1` (RFC 5480).
pub(super) const P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
/// `id-ecPublicKey` on `secp384r1` (RFC 5480).
pub(super) const P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// Reads one element of this tag: its content, and what comes after it.
pub(super) fn read(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // Keys have lengths of one or two bytes.
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// One element.
pub(super) fn write(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 4);
    out.push(tag);
    let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
    match digits.as_slice() {
        [] => out.push(0),
        [digit] if *digit < 0x80 => out.push(*digit),
        digits => {
            // A length of memory has at most eight digits.
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            out.extend_from_slice(digits);
        }
    }
    content.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// The `SubjectPublicKeyInfo` of a key (RFC 5280).
pub(super) fn public_key_info(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    write(SEQUENCE, &[algorithm, &write(BITS, &[&[0], key])])
}

/// A key's algorithm, as one of the above, and the key, of a `SubjectPublicKeyInfo`.
pub(super) fn read_public_key_info(bytes: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let (content, _) = read(SEQUENCE, bytes)?;
    let algorithm = [RSA, P256, P384].into_iter().find(|known| content.starts_with(known))?;
    let (bits, _) = read(BITS, &content[algorithm.len()..])?;
    let (unused, key) = bits.split_first()?;
    (*unused == 0).then_some((algorithm, key))
}

/// The private number and the public point of an `ECPrivateKey` (RFC 5915).
pub(super) fn read_ec_private_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, _) = read(SEQUENCE, bytes)?;
    let (_, content) = read(INTEGER, content)?;
    let (private, content) = read(OCTETS, content)?;
    let content = read(PARAMETERS, content).map_or(content, |(_, rest)| rest);
    let (public, _) = read(PUBLIC_KEY, content)?;
    let (bits, _) = read(BITS, public)?;
    Some((private, bits.strip_prefix(&[0])?))
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017), without leading zeros.
pub(super) fn read_rsa_public_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, _) = read(SEQUENCE, bytes)?;
    let (modulus, content) = read(INTEGER, content)?;
    let (exponent, _) = read(INTEGER, content)?;
    let unsigned = |number: &'_ [u8]| number.iter().take_while(|digit| **digit == 0).count();
    Some((&modulus[unsigned(modulus)..], &exponent[unsigned(exponent)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        for length in [0, 1, 127, 128, 255, 256, 65_535] {
            let content = vec![7; length];
            let mut element = write(OCTETS, &[&content]);
            element.push(9);
            assert_eq!(read(OCTETS, &element), Some((&content[..], &[9][..])), "{length}");
        }
    }

    #[test]
    fn what_is_cut_off_is_none() {
        let info = public_key_info(P256, &[4; 65]);
        assert_eq!(read_public_key_info(&info), Some((P256, &[4; 65][..])));
        for length in 0..info.len() {
            assert_eq!(read_public_key_info(&info[..length]), None, "{length}");
        }
        assert_eq!(read(SEQUENCE, &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(read_ec_private_key(&info), None);
    }
}
