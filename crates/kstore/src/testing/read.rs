//! What is promised of snapshots and tables.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{
    Random,
    commit::{done, open},
    model::{Model, random_txn, table_by_first_byte},
};
use crate::{CommitError, Op, Range, ReadError, Store, StoreError, TableSpec, Term, Txn, index_fn};

/// A list taken while others write has every key that is older than the list's revision. (mem_etcd handed the revision out
/// before the key was in its tree: 5 of 151 lists lacked a key.)
pub async fn lists_lack_nothing(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let begin = store.snapshot().revision();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    done(&store, Txn::create(table, format!("{writer}/{number:06}"), "")).await;
                    number += 1;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..200 {
        let snapshot = store.snapshot();
        // Every commit makes one key, so that a whole list has as many keys as its revision says.
        let entries: Vec<_> = snapshot.range(table, Range::all()).collect();
        assert_eq!(
            entries.len() as u64,
            snapshot.revision().get() - begin.get(),
            "a list at {} lacks keys",
            snapshot.revision()
        );
        assert!(entries.iter().all(|entry| entry.modified() <= snapshot.revision()));
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A snapshot, and an iterator over it, show what they showed, whatever happens after.
pub async fn snapshots_stay_as_they_are(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let begin = store.snapshot().revision();
    for number in 0..200 {
        done(&store, Txn::create(table, format!("k{number:03}"), "old")).await;
    }
    let snapshot = store.snapshot();
    let mut entries = snapshot.range(table, Range::all());
    let first = entries.next().map(|entry| entry.key().clone());
    assert_eq!(first, Some(Bytes::from_static(b"k000")));
    let op = Op::DeleteRange { table, range: Range::new("k000", "k100") };
    done(&store, Txn::new().op(op)).await;
    for number in 100..200 {
        done(&store, Txn::new().op(Op::put(table, format!("k{number:03}"), "new"))).await;
    }
    store.compact(store.snapshot().revision()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(entries.len(), 199);
    assert!(entries.all(|entry| &entry.value()[..] == b"old"));
    assert_eq!((snapshot.len(table), snapshot.revision()), (200, begin.plus(200)));
    assert_eq!(store.snapshot().len(table), 100);
}

/// Ranges, pages and counts agree with one another and with the keys that are there.
pub async fn ranges_and_counts_agree(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let mut random = Random::new(3);
    let mut keys = BTreeMap::new();
    for _ in 0..600 {
        let key = Bytes::from(format!("{:03}", random.below(400)));
        if random.happens(300) {
            done(&store, Txn::new().op(Op::delete(table, key.clone()))).await;
            keys.remove(&key);
        } else {
            let revision = done(&store, Txn::new().op(Op::put(table, key.clone(), ""))).await;
            keys.insert(key, revision);
        }
    }
    let snapshot = store.snapshot();
    for _ in 0..200 {
        let bounds = [random.below(420), random.below(420)].map(|bound| format!("{bound:03}"));
        let range = Range::new(bounds[0].clone(), bounds[1].clone());
        let found: Vec<Bytes> = snapshot.range(table, &range).map(|entry| entry.key().clone()).collect();
        let expected: Vec<Bytes> = keys.keys().filter(|key| range.contains(key)).cloned().collect();
        assert_eq!(found, expected, "{range:?}");
        assert_eq!(
            (snapshot.count(table, &range), snapshot.range(table, &range).len()),
            (found.len(), found.len())
        );
    }
    // Pages of seven, each from behind the last key of the one before.
    let (mut range, mut paged) = (Range::all(), Vec::new());
    loop {
        let page: Vec<_> = snapshot.range(table, &range).take(7).collect();
        let Some(last) = page.last() else { break };
        range = range.after(last.key());
        paged.extend(page.iter().map(|entry| entry.key().clone()));
        assert_eq!(snapshot.count(table, &range), keys.len() - paged.len(), "what remains");
    }
    assert_eq!(paged, keys.keys().cloned().collect::<Vec<_>>());
    assert!(snapshot.get(table, b"").is_none() && snapshot.get(table, b"999").is_none());
}

/// Entries are found under the terms that the table's index names, as they are now, and terms may move.
pub async fn terms_lead_to_entries(store: Arc<dyn Store>) {
    let words = index_fn(|entry, terms| {
        // Unordered and with repeats, as an index function may be.
        let words = entry.value().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        terms.extend(words.clone().map(Term::from));
        terms.extend(words.map(Term::from));
    });
    let spec = TableSpec::new("t").index(words);
    let table = store.open_table(spec).unwrap_or_else(|error| panic!("{error}"));
    let begin = store.snapshot().revision();
    for (key, value) in [("1", "red blue"), ("2", "blue"), ("3", ""), ("4", "red"), ("1", "green red")] {
        done(&store, Txn::new().op(Op::put(table, key, value))).await;
    }
    done(&store, Txn::new().op(Op::delete(table, "4"))).await;
    let snapshot = store.snapshot();
    let keys = |term: &str| -> Vec<Bytes> {
        let entries = snapshot.by_term(table, &Term::from(term));
        let expected = entries.len();
        let keys: Vec<Bytes> = entries.map(|entry| entry.key().clone()).collect();
        assert_eq!(keys.len(), expected, "how many there are is known at once");
        keys
    };
    assert_eq!(keys("red"), ["1"]);
    assert_eq!(keys("blue"), ["2"]);
    assert_eq!(keys("green"), ["1"]);
    assert!(keys("re").is_empty() && keys("").is_empty());
    let past = store.snapshot_at(begin.plus(4)).unwrap_or_else(|error| panic!("{error}"));
    let red: Vec<Bytes> = past.by_term(table, &Term::from("red")).map(|entry| entry.key().clone()).collect();
    assert_eq!(red, ["1", "4"], "terms of an earlier revision");
    // More terms than allowed refuse the commit.
    let many: String = (0..=crate::TERMS_MAX).map(|number| format!("{number} ")).collect();
    let refused = store.commit(Txn::new().op(Op::put(table, "5", many))).await;
    assert!(matches!(refused, Err(CommitError::Store(StoreError::TooManyTerms { .. }))), "{refused:?}");
    snapshot.verify().unwrap_or_else(|error| panic!("{error}"));
}

/// Every revision from the floor on can be read, whatever the way: from the newest state, or from another earlier one.
pub async fn earlier_revisions_can_be_read(store: Arc<dyn Store>) {
    let open = |name| store.open_table(table_by_first_byte(name)).unwrap_or_else(|error| panic!("{error}"));
    let tables = [open("a"), open("b")];
    let begin = store.snapshot().revision();
    let (mut random, mut model) = (Random::new(11), Model::new(begin));
    while model.revision < begin.plus(150) {
        let txn = random_txn(&mut random, tables, model.revision);
        if store.commit(txn.clone()).await.is_ok() {
            model
                .commit(&txn)
                .unwrap_or_else(|index| panic!("the model refuses comparison {index} of {txn:?}"));
        }
    }
    for revision in (0..=150).map(|step| begin.plus(step)) {
        let past = store.snapshot_at(revision).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(past.revision(), revision);
        model.check(&past, &tables);
        let further =
            past.at(begin.plus((revision.get() - begin.get()) / 2)).unwrap_or_else(|error| panic!("{error}"));
        model.check(&further, &tables);
    }
    let future = store.snapshot_at(begin.plus(151));
    let last = begin.plus(150);
    assert!(matches!(future, Err(ReadError::Future { published, .. }) if published == last), "{future:?}");
    let compacted = begin.plus(70);
    store.compact(compacted).await.unwrap_or_else(|error| panic!("{error}"));
    let gone = store.snapshot_at(begin.plus(69));
    assert!(matches!(gone, Err(ReadError::Compacted { floor, .. }) if floor == compacted), "{gone:?}");
    for revision in (70..=150).map(|step| begin.plus(step)) {
        model.check(&store.snapshot_at(revision).unwrap_or_else(|error| panic!("{error}")), &tables);
    }
    let one = store.snapshot().at_table(tables[0], begin.plus(80)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(one.len(tables[0]), model.at(tables[0], begin.plus(80)).len());
    assert!(one.is_empty(tables[1]), "only the table that was asked for is there");
}

/// A table is opened once; the first specification holds. Tables are independent key spaces.
pub async fn tables_are_opened_once(store: Arc<dyn Store>) {
    let first = store.open_table(table_by_first_byte("pods")).unwrap_or_else(|error| panic!("{error}"));
    let again = open(&store, "pods");
    let other = open(&store, "nodes");
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert_eq!(store.tables(), [("pods".to_owned(), first), ("nodes".to_owned(), other)]);
    done(&store, Txn::create(first, "k", "1")).await;
    done(&store, Txn::create(other, "k", "1")).await;
    assert_eq!(
        store.snapshot().by_term(first, &Term::from("1")).len(),
        1,
        "the index of the first opening holds"
    );
    assert_eq!(store.snapshot().by_term(other, &Term::from("1")).len(), 0);
    for name in [String::new(), "x".repeat(crate::KEY_BYTES_MAX + 1)] {
        let refused = store.open_table(TableSpec::new(name));
        assert!(matches!(refused, Err(StoreError::BadTableName { .. })), "{refused:?}");
    }
}

/// The value that is read is the memory that was written.
pub async fn values_are_not_copied(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let value = Bytes::from(vec![7; 1_024]);
    let at = value.as_ptr() as usize;
    done(&store, Txn::create(table, "k", value)).await;
    let read = store.snapshot().get(table, b"k").map(|entry| entry.value().as_ptr() as usize);
    assert_eq!(read, Some(at));
}

/// After a barrier, a snapshot shows every commit that was answered before it.
pub async fn a_barrier_covers_what_was_answered(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for number in 0..20 {
        let revision = done(&store, Txn::create(table, number.to_string(), "")).await;
        let barrier = store.barrier().await.unwrap_or_else(|error| panic!("{error}"));
        assert!(barrier >= revision && store.snapshot().revision() >= barrier);
    }
}
