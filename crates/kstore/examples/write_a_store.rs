//! A store over somebody else's database, in less than 150 lines: see docs/guide/write-a-store.md.
//!
//! The database here is a map and a list of what happened; a real one would be spoken with over a network. What it has to
//! offer is [`Remote`]; [`Replica`] makes the rest of it: snapshots, watches, indexes, history, conflicts.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use kstore::{
    CommitError, LeaseId, Op, Remote, RemoteChange, RemoteEntry, RemoteError, RemoteEvent, RemoteLoad,
    RemoteOutcome, RemoteTxn, Replica, Revision, Store, TableSpec, Txn,
};
use tokio::sync::watch;

type Key = (Arc<str>, Bytes);

/// What the database keeps.
#[derive(Debug, Default)]
struct Data {
    revision: Revision,
    floor: Revision,
    rows: BTreeMap<Key, RemoteEntry>,
    happened: Vec<(Revision, RemoteEvent)>,
}

/// The database, and a bell that rings with every change.
#[derive(Debug, Default)]
pub(crate) struct Database(watch::Sender<Data>);

impl Data {
    fn put(&mut self, (table, key): Key, value: Bytes, lease: Option<LeaseId>, at: Revision) {
        let old = self.rows.get(&(table.clone(), key.clone()));
        let (create, version) = old.map_or((at, 1), |old| (old.create, old.version + 1));
        let row = RemoteEntry {
            table: table.clone(),
            key: key.clone(),
            value,
            create,
            modified: at,
            version,
            lease,
        };
        self.rows.insert((table, key), row.clone());
        self.happened.push((at, RemoteEvent::Put(row)));
    }

    fn delete(&mut self, (table, key): Key, at: Revision) {
        if self.rows.remove(&(table.clone(), key.clone())).is_some() {
            self.happened.push((at, RemoteEvent::Delete { table, key }));
        }
    }

    fn apply(&mut self, txn: RemoteTxn<'_>) -> Result<RemoteOutcome, CommitError> {
        for compare in txn.txn.compares() {
            let (table, key) = compare.target();
            let row = self.rows.get(&(txn.name(table)?.clone(), key.clone()));
            if !RemoteEntry::meets(row, compare) {
                return Ok(RemoteOutcome::Conflict(self.revision));
            }
        }
        let (at, before) = (self.revision.next(), self.happened.len());
        for op in txn.txn.ops() {
            let table = txn.name(op.table())?.clone();
            match op {
                Op::Put { lease: Some(lease), .. } => return Err(CommitError::UnknownLease(*lease)),
                Op::Put { key, value, .. } => self.put((table, key.clone()), value.clone(), None, at),
                Op::Delete { key, .. } => self.delete((table, key.clone()), at),
                Op::DeleteRange { range, .. } => {
                    let from = Bound::Included((table.clone(), range.start.clone()));
                    let rest = self.rows.range((from, Bound::Unbounded)).map(|(key, _)| key);
                    let within = |key: &&Key| key.0 == table && range.contains(&key.1);
                    let gone: Vec<Key> = rest.take_while(within).cloned().collect();
                    gone.into_iter().for_each(|key| self.delete(key, at));
                }
            }
        }
        if self.happened.len() == before {
            return Ok(RemoteOutcome::Unchanged(self.revision));
        }
        self.revision = at;
        Ok(RemoteOutcome::Changed(at))
    }
}

#[async_trait]
impl Remote for Database {
    async fn load(&self) -> Result<RemoteLoad, RemoteError> {
        let data = self.0.borrow();
        Ok(RemoteLoad { revision: data.revision, entries: data.rows.values().cloned().collect() })
    }

    async fn changes(
        &self,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<RemoteChange, RemoteError>>, RemoteError> {
        let bell = self.0.subscribe();
        let changes = futures::stream::unfold((bell, after), |(mut bell, after)| async move {
            let data = bell.wait_for(|data| data.revision > after).await.ok()?;
            let next = data.happened.partition_point(|(at, _)| *at <= after);
            let change = match after < data.floor {
                true => Err(RemoteError::Compacted),
                false => Ok(RemoteChange { revision: data.revision, events: data.happened[next..].to_vec() }),
            };
            let reached = data.revision;
            drop(data);
            Some((change, (bell, reached)))
        });
        Ok(changes.boxed())
    }

    async fn commit(&self, txn: RemoteTxn<'_>) -> Result<RemoteOutcome, CommitError> {
        let mut outcome = Err(CommitError::UnknownOutcome);
        self.0.send_modify(|data| outcome = data.apply(txn));
        outcome
    }

    async fn barrier(&self) -> Result<Revision, RemoteError> {
        Ok(self.0.borrow().revision)
    }

    async fn ask_progress(&self, _: Revision) -> Result<(), RemoteError> {
        Ok(()) // Everything is told at once.
    }

    async fn compact(&self, floor: Revision) -> Result<(), RemoteError> {
        self.0.send_modify(|data| {
            data.floor = data.floor.max(floor);
            data.happened.retain(|(at, _)| *at > floor);
        });
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code, reason = "the file is a test's module too")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Replica::new(Database::default()).await?;
    let pods = store.open_table(TableSpec::new("pods"))?;
    let created = store.commit(Txn::create(pods, "default/web", "spec")).await?;
    println!("created at revision {}, {} pod", created.revision, store.snapshot().len(pods));
    Ok(())
}
