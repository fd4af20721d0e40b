//! Reading everything, page by page at one revision.

use bytes::Bytes;

use super::{Etcd, header};
use crate::{RemoteError, RemoteLoad, proto as pb};

/// How many keys the first page has, and within which numbers the others stay.
const PAGE_KEYS: i64 = 500;
const PAGE_KEYS_MIN: i64 = 10;
const PAGE_KEYS_MAX: i64 = 10_000;
/// How large a page should be.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How often the reading is begun anew when etcd compacts what is being read.
const ATTEMPTS_MAX: usize = 5;

impl Etcd {
    pub(super) async fn load_all(&self) -> Result<RemoteLoad, RemoteError> {
        let mut attempt = 1;
        loop {
            match self.load_pages().await {
                Err(RemoteError::Compacted) if attempt < ATTEMPTS_MAX => attempt += 1,
                result => return result,
            }
        }
    }

    async fn load_pages(&self) -> Result<RemoteLoad, RemoteError> {
        let (mut key, range_end) = self.keys.all();
        let mut load = RemoteLoad::default();
        let (mut limit, mut at) = (PAGE_KEYS, 0);
        loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision: at,
                ..Default::default()
            };
            let page: pb::RangeResponse = self.channels.call("KV/Range", request).await?;
            if at == 0 {
                load.revision = header(page.header);
                at = page.header.map_or(0, |header| header.revision);
            }
            let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            let last = page.kvs.last().map(|kv| kv.key.clone());
            load.entries.extend(page.kvs.into_iter().filter_map(|kv| self.keys.entry(kv)));
            let (true, Some(last)) = (page.more, last) else { return Ok(load) };
            key = Bytes::from([&last[..], &[0]].concat());
            let fitting = limit.saturating_mul(PAGE_BYTES as i64) / (bytes.max(1) as i64);
            limit = fitting.clamp(PAGE_KEYS_MIN, PAGE_KEYS_MAX);
        }
    }
}
