//! What is promised of back-ups.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Random,
    commit::{done, open},
    model::{Model, random_txn, table_by_first_byte},
};
use crate::{MemoryStore, Op, Range, ReadError, RestoreError, Store, TableId, Term, Txn, WatchRequest};

/// A store with some history, and the model of it.
async fn filled(store: &Arc<dyn Store>) -> (Model, [TableId; 2]) {
    let table = |name| store.open_table(table_by_first_byte(name)).unwrap_or_else(|error| panic!("{error}"));
    let tables = [table("a"), table("b")];
    let (mut random, mut model) = (Random::new(17), Model::default());
    while model.changes.len() < 120 {
        let txn = random_txn(&mut random, tables, model.revision);
        if store.commit(txn.clone()).await.is_ok() {
            model
                .commit(&txn)
                .unwrap_or_else(|index| panic!("the model refuses comparison {index} of {txn:?}"));
        }
    }
    (model, tables)
}

async fn backup(store: &Arc<dyn Store>) -> Vec<Bytes> {
    store.backup().await.unwrap_or_else(|error| panic!("{error}")).collect()
}

/// A restored store has the same entries, revisions and terms, goes on at the next revision, and knows no earlier history. A
/// watch from before the restore is told that it missed something.
pub async fn a_backup_restores_everything(store: Arc<dyn Store>) {
    let origin: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (model, tables) = filled(&origin).await;
    let large = Bytes::from(vec![b'1'; 700_000]);
    let large_at = done(&origin, Txn::new().op(Op::put(tables[0], "large", large))).await;
    // In pieces of a size that divides nothing.
    let whole: Vec<u8> = backup(&origin).await.concat();
    let pieces: Vec<Bytes> = whole.chunks(1_009).map(Bytes::copy_from_slice).collect();

    // One of the tables is open, and watched, before the restore; its number may differ from that in the back-up.
    let before = store.open_table(table_by_first_byte("b")).unwrap_or_else(|error| panic!("{error}"));
    let empty = store.snapshot().revision();
    let mut early = store.watch(WatchRequest::new(before, empty)).unwrap_or_else(|error| panic!("{error}"));
    let revision = store.restore(pieces.into()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((revision, store.snapshot().revision()), (large_at, large_at));
    assert!(
        early.next().await.is_err(),
        "a watch from before the restore can't go on as if nothing had happened"
    );

    let table = |name| store.open_table(table_by_first_byte(name)).unwrap_or_else(|error| panic!("{error}"));
    let restored = [table("a"), table("b")];
    let (old, new) = (origin.snapshot(), store.snapshot());
    for (from, to) in tables.into_iter().zip(restored) {
        let pairs = old.range(from, Range::all()).zip(new.range(to, Range::all()));
        for (old, new) in pairs {
            assert!(old.same(&new), "{old:?} became {new:?}");
            assert_eq!(old.terms(), new.terms(), "terms are named anew");
        }
        assert_eq!(old.len(from), new.len(to));
        assert_eq!(old.by_term(from, &Term::from("1")).len(), new.by_term(to, &Term::from("1")).len());
        assert_eq!(old.table_revision(from), new.table_revision(to));
        assert!(model.at(from, large_at).len() <= new.len(to));
    }
    new.verify().unwrap_or_else(|error| panic!("{error}"));
    let gone = store.snapshot_at(model.revision.previous());
    assert!(matches!(gone, Err(ReadError::Compacted { floor, .. }) if floor == large_at), "{gone:?}");
    let mut watch =
        store.watch(WatchRequest::new(restored[0], large_at)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(done(&store, Txn::create(restored[0], "next", "")).await, large_at.next());
    assert_eq!(watch.next().await.map(|batch| batch.events.len()), Ok(1));
}

/// A back-up with any byte changed, cut off anywhere, with frames missing, repeated or in another order, or with something
/// behind its end, is refused, and nothing of it is restored.
pub async fn a_damaged_backup_is_refused(store: Arc<dyn Store>) {
    let origin: Arc<dyn Store> = Arc::new(MemoryStore::new());
    filled(&origin).await;
    let frames = backup(&origin).await;
    let whole: Vec<u8> = frames.concat();
    let refused = async |damaged: Vec<u8>, what: String| {
        let result = store.restore(Bytes::from(damaged).into()).await;
        assert!(result.is_err(), "{what} was not noticed");
        assert_eq!(store.snapshot().revision(), crate::Revision::ZERO, "{what} left something behind");
        assert!(store.tables().is_empty(), "{what} left a table behind");
    };
    for at in (0..whole.len()).step_by(13) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        refused(damaged, format!("a changed bit in byte {at}")).await;
    }
    for end in (0..whole.len()).step_by(37) {
        refused(whole[..end].to_vec(), format!("an end at byte {end}")).await;
    }
    for at in 0..frames.len() {
        let mut missing = frames.clone();
        missing.remove(at);
        refused(missing.concat(), format!("the loss of frame {at}")).await;
        let mut repeated = frames.clone();
        repeated.insert(at, frames[at].clone());
        refused(repeated.concat(), format!("the repetition of frame {at}")).await;
        let mut swapped = frames.clone();
        swapped.swap(at, (at + 1) % frames.len());
        refused(swapped.concat(), format!("frame {at} in a wrong place")).await;
    }
    let result = store.restore(Bytes::from_static(b"PK\x03\x04 something else").into()).await;
    assert!(matches!(result, Err(RestoreError::NotABackup)), "{result:?}");
    let result = store.restore(frames.into()).await;
    assert!(result.is_ok(), "the sound one is restored after all that: {result:?}");
}

/// Only an empty store can be restored into.
pub async fn a_store_with_content_is_not_restored_into(store: Arc<dyn Store>) {
    let table = open(&store, "t");
    let revision = done(&store, Txn::create(table, "k", "")).await;
    let frames = backup(&store).await;
    let result = store.restore(frames.into()).await;
    assert!(matches!(result, Err(RestoreError::NotEmpty { revision: at }) if at == revision), "{result:?}");
    assert_eq!(store.snapshot().len(table), 1);
}
