//! What is promised of commits.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;

use super::{
    Random,
    linear::{Answer, Recorder, Request, is_linearizable},
    model::State,
};
use crate::{
    CommitError, Compare, KEY_BYTES_MAX, LeaseId, Op, Operand, Range, Relation, Revision, Store, StoreError,
    TXN_OPS_MAX, TableId, TableSpec, Txn, VALUE_BYTES_MAX,
};

pub(super) fn open(store: &Arc<dyn Store>, name: &str) -> TableId {
    store
        .open_table(TableSpec::new(name))
        .unwrap_or_else(|error| panic!("the table {name} can be opened: {error}"))
}

pub(super) async fn done(store: &Arc<dyn Store>, txn: Txn) -> Revision {
    store.commit(txn).await.unwrap_or_else(|error| panic!("the commit is done: {error}")).revision
}

/// Of sixteen that create one key at the same time exactly one does. (mem_etcd, which checks and inserts in two steps, had
/// two in one of a hundred rounds.)
pub async fn creators_exclude_each_other(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for round in 0..200 {
        let creators = (0..16).map(|creator| {
            let store = store.clone();
            tokio::spawn(async move {
                store.commit(Txn::create(table, format!("k{round}"), format!("{creator}"))).await
            })
        });
        let results = join_all(creators).await;
        let mut winners = Vec::new();
        let mut seen = HashSet::new();
        for result in results {
            match result.unwrap_or_else(|error| panic!("{error}")) {
                Ok(committed) => winners.push(committed.revision),
                Err(CommitError::Conflict { current: Some(current), .. }) => {
                    seen.insert(current.modified());
                }
                Err(error) => panic!("a creator that comes second is told of the conflict, not {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one creates k{round}");
        assert_eq!(
            seen.into_iter().collect::<Vec<_>>(),
            winners,
            "the others are shown what the winner made"
        );
    }
}

/// Every commit that changes something takes the next revision, from whatever task it comes, and is answered with it.
pub async fn revisions_have_no_gaps(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let before = store.snapshot().revision();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for number in 0..50 {
                let revision =
                    done(&store, Txn::new().op(Op::put(table, format!("{writer}/{number}"), "v"))).await;
                assert!(store.snapshot().revision() >= revision, "a commit is answered once it is published");
                assert!(revisions.last().is_none_or(|last| *last < revision));
                revisions.push(revision);
            }
            revisions
        })
    });
    let mut revisions: Vec<Revision> = Vec::new();
    for writer in join_all(writers).await {
        revisions.extend(writer.unwrap_or_else(|error| panic!("{error}")));
    }
    revisions.sort_unstable();
    let expected: Vec<Revision> = (1..=400).map(|step| Revision(before.get() + step)).collect();
    assert_eq!(revisions, expected);
    assert_eq!(store.snapshot().revision(), Revision(before.get() + 400));
}

/// Money is moved between accounts in two tables while others look: the sum is always the same, and one revision shows both
/// sides of a transfer.
pub async fn transactions_are_whole(store: Arc<dyn Store>) {
    let tables = [open(&store, "left"), open(&store, "right")];
    let txn = Txn::new().op(Op::put(tables[0], "account", "500")).op(Op::put(tables[1], "account", "500"));
    done(&store, txn).await;
    let movers = (0..4u64).map(|mover| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut random = Random::new(mover);
            let mut moved = 0;
            while moved < 25 {
                let snapshot = store.snapshot();
                let [left, right] = tables.map(|table| {
                    snapshot.get(table, b"account").map(|entry| (entry.modified(), number(entry.value())))
                });
                let (Some(left), Some(right)) = (left, right) else { panic!("an account is missing") };
                assert_eq!(left.1 + right.1, 1_000, "the sum at revision {}", snapshot.revision());
                let amount = random.below(left.1 + 1);
                let txn = Txn::new()
                    .compare(Compare::modified_at(tables[0], "account", left.0))
                    .compare(Compare::modified_at(tables[1], "account", right.0))
                    .op(Op::put(tables[0], "account", (left.1 - amount).to_string()))
                    .op(Op::put(tables[1], "account", (right.1 + amount).to_string()));
                match store.commit(txn).await {
                    Ok(_) => moved += 1,
                    Err(CommitError::Conflict { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for mover in join_all(movers).await {
        mover.unwrap_or_else(|error| panic!("{error}"));
    }
    let snapshot = store.snapshot();
    assert_eq!(
        snapshot.table_revision(tables[0]),
        snapshot.table_revision(tables[1]),
        "both sides at one revision"
    );
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value:?} is no number"))
}

/// Every comparison, on a key that is there and on one that is not.
pub async fn comparisons_mean_what_they_say(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let create = done(&store, Txn::create(table, "there", "a")).await;
    let modified = done(&store, Txn::update(table, "there", create, "b")).await;
    let key = Bytes::from_static(b"there");
    let missing = Bytes::from_static(b"missing");
    let is = |key: &Bytes, relation, operand| Compare::Is { table, key: key.clone(), relation, operand };
    let cases = [
        (Compare::exists(table, "there"), true),
        (Compare::exists(table, "missing"), false),
        (Compare::absent(table, "there"), false),
        (Compare::absent(table, "missing"), true),
        (Compare::modified_at(table, "there", modified), true),
        (Compare::modified_at(table, "there", create), false),
        (Compare::modified_at(table, "missing", Revision::ZERO), false),
        (Compare::CreatedAt { table, key: key.clone(), revision: create }, true),
        (Compare::CreatedAt { table, key: key.clone(), revision: modified }, false),
        (Compare::VersionIs { table, key: key.clone(), version: 2 }, true),
        (Compare::VersionIs { table, key: key.clone(), version: 1 }, false),
        (Compare::ValueIs { table, key: key.clone(), value: "b".into() }, true),
        (Compare::ValueIs { table, key: key.clone(), value: "a".into() }, false),
        (Compare::LeaseIs { table, key: key.clone(), lease: None }, true),
        (Compare::LeaseIs { table, key: key.clone(), lease: LeaseId::new(1) }, false),
        (is(&key, Relation::Greater, Operand::Modified(create)), true),
        (is(&key, Relation::Less, Operand::Modified(modified)), false),
        (is(&key, Relation::Less, Operand::Modified(modified.next())), true),
        (is(&key, Relation::Equal, Operand::Created(create)), true),
        (is(&key, Relation::NotEqual, Operand::Created(create)), false),
        (is(&key, Relation::Greater, Operand::Version(1)), true),
        (is(&key, Relation::Greater, Operand::Value("a".into())), true),
        (is(&key, Relation::Less, Operand::Value("b".into())), false),
        (is(&key, Relation::Equal, Operand::Lease(None)), true),
        // etcd: what is not there has version and revisions 0, and no value to compare with.
        (is(&missing, Relation::Equal, Operand::Version(0)), true),
        (is(&missing, Relation::Equal, Operand::Created(Revision::ZERO)), true),
        (is(&missing, Relation::Less, Operand::Modified(Revision(1))), true),
        (is(&missing, Relation::NotEqual, Operand::Value("a".into())), false),
    ];
    for (compare, expected) in cases {
        let result = store.commit(Txn::new().compare(compare.clone())).await;
        assert_eq!(result.is_ok(), expected, "{compare:?}");
    }
}

/// A key that is created after its deletion begins at version 1 with a new revision of creation.
pub async fn versions_begin_anew_after_a_deletion(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let first = done(&store, Txn::create(table, "k", "1")).await;
    let second = done(&store, Txn::update(table, "k", first, "2")).await;
    let state = |store: &Arc<dyn Store>| store.snapshot().get(table, b"k").map(|entry| State::of(&entry));
    let expected = State { value: "2".into(), create: first, modified: second, version: 2 };
    assert_eq!(state(&store), Some(expected));
    let deleted =
        store.commit(Txn::delete(table, "k", second)).await.unwrap_or_else(|error| panic!("{error}"));
    let tombstone =
        deleted.outcomes[0].entry.as_deref().map(|entry| (entry.is_tombstone(), State::of(entry)));
    let last = State { value: "2".into(), create: first, modified: deleted.revision, version: 2 };
    assert_eq!(tombstone, Some((true, last)), "a deletion leaves a tombstone with the last state");
    assert_eq!(state(&store), None);
    let again = done(&store, Txn::create(table, "k", "3")).await;
    assert_eq!(state(&store), Some(State { value: "3".into(), create: again, modified: again, version: 1 }));
}

/// Deleting what is not there, and doing nothing at all, is answered with the revision as it is.
pub async fn changing_nothing_takes_no_revision(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let revision = done(&store, Txn::create(table, "k", "")).await;
    let empty_range = Op::DeleteRange { table, range: Range::prefix("x") };
    for txn in [
        Txn::new(),
        Txn::new().op(Op::delete(table, "missing")),
        Txn::new().op(empty_range),
        Txn::new().compare(Compare::exists(table, "k")),
    ] {
        assert_eq!(done(&store, txn.clone()).await, revision, "{txn:?}");
        assert_eq!(store.snapshot().revision(), revision);
    }
    // A put changes something even if the value is the same, as in etcd.
    assert_eq!(done(&store, Txn::new().op(Op::put(table, "k", ""))).await, revision.next());
}

/// Transactions that can't be done are refused, each with its own error, and do nothing.
pub async fn bad_transactions_are_refused(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let before = done(&store, Txn::create(table, "k", "")).await;
    let put = |key: Bytes| Op::put(table, key, "v");
    let range = || Op::DeleteRange { table, range: Range::prefix("a") };
    let lease = LeaseId::new(77);
    let repeated = [
        Txn::new().op(put("a".into())).op(put("b".into())).op(put("a".into())),
        Txn::new().op(put("a".into())).op(Op::delete(table, "a")),
        Txn::new().op(put("b".into())).op(put("ab".into())).op(range()),
        Txn::new().op(range()).op(Op::delete(table, "b")).op(put("ab".into())),
        Txn::new().op(range()).op(Op::delete(table, "k")).op(range()),
        (0..100).fold(Txn::new(), |txn, number| txn.op(put(format!("k{}", number % 99).into()))),
    ];
    for txn in repeated {
        let result = store.commit(txn.clone()).await;
        let last = txn.ops().len() - 1;
        assert!(
            matches!(result, Err(CommitError::RepeatedKey { index }) if index == last),
            "{txn:?}: {result:?}"
        );
    }
    let result = store.commit(Txn::new().op(put("a".into())).op(put(Bytes::new()))).await;
    assert!(matches!(result, Err(CommitError::EmptyKey { index: 1 })), "{result:?}");
    let too_large = [
        Txn::new().op(put(vec![b'k'; KEY_BYTES_MAX + 1].into())),
        Txn::new().op(Op::put(table, "a", vec![0; VALUE_BYTES_MAX + 1])),
        (0..=TXN_OPS_MAX).fold(Txn::new(), |txn, number| txn.op(put(number.to_string().into()))),
        (0..=TXN_OPS_MAX).fold(Txn::new(), |txn, _| txn.compare(Compare::exists(table, "k"))),
    ];
    for txn in too_large {
        let result = store.commit(txn).await;
        assert!(matches!(result, Err(CommitError::TooLarge { .. })), "{result:?}");
    }
    let leased = Op::Put { table, key: "a".into(), value: Bytes::new(), lease, hint: None };
    let result = store.commit(Txn::new().op(leased)).await;
    assert!(matches!(result, Err(CommitError::UnknownLease(id)) if Some(id) == lease), "{result:?}");
    let elsewhere = TableId(4_000_000);
    let result = store.commit(Txn::create(elsewhere, "a", "")).await;
    assert!(
        matches!(result, Err(CommitError::Store(StoreError::UnknownTable(id))) if id == elsewhere),
        "{result:?}"
    );
    assert_eq!(store.snapshot().revision(), before);
    assert_eq!(store.snapshot().len(table), 1);
}

/// A conflict names the first comparison that fails, and what it found; that is published by then.
pub async fn conflicts_show_what_is_there(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let revision = done(&store, Txn::create(table, "k", "v")).await;
    let txn = Txn::new()
        .compare(Compare::exists(table, "k"))
        .compare(Compare::absent(table, "k"))
        .compare(Compare::exists(table, "missing"))
        .op(Op::put(table, "other", ""));
    match store.commit(txn).await {
        Err(CommitError::Conflict { index: 1, current: Some(current), revision: at }) => {
            assert_eq!(current.modified(), revision);
            assert!(
                at >= revision && store.snapshot().revision() >= at,
                "what a conflict shows is published"
            );
        }
        other => panic!("not a conflict in the second comparison: {other:?}"),
    }
    assert!(store.snapshot().get(table, b"other").is_none(), "nothing is done when a comparison fails");
    let missing = store.commit(Txn::update(table, "missing", revision, "")).await;
    assert!(matches!(missing, Err(CommitError::Conflict { index: 0, current: None, .. })), "{missing:?}");
}

/// A range is deleted at one revision, and what was in it is told in the order of the keys.
pub async fn ranges_are_deleted_whole(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for number in 0..100 {
        done(&store, Txn::create(table, format!("k{number:03}"), "")).await;
    }
    let op = Op::DeleteRange { table, range: Range::new("k010", "k090") };
    let committed = store.commit(Txn::new().op(op)).await.unwrap_or_else(|error| panic!("{error}"));
    let deleted: Vec<&[u8]> = committed.outcomes[0].deleted.iter().map(|entry| &entry.key()[..]).collect();
    let expected: Vec<String> = (10..90).map(|number| format!("k{number:03}")).collect();
    assert_eq!(deleted, expected.iter().map(|key| key.as_bytes()).collect::<Vec<_>>());
    let snapshot = store.snapshot();
    assert_eq!((snapshot.len(table), snapshot.count(table, Range::prefix("k0"))), (20, 20));
    snapshot.verify().unwrap_or_else(|error| panic!("{error}"));
}

/// What concurrent clients of one key are told can have happened one after the other.
pub async fn histories_are_linearizable(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    for round in 0..12u64 {
        let recorder = Arc::new(Recorder::default());
        let clients = (0..4u64).map(|client| {
            let (store, recorder) = (store.clone(), recorder.clone());
            tokio::spawn(async move {
                let mut random = Random::new(round * 100 + client);
                for step in 0..20 {
                    swap_or_read(
                        &store,
                        table,
                        &format!("k{round}"),
                        client * 1_000 + step,
                        &mut random,
                        &recorder,
                    )
                    .await;
                }
            })
        });
        for client in join_all(clients).await {
            client.unwrap_or_else(|error| panic!("{error}"));
        }
        let history = recorder.operations();
        assert!(is_linearizable(&history), "not linearizable: {history:#?}");
    }
}

/// One operation of a client on a key whose values are numbers, taken down.
pub(super) async fn swap_or_read(
    store: &Arc<dyn Store>,
    table: TableId,
    key: &str,
    new: u64,
    random: &mut Random,
    recorder: &Recorder,
) {
    let value = |entry: Option<Arc<crate::Entry>>| entry.map(|entry| number(entry.value()));
    let asked = recorder.ask();
    if random.happens(300) {
        let read = value(store.snapshot().get(table, key.as_bytes()));
        return recorder.answer(asked, Request::Read, Answer::Is(read));
    }
    let expected = value(store.snapshot().get(table, key.as_bytes()));
    let wanted = if random.happens(200) { None } else { Some(new) };
    tokio::task::yield_now().await;
    let compare = match expected {
        None => Compare::absent(table, key.to_owned()),
        Some(value) => {
            Compare::ValueIs { table, key: key.to_owned().into(), value: value.to_string().into() }
        }
    };
    let op = match wanted {
        None => Op::delete(table, key.to_owned()),
        Some(value) => Op::put(table, key.to_owned(), value.to_string()),
    };
    let answer = match store.commit(Txn::new().compare(compare).op(op)).await {
        Ok(_) => Answer::Done,
        Err(CommitError::Conflict { current, .. }) => Answer::Is(value(current)),
        Err(CommitError::UnknownOutcome) => Answer::Unknown,
        Err(error) => panic!("{error}"),
    };
    recorder.answer(asked, Request::Swap(expected, wanted), answer);
}
