//! The reference: all events in a list, everything else worked out from it anew each time.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{Random, validate::Validator};
use crate::{
    CommitError, Compare, Entry, Event, EventKind, Interest, Op, Range, Revision, Snapshot, Store, TableId,
    TableSpec, Term, Txn, WatchRequest, index_fn,
};

/// What the model knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The value.
    pub value: Bytes,
    /// When it was created.
    pub create: Revision,
    /// When it was written last.
    pub modified: Revision,
    /// How often it was written since.
    pub version: u64,
}

impl State {
    /// The state that an entry of a store shows.
    pub fn of(entry: &Entry) -> State {
        State {
            value: entry.value().clone(),
            create: entry.create(),
            modified: entry.modified(),
            version: entry.version(),
        }
    }
}

/// One change: the new state, or none for a deletion.
#[derive(Clone, Debug)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// In which table.
    pub table: TableId,
    /// Of which key.
    pub key: Bytes,
    /// The state after it.
    pub state: Option<State>,
}

/// A store of few words and no speed.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Everything that happened, in order.
    pub changes: Vec<Change>,
    /// Where it is.
    pub revision: Revision,
}

impl Model {
    /// A model of a store in which nothing is, and which is at `revision`.
    pub fn new(revision: Revision) -> Model {
        Model { changes: Vec::new(), revision }
    }

    /// The table as it was at a revision.
    pub fn at(&self, table: TableId, revision: Revision) -> BTreeMap<Bytes, State> {
        let mut states = BTreeMap::new();
        for change in
            self.changes.iter().filter(|change| change.table == table && change.revision <= revision)
        {
            match &change.state {
                Some(state) => states.insert(change.key.clone(), state.clone()),
                None => states.remove(&change.key),
            };
        }
        states
    }

    fn now(&self, table: TableId, key: &Bytes) -> Option<State> {
        self.at(table, self.revision).remove(key)
    }

    /// Does a transaction whose operations are sound; the first comparison that fails otherwise. Comparisons of leases
    /// and of relations are not its matter.
    ///
    /// # Panics
    /// If there is such a comparison.
    pub fn commit(&mut self, txn: &Txn) -> Result<Revision, usize> {
        for (index, compare) in txn.compares().iter().enumerate() {
            let (table, key) = compare.target();
            let state = self.now(table, key);
            let holds = match compare {
                Compare::Absent { .. } => state.is_none(),
                Compare::Exists { .. } => state.is_some(),
                Compare::ModifiedAt { revision, .. } => {
                    state.is_some_and(|state| state.modified == *revision)
                }
                Compare::CreatedAt { revision, .. } => state.is_some_and(|state| state.create == *revision),
                Compare::VersionIs { version, .. } => state.is_some_and(|state| state.version == *version),
                Compare::ValueIs { value, .. } => state.is_some_and(|state| state.value == *value),
                Compare::LeaseIs { .. } | Compare::Is { .. } => panic!("the model has no such comparison"),
            };
            if !holds {
                return Err(index);
            }
        }
        let revision = self.revision.next();
        let mut changes = Vec::new();
        for op in txn.ops() {
            match op {
                Op::Put { table, key, value, .. } => {
                    let old = self.now(*table, key);
                    let state = State {
                        value: value.clone(),
                        create: old.as_ref().map_or(revision, |old| old.create),
                        modified: revision,
                        version: old.map_or(0, |old| old.version) + 1,
                    };
                    changes.push(Change { revision, table: *table, key: key.clone(), state: Some(state) });
                }
                Op::Delete { table, key } => {
                    if self.now(*table, key).is_some() {
                        changes.push(Change { revision, table: *table, key: key.clone(), state: None });
                    }
                }
                Op::DeleteRange { table, range } => {
                    for key in self.at(*table, self.revision).into_keys().filter(|key| range.contains(key)) {
                        changes.push(Change { revision, table: *table, key, state: None });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.changes.extend(changes);
        }
        Ok(self.revision)
    }

    /// Compares a snapshot with the model at the snapshot's revision: every key, every range, every term, every event.
    ///
    /// # Panics
    /// If they differ.
    pub fn check(&self, snapshot: &Snapshot, tables: &[TableId]) {
        let revision = snapshot.revision();
        for table in tables.iter().copied() {
            let expected = self.at(table, revision);
            let found: BTreeMap<Bytes, State> = snapshot
                .range(table, Range::all())
                .map(|entry| (entry.key().clone(), State::of(&entry)))
                .collect();
            assert_eq!(found, expected, "the table at revision {revision}");
            assert_eq!(snapshot.len(table), expected.len());
            for key in expected.keys() {
                assert!(snapshot.get(table, key).is_some(), "a listed key can be had");
                let range = Range::from(key.clone());
                let rest = expected.range(key.clone()..).count();
                assert_eq!(snapshot.count(table, &range), rest, "the count of {range:?}");
                assert_eq!(snapshot.range(table, &range).count(), rest);
            }
            for term in (b'0'..=b'3').map(|first| Term::from(vec![first])) {
                let found: Vec<Bytes> =
                    snapshot.by_term(table, &term).map(|entry| entry.key().clone()).collect();
                let has_term = |state: &State| state.value.starts_with(term.as_bytes());
                let expected: Vec<Bytes> = expected
                    .iter()
                    .filter(|(_, state)| has_term(state))
                    .map(|(key, _)| key.clone())
                    .collect();
                assert_eq!(found, expected, "the entries of {term:?} at revision {revision}");
            }
            let last =
                self.changes.iter().rev().find(|change| change.table == table && change.revision <= revision);
            let last = last.map_or(Revision::ZERO, |change| change.revision);
            assert_eq!(snapshot.table_revision(table), last, "the last change of the table");
            self.check_events(snapshot, table);
        }
    }

    fn check_events(&self, snapshot: &Snapshot, table: TableId) {
        let floor = snapshot.table_floor(table);
        let Ok(events) = snapshot.events(table, floor) else {
            panic!("events can be read from the floor on")
        };
        let mut events = events.into_iter();
        let in_view = |change: &&Change| {
            change.table == table && change.revision > floor && change.revision <= snapshot.revision()
        };
        for change in self.changes.iter().filter(in_view) {
            let Some(event) = events.next() else { panic!("the event of {change:?} is missing") };
            assert_eq!((event.revision, event.entry.key()), (change.revision, &change.key));
            assert_eq!(event.kind == EventKind::Put, change.state.is_some(), "{event:?}");
            let before = self.at(table, change.revision.previous()).remove(&change.key);
            assert_eq!(event.previous.as_deref().map(State::of), before, "what was before {event:?}");
            check_entry(&event, change, before);
        }
        assert!(events.next().is_none(), "an event that nobody made");
    }
}

fn check_entry(event: &Event, change: &Change, before: Option<State>) {
    match &change.state {
        Some(state) => assert_eq!(State::of(&event.entry), *state),
        None => {
            let last = before.map(|state| State { modified: change.revision, ..state });
            assert_eq!(Some(State::of(&event.entry)), last, "a tombstone carries the last state");
            assert!(event.entry.is_tombstone());
        }
    }
}

/// The specification of a table whose entries are found under the first byte of their value, as [`Model::check`] expects.
pub fn table_by_first_byte(name: &str) -> TableSpec {
    TableSpec::new(name).index(index_fn(|entry, terms| terms.extend(entry.value().get(..1).map(Term::from))))
}

/// A transaction out of a small world: two tables, few keys, so that things collide.
pub fn random_txn(random: &mut Random, tables: [TableId; 2], revision: Revision) -> Txn {
    let mut txn = Txn::new();
    let key = |random: &mut Random| Bytes::from(format!("k{:02}", random.below(24)));
    let table = |random: &mut Random| tables[random.below(2) as usize];
    if random.happens(400) {
        let (table, key) = (table(random), key(random));
        let recent = Revision(revision.get().saturating_sub(random.below(6)));
        txn = txn.compare(match random.below(6) {
            0 => Compare::Absent { table, key },
            1 => Compare::Exists { table, key },
            2 => Compare::ModifiedAt { table, key, revision: recent },
            3 => Compare::CreatedAt { table, key, revision: recent },
            4 => Compare::VersionIs { table, key, version: 1 + random.below(3) },
            _ => Compare::ValueIs { table, key, value: value(random) },
        });
    }
    for _ in 0..1 + random.below(3) {
        let table = table(random);
        txn = txn.op(match random.below(10) {
            0..6 => Op::put(table, key(random), value(random)),
            6..9 => Op::delete(table, key(random)),
            _ => {
                let start = random.below(24);
                let range = Range::new(format!("k{start:02}"), format!("k{:02}", start + random.below(6)));
                Op::DeleteRange { table, range }
            }
        });
    }
    txn
}

fn value(random: &mut Random) -> Bytes {
    format!("{}-{}", random.below(4), random.below(3)).into()
}

/// Random commits and compactions do what the model says, as seen by reads at every revision and by watches of each kind.
pub async fn agrees_with_the_model(store: Arc<dyn Store>, seed: u64) {
    let open = |name| store.open_table(table_by_first_byte(name)).unwrap_or_else(|error| panic!("{error}"));
    let tables = [open("a"), open("b")];
    let interests = [
        Interest::All,
        Interest::Term(Term::from("1")),
        Interest::Key(Bytes::from_static(b"k07")),
        Interest::Prefix(Bytes::from_static(b"k1")),
    ];
    let begin = store.snapshot().revision();
    let mut watches = Vec::new();
    for (table, interest) in
        tables.iter().flat_map(|table| interests.iter().map(move |interest| (*table, interest)))
    {
        let request = WatchRequest::new(table, begin).interest(interest.clone());
        let watch = store.watch(request.clone()).unwrap_or_else(|error| panic!("{error}"));
        watches.push((watch, Validator::new(&store.snapshot(), request)));
    }
    let mut random = Random::new(seed);
    let mut model = Model::new(begin);
    for step in 0..120 {
        let txn = random_txn(&mut random, tables, model.revision);
        match (store.commit(txn.clone()).await, model.commit(&txn)) {
            (Ok(committed), Ok(revision)) => assert_eq!(committed.revision, revision, "seed {seed}: {txn:?}"),
            (Err(CommitError::Conflict { index, revision, .. }), Err(expected)) => {
                assert_eq!((index, revision), (expected, model.revision), "seed {seed}: {txn:?}");
            }
            // Random operations may touch a key twice; that is refused, so the model must forget it.
            (Err(CommitError::RepeatedKey { .. }), _) => {
                model.changes.retain(|change| change.revision <= store.snapshot().revision());
                model.revision = store.snapshot().revision();
            }
            (found, expected) => panic!("seed {seed}: {txn:?} gave {found:?}, not {expected:?}"),
        }
        if step % 10 == 9 {
            model.check(&store.snapshot(), &tables);
            let floor = store.snapshot().floor();
            let back = Revision(floor.get() + random.below(model.revision.get() - floor.get() + 1));
            match store.snapshot_at(back) {
                Ok(past) => model.check(&past, &tables),
                Err(error) => panic!("seed {seed}: {back} is not below the floor {floor}: {error}"),
            }
        }
        if step % 40 == 39 {
            for (watch, validator) in &mut watches {
                validator.drain(watch, &store.snapshot());
            }
            let floor = begin.plus(random.below(model.revision.get() - begin.get() + 1));
            store.compact(floor).await.unwrap_or_else(|error| panic!("{error}"));
            store.snapshot().verify().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}
