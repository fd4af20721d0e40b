//! The one number line of a store.

use std::fmt;

/// A point in the history of a store: every commit that changes something takes the next one.
///
/// There is one line of revisions for all tables, strictly increasing and without gaps within one store. `ZERO` is the
/// revision of a store in which nothing was ever written. (The rule is etcd's; Kubernetes' `resourceVersion` is this
/// number in decimal.)
///
/// ```
/// use kstore::Revision;
/// assert_eq!(Revision::ZERO.next(), Revision(1));
/// assert_eq!(Revision(7).to_string(), "7");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Revision = Revision(0);

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision after this one; the last one there can be stays itself.
    pub const fn next(self) -> Revision {
        Revision(self.0.saturating_add(1))
    }

    /// The revision so many steps after this one.
    #[must_use]
    pub const fn plus(self, steps: u64) -> Revision {
        Revision(self.0.saturating_add(steps))
    }

    /// The revision before this one; `ZERO` stays itself.
    pub const fn previous(self) -> Revision {
        Revision(self.0.saturating_sub(1))
    }
}

impl From<u64> for Revision {
    fn from(number: u64) -> Revision {
        Revision(number)
    }
}

impl From<Revision> for u64 {
    fn from(revision: Revision) -> u64 {
        revision.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
