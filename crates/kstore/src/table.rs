//! Tables: names for key spaces, and how their entries are indexed and their history is limited.

use std::{fmt, sync::Arc, time::Duration};

use crate::Entry;

/// How many tables a store holds at most.
pub const TABLES_MAX: usize = 65_536;
/// How many distinct terms an index function may give one entry.
pub const TERMS_MAX: usize = 1_024;

/// A handle on a table, got from [`Store::open_table`](crate::Store::open_table); it is valid for that store and its
/// forks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub(crate) u32);

impl TableId {
    /// The place of the table in the order in which tables were opened, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an entry can be found and watched under, besides its key: a node's name, a namespace, an owner.
///
/// kstore compares terms byte by byte and knows nothing of their meaning. Cloning costs a reference count.
///
/// ```
/// use kstore::Term;
/// assert_eq!(Term::from("spec.nodeName=a"), Term::from(b"spec.nodeName=a".to_vec()));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(Arc<[u8]>);

impl Term {
    /// The bytes of the term.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Term {
    fn from(text: &str) -> Term {
        Term(text.as_bytes().into())
    }
}

impl From<String> for Term {
    fn from(text: String) -> Term {
        Term(text.into_bytes().into())
    }
}

impl From<&[u8]> for Term {
    fn from(bytes: &[u8]) -> Term {
        Term(bytes.into())
    }
}

impl From<Vec<u8>> for Term {
    fn from(bytes: Vec<u8>) -> Term {
        Term(bytes.into())
    }
}

impl std::borrow::Borrow<[u8]> for Term {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Term(\"{}\")", self.0.escape_ascii())
    }
}

/// Names the terms of an entry. Opaque to kstore; given by whoever opens the table.
///
/// It is called once per entry, inside the commit that makes it and in turn with all other commits, so it must be quick
/// and must not wait: hand what is already known in through the operation's `hint`. The entry is complete (key, value,
/// revisions, hint), and may be given its derived value here. The terms must follow from key, value and hint alone:
/// the same entry is indexed anew after a restore. Terms may come in any order and repeat; more than [`TERMS_MAX`]
/// distinct ones refuse the commit.
///
/// # Panics
/// If it panics, so does that commit; the store has not changed and goes on.
pub trait IndexFn: Send + Sync {
    /// Pushes the terms under which `entry` is found.
    fn terms(&self, entry: &Entry, terms: &mut Vec<Term>);
}

/// Makes an [`IndexFn`] of a closure.
///
/// ```
/// use kstore::{TableSpec, Term, index_fn};
/// let spec = TableSpec::new("pods").index(index_fn(|entry, terms| terms.push(Term::from(&entry.value()[..1]))));
/// assert_eq!(spec.name, "pods");
/// ```
pub fn index_fn<F>(function: F) -> Arc<dyn IndexFn>
where
    F: Fn(&Entry, &mut Vec<Term>) + Send + Sync + 'static,
{
    struct Closure<F>(F);
    impl<F: Fn(&Entry, &mut Vec<Term>) + Send + Sync> IndexFn for Closure<F> {
        fn terms(&self, entry: &Entry, terms: &mut Vec<Term>) {
            (self.0)(entry, terms)
        }
    }
    Arc::new(Closure(function))
}

/// How much of a table's past is kept for watches that resume and for reads at earlier revisions.
///
/// The oldest history goes first, as soon as one of the limits is passed. Live entries are never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Events kept at most. Default: [`HistoryLimits::EVENTS_MAX`].
    pub events_max: usize,
    /// Bytes of superseded keys and values kept at most. Default: [`HistoryLimits::BYTES_MAX`].
    pub bytes_max: usize,
    /// How old the oldest event may get, looked at with each commit. Default: [`HistoryLimits::AGE_MAX`].
    pub age_max: Duration,
}

impl HistoryLimits {
    /// The default number of events.
    pub const EVENTS_MAX: usize = 262_144;
    /// The default number of bytes.
    pub const BYTES_MAX: usize = 256 * 1024 * 1024;
    /// The default age: what etcd keeps under Kubernetes, whose compaction interval is five minutes, and its slack.
    pub const AGE_MAX: Duration = Duration::from_secs(10 * 60);
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits {
            events_max: HistoryLimits::EVENTS_MAX,
            bytes_max: HistoryLimits::BYTES_MAX,
            age_max: HistoryLimits::AGE_MAX,
        }
    }
}

/// What a crash may cost a table. It matters to engines that keep things on a disk; the others ignore it.
///
/// Whatever is lost, no revision is ever given out twice: after a crash the store goes on above every revision that anybody may
/// have seen, and watches that may have missed something are told so.
///
/// ```
/// use std::time::Duration;
/// use kstore::{Durability, TableSpec};
/// let heartbeats = TableSpec::new("leases").durability(Durability::Relaxed { max_loss: Duration::from_secs(1) });
/// assert_ne!(heartbeats.durability, Durability::Sync);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: a commit is answered when it is on the disk.
    #[default]
    Sync,
    /// The commits of the last `max_loss`: they are answered at once and written together with others, or when that time is
    /// over. A transaction that touches a `Sync` table too is `Sync`.
    Relaxed {
        /// How much time's commits may be lost.
        max_loss: Duration,
    },
    /// Everything: the table is empty after a restart, and its entries are never written.
    Memory,
}

/// What a table is: its name, its index, the limits of its history.
#[derive(Clone)]
#[non_exhaustive]
pub struct TableSpec {
    /// The name, unique in the store.
    pub name: String,
    /// Names the terms of the table's entries; none by default.
    pub index: Option<Arc<dyn IndexFn>>,
    /// How much of the past is kept.
    pub history: HistoryLimits,
    /// What a crash may cost; nothing by default.
    pub durability: Durability,
}

impl TableSpec {
    /// A table without an index and with the default history.
    pub fn new(name: impl Into<String>) -> TableSpec {
        TableSpec {
            name: name.into(),
            index: None,
            history: HistoryLimits::default(),
            durability: Durability::Sync,
        }
    }

    /// Sets the index function.
    #[must_use]
    pub fn index(mut self, index: Arc<dyn IndexFn>) -> TableSpec {
        self.index = Some(index);
        self
    }

    /// Sets the limits of the history.
    #[must_use]
    pub fn history(mut self, history: HistoryLimits) -> TableSpec {
        self.history = history;
        self
    }

    /// Sets what a crash may cost.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> TableSpec {
        self.durability = durability;
        self
    }
}

impl fmt::Debug for TableSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSpec")
            .field("name", &self.name)
            .field("indexed", &self.index.is_some())
            .field("history", &self.history)
            .field("durability", &self.durability)
            .finish()
    }
}
