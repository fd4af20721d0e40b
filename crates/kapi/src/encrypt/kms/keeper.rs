//! What follows a plug-in: polls how it is, takes up its new keys, and has seeds decrypted. Upstream's `kmsv2PluginProbe`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ahash::HashMap;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Ask, Known, SEEDS_MAX,
    envelope::{DataKey, EncryptedObject, SEED_BYTES, WriteKey, hash, validate_key_id},
    plugin::{Failed, Health, KeyService},
};

/// How often a plug-in that is well is asked how it is.
const WELL_INTERVAL: Duration = Duration::from_secs(60);
/// How often one that is not is.
const UNWELL_INTERVAL: Duration = Duration::from_secs(10);
/// How long a seed is written with since the plug-in was well for the last time.
const WRITE_TIME_MAX: Duration = Duration::from_secs(180);
/// How long it is believed that a plug-in is well.
const WELL_TTL: Duration = Duration::from_secs(20);
/// How long it is believed that it is not, or that it can't decrypt a seed.
const UNWELL_TTL: Duration = Duration::from_secs(3);

/// Follows one plug-in.
pub(super) struct Keeper<S> {
    name: String,
    service: S,
    known: Arc<Known>,
    /// What it said first: it must not change.
    version: String,
    /// How it was, and until when that is believed.
    last: Option<(Instant, Result<(), String>)>,
    /// When it is to be asked again.
    next: Instant,
    /// When its key must not be written with any more.
    expires: Option<Instant>,
    /// What it could not decrypt, and until when it is not asked again.
    failed: HashMap<[u8; 32], (Instant, String)>,
    /// Why it can't be reached, and until when that is believed.
    unreachable: Option<(Instant, String)>,
}

impl<S: KeyService> Keeper<S> {
    pub(super) fn new(name: String, service: S, known: Arc<Known>) -> Self {
        Self {
            name,
            service,
            known,
            version: String::new(),
            last: None,
            next: Instant::now(),
            expires: None,
            failed: HashMap::default(),
            unreachable: None,
        }
    }

    /// Answers questions, and asks the plug-in how it is, until nobody can ask any more.
    pub(super) async fn run(mut self, mut questions: mpsc::Receiver<Ask>) {
        // What is wrong is kept for who asks.
        let _ = self.probe().await;
        loop {
            let expires = self.expires.unwrap_or(self.next);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(expires), if self.expires.is_some() => {
                    self.expires = None;
                    self.known.expired.store(true, Ordering::Release);
                }
                () = tokio::time::sleep_until(self.next) => drop(self.probe().await),
                ask = questions.recv() => match ask {
                    Some(Ask::Open(object, answer)) => answer(self.open(&object).await),
                    Some(Ask::Check(answer)) => answer(self.check().await),
                    None => return,
                }
            }
        }
    }

    /// The key of an object.
    async fn open(&mut self, object: &EncryptedObject) -> Result<Arc<DataKey>, String> {
        let digest = object.digest();
        // Somebody else may have asked for it before.
        if let Some(key) = self.known.seed(&digest) {
            return Ok(key);
        }
        let now = Instant::now();
        let failures = self.failed.get(&digest).into_iter().chain(&self.unreachable);
        if let Some((_, why)) = failures.into_iter().find(|(until, _)| now < *until) {
            return Err(why.clone());
        }
        let until = |why: &str| (Instant::now() + UNWELL_TTL, format!("failed to decrypt DEK, error: {why}"));
        let failure = match self.service.decrypt(object).await {
            Ok(plain) => match object.key(&plain) {
                Ok(key) => {
                    let key = Arc::new(key);
                    self.known.keep(digest, Arc::clone(&key));
                    self.failed.remove(&digest);
                    return Ok(key);
                }
                Err(why) => until(&why),
            },
            Err(Failed { unreachable, why }) => {
                let failure = until(&why);
                if unreachable {
                    self.unreachable = Some(failure.clone());
                }
                failure
            }
        };
        self.failed.retain(|_, (until, _)| now < *until);
        if self.failed.len() < SEEDS_MAX {
            self.failed.insert(digest, failure.clone());
        }
        Err(failure.1)
    }

    /// How the plug-in is, asked a moment ago or now.
    async fn check(&mut self) -> Result<(), String> {
        match &self.last {
            Some((until, outcome)) if Instant::now() < *until => outcome.clone(),
            _ => self.probe().await,
        }
    }

    /// Asks the plug-in how it is, and takes up its key if that is another one.
    async fn probe(&mut self) -> Result<(), String> {
        // The time counts from before the call.
        let expires = Instant::now() + WRITE_TIME_MAX;
        let outcome = match self.service.status().await {
            Ok(health) => {
                let outcome = self.take_up(&health, expires).await;
                outcome.map_err(|why| format!("kmsv2 Provider {} is not healthy, error: {why}", self.name))
            }
            Err(Failed { why, .. }) => Err(format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {why}",
                self.name
            )),
        };
        let (interval, ttl) = match &outcome {
            Ok(()) => (WELL_INTERVAL, WELL_TTL),
            Err(why) => {
                tracing::warn!(kms = self.name, why, "the key management service is not well");
                (UNWELL_INTERVAL, UNWELL_TTL)
            }
        };
        let now = Instant::now();
        self.next = now + interval;
        self.last = Some((now + ttl, outcome.clone()));
        outcome
    }

    async fn take_up(&mut self, health: &Health, expires: Instant) -> Result<(), String> {
        let mut wrong = Vec::new();
        if health.healthz != "ok" {
            wrong.push(format!("got unexpected healthz status: {}", health.healthz));
        }
        let version = &health.version;
        if !["v2", "v2beta1"].contains(&version.as_str()) {
            wrong.push(format!("expected KMSv2 API version v2, got {version}"));
        } else if self.version.is_empty() {
            self.version.clone_from(version);
        } else if self.version != *version {
            wrong.push(format!(
                "KMSv2 API version should not change after the initial status response version {}, got {version}",
                self.version
            ));
        }
        let rotated = match validate_key_id(&health.key_id) {
            Err(why) => Err(format!("got invalid KMSv2 KeyID hash {:?}: {why}", hash(&health.key_id))),
            // Even if it is not well otherwise.
            Ok(()) => self.rotate(&health.key_id).await,
        };
        match rotated {
            Ok(()) => {
                self.expires = Some(expires);
                self.known.expired.store(false, Ordering::Release);
            }
            Err(why) => wrong.push(why),
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
    }

    /// Writes with this key of the plug-in from now on. When that can't be done, the old one goes on until it expires.
    async fn rotate(&self, key_id: &str) -> Result<(), String> {
        if self.known.write.load().as_ref().is_some_and(|write| write.key_id() == key_id) {
            return Ok(());
        }
        let failed =
            |why: String| format!("failed to rotate DEK, errGen={why}, statusKeyIDHash={:?}", hash(key_id));
        let mut seed = [0; SEED_BYTES];
        let random = SystemRandom::new().fill(&mut seed);
        random.map_err(|_| failed("unable to read sufficient random bytes".to_owned()))?;
        let encrypted = self.service.encrypt(&seed).await;
        let encrypted =
            encrypted.map_err(|Failed { why, .. }| failed(format!("failed to encrypt DEK, error: {why}")))?;
        let write = WriteKey::new(&seed, encrypted).map_err(failed)?;
        if write.key_id() != key_id {
            return Err(failed(format!("<nil>, encryptKeyIDHash={:?}", write.key_id_hash())));
        }
        self.known.keep(write.digest(), Arc::new(DataKey::of_seed(&seed).map_err(failed)?));
        self.known.write.store(Some(Arc::new(write)));
        tracing::info!(kms = self.name, key = hash(key_id), "objects are written with a new key");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::{super::plugin::Encrypted, *};

    /// A service that encrypts by turning bits over.
    #[derive(Clone)]
    struct Mock(Arc<Mutex<Says>>);

    struct Says {
        version: &'static str,
        healthz: &'static str,
        key_id: &'static str,
        encrypts_with: &'static str,
        calls: usize,
        reachable: bool,
    }

    fn turned(bytes: &[u8]) -> Bytes {
        bytes.iter().map(|byte| !byte).collect()
    }

    impl Mock {
        fn said<T>(&self, say: impl FnOnce(&mut Says) -> T) -> Result<T, Failed> {
            let mut says = self.0.lock().unwrap();
            says.calls += 1;
            if !says.reachable {
                return Err(Failed { unreachable: true, why: "away".to_owned() });
            }
            Ok(say(&mut says))
        }
    }

    #[async_trait]
    impl KeyService for Mock {
        async fn status(&self) -> Result<Health, Failed> {
            self.said(|says| Health {
                version: says.version.to_owned(),
                healthz: says.healthz.to_owned(),
                key_id: says.key_id.to_owned(),
            })
        }

        async fn encrypt(&self, seed: &[u8]) -> Result<Encrypted, Failed> {
            self.said(|says| Encrypted {
                ciphertext: turned(seed),
                key_id: says.encrypts_with.to_owned(),
                annotations: [("mock.example.com".to_owned(), Bytes::from_static(b"1"))].into(),
            })
        }

        async fn decrypt(&self, object: &EncryptedObject) -> Result<Bytes, Failed> {
            assert_eq!(object.annotations.len(), 1, "they come back");
            self.said(|_| turned(&object.source))
        }
    }

    fn kept() -> (Mock, Arc<Known>, mpsc::Sender<Ask>) {
        let says =
            Says { version: "v2", healthz: "ok", key_id: "1", encrypts_with: "1", calls: 0, reachable: true };
        let mock = Mock(Arc::new(Mutex::new(says)));
        let known = Arc::new(Known::default());
        let (asks, questions) = mpsc::channel(1);
        tokio::spawn(Keeper::new("mock".to_owned(), mock.clone(), Arc::clone(&known)).run(questions));
        (mock, known, asks)
    }

    async fn check(asks: &mpsc::Sender<Ask>) -> String {
        let (answer, answered) = oneshot::channel();
        assert!(asks.send(Ask::Check(Box::new(|outcome| drop(answer.send(outcome))))).await.is_ok());
        answered.await.unwrap().err().unwrap_or_default()
    }

    /// Expected results: `encryptionconfig/config_test.go`, `Test_kmsv2PluginProbe_rotateDEKOnKeyIDChange` and
    /// `TestKMSv2Healthz`-like cases of `isKMSv2ProviderHealthyAndMaybeRotateDEK`.
    #[tokio::test(start_paused = true)]
    async fn keys_follow_the_plugin() {
        type Change = fn(&mut Says);
        let (mock, known, asks) = kept();
        let cases: [(Change, &str, &str); 9] = [
            (|_| {}, "", "1"),
            (|says| says.key_id = "2", "encryptKeyIDHash=", "1"),
            (|says| says.encrypts_with = "2", "", "2"),
            (|says| says.healthz = "sick", "got unexpected healthz status: sick", "2"),
            // A key is taken up even from a plug-in that is not well.
            (|says| (says.key_id, says.encrypts_with) = ("3", "3"), "sick", "3"),
            (
                |says| (says.healthz, says.version) = ("ok", "v2beta1"),
                "should not change after the initial",
                "3",
            ),
            (|says| says.version = "v3", "expected KMSv2 API version v2, got v3", "3"),
            (|says| (says.version, says.key_id) = ("v2", ""), "keyID is empty", "3"),
            (|says| says.key_id = "3", "", "3"),
        ];
        for (change, fault, key) in cases {
            change(&mut mock.0.lock().unwrap());
            tokio::time::advance(WELL_INTERVAL).await;
            let found = check(&asks).await;
            assert!(found.contains(fault) && found.is_empty() == fault.is_empty(), "{fault}: {found}");
            assert_eq!(known.write.load().as_ref().unwrap().key_id(), key, "{fault}");
        }
        let before = mock.0.lock().unwrap().calls;
        for _ in 0..10 {
            check(&asks).await;
        }
        assert_eq!(mock.0.lock().unwrap().calls, before, "how it is is believed for a while");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_not_written_with_when_the_plugin_is_away_for_long() {
        let (mock, known, asks) = kept();
        assert_eq!(check(&asks).await, "");
        let expired = || known.expired.load(Ordering::Acquire);
        mock.0.lock().unwrap().reachable = false;
        tokio::time::sleep(WRITE_TIME_MAX - Duration::from_secs(1)).await;
        assert!(!expired());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(expired());
        // It comes back with the same key.
        mock.0.lock().unwrap().reachable = true;
        tokio::time::sleep(UNWELL_INTERVAL).await;
        assert!(!expired());
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_is_asked_once_for_each_seed_and_left_alone_when_it_is_away() {
        let (mock, known, asks) = kept();
        assert_eq!(check(&asks).await, "");
        let write = known.write.load_full().unwrap();
        let object = write.seal(b"/a", b"x".to_vec()).unwrap();
        let open = async || {
            let (answer, answered) = oneshot::channel();
            assert!(
                asks.send(Ask::Open(object.without_data(), Box::new(|outcome| drop(answer.send(outcome)))))
                    .await
                    .is_ok()
            );
            answered.await.unwrap()
        };
        let calls = || mock.0.lock().unwrap().calls;
        assert_eq!((open().await.is_ok(), calls()), (true, 2), "its own seed it knows");
        *known.seeds.lock().unwrap() = super::super::Seeds::default();
        mock.0.lock().unwrap().reachable = false;
        for _ in 0..5 {
            assert_eq!(open().await.unwrap_err(), "failed to decrypt DEK, error: away");
            assert_eq!(calls(), 3);
        }
        mock.0.lock().unwrap().reachable = true;
        tokio::time::advance(UNWELL_TTL).await;
        for _ in 0..5 {
            assert_eq!(open().await.unwrap().open(b"/a", &object.encrypted_data).unwrap(), b"x");
            assert_eq!(calls(), 4);
        }
    }
}
