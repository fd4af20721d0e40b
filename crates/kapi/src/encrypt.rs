//! Objects that are stored encrypted (Kubernetes, "Encrypting Confidential Data at Rest").
//!
//! Only what goes into the store, and comes out of it, is transformed: one place each in [`objects`](crate::objects). A server
//! without an [`Encryption`] has a pointer that is empty there, and a kind that is not covered has the same. What is covered
//! costs its encryption once per write and its decryption once per revision, as what is read is kept decrypted with the entry.

mod config;
mod kms;
mod provider;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use kstore::Entry;

use self::{config::Rules, provider::Provider};
pub use self::{
    config::{PROVIDERS_MAX, RULES_MAX},
    kms::{SEEDS_MAX, WAITING_MAX},
};
use crate::config::ConfigError;

/// How often [`Encryption::follow`] looks at its file (upstream reloads within a minute).
pub const RELOAD_EVERY: Duration = Duration::from_secs(60);

/// Which kinds are stored encrypted, and how. Cheap to clone; every clone is reloaded with it.
///
/// A key management service (KMS v2) is a provider, too: its plug-in is followed by a thread until the configuration is replaced
/// or dropped. Reading a state with a seed that is not known waits for the plug-in, which is asked once for each seed.
///
/// New states are written by the first provider's first key; states are read by whichever wrote them, and written anew by the
/// next update, even if it changes nothing.
///
/// ```
/// use kapi::{ApiServer, encrypt::Encryption};
///
/// let encryption = Encryption::parse("
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: EncryptionConfiguration
/// resources:
/// - resources: [secrets]
///   providers:
///   - aesgcm: {keys: [{name: key1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}
///   - identity: {}
/// ")?;
/// let server = ApiServer::builder().encryption(encryption).build()?;
/// let why = Encryption::parse("
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: EncryptionConfiguration
/// resources: [{resources: [secrets], providers: [{secretbox: {keys: [{name: a, secret: c2hvcnQ=}]}}]}]").unwrap_err();
/// assert_eq!(why.field, "resources[0].providers[0].secretbox.keys[0].secret");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Encryption(Arc<ArcSwap<Rules>>);

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryption")
    }
}

/// Why keys of key management services can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct UnhealthyKms {
    why: String,
}

impl Encryption {
    /// Reads an `EncryptionConfiguration` (`--encryption-provider-config`).
    ///
    /// # Errors
    /// When it is none; the error names the field and never shows a key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Rules::parse(text)?))))
    }

    /// Goes on with this configuration. States that the server has read already stay readable.
    ///
    /// # Errors
    /// When it is none; then the old one goes on.
    pub fn reload(&self, text: &str) -> Result<(), ConfigError> {
        self.0.store(Arc::new(Rules::parse(text)?));
        Ok(())
    }

    /// Reloads from a file whenever its content changes, every [`RELOAD_EVERY`] at most
    /// (`--encryption-provider-config-automatic-reload`). Never returns: to be spawned, and aborted at the end. A file that can't
    /// be read, or holds no configuration, is told to the log, and the old configuration goes on.
    pub async fn follow(&self, path: impl Into<PathBuf>) {
        let path: PathBuf = path.into();
        let mut before = None;
        loop {
            match tokio::fs::read_to_string(&path).await {
                Ok(text) if before.as_ref() == Some(&text) => {}
                Ok(text) => {
                    self.tell(&path, self.reload(&text).map_err(|why| why.to_string()));
                    before = Some(text);
                }
                Err(why) => self.tell(&path, Err(why.to_string())),
            }
            tokio::time::sleep(RELOAD_EVERY).await;
        }
    }

    fn tell(&self, path: &Path, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => tracing::info!(path = %path.display(), "the encryption configuration is loaded"),
            Err(why) => {
                tracing::error!(path = %path.display(), why, "the encryption configuration stays as it was")
            }
        }
    }

    /// Asks the plug-ins of key management services how they are, or believes what they said a moment ago; their new keys are
    /// taken up. The server's health tells of it as `kms-providers`.
    ///
    /// # Errors
    /// When one is not well; the error names each that is not.
    pub async fn check(&self) -> Result<(), UnhealthyKms> {
        let rules = self.0.load_full();
        let mut faults = Vec::new();
        for kms in rules.kms() {
            if let Err(why) = kms.check().await {
                faults.push(format!("{}: {why}", kms.name()));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(UnhealthyKms { why: faults.join(", ") }) }
    }

    /// Whether there are key management services.
    pub(crate) fn has_kms(&self) -> bool {
        self.0.load().kms().next().is_some()
    }

    /// How the objects of one kind are stored.
    pub(crate) fn of(&self, group: &str, plural: &str) -> Seal {
        let home = if group.is_empty() { plural.to_owned() } else { format!("{group}/{plural}") };
        Seal { rules: Self::clone(self), group: group.to_owned(), plural: plural.to_owned(), home }
    }
}

/// The bytes of an object where nothing is encrypted.
///
/// # Errors
/// When they are encrypted all the same: another configuration has written them.
pub(crate) fn plain<'a>(key: &[u8], stored: &'a bytes::Bytes) -> Result<&'a bytes::Bytes, String> {
    if stored.starts_with(provider::PREFIX) {
        let key = String::from_utf8_lossy(key);
        return Err(format!("unable to transform key {key:?}: {}", provider::NO_MATCH));
    }
    Ok(stored)
}

/// How the objects of one kind are stored.
#[derive(Clone, Debug)]
pub struct Seal {
    rules: Encryption,
    group: String,
    plural: String,
    /// Where upstream keeps the kind, below `/registry`.
    home: String,
}

impl Seal {
    /// What is authenticated with the object, so that nobody puts one in the place of another.
    fn place(&self, key: &[u8]) -> Vec<u8> {
        [b"/registry/", self.home.as_bytes(), b"/", key].concat()
    }

    /// The bytes to store.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn seal(&self, key: &[u8], plain: Vec<u8>) -> Result<Vec<u8>, String> {
        let rules = self.rules.0.load();
        match rules.of(&self.group, &self.plural).first() {
            None => Ok(plain),
            Some(first) => first.seal(&self.place(key), plain),
        }
    }

    /// The bytes of the object.
    ///
    /// # Errors
    /// When no provider can read them: which object it is, and why.
    pub(crate) fn open(&self, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, String> {
        let rules = self.rules.0.load();
        let providers = rules.of(&self.group, &self.plural);
        let place = self.place(key);
        let opened = if providers.is_empty() {
            // A kind that is not covered, or not any more.
            Provider::Identity.open(&place, stored).unwrap_or_else(|| Err(provider::NO_MATCH.to_owned()))
        } else {
            provider::open(providers, &place, stored)
        };
        opened.map_err(|why| format!("unable to transform key {:?}: {why}", String::from_utf8_lossy(&place)))
    }

    /// Gets the key that an entry is encrypted with, if a key management service has it and it is not known yet. So that
    /// [`open`](Self::open) need not wait.
    pub(crate) async fn settle(&self, entry: &Entry) {
        // Who has written it in this process knows the key.
        if entry.hint().is_some() || !entry.value().starts_with(provider::KMS_PREFIX) {
            return;
        }
        let rules = self.rules.0.load_full();
        for provider in rules.of(&self.group, &self.plural) {
            if let Provider::Kms(kms) = provider {
                kms.settle(entry.value()).await;
            }
        }
    }

    /// Whether these bytes would be written otherwise now.
    pub(crate) fn is_stale(&self, stored: &[u8]) -> bool {
        let rules = self.rules.0.load();
        match rules.of(&self.group, &self.plural).first() {
            None => stored.starts_with(provider::PREFIX),
            Some(first) => !first.wrote(stored),
        }
    }
}
