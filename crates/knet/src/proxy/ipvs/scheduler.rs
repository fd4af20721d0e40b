//! How IPVS chooses an endpoint.

use std::{fmt, str::FromStr};

/// How the kernel chooses among the endpoints of a Service: those of upstream's `--ipvs-scheduler`. Endpoints all have the weight 1, so that
/// the weighted ones differ from the others only in how they count connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// `rr`: one after the other.
    #[default]
    RoundRobin,
    /// `wrr`: one after the other, by weight.
    WeightedRoundRobin,
    /// `lc`: the one with the fewest connections.
    LeastConnection,
    /// `wlc`: the same by weight.
    WeightedLeastConnection,
    /// `lblc`: the one that has served the destination, unless it has too much to do.
    LocalityBased,
    /// `lblcr`: the same with several for a destination.
    LocalityBasedWithReplication,
    /// `sh`: by a hash of the client's address.
    SourceHashing,
    /// `dh`: by a hash of the destination's address.
    DestinationHashing,
    /// `sed`: the one that would be done first.
    ShortestExpectedDelay,
    /// `nq`: one with nothing to do, else as `sed`.
    NeverQueue,
    /// `mh`: by Maglev's hash of the client's address and port, which moves few clients when endpoints come or go.
    MaglevHashing,
}

/// Schedulers with the kernel's names.
const NAMES: [(Scheduler, &str); 11] = [
    (Scheduler::RoundRobin, "rr"),
    (Scheduler::WeightedRoundRobin, "wrr"),
    (Scheduler::LeastConnection, "lc"),
    (Scheduler::WeightedLeastConnection, "wlc"),
    (Scheduler::LocalityBased, "lblc"),
    (Scheduler::LocalityBasedWithReplication, "lblcr"),
    (Scheduler::SourceHashing, "sh"),
    (Scheduler::DestinationHashing, "dh"),
    (Scheduler::ShortestExpectedDelay, "sed"),
    (Scheduler::NeverQueue, "nq"),
    (Scheduler::MaglevHashing, "mh"),
];

impl Scheduler {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(scheduler, _)| *scheduler)
    }

    /// The kernel's name, such as `rr`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(scheduler, _)| *scheduler == self).map_or("rr", |(_, name)| name)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no scheduler of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no scheduler of IPVS: {0:?} (there are rr, wrr, lc, wlc, lblc, lblcr, sh, dh, sed, nq, mh)")]
pub struct UnknownScheduler(
    /// The name.
    pub String,
);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(scheduler, _)| *scheduler).ok_or_else(|| UnknownScheduler(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_upstream() {
        let names: Vec<&str> = Scheduler::all().map(Scheduler::name).collect();
        assert_eq!(names, ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"]);
        for scheduler in Scheduler::all() {
            assert_eq!(scheduler.to_string().parse(), Ok(scheduler));
        }
        let unknown = "fo".parse::<Scheduler>().unwrap_err();
        assert!(unknown.to_string().starts_with("no scheduler of IPVS: \"fo\""), "{unknown}");
    }
}
