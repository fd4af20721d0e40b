//! A proxy for tests that only remembers what it was told.

use std::sync::PoisonError;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{ServiceProxy, SyncError};
use crate::rules::Table;

/// Remembers the last table.
#[derive(Debug, Default)]
pub struct RecordingProxy {
    table: watch::Sender<Table>,
    refusals: std::sync::Mutex<u32>,
}

impl RecordingProxy {
    /// The last table, and a way to wait for the next.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Makes the next `times` calls fail.
    pub fn refuse(&self, times: u32) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = times;
    }
}

#[async_trait]
impl ServiceProxy for RecordingProxy {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if *refusals > 0 {
                *refusals -= 1;
                return Err(SyncError(Vec::new()));
            }
        }
        self.table.send_replace(table.clone());
        Ok(())
    }
}
