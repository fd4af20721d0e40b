//! Following the database.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use futures::StreamExt;

use super::{Remote, RemoteChange, RemoteEntry, RemoteError, RemoteEvent, RemoteLoad, Shared};
use crate::{
    Revision, StoreError,
    backup::{Image, ImageTable},
    core::foreign::{Foreign, ForeignState},
};

/// How long to wait before the database is asked again: doubled from one to the other.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Follows the database until the replica is gone.
pub(super) async fn follow<R: Remote>(shared: Weak<Shared<R>>) {
    let mut pause = RETRY_MIN;
    loop {
        let Some(now) = shared.upgrade() else { return };
        let after = *now.arrived.borrow();
        let followed = match now.remote.changes(after).await {
            Ok(mut changes) => {
                drop(now);
                loop {
                    let change = match changes.next().await {
                        Some(Ok(change)) => change,
                        Some(Err(error)) => break Err(error),
                        None => break Ok(()),
                    };
                    let Some(now) = shared.upgrade() else { return };
                    pause = RETRY_MIN;
                    if let Err(error) = now.apply(change) {
                        break Err(RemoteError::Failed(Arc::new(error)));
                    }
                }
            }
            Err(error) => {
                drop(now);
                Err(error)
            }
        };
        let Some(now) = shared.upgrade() else { return };
        if let Err(RemoteError::Compacted) = &followed
            && now.load_again().await.is_ok()
        {
            continue;
        }
        drop(now);
        if let Err(error) = followed {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the database is not followed; it is tried again"
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

impl<R: Remote> Shared<R> {
    /// Publishes a piece of the stream, revision by revision.
    fn apply(&self, change: RemoteChange) -> Result<(), StoreError> {
        let mut events = change.events.into_iter().peekable();
        let known = *self.arrived.borrow();
        self.sequencer.with(|core, now| {
            while let Some((revision, first)) = events.next() {
                let mut changes = vec![first];
                while let Some((_, event)) = events.next_if(|(next, _)| *next == revision) {
                    changes.push(event);
                }
                // After a connection was lost, what is known may be told again.
                if revision > known {
                    let changes = changes.into_iter().map(|event| self.foreign(core, event)).collect();
                    core.perform_foreign(revision, changes, now)?;
                }
            }
            core.reach(change.revision);
            Ok(())
        })?;
        self.learn_names();
        self.arrived.send_if_modified(|arrived| {
            let moved = change.revision > *arrived;
            *arrived = change.revision.max(*arrived);
            moved
        });
        Ok(())
    }

    fn foreign(&self, core: &crate::core::Core, event: RemoteEvent) -> Foreign {
        match event {
            RemoteEvent::Delete { table, key } => Foreign { table, key, state: None },
            RemoteEvent::Put(entry) => {
                let RemoteEntry { table, key, value, create, modified, version, lease } = entry;
                let (value, hint) = match core.table_id(&table) {
                    Some(id) => self.sent.of(id, &key, value),
                    None => (value, None),
                };
                let state = ForeignState { value, create, modified, version, lease, hint };
                Foreign { table, key, state: Some(state) }
            }
        }
    }

    async fn load_again(&self) -> Result<(), RemoteError> {
        let load = self.remote.load().await?;
        self.reload(load).map_err(|error| RemoteError::Failed(Arc::new(error)))
    }

    /// Puts what was loaded in place of what is here.
    pub(super) fn reload(&self, load: RemoteLoad) -> Result<(), StoreError> {
        let revision = load.revision;
        self.sequencer.reload(image(load))?;
        self.learn_names();
        self.arrived.send_replace(revision);
        Ok(())
    }

    /// Tables are known by name to the database.
    pub(super) fn learn_names(&self) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let published = self.sequencer.published.load();
        let known = names.len();
        names.extend(published.tables.iter().skip(known).map(|(_, table)| table.name.clone()));
    }
}

fn image(load: RemoteLoad) -> Image {
    let mut tables: HashMap<Arc<str>, ImageTable> = HashMap::new();
    for entry in load.entries {
        let RemoteEntry { table, key, value, create, modified, version, lease } = entry;
        let name = table.clone();
        let table = tables.entry(table).or_insert_with(|| ImageTable {
            name,
            last: Revision::ZERO,
            entries: Vec::new(),
        });
        table.last = table.last.max(modified);
        let state = ForeignState { value, create, modified, version, lease, hint: None };
        table.entries.push(Arc::new(state.entry(key)));
    }
    Image { revision: load.revision, tables: tables.into_values().collect(), ..Image::default() }
}
