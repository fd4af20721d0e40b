//! Keys that a key management service keeps (KMS v2, KEP-3299): a plug-in beside the server, over gRPC on a Unix socket.
//!
//! The plug-in never sees objects. The server makes a seed, has the plug-in encrypt it, and stores the encrypted seed with each
//! object; each object gets a key of its own, derived from the seed. So the plug-in is asked once per seed, not once per object.
//!
//! What talks to the plug-in is a thread of its own ([`keeper`]), because states are read where nobody can wait: an index of the
//! store, a decision. Whoever comes first to a seed that is not known waits for the plug-in there; lists and watches ask
//! beforehand, without holding up anybody else. See `docs/design/009-encryption.md`.

mod envelope;
mod keeper;
mod plugin;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ahash::HashMap;
use arc_swap::ArcSwapOption;
use prost::Message as _;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{mpsc, oneshot},
};

use self::envelope::{DataKey, EncryptedObject, WriteKey};

/// How many decrypted seeds are kept; of more, the one that was not used for longest is forgotten.
pub const SEEDS_MAX: usize = 1_000;
/// How many questions may wait for a plug-in.
pub const WAITING_MAX: usize = 1_024;

/// Where a plug-in is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KmsConfig {
    pub(super) name: String,
    /// The path of its socket.
    pub(super) socket: PathBuf,
    /// How long each call may take.
    pub(super) timeout: Duration,
}

/// A plug-in, and what is known of its keys.
pub(super) struct Kms {
    name: String,
    /// `k8s:enc:kms:v2:<name>:`.
    prefix: Vec<u8>,
    known: Arc<Known>,
    asks: mpsc::Sender<Ask>,
}

/// What is known of a plug-in's keys.
#[derive(Default)]
struct Known {
    write: ArcSwapOption<WriteKey>,
    /// Whether the plug-in has been unwell for too long to go on writing.
    expired: AtomicBool,
    seeds: Mutex<Seeds>,
}

/// Keys by the digest of what they are encrypted as, and when they were used last.
#[derive(Default)]
struct Seeds {
    keys: HashMap<[u8; 32], (Arc<DataKey>, u64)>,
    uses: u64,
}

/// Takes an answer: here, or in a task that waits for it.
type Reply<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// A question to the thread of a plug-in.
enum Ask {
    /// The key of an object.
    Open(EncryptedObject, Reply<Arc<DataKey>>),
    /// How it is.
    Check(Reply<()>),
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kms").field(&self.name).finish()
    }
}

impl Known {
    fn seed(&self, digest: &[u8; 32]) -> Option<Arc<DataKey>> {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = seeds.uses + 1;
        seeds.uses = now;
        let (key, used) = seeds.keys.get_mut(digest)?;
        *used = now;
        Some(Arc::clone(key))
    }

    fn keep(&self, digest: [u8; 32], key: Arc<DataKey>) {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        if seeds.keys.len() >= SEEDS_MAX && !seeds.keys.contains_key(&digest) {
            let oldest = seeds.keys.iter().min_by_key(|(_, (_, used))| *used).map(|(digest, _)| *digest);
            oldest.map(|oldest| seeds.keys.remove(&oldest));
        }
        seeds.uses += 1;
        let now = seeds.uses;
        seeds.keys.insert(digest, (key, now));
    }
}

impl Kms {
    /// Starts to follow a plug-in, until this is dropped.
    pub(super) fn start(config: KmsConfig) -> std::io::Result<Self> {
        let (asks, questions) = mpsc::channel(WAITING_MAX);
        let known = Arc::new(Known::default());
        let kms = Self {
            prefix: format!("k8s:enc:kms:v2:{}:", config.name).into_bytes(),
            name: config.name.clone(),
            known: Arc::clone(&known),
            asks,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("kms {}", config.name)).spawn(move || {
            runtime.block_on(async move {
                let plugin = plugin::Plugin::new(&config);
                keeper::Keeper::new(config.name, plugin, known).run(questions).await;
            });
        })?;
        Ok(kms)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The bytes to store.
    pub(super) fn seal(&self, place: &[u8], plain: Vec<u8>) -> Result<Vec<u8>, String> {
        let write = match self.known.write.load_full() {
            Some(write) => write,
            None => {
                // It may be that the plug-in was not asked yet.
                self.wait(Ask::Check)?;
                self.known.write.load_full().ok_or("got unexpected nil transformer")?
            }
        };
        if self.known.expired.load(Ordering::Acquire) {
            return Err(format!("encryptedDEKSource with keyID hash {:?} expired", write.key_id_hash()));
        }
        let object = write.seal(place, plain)?;
        let mut stored = Vec::with_capacity(self.prefix.len() + object.encoded_len());
        stored.extend_from_slice(&self.prefix);
        object.encode(&mut stored).map_err(|why| why.to_string())?;
        Ok(stored)
    }

    /// The object, if this plug-in's keys have encrypted it.
    pub(super) fn open(&self, place: &[u8], stored: &[u8]) -> Option<Result<Vec<u8>, String>> {
        let rest = stored.strip_prefix(&*self.prefix)?;
        Some(EncryptedObject::read(rest).and_then(|object| {
            let key = match self.known.seed(&object.digest()) {
                Some(key) => key,
                None => self.wait(|answer| Ask::Open(object.without_data(), answer))?,
            };
            key.open(place, &object.encrypted_data)
        }))
    }

    /// Whether these bytes were written with the key that writes now.
    pub(super) fn wrote(&self, stored: &[u8]) -> bool {
        let Some(rest) = stored.strip_prefix(&*self.prefix) else {
            return false;
        };
        let write = self.known.write.load();
        let object = EncryptedObject::read(rest);
        object.is_ok_and(|object| write.as_ref().is_none_or(|write| write.wrote(&object)))
    }

    /// Learns the key of these bytes, without holding up anybody else. What goes wrong is told by [`open`](Self::open).
    pub(super) async fn settle(&self, stored: &[u8]) {
        let Some(Ok(object)) = stored.strip_prefix(&*self.prefix).map(EncryptedObject::read) else {
            return;
        };
        if self.known.seed(&object.digest()).is_some() {
            return;
        }
        // What goes wrong is told to who reads it.
        let _ = self.ask(|answer| Ask::Open(object.without_data(), answer)).await;
    }

    /// Asks the plug-in how it is, and takes up its new key if it has one.
    pub(super) async fn check(&self) -> Result<(), String> {
        self.ask(Ask::Check).await
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        // Whoever has asked may have gone.
        let asked = ask(Box::new(|outcome| drop(answer.send(outcome))));
        self.asks.send(asked).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Asks, and waits here. Every question is answered, if with an error, after the time that a call may take.
    fn wait<T: Send + 'static>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, String> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let sent = self.asks.try_send(ask(Box::new(move |outcome| drop(answer.send(outcome)))));
        sent.map_err(|_| format!("too much waits for the KMS provider {}", self.name))?;
        let wait = || answered.recv();
        let many =
            Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        let answered = if many { tokio::task::block_in_place(wait) } else { wait() };
        answered.map_err(|_| gone())?
    }
}

fn gone() -> String {
    "the KMS provider is not followed any more".to_owned()
}
