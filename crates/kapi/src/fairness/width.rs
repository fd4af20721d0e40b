//! How many seats a request takes: a list as many as the bytes that it holds in memory (upstream's
//! `SizeBasedListCostEstimate`), everything else one.
//!
//! Upstream lets writes keep seats for a while after their answer, for the events that go to the watchers. Here an event costs
//! less than a microsecond for each watcher, which no seat could express.

use kstore::Range;

use crate::{objects::Objects, request::RequestInfo};

/// How many bytes a seat stands for (`bytesPerSeat`).
const BYTES_PER_SEAT: usize = 100_000;
/// The most bytes that a list is counted with, as it is sent in pieces (`cacheWithStreamingMaxMemoryUsage`).
const LIST_BYTES_MAX: usize = 1_000_000;
/// How many objects are weighed to know what one weighs.
const SAMPLE: usize = 8;

/// The seats that a request would take. `limit` is what it says itself about its length.
pub(super) fn of(objects: &Objects, request: &RequestInfo, limit: Option<&str>) -> usize {
    if request.verb != "list" || !request.name.is_empty() {
        return 1;
    }
    let Some(resource) = objects.registry().find(&request.group, &request.version, &request.resource) else {
        // Who serves it pays for it.
        return 1;
    };
    let snapshot = objects.snapshot();
    let stored = snapshot.len(resource.table);
    let sizes = snapshot.range(resource.table, Range::all()).take(SAMPLE).map(|entry| entry.value().len());
    let (count, bytes) = sizes.fold((0, 0_usize), |(count, bytes), size| (count + 1, bytes + size));
    let limit = limit.and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    seats(limit.map_or(stored, |limit: usize| limit.min(stored)), bytes.div_ceil(count.max(1)))
}

fn seats(listed: usize, size: usize) -> usize {
    listed.saturating_mul(size).min(LIST_BYTES_MAX).div_ceil(BYTES_PER_SEAT).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_by_bytes() {
        // (objects, bytes of each, seats), as upstream's list estimator gives them for a list from the cache.
        for (listed, size, expected) in [
            (0, 0, 1),
            (1, 100, 1),
            (100, 1_000, 1),
            (101, 1_000, 2),
            (500, 1_000, 5),
            (10_000, 10_000, 10),
            (usize::MAX, 2, 10),
        ] {
            assert_eq!(seats(listed, size), expected, "{listed} {size}");
        }
    }
}
