//! Which images go when the disk is full, as upstream's image manager decides it.

use std::time::Duration;

use super::Digest;

/// When images are thrown away, and until when. The defaults are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectPolicy {
    /// From this use of the file system on, in percent, images are thrown away (`imageGCHighThresholdPercent`, 85).
    pub high_percent: u8,
    /// Until it is down to this (`imageGCLowThresholdPercent`, 80).
    pub low_percent: u8,
    /// Younger images stay (`imageMinimumGCAge`, 2 minutes).
    pub age_min: Duration,
    /// What was not used for so long goes in any case (`imageMaximumGCAge`); `None`, the default, means never.
    pub unused_max: Option<Duration>,
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: Duration::from_secs(120), unused_max: None }
    }
}

/// A file system's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All of them.
    pub capacity: u64,
    /// Those that are free.
    pub available: u64,
}

/// An image that no container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The digest of its manifest.
    pub image: Digest,
    /// What it takes on the disk.
    pub bytes: u64,
    /// How long ago it was used.
    pub unused: Duration,
    /// How long ago it came.
    pub age: Duration,
}

/// The images to throw away: those that were not used for longest first, until enough is free.
#[must_use]
pub fn plan_collection(candidates: &[Candidate], disk: Disk, policy: &CollectPolicy) -> Vec<Digest> {
    let mut candidates: Vec<_> =
        candidates.iter().filter(|candidate| candidate.age >= policy.age_min).collect();
    candidates.sort_by(|one, other| {
        (other.unused, other.age, &one.image).cmp(&(one.unused, one.age, &other.image))
    });
    let used = disk.capacity.saturating_sub(disk.available);
    let percent =
        |part: u8| u64::try_from(u128::from(disk.capacity) * u128::from(part) / 100).unwrap_or(u64::MAX);
    let mut to_free = if disk.capacity > 0 && used >= percent(policy.high_percent) {
        used.saturating_sub(percent(policy.low_percent))
    } else {
        0
    };
    let mut going = Vec::new();
    for candidate in candidates {
        let too_old = policy.unused_max.is_some_and(|most| candidate.unused > most);
        if too_old || to_free > 0 {
            to_free = to_free.saturating_sub(candidate.bytes);
            going.push(candidate.image.clone());
        }
    }
    going
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of upstream's `TestGarbageCollect*` in `pkg/kubelet/images/image_gc_manager_test.go`, as figures.
    #[test]
    fn the_longest_unused_go_first() {
        let candidate = |name: &str, bytes, unused, age| Candidate {
            image: Digest::of(name.as_bytes()),
            bytes,
            unused: Duration::from_secs(unused),
            age: Duration::from_secs(age),
        };
        let all = [
            candidate("new", 1000, 0, 60),
            candidate("old", 450, 500, 900),
            candidate("older", 200, 800, 900),
            candidate("recent", 500, 10, 900),
        ];
        let check = |available: u64, unused_max: Option<u64>, expected: &[&str]| {
            let unused_max = unused_max.map(Duration::from_secs);
            let policy = CollectPolicy { unused_max, ..CollectPolicy::default() };
            let found = plan_collection(&all, Disk { capacity: 10_000, available }, &policy);
            let expected: Vec<_> = expected.iter().map(|name| Digest::of(name.as_bytes())).collect();
            assert_eq!(found, expected, "{available} {unused_max:?}");
        };
        check(1600, None, &[]);
        check(1500, None, &["older", "old"]);
        check(1400, None, &["older", "old"]);
        check(1000, None, &["older", "old", "recent"]);
        check(0, None, &["older", "old", "recent"]);
        check(9000, Some(600), &["older"]);
        check(9000, Some(100), &["older", "old"]);
        check(9000, Some(900), &[]);
    }
}
