//! Connections that are kept for the next call to the same place.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::Target;

/// How many connections to one place are kept while nobody uses them.
pub const IDLE_MAX_PER_TARGET: usize = 8;
/// How many are kept in all; the oldest go.
pub const IDLE_MAX: usize = 256;
/// How long a connection is kept that nobody uses (upstream's transports keep them for 90 seconds).
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(90);

pub(super) type Sender = SendRequest<Full<Bytes>>;

/// The connections that nobody uses at the moment, the newest last.
#[derive(Default)]
pub(crate) struct Pool(Mutex<HashMap<Key, Vec<(Instant, Sender)>>>);

/// What has to be the same: the place, whose certificate is believed, and the service's address at present.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    target: Target,
    address: Option<String>,
}

impl Key {
    pub(super) fn new(target: &Target, cluster_ip: Option<&str>) -> Self {
        let target = Target { path: String::new(), ..target.clone() };
        Self { target, address: cluster_ip.map(str::to_owned) }
    }
}

impl Pool {
    /// A connection that is still open.
    pub(super) fn take(&self, key: &Key) -> Option<Sender> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.get_mut(key)?;
        let now = Instant::now();
        idle.retain(|(since, sender)| *since + IDLE_TIME_MAX > now && !sender.is_closed());
        let found = idle.pop().map(|(_, sender)| sender);
        if idle.is_empty() {
            pool.remove(key);
        }
        found
    }

    /// Keeps a connection whose answer has been read.
    pub(super) fn put(&self, key: Key, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if pool.values().map(Vec::len).sum::<usize>() >= IDLE_MAX {
            pool.retain(|_, idle| {
                idle.retain(|(since, sender)| *since + IDLE_TIME_MAX > now && !sender.is_closed());
                !idle.is_empty()
            });
            let oldest = pool.iter().min_by_key(|(_, idle)| idle.first().map(|(since, _)| *since));
            let oldest = oldest
                .map(|(key, _)| key.clone())
                .filter(|_| pool.values().map(Vec::len).sum::<usize>() >= IDLE_MAX);
            if let Some(oldest) = oldest {
                pool.remove(&oldest);
            }
        }
        let idle = pool.entry(key).or_default();
        if idle.len() < IDLE_MAX_PER_TARGET {
            idle.push((now, sender));
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}
