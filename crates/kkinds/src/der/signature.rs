//! Why the signature of a request is none (`checkSignature`).

use super::{Bytes, ECDSA, ED25519, RSA, curve::point_fault, request::Parts};

const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const ECDSA_WITH: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];

/// What an algorithm of signatures is to Go: the kind of its key, and its name if it is not to be trusted.
fn algorithm(id: &[u8]) -> Option<(&'static [u8], Option<&'static str>)> {
    if let Some(rest) = id.strip_prefix(PKCS1) {
        return match rest {
            [4] => Some((RSA, Some("MD5-RSA"))),
            [5] => Some((RSA, Some("SHA1-RSA"))),
            [10..=13] => Some((RSA, None)),
            _ => None,
        };
    }
    if let Some(rest) = id.strip_prefix(ECDSA_WITH) {
        return match rest {
            [1] => Some((ECDSA, Some("ECDSA-SHA1"))),
            [3, 2..=4] => Some((ECDSA, None)),
            _ => None,
        };
    }
    (id == ED25519).then_some((ED25519, None))
}

/// Why a request that can be read, but whose signature can't be verified, is refused.
pub(crate) fn signature_fault(bytes: &[u8]) -> String {
    const UNKNOWN: &str = "x509: cannot verify signature: algorithm unimplemented";
    let parts = Parts::read(bytes);
    let key = parts.key_algorithm.as_slice();
    if key == ECDSA {
        let curve = Bytes(&parts.key_parameters).object_id().unwrap_or_default();
        if let Some(why) = point_fault(curve, &parts.key) {
            return why;
        }
    }
    let of = |key: &[u8]| match key {
        RSA => Some(("RSA", "*rsa.PublicKey", "crypto/rsa: verification error")),
        ECDSA => Some(("ECDSA", "*ecdsa.PublicKey", "x509: ECDSA verification failure")),
        ED25519 => Some(("Ed25519", "ed25519.PublicKey", "x509: Ed25519 verification failure")),
        _ => None,
    };
    let Some((wanted, weak)) = algorithm(&parts.signature) else {
        return UNKNOWN.to_owned();
    };
    match (weak, of(wanted), of(key)) {
        (Some(name), ..) => format!("x509: cannot verify signature: insecure algorithm {name}"),
        (None, Some((name, ..)), Some((_, found, _))) if wanted != key => {
            format!(
                "x509: signature algorithm specifies an {name} public key, but have public key of type {found}"
            )
        }
        (None, _, Some((.., why))) => why.to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}
