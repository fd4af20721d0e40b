//! Which keys of a table are meant.

use bytes::Bytes;

/// A range of keys in their order, byte by byte: `start` is in it, `end` is not.
///
/// ```
/// use kstore::Range;
/// assert!(Range::all().contains(b"a"));
/// assert!(Range::prefix("ns/").contains(b"ns/a") && !Range::prefix("ns/").contains(b"ns0"));
/// assert!(!Range::prefix("ns/").after("ns/a").contains(b"ns/a"));
/// assert!(Range::new("a", "c").contains(b"b") && !Range::new("a", "c").contains(b"c"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first key that can be in the range.
    pub start: Bytes,
    /// The first key after the range; none: to the end of the table.
    pub end: Option<Bytes>,
}

impl Range {
    /// Every key.
    pub fn all() -> Range {
        Range::default()
    }

    /// The keys from `start` up to but without `end`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Range {
        Range { start: start.into(), end: Some(end.into()) }
    }

    /// The keys from `start` on.
    pub fn from(start: impl Into<Bytes>) -> Range {
        Range { start: start.into(), end: None }
    }

    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Range {
        let start: Bytes = key.into();
        let end = successor(&start);
        Range { start, end: Some(end) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        let start: Bytes = prefix.into();
        let end = prefix_end(&start);
        Range { start, end }
    }

    /// The part of this range behind `key`, without it: where the next page begins.
    #[must_use]
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Range {
        let start = successor(key.as_ref());
        if start > self.start {
            self.start = start;
        }
        self
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// The smallest key that is greater than `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The smallest key that is greater than all that begin with `prefix`; none if there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_the_last_byte_has_no_end() {
        assert_eq!(Range::prefix(&b"\xff\xff"[..]).end, None);
        assert_eq!(Range::prefix(&b"a\xff"[..]).end, Some(Bytes::from_static(b"b")));
        assert_eq!(Range::prefix(&b""[..]), Range::all());
    }

    #[test]
    fn a_page_begins_behind_its_key_and_never_before_the_range() {
        assert_eq!(&Range::prefix("b").after("a").start[..], b"b");
        assert_eq!(&Range::prefix("b").after("bc").start[..], b"bc\0");
        assert!(Range::key("k").contains(b"k") && !Range::key("k").contains(b"k\0"));
    }
}
