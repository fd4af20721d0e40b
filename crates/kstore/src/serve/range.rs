//! Reading ranges of keys.

use std::{cmp::Ordering, sync::Arc};

use bytes::Bytes;
use tonic::Status;

use super::{Face, faults, number, unary::Effort};
use crate::{Entry, LeaseId, Range, ReadError, Revision, Snapshot, proto as pb};

/// So many keys are read where the connection is.
const FEW_KEYS_MAX: usize = 64;

/// The range that a key and an end mean in etcd: no end is the one key, an end of one zero byte is everything from the key on.
pub(super) fn range_of(key: &Bytes, end: &Bytes) -> Range {
    match &end[..] {
        [] => Range::key(key.clone()),
        [0] => Range::from(key.clone()),
        _ => Range::new(key.clone(), end.clone()),
    }
}

/// Bytes of their own: those of a request are a part of what its connection read, all of which would stay with them.
pub(super) fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub(super) fn key_value(entry: &Entry) -> pb::KeyValue {
    pb::KeyValue {
        key: entry.key().clone(),
        create_revision: number(entry.create().0),
        mod_revision: number(entry.modified().0),
        version: number(entry.version()),
        value: entry.value().clone(),
        lease: entry.lease().map_or(0, lease_number),
    }
}

/// Leases are signed numbers on the wire.
pub(super) fn lease_number(id: LeaseId) -> i64 {
    id.get().cast_signed()
}

pub(super) fn check(request: &pb::RangeRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(faults::empty_key());
    }
    let known = pb::SortOrder::try_from(request.sort_order).is_ok()
        && pb::SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(faults::bad_sort()) }
}

impl Face {
    /// Much is a range of many keys.
    pub(super) fn effort_of_range(&self, request: &pb::RangeRequest) -> Effort {
        let few = |count: usize| count <= FEW_KEYS_MAX;
        let limited = usize::try_from(request.limit).is_ok_and(|limit| limit > 0 && few(limit));
        let unsorted = request.sort_target == pb::SortTarget::Key as i32
            && request.sort_order != pb::SortOrder::Descend as i32;
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let limited = limited && unsorted && filters == [0; 4];
        if request.range_end.is_empty() || request.count_only || limited {
            return Effort::Little;
        }
        let range = range_of(&request.key, &request.range_end);
        match few(self.store.snapshot().count(self.table, range)) {
            true => Effort::Little,
            false => Effort::Much,
        }
    }

    pub(super) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        check(&request)?;
        let now = self.newest(request.serializable).await.map_err(|error| faults::of_store(&error))?;
        let mut response = self.read(&now, &request)?;
        response.header = Some(self.header(now.revision()));
        Ok(response)
    }

    /// The state that a request is about.
    pub(super) fn asked(&self, now: &Snapshot, revision: i64) -> Result<Snapshot, Status> {
        let Some(revision) = u64::try_from(revision).ok().filter(|revision| *revision > 0).map(Revision)
        else {
            return Ok(now.clone());
        };
        if revision > now.revision() {
            return Err(faults::future());
        }
        if revision < self.compacted(now) {
            return Err(faults::compacted());
        }
        self.at(now, revision).map_err(|error: ReadError| faults::of_read(&error))
    }

    pub(super) fn read(
        &self,
        now: &Snapshot,
        request: &pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Status> {
        let state = self.asked(now, request.revision)?;
        let range = range_of(&request.key, &request.range_end);
        if request.range_end.is_empty() {
            let found: Vec<_> = state.get(self.table, &request.key).into_iter().collect();
            return Ok(answer(found.len(), found.into_iter(), request));
        }
        if request.count_only {
            let count = state.count(self.table, range);
            return Ok(answer(count, std::iter::empty(), request));
        }
        let entries = state.range(self.table, range);
        Ok(answer(entries.len(), entries, request))
    }
}

/// The answer to a request that found `entries`, `count` of them, in the order of their keys.
pub(super) fn answer(
    count: usize,
    entries: impl Iterator<Item = Arc<Entry>>,
    request: &pb::RangeRequest,
) -> pb::RangeResponse {
    let mut response = pb::RangeResponse { count: number(count as u64), ..Default::default() };
    if request.count_only {
        return response;
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let keep = |entry: &Arc<Entry>| wanted(entry, request);
    let sorter = sorter(request);
    let shown = |entry: &Arc<Entry>| {
        let mut kv = key_value(entry);
        if request.keys_only {
            kv.value = Bytes::new();
        }
        kv
    };
    if let Some((compare, descending)) = sorter {
        let mut found: Vec<Arc<Entry>> = entries.filter(keep).collect();
        found.sort_by(|a, b| if descending { compare(b, a) } else { compare(a, b) });
        response.more = found.len() > limit;
        response.kvs = found.iter().take(limit).map(shown).collect();
    } else {
        let mut entries = entries.filter(keep);
        response.kvs = entries.by_ref().take(limit).map(|entry| shown(&entry)).collect();
        response.more = limit != usize::MAX && entries.next().is_some();
    }
    response
}

fn wanted(entry: &Entry, request: &pb::RangeRequest) -> bool {
    let within = |revision: Revision, min: i64, max: i64| {
        let revision = number(revision.0);
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    within(entry.modified(), request.min_mod_revision, request.max_mod_revision)
        && within(entry.create(), request.min_create_revision, request.max_create_revision)
}

type Compare = fn(&Arc<Entry>, &Arc<Entry>) -> Ordering;

/// How the answer is ordered, and whether backwards; none for the order of the keys, in which they are found.
fn sorter(request: &pb::RangeRequest) -> Option<(Compare, bool)> {
    let order = pb::SortOrder::try_from(request.sort_order).unwrap_or(pb::SortOrder::None);
    let target = pb::SortTarget::try_from(request.sort_target).unwrap_or(pb::SortTarget::Key);
    let compare: Compare = match target {
        pb::SortTarget::Key if order != pb::SortOrder::Descend => return None,
        pb::SortTarget::Key => |a, b| a.key().cmp(b.key()),
        pb::SortTarget::Version => |a, b| a.version().cmp(&b.version()),
        pb::SortTarget::Create => |a, b| a.create().cmp(&b.create()),
        pb::SortTarget::Mod => |a, b| a.modified().cmp(&b.modified()),
        pb::SortTarget::Value => |a, b| a.value().cmp(b.value()),
    };
    Some((compare, order == pb::SortOrder::Descend))
}
