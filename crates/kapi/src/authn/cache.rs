//! What tokens were found to be, for a while (`authentication/token/cache`).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Authenticated;

/// How many tokens are remembered; when there are more, all that are over, and then all, are forgotten.
pub(crate) const CACHED_MAX: usize = 8_192;

/// Remembers by the digest of the token and of whom it is for, so that no token is in memory.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<HashMap<[u8; 32], Known>>);

/// Until when something is believed, and what it is.
type Known = (Instant, Option<Authenticated>);

impl TokenCache {
    fn key(token: &str, audiences: &[String]) -> [u8; 32] {
        let mut digest = Sha256::new();
        for text in std::iter::once(token).chain(audiences.iter().map(String::as_str)) {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        digest.finalize().into()
    }

    pub(crate) fn get(&self, token: &str, audiences: &[String]) -> Option<Option<Authenticated>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, found) = known.get(&Self::key(token, audiences))?;
        (*until > Instant::now()).then(|| found.clone())
    }

    pub(crate) fn put(
        &self,
        token: &str,
        audiences: &[String],
        found: Option<Authenticated>,
        time: Duration,
    ) {
        if time.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHED_MAX {
            known.retain(|_, (until, _)| *until > now);
        }
        if known.len() >= CACHED_MAX {
            known.clear();
        }
        known.insert(Self::key(token, audiences), (now + time, found));
    }
}
