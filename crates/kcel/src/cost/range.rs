//! Ranges of sizes and costs, whose arithmetic ends at the largest number.

/// An estimate: the least and the most that something costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// At least.
    pub min: u64,
    /// At most; `u64::MAX` where nothing limits it.
    pub max: u64,
}

/// A range of sizes or of costs.
pub(crate) type Range = Cost;

impl Cost {
    pub(crate) const UNKNOWN: Self = Self { min: 0, max: u64::MAX };
    pub(crate) const ZERO: Self = Self::fixed(0);

    pub(crate) const fn fixed(of: u64) -> Self {
        Self { min: of, max: of }
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) const fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Times a factor, rounded up.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self { min: scale(self.min, factor), max: scale(self.max, factor) }
    }

    /// The smallest range that holds both.
    pub(crate) fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

fn scale(of: u64, factor: f64) -> u64 {
    let scaled = (of as f64 * factor).ceil();
    // The conversion ends at the largest number by itself.
    scaled as u64
}
