//! What simulated containers use: an amount that changes in steps, and its sum over time.

use std::time::Duration;

use jiff::Timestamp;
use kcore::Quantity;

use super::parse_duration;

/// How many steps a load may have.
pub const LOAD_STEPS_MAX: usize = 1000;

/// An amount over time, in steps. The default is nothing at all times.
///
/// ```
/// use kruntime::runtime::simulated::Load;
/// use std::time::Duration;
///
/// let load = Load::parse("100m,60s=2,5m=0", |cpu| cpu.milli()).unwrap();
/// let after = |seconds| load.at(Duration::from_secs(seconds));
/// assert_eq!([after(0), after(59), after(60), after(300)], [100, 100, 2000, 0]);
/// assert_eq!(load.sum(Duration::from_secs(61)), 100 * 60 + 2000);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// From when on, and how much; in the order of their times.
    steps: Vec<(Duration, u64)>,
}

impl Load {
    /// The same amount at all times.
    #[must_use]
    pub fn constant(amount: u64) -> Self {
        Self { steps: vec![(Duration::ZERO, amount)] }
    }

    /// Reads steps with a comma between: each an amount, with the time after the start from which it holds and `=` before
    /// it unless that is the start. `None` if one can't be read, or there are more than [`LOAD_STEPS_MAX`].
    #[must_use]
    pub fn parse(text: &str, unit: impl Fn(&Quantity) -> i64) -> Option<Self> {
        let read = |step: &str| {
            let (after, amount) = match step.split_once('=') {
                Some((after, amount)) => (parse_duration(after)?, amount),
                None => (Duration::ZERO, step),
            };
            Some((after, u64::try_from(unit(&Quantity::parse(amount.trim()).ok()?)).ok()?))
        };
        let mut steps = text.split(',').take(LOAD_STEPS_MAX + 1).map(read).collect::<Option<Vec<_>>>()?;
        steps.sort_by_key(|(after, _)| *after);
        (steps.len() <= LOAD_STEPS_MAX).then_some(Self { steps })
    }

    /// The amount at this time after the start.
    #[must_use]
    pub fn at(&self, after: Duration) -> u64 {
        self.steps.iter().rev().find(|(from, _)| *from <= after).map_or(0, |(_, amount)| *amount)
    }

    /// The sum up to this time after the start, in amounts times seconds.
    #[must_use]
    pub fn sum(&self, until: Duration) -> u64 {
        u64::try_from(self.nanoseconds(until) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    fn nanoseconds(&self, until: Duration) -> u128 {
        let ends = self.steps.iter().skip(1).map(|(from, _)| *from).chain([Duration::MAX]);
        let each = self.steps.iter().zip(ends).map(|((from, amount), end)| {
            end.min(until).saturating_sub(*from).as_nanos().saturating_mul(u128::from(*amount))
        });
        each.fold(0, u128::saturating_add)
    }
}

/// How long something has lasted.
pub(super) fn since(start: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(start).try_into().unwrap_or_default()
}

/// Counts the processor time that a load takes.
#[derive(Debug)]
pub(super) struct Meter {
    load: Load,
    since: Timestamp,
    before: Duration,
}

impl Meter {
    pub(super) fn new(load: Load, now: Timestamp) -> Self {
        Self { load, since: now, before: Duration::ZERO }
    }

    /// Another load from now on.
    pub(super) fn change(&mut self, load: Load, now: Timestamp) {
        *self = Self { load, since: now, before: self.total(now) };
    }

    /// All processor time up to now.
    pub(super) fn total(&self, now: Timestamp) -> Duration {
        // Thousandths of a core times nanoseconds.
        let nanoseconds = self.load.nanoseconds(since(self.since, now)) / 1000;
        self.before.saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read() {
        let steps = |text: &str| Load::parse(text, |cpu| cpu.milli()).map(|load| load.steps);
        let second = Duration::from_secs(1);
        for (text, expected) in [
            ("1", Some(vec![(Duration::ZERO, 1000)])),
            ("250m", Some(vec![(Duration::ZERO, 250)])),
            ("2m=1, 1s=2", Some(vec![(second, 2000), (second * 120, 1000)])),
            ("2m=1,1s=2", Some(vec![(second, 2000), (second * 120, 1000)])),
            ("-1", None),
            ("", None),
            ("soon=1", None),
        ] {
            assert_eq!(steps(text), expected, "{text}");
        }
        assert_eq!(steps(&vec!["1"; LOAD_STEPS_MAX + 1].join(",")), None);
    }

    #[test]
    fn a_meter_counts_on_when_the_load_changes() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut meter = Meter::new(Load::constant(500), at(100));
        meter.change(Load::constant(2000), at(110));
        assert_eq!([100, 110, 111].map(|second| meter.total(at(second)).as_secs()), [5, 5, 7]);
    }
}
