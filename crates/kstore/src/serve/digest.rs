//! How much there is and what it comes to, for `Status` and `Hash`: followed through the table's log instead of looking at every
//! key each time.

use bytes::Bytes;

use crate::{Entry, Event, EventKind, Range, Revision, Snapshot, TableId, checksum::crc32c};

/// Size and checksum of a table at one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    revision: Revision,
    /// Of keys and values.
    pub(super) bytes: u64,
    /// The sum of the checksums of all entries: the same for equal contents, whichever way they came about.
    pub(super) hash: u32,
}

impl Digest {
    /// Of a state, by a look at each of its entries.
    fn of(state: &Snapshot, table: TableId) -> Digest {
        let mut digest = Digest { revision: state.revision(), ..Digest::default() };
        state.range(table, Range::all()).for_each(|entry| digest.add(&entry));
        digest
    }

    fn add(&mut self, entry: &Entry) {
        self.bytes = self.bytes.wrapping_add(bytes(entry));
        self.hash = self.hash.wrapping_add(hash(entry));
    }

    fn take(&mut self, entry: &Entry) {
        self.bytes = self.bytes.wrapping_sub(bytes(entry));
        self.hash = self.hash.wrapping_sub(hash(entry));
    }

    /// Goes on to the newest of `now`. Costs what has changed since, or a look at everything where that isn't known any more.
    pub(super) fn follow(&mut self, now: &Snapshot, table: TableId) {
        if now.revision() <= self.revision && self.revision != Revision::ZERO {
            return;
        }
        match now.events(table, self.revision) {
            // Everything there is has come since revision 0, if that is still known.
            Ok(events) => {
                for Event { kind, entry, previous, .. } in &events {
                    if let Some(previous) = previous {
                        self.take(previous);
                    }
                    if *kind == EventKind::Put {
                        self.add(entry);
                    }
                }
                self.revision = now.revision();
            }
            Err(_) => *self = Digest::of(now, table),
        }
    }

    /// What it was at an earlier revision than it is, which `state` shows.
    pub(super) fn before(mut self, now: &Snapshot, state: &Snapshot, table: TableId) -> Digest {
        if state.revision() >= self.revision {
            return self;
        }
        match now.events(table, state.revision()) {
            Ok(events) => {
                for Event { kind, entry, previous, .. } in &events {
                    if *kind == EventKind::Put {
                        self.take(entry);
                    }
                    if let Some(previous) = previous {
                        self.add(previous);
                    }
                }
                Digest { revision: state.revision(), ..self }
            }
            Err(_) => Digest::of(state, table),
        }
    }
}

fn bytes(entry: &Entry) -> u64 {
    (entry.key().len() + entry.value().len()) as u64
}

fn hash(entry: &Entry) -> u32 {
    let field = |hash, bytes: &Bytes| crc32c(crc32c(hash, &(bytes.len() as u64).to_le_bytes()), bytes);
    let numbers = [entry.create().0, entry.modified().0, entry.version()];
    let hash = numbers.iter().fold(0, |hash, number| crc32c(hash, &number.to_le_bytes()));
    field(field(hash, entry.key()), entry.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, Op, Store, TableSpec, Txn, testing::Random};

    #[tokio::test]
    async fn what_is_followed_is_what_is_there() {
        let store = MemoryStore::new();
        let table = store.open_table(TableSpec::new("t")).unwrap();
        let mut random = Random::new(1);
        let mut digest = Digest::default();
        for step in 0..600 {
            let key = format!("{}", random.below(40));
            let op = match random.happens(700) {
                true => Op::put(table, key, vec![b'v'; random.below(50) as usize]),
                false => Op::delete(table, key),
            };
            store.commit(Txn::new().op(op)).await.unwrap();
            let now = store.snapshot();
            if step == 300 {
                // What has changed since the last look is not known any more.
                store.compact(now.revision()).await.unwrap();
            }
            if random.happens(300) {
                let now = store.snapshot();
                digest.follow(&now, table);
                assert_eq!(digest, Digest::of(&now, table), "step {step}");
                let earlier = Revision(now.revision().0.saturating_sub(random.below(20)).max(now.floor().0));
                let state = now.at_table(table, earlier).unwrap();
                let before = digest.before(&now, &state, table);
                assert_eq!((before.bytes, before.hash), {
                    let whole = Digest::of(&state, table);
                    (whole.bytes, whole.hash)
                });
            }
        }
    }
}
