//! Objects with the encrypted seed of their key, in upstream's format (`kmsv2/v2/api.proto`, `aes_extended_nonce.go`).

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use prost::Message as _;
use ring::{
    aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use sha2::{Digest as _, Sha256};

use super::plugin::Encrypted;

/// How long a seed is, and what a key is derived from besides, in bytes.
pub(super) const SEED_BYTES: usize = 32;
const INFO_BYTES: usize = 32;
/// Upstream's limits, in bytes.
const KEY_ID_BYTES_MAX: usize = 1024;
const SEED_ENCRYPTED_BYTES_MAX: usize = 1024;
const ANNOTATIONS_BYTES_MAX: usize = 32 * 1024;

/// The plain text of the source is the key itself.
const SOURCE_KEY: i32 = 0;
/// The plain text of the source is a seed.
const SOURCE_SEED: i32 = 1;

/// What is stored behind the prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncryptedObject {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) encrypted_data: Bytes,
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) source: Bytes,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub(super) annotations: BTreeMap<String, Bytes>,
    #[prost(int32, tag = "5")]
    pub(super) source_type: i32,
}

impl EncryptedObject {
    /// Reads one that was stored.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let object = Self::decode(bytes).map_err(|why| why.to_string())?;
        object.validate()?;
        Ok(object)
    }

    /// The same without the object itself.
    pub(super) fn without_data(&self) -> Self {
        Self { encrypted_data: Bytes::new(), ..self.clone() }
    }

    /// Upstream's `ValidateEncryptedObject`.
    fn validate(&self) -> Result<(), String> {
        if ![SOURCE_KEY, SOURCE_SEED].contains(&self.source_type) {
            return Err(format!("unknown encryptedDEKSourceType: {}", self.source_type));
        }
        if self.encrypted_data.is_empty() {
            return Err("encrypted data is empty".to_owned());
        }
        let source = "failed to validate encrypted DEK source: encrypted DEK source is";
        if self.source.is_empty() {
            return Err(format!("{source} empty"));
        }
        let size = self.source.len();
        if size > SEED_ENCRYPTED_BYTES_MAX {
            return Err(format!(
                "{source} {size} bytes, which exceeds the max size of {SEED_ENCRYPTED_BYTES_MAX}"
            ));
        }
        validate_key_id(&self.key_id).map_err(|why| format!("failed to validate key id: {why}"))?;
        validate_annotations(&self.annotations)
            .map_err(|why| format!("failed to validate annotations: {why}"))
    }

    /// What tells its key from others.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.source_type.to_be_bytes());
        let mut part = |bytes: &[u8]| {
            hash.update(bytes.len().to_be_bytes());
            hash.update(bytes);
        };
        part(&self.source);
        part(self.key_id.as_bytes());
        for (name, value) in &self.annotations {
            part(name.as_bytes());
            part(value);
        }
        hash.finalize().into()
    }

    /// The key of which this is the source in the plain.
    pub(super) fn key(&self, plain: &[u8]) -> Result<DataKey, String> {
        if self.source_type == SOURCE_SEED { DataKey::of_seed(plain) } else { DataKey::of_key(plain) }
    }
}

/// Upstream's `ValidateKeyID`.
pub(super) fn validate_key_id(id: &str) -> Result<(), String> {
    match id.len() {
        0 => Err("keyID is empty".to_owned()),
        size if size > KEY_ID_BYTES_MAX => {
            Err(format!("keyID is {size} bytes, which exceeds the max size of {KEY_ID_BYTES_MAX}"))
        }
        _ => Ok(()),
    }
}

fn validate_annotations(annotations: &BTreeMap<String, Bytes>) -> Result<(), String> {
    for name in annotations.keys() {
        let label = |label: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            label.starts_with(inner) && label.ends_with(inner) && label.chars().all(|c| inner(c) || c == '-')
        };
        if name.len() > 253 || name.split('.').count() < 2 || !name.split('.').all(label) {
            return Err(format!(
                "annotations: Invalid value: {name:?}: should be a domain with at least two segments separated by dots"
            ));
        }
    }
    let size: usize = annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > ANNOTATIONS_BYTES_MAX {
        return Err(format!(
            "total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS_BYTES_MAX}"
        ));
    }
    Ok(())
}

/// `sha256:` and the digest of a key's name, which is how keys are named to people.
pub(super) fn hash(key_id: &str) -> String {
    let digest = Sha256::digest(key_id.as_bytes());
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// What decrypts objects.
pub(super) enum DataKey {
    /// Each object has a key of its own that is derived from this.
    Seed(hmac::Key),
    /// The key of objects that were written by old servers.
    Key(Box<LessSafeKey>),
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

impl DataKey {
    pub(super) fn of_seed(seed: &[u8]) -> Result<Self, String> {
        if seed.len() < SEED_BYTES {
            return Err(format!("invalid seed length {} used for key generation", seed.len()));
        }
        Ok(Self::Seed(hmac::Key::new(hmac::HMAC_SHA256, seed)))
    }

    fn of_key(key: &[u8]) -> Result<Self, String> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            size => return Err(format!("crypto/aes: invalid key size {size}")),
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| "the key can't be used".to_owned())?;
        Ok(Self::Key(Box::new(LessSafeKey::new(key))))
    }

    /// The object: its own key's source, the nonce, and what is encrypted.
    pub(super) fn open(&self, place: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
        let short = || "the stored data was shorter than the required size".to_owned();
        match self {
            Self::Key(key) => open(key, place, data).ok_or_else(failed),
            Self::Seed(seed) => {
                let (info, data) = data.split_at_checked(INFO_BYTES).ok_or_else(short)?;
                let key = derived(seed, info).ok_or_else(failed)?;
                open(&key, place, data).ok_or_else(failed)
            }
        }
    }
}

fn failed() -> String {
    "cipher: message authentication failed".to_owned()
}

fn open(key: &LessSafeKey, place: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let (nonce, data) = data.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut data = data.to_vec();
    let length = key.open_in_place(nonce, Aad::from(place), &mut data).ok()?.len();
    data.truncate(length);
    Some(data)
}

/// HKDF-Expand with SHA-256 (RFC 5869, section 2.3) to 32 bytes, which are its first block.
fn derived(seed: &hmac::Key, info: &[u8]) -> Option<LessSafeKey> {
    let mut context = hmac::Context::with_key(seed);
    context.update(info);
    context.update(&[1]);
    let key = UnboundKey::new(&AES_256_GCM, context.sign().as_ref()).ok()?;
    Some(LessSafeKey::new(key))
}

/// What new states are encrypted with.
#[derive(Debug)]
pub(super) struct WriteKey {
    seed: DataKey,
    /// All but the data.
    object: EncryptedObject,
}

impl WriteKey {
    /// A seed, and what the plug-in has made of it.
    pub(super) fn new(seed: &[u8], encrypted: Encrypted) -> Result<Self, String> {
        let object = EncryptedObject {
            // Anything that passes.
            encrypted_data: Bytes::from_static(&[0]),
            key_id: encrypted.key_id,
            source: encrypted.ciphertext,
            annotations: encrypted.annotations,
            source_type: SOURCE_SEED,
        };
        object.validate()?;
        Ok(Self { seed: DataKey::of_seed(seed)?, object: object.without_data() })
    }

    pub(super) fn key_id(&self) -> &str {
        &self.object.key_id
    }

    pub(super) fn key_id_hash(&self) -> String {
        hash(&self.object.key_id)
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.object.digest()
    }

    /// Whether an object is as it would be written now.
    pub(super) fn wrote(&self, object: &EncryptedObject) -> bool {
        object.key_id == self.object.key_id && object.source_type == self.object.source_type
    }

    pub(super) fn seal(&self, place: &[u8], mut plain: Vec<u8>) -> Result<EncryptedObject, String> {
        let DataKey::Seed(seed) = &self.seed else {
            return Err(failed());
        };
        let mut random = [0; INFO_BYTES + NONCE_LEN];
        let no_random = |_| "unable to read sufficient random bytes".to_owned();
        SystemRandom::new().fill(&mut random).map_err(no_random)?;
        let (info, nonce) = random.split_at(INFO_BYTES);
        let wrong = || "the object can't be encrypted".to_owned();
        let key = derived(seed, info).ok_or_else(wrong)?;
        let unique = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        key.seal_in_place_append_tag(unique, Aad::from(place), &mut plain).map_err(|_| wrong())?;
        Ok(EncryptedObject { encrypted_data: [&random[..], &plain].concat().into(), ..self.object.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> EncryptedObject {
        EncryptedObject {
            encrypted_data: Bytes::from_static(b"d"),
            key_id: "1".to_owned(),
            source: Bytes::from_static(b"s"),
            annotations: BTreeMap::from([("a.example.com".to_owned(), Bytes::from_static(b"v"))]),
            source_type: SOURCE_SEED,
        }
    }

    /// Expected results: `kmsv2/envelope_test.go`, `TestValidateEncryptedObject`.
    #[test]
    fn what_is_too_much_or_too_little_is_refused() {
        type Change = fn(&mut EncryptedObject);
        let cases: [(Change, &str); 9] = [
            (|_| {}, ""),
            (|object| object.source_type = 2, "unknown encryptedDEKSourceType: 2"),
            (|object| object.encrypted_data = Bytes::new(), "encrypted data is empty"),
            (|object| object.source = Bytes::new(), "encrypted DEK source is empty"),
            (|object| object.source = vec![0; 1025].into(), "1025 bytes, which exceeds the max size of 1024"),
            (|object| object.key_id.clear(), "failed to validate key id: keyID is empty"),
            (|object| object.key_id = "k".repeat(1025), "keyID is 1025 bytes"),
            (
                |object| drop(object.annotations.insert("a".to_owned(), Bytes::new())),
                "annotations: Invalid value",
            ),
            (
                |object| drop(object.annotations.insert("b.c".to_owned(), vec![0; 32 * 1024].into())),
                "exceeds the max size of 32768",
            ),
        ];
        for (change, expected) in cases {
            let mut object = object();
            change(&mut object);
            let found = EncryptedObject::read(&object.encode_to_vec()).err().unwrap_or_default();
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{expected}: {found}"
            );
        }
    }

    #[test]
    fn objects_of_a_seed_are_bound_to_their_place_and_never_alike() {
        let encrypted = Encrypted {
            ciphertext: Bytes::from_static(b"c"),
            key_id: "1".to_owned(),
            annotations: BTreeMap::new(),
        };
        let seed = [7; SEED_BYTES];
        let write = WriteKey::new(&seed, encrypted).unwrap();
        let key = DataKey::of_seed(&seed).unwrap();
        let (one, other) =
            (write.seal(b"/a", b"x".to_vec()).unwrap(), write.seal(b"/a", b"x".to_vec()).unwrap());
        assert_ne!(one.encrypted_data, other.encrypted_data);
        assert_eq!(key.open(b"/a", &one.encrypted_data).unwrap(), b"x");
        assert!(key.open(b"/b", &one.encrypted_data).is_err());
        assert!(DataKey::of_seed(&[8; 32]).unwrap().open(b"/a", &one.encrypted_data).is_err());
        for length in 0..one.encrypted_data.len() {
            assert!(key.open(b"/a", &one.encrypted_data[..length]).is_err(), "{length}");
        }
        assert_eq!(one.digest(), write.digest(), "the data is no part of it");
        assert!(DataKey::of_seed(&[0; 31]).is_err());
    }
}
