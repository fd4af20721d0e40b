//! Several loops that are one controller to those who start it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{Controller, ControllerStats},
    manager::{RunError, Runnable},
};

/// Loops that start and stop together under one name, as they do upstream.
#[derive(Clone, Debug)]
pub(crate) struct Together {
    name: &'static str,
    parts: Vec<Controller>,
}

impl Together {
    pub(crate) fn new(name: &'static str, parts: impl IntoIterator<Item = Controller>) -> Self {
        Self { name, parts: parts.into_iter().collect() }
    }
}

#[async_trait]
impl Runnable for Together {
    fn name(&self) -> &str {
        self.name
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        futures::future::join_all(self.parts.iter().map(|part| part.run(stop.clone()))).await;
        Ok(())
    }

    fn stats(&self) -> Vec<(Arc<str>, Arc<ControllerStats>)> {
        self.parts.iter().flat_map(Runnable::stats).collect()
    }
}
