//! Which backend and which endpoint gets a request: pure functions of random numbers.

use std::net::SocketAddr;

use super::rule::Backend;

/// The backend for a random number, in proportion to the weights; `None` when nobody has any.
pub(super) fn pick_backend(backends: &[Backend], random: u64) -> Option<&Backend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let mut left = random.checked_rem(total)?;
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    })
}

/// The endpoint for a random number: of two that were not tried the one that has less to do ("the power of two choices").
pub(super) fn pick_endpoint(
    endpoints: &[SocketAddr],
    tried: &[SocketAddr],
    load: impl Fn(SocketAddr) -> usize,
    random: u64,
) -> Option<SocketAddr> {
    let count = endpoints.len();
    let start = usize::try_from(random >> 32).unwrap_or(0).checked_rem(count)?;
    let mut free = (0..count).map(|step| endpoints[(start + step) % count]).filter(|e| !tried.contains(e));
    let first = free.next()?;
    let others = free.clone().count();
    let skip = usize::try_from(random & 0xffff_ffff).unwrap_or(0).checked_rem(others).unwrap_or(0);
    let second = free.nth(skip).unwrap_or(first);
    Some(if second != first && load(second) < load(first) { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_shares() {
        let backend = |name: &str, weight| Backend {
            name: name.into(),
            weight,
            protocol: Default::default(),
            tls: None,
            endpoints: None,
            filters: Vec::new(),
        };
        let all = [backend("a", 3), backend("none", 0), backend("b", 1)];
        let picked: Vec<_> = (0..8).map(|random| &*pick_backend(&all, random).unwrap().name).collect();
        assert_eq!(picked, ["a", "a", "a", "b", "a", "a", "a", "b"]);
        assert!(pick_backend(&all[1..2], 1).is_none() && pick_backend(&[], 1).is_none());
    }

    #[test]
    fn the_less_busy_of_two_is_taken_and_none_twice() {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let all = [at(1), at(2), at(3)];
        let load = |endpoint: SocketAddr| if endpoint == at(1) { 5 } else { 0 };
        for random in (0..64_u64).map(|n| (n << 32) | (n * 7)) {
            assert_ne!(pick_endpoint(&all[..2], &[], load, random), Some(at(1)));
            assert_eq!(pick_endpoint(&all, &[at(2), at(3)], load, random), Some(at(1)));
            assert_eq!(pick_endpoint(&all, &all, load, random), None);
            assert_eq!(pick_endpoint(&[], &[], load, random), None);
        }
        // With equal loads everyone gets something.
        let picked: std::collections::BTreeSet<_> =
            (0..3_u64).filter_map(|n| pick_endpoint(&all, &[], |_| 0, n << 32)).collect();
        assert_eq!(picked.len(), 3);
    }
}
