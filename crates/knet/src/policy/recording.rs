//! An enforcer for tests that only remembers what it was told.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{EnforceError, PolicyChange, PolicyEnforcer, PolicyTable};

/// Remembers the last table.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use knet::policy::{PolicyChange, PolicyEnforcer, PolicyTable, RecordingEnforcer};
/// let enforcer = RecordingEnforcer::default();
/// enforcer.enforce(&PolicyTable::default(), &PolicyChange::default()).await.unwrap();
/// assert!(enforcer.tables().borrow().pods.is_empty());
/// # });
/// ```
#[derive(Debug, Default)]
pub struct RecordingEnforcer {
    table: watch::Sender<PolicyTable>,
}

impl RecordingEnforcer {
    /// The last table, and a way to wait for the next.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<PolicyTable> {
        self.table.subscribe()
    }
}

#[async_trait]
impl PolicyEnforcer for RecordingEnforcer {
    async fn enforce(&self, table: &PolicyTable, _: &PolicyChange) -> Result<(), EnforceError> {
        self.table.send_replace(table.clone());
        Ok(())
    }
}
