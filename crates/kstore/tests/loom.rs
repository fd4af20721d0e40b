//! Models of how threads meet at a store: `loom` runs them in every order that up to three preemptions lead to.
//!
//! `RUSTFLAGS="--cfg kstore_loom" cargo test --release -p kstore --no-default-features --test loom`. What is modelled is the
//! memory engine itself: the lock of the state, the queue of commits that were left, their answers and wakers, the published
//! root, and the registration of watches. A thread that is never woken is a deadlock, and loom says so.
#![cfg(kstore_loom)]

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use kstore::{
    CommitError, Interest, MemoryStore, Range, Revision, Store, TableId, TableSpec, Term, Txn, Watch,
    WatchError, WatchRequest, index_fn,
};
use loom::{future::block_on, thread};

/// How often a thread is interrupted where it could go on. Known faults of this kind need two.
const PREEMPTIONS_MAX: usize = 3;
/// How many points of meeting one run has at most.
const BRANCHES_MAX: usize = 20_000;

fn model(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions.min(PREEMPTIONS_MAX));
    builder.max_branches = BRANCHES_MAX;
    builder.check(run);
}

fn store() -> (Arc<MemoryStore>, TableId) {
    let store = MemoryStore::new();
    let index = index_fn(|entry, terms| terms.push(Term::from(&entry.value()[..])));
    let table =
        store.open_table(TableSpec::new("pods").index(index)).unwrap_or_else(|error| panic!("{error}"));
    (Arc::new(store), table)
}

fn create(store: &MemoryStore, table: TableId, key: &'static str) -> Result<Revision, CommitError> {
    block_on(store.commit(Txn::create(table, key, "n"))).map(|committed| committed.revision)
}

fn watch(store: &MemoryStore, table: TableId, interest: Interest) -> Watch {
    let request = WatchRequest::new(table, Revision::ZERO).interest(interest);
    store.watch(request).unwrap_or_else(|error| panic!("{error}"))
}

/// Who finds the state taken leaves his commit, and it is done, whoever lets go of the state when.
#[test]
fn a_commit_that_was_left_is_done_and_answered() {
    model(3, || {
        let (store, table) = store();
        let other = {
            let store = store.clone();
            thread::spawn(move || create(&store, table, "b"))
        };
        let mine = create(&store, table, "a").map_err(|error| error.to_string());
        let theirs =
            other.join().map_err(|_| "it panicked").map(|done| done.map_err(|error| error.to_string()));
        let mut revisions = [mine, theirs.unwrap_or_else(|error| panic!("{error}"))];
        revisions.sort();
        assert_eq!(revisions, [Ok(Revision(1)), Ok(Revision(2))]);
        assert_eq!(store.snapshot().len(table), 2);
    });
}

/// Three at once, of which two may wait for each other's round.
#[test]
fn three_commits_are_all_done() {
    model(2, || {
        let (store, table) = store();
        let others = ["b", "c"].map(|key| {
            let store = store.clone();
            thread::spawn(move || create(&store, table, key).is_ok())
        });
        assert!(create(&store, table, "a").is_ok());
        assert!(others.into_iter().all(|other| other.join().is_ok_and(|done| done)));
        assert_eq!((store.snapshot().len(table), store.snapshot().revision()), (3, Revision(3)));
    });
}

/// Of several that create one key, one wins, and the others are told so: the first defect of `mem_etcd`.
#[test]
fn one_of_two_that_create_a_key_wins() {
    model(3, || {
        let (store, table) = store();
        let other = {
            let store = store.clone();
            thread::spawn(move || create(&store, table, "a").is_ok())
        };
        let mine = create(&store, table, "a").is_ok();
        assert_ne!(mine, other.join().unwrap_or_else(|_| panic!("it panicked")));
        assert_eq!(store.snapshot().revision(), Revision(1));
    });
}

/// A snapshot that has a revision has everything up to it: the second defect of `mem_etcd`.
#[test]
fn a_list_has_everything_up_to_its_revision() {
    model(3, || {
        let (store, table) = store();
        let writer = {
            let store = store.clone();
            thread::spawn(move || ["a", "b"].map(|key| create(&store, table, key).is_ok()))
        };
        let snapshot = store.snapshot();
        assert_eq!(snapshot.range(table, Range::all()).count() as u64, snapshot.revision().get());
        assert_eq!(writer.join().ok(), Some([true, true]));
    });
}

/// A watch that is about to wait when something is published is woken, whatever it is for.
#[test]
fn a_watch_is_woken() {
    for interest in [Interest::All, Interest::Key("a".into()), Interest::Term("n".into())] {
        model(3, move || {
            let (store, table) = store();
            let mut watch = watch(&store, table, interest.clone());
            let writer = {
                let store = store.clone();
                thread::spawn(move || create(&store, table, "a").is_ok())
            };
            let batch = block_on(watch.next()).map(|batch| (batch.events.len(), batch.revision));
            assert_eq!(batch, Ok((1, Revision(1))));
            assert_eq!(writer.join().ok(), Some(true));
        });
    }
}

/// When a store is closed, a watch delivers what there is, and ends.
#[test]
fn a_watch_ends_with_its_store() {
    model(3, || {
        let (store, table) = store();
        let mut watch = watch(&store, table, Interest::All);
        let writer = thread::spawn(move || {
            let done = create(&store, table, "a").is_ok();
            drop(store);
            done
        });
        assert_eq!(block_on(watch.next()).map(|batch| batch.events.len()), Ok(1));
        assert!(matches!(block_on(watch.next()), Err(WatchError::Closed)));
        assert_eq!(writer.join().ok(), Some(true));
    });
}

/// Whoever stops waiting for his commit leaves nobody else waiting.
#[test]
fn a_commit_that_is_given_up_holds_nobody_up() {
    model(2, || {
        let (store, table) = store();
        let gives_up = {
            let store = store.clone();
            thread::spawn(move || {
                let commit = store.commit(Txn::create(table, "b", "n"));
                let mut commit = pin!(commit);
                // Asked once, and no more.
                let _: Poll<_> = commit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            })
        };
        let other = {
            let store = store.clone();
            thread::spawn(move || create(&store, table, "c").is_ok())
        };
        assert!(create(&store, table, "a").is_ok());
        assert_eq!((gives_up.join().is_ok(), other.join().ok()), (true, Some(true)));
        // It may have been done or not, but it is not done later.
        let revision = store.snapshot().revision();
        assert_eq!(store.snapshot().len(table) as u64, revision.get());
        assert!(store.snapshot().get(table, b"b").is_some(), "it was left, so it was done with the others");
    });
}

/// The models find what they are for: a future that is woken by nobody is reported.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_up_that_never_comes_is_found() {
    model(2, || {
        let other = thread::spawn(|| ());
        block_on(poll_fn(|_| Poll::<()>::Pending));
        drop(other.join());
    });
}
