//! The ways to encrypt, in upstream's formats (`storage/value/encrypt`): what one wrote the other reads.

use std::{fmt, sync::Arc};

use aes::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _, block_padding::Pkcs7};
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305, aead::Aead as _};
use ring::{
    aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};

use super::kms::Kms;

/// What everything that is encrypted begins with.
pub(super) const PREFIX: &[u8] = b"k8s:enc:";
/// What everything begins with whose key a key management service has.
pub(super) const KMS_PREFIX: &[u8] = b"k8s:enc:kms:v2:";
/// Why bytes can't be read that no provider has written.
pub(super) const NO_MATCH: &str = "no matching prefix found";

const BLOCK_BYTES: usize = 16;
const SECRETBOX_NONCE_BYTES: usize = 24;

/// A provider with its keys, the one that writes first.
pub(super) enum Provider {
    /// As it is.
    Identity,
    Keys {
        kind: Kind,
        keys: Vec<Key>,
    },
    /// By a key management service.
    Kms(Arc<Kms>),
}

/// What keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AesCbc,
    AesGcm,
    Secretbox,
}

/// A key and its name.
pub(super) struct Key {
    /// `k8s:enc:aesgcm:v1:<name>:`.
    prefix: Vec<u8>,
    cipher: Cipher,
}

enum Cipher {
    Cbc(Vec<u8>),
    Gcm(Box<LessSafeKey>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Keys { kind, .. } => f.write_str(kind.name()),
            Self::Kms(kms) => write!(f, "kms:{}", kms.name()),
        }
    }
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::AesCbc, Self::AesGcm, Self::Secretbox];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::AesCbc => "aescbc",
            Self::AesGcm => "aesgcm",
            Self::Secretbox => "secretbox",
        }
    }

    /// The sizes that keys may have, in bytes. `ring` knows AES-GCM with 16 and 32 alone.
    pub(super) const fn sizes(self) -> &'static [usize] {
        match self {
            Self::AesCbc => &[16, 24, 32],
            Self::AesGcm => &[16, 32],
            Self::Secretbox => &[32],
        }
    }
}

impl Key {
    /// A key; `None` if its size is none of the kind's.
    pub(super) fn new(kind: Kind, name: &str, secret: Vec<u8>) -> Option<Self> {
        if !kind.sizes().contains(&secret.len()) {
            return None;
        }
        let cipher = match kind {
            Kind::AesCbc => Cipher::Cbc(secret),
            Kind::AesGcm => {
                let algorithm = if secret.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
                Cipher::Gcm(Box::new(LessSafeKey::new(UnboundKey::new(algorithm, &secret).ok()?)))
            }
            Kind::Secretbox => Cipher::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(&secret).ok()?)),
        };
        Some(Self { prefix: format!("k8s:enc:{}:v1:{name}:", kind.name()).into_bytes(), cipher })
    }

    fn seal(&self, place: &[u8], mut plain: Vec<u8>) -> Result<Vec<u8>, String> {
        let length = match self.cipher {
            Cipher::Cbc(_) => BLOCK_BYTES,
            Cipher::Gcm(_) => NONCE_LEN,
            Cipher::Secretbox(_) => SECRETBOX_NONCE_BYTES,
        };
        let mut nonce = [0; SECRETBOX_NONCE_BYTES];
        let nonce = &mut nonce[..length];
        SystemRandom::new().fill(nonce).map_err(|_| "unable to read sufficient random bytes")?;
        let failed = || "the object can't be encrypted".to_owned();
        let sealed = match &self.cipher {
            Cipher::Cbc(key) => encrypt_cbc(key, nonce, &plain).ok_or_else(failed)?,
            Cipher::Gcm(key) => {
                let unique = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
                key.seal_in_place_append_tag(unique, Aad::from(place), &mut plain).map_err(|_| failed())?;
                plain
            }
            Cipher::Secretbox(key) => {
                let nonce = crypto_secretbox::Nonce::from_slice(nonce);
                key.encrypt(nonce, plain.as_slice()).map_err(|_| failed())?
            }
        };
        Ok([&self.prefix, &*nonce, &sealed].concat())
    }

    /// The bytes behind the prefix, decrypted.
    fn open(&self, place: &[u8], rest: &[u8]) -> Result<Vec<u8>, String> {
        let short = || "the stored data was shorter than the required size".to_owned();
        match &self.cipher {
            Cipher::Cbc(key) => {
                let (iv, data) = rest.split_at_checked(BLOCK_BYTES).ok_or_else(short)?;
                if data.len() % BLOCK_BYTES != 0 {
                    return Err("the stored data is not a multiple of the block size".to_owned());
                }
                decrypt_cbc(key, iv, data).ok_or_else(|| "invalid padding on input".to_owned())
            }
            Cipher::Gcm(key) => {
                let (nonce, data) = rest.split_at_checked(NONCE_LEN).ok_or_else(short)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| short())?;
                let mut data = data.to_vec();
                let length = key.open_in_place(nonce, Aad::from(place), &mut data).map(|plain| plain.len());
                data.truncate(length.map_err(|_| "cipher: message authentication failed")?);
                Ok(data)
            }
            Cipher::Secretbox(key) => {
                let (nonce, data) = rest.split_at_checked(SECRETBOX_NONCE_BYTES).ok_or_else(short)?;
                let opened = key.decrypt(crypto_secretbox::Nonce::from_slice(nonce), data);
                opened.map_err(|_| "the stored data can't be authenticated".to_owned())
            }
        }
    }
}

/// AES-CBC with PKCS#7 padding; `None` if the key has no fitting size.
fn encrypt_cbc(key: &[u8], iv: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    Some(match key.len() {
        16 => cbc::Encryptor::<aes::Aes128>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        24 => cbc::Encryptor::<aes::Aes192>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        _ => cbc::Encryptor::<aes::Aes256>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
    })
}

fn decrypt_cbc(key: &[u8], iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    match key.len() {
        16 => cbc::Decryptor::<aes::Aes128>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
        24 => cbc::Decryptor::<aes::Aes192>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
        _ => cbc::Decryptor::<aes::Aes256>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
    }
}

impl Provider {
    /// The bytes to store.
    pub(super) fn seal(&self, place: &[u8], plain: Vec<u8>) -> Result<Vec<u8>, String> {
        match self {
            Self::Keys { keys, .. } if !keys.is_empty() => keys[0].seal(place, plain),
            Self::Kms(kms) => kms.seal(place, plain),
            Self::Keys { .. } | Self::Identity => Ok(plain),
        }
    }

    /// The object, if this provider has written these bytes.
    pub(super) fn open(&self, place: &[u8], stored: &[u8]) -> Option<Result<Vec<u8>, String>> {
        match self {
            Self::Kms(kms) => kms.open(place, stored),
            Self::Identity => (!stored.starts_with(PREFIX)).then(|| Ok(stored.to_vec())),
            Self::Keys { kind, keys } => {
                if !stored.starts_with(format!("k8s:enc:{}:v1:", kind.name()).as_bytes()) {
                    return None;
                }
                // Two keys may have one name while one is being replaced.
                let mut found =
                    Err(format!("no matching key was found for the provided {} transformer", kind.name()));
                for key in keys {
                    if let Some(rest) = stored.strip_prefix(&*key.prefix) {
                        found = key.open(place, rest);
                        if found.is_ok() {
                            break;
                        }
                    }
                }
                Some(found)
            }
        }
    }

    /// Whether these bytes were written by what writes now.
    pub(super) fn wrote(&self, stored: &[u8]) -> bool {
        match self {
            Self::Kms(kms) => kms.wrote(stored),
            Self::Keys { keys, .. } => keys.first().is_some_and(|key| stored.starts_with(&key.prefix)),
            Self::Identity => !stored.starts_with(PREFIX),
        }
    }
}

/// The object by the first provider that can read it. One that can't keeps no other from trying.
pub(super) fn open(providers: &[Provider], place: &[u8], stored: &[u8]) -> Result<Vec<u8>, String> {
    let mut why = None;
    for provider in providers {
        match provider.open(place, stored) {
            Some(Ok(plain)) => return Ok(plain),
            Some(Err(error)) => why = why.or(Some(error)),
            None => {}
        }
    }
    Err(why.unwrap_or_else(|| NO_MATCH.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &[u8] = b"/registry/secrets/default/a";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn every_kind_and_size_of_key_reads_what_it_wrote() {
        for kind in Kind::ALL {
            for size in kind.sizes() {
                let provider = |byte: u8| {
                    let keys = vec![Key::new(kind, "key1", vec![byte; *size]).unwrap()];
                    Provider::Keys { kind, keys }
                };
                let (one, other) = (provider(1), provider(2));
                for plain in [&b""[..], b"a", &[7; 16], &[7; 1000]] {
                    let stored = one.seal(PLACE, plain.to_vec()).unwrap();
                    assert!(stored.starts_with(format!("k8s:enc:{}:v1:key1:", kind.name()).as_bytes()));
                    assert_eq!(one.open(PLACE, &stored).unwrap().unwrap(), plain, "{kind:?}");
                    assert_ne!(
                        one.seal(PLACE, plain.to_vec()).unwrap(),
                        stored,
                        "{kind:?}: a nonce is used once"
                    );
                    assert_ne!(other.open(PLACE, &stored).unwrap().ok().as_deref(), Some(plain), "{kind:?}");
                    for length in 0..stored.len().min(60) {
                        assert!(
                            one.open(PLACE, &stored[..length])
                                .is_none_or(|found| found.ok().as_deref() != Some(b"x"))
                        );
                    }
                }
            }
            assert!(Key::new(kind, "a", vec![0; 15]).is_none());
        }
    }

    #[test]
    fn an_object_in_the_place_of_another_is_refused() {
        let keys = vec![Key::new(Kind::AesGcm, "a", vec![1; 32]).unwrap()];
        let provider = Provider::Keys { kind: Kind::AesGcm, keys };
        let stored = provider.seal(PLACE, b"plain".to_vec()).unwrap();
        assert!(provider.open(b"/registry/secrets/default/b", &stored).unwrap().is_err());
    }

    /// Expected result: NIST SP 800-38A, F.2.1.
    #[test]
    fn cbc_is_that_of_the_standard() {
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let iv = hex("000102030405060708090a0b0c0d0e0f");
        let plain = hex("6bc1bee22e409f96e93d7e117393172a");
        let cipher = encrypt_cbc(&key, &iv, &plain).unwrap();
        assert_eq!(cipher[..16], hex("7649abac8119b246cee98e9b12e9197d"));
    }
}
