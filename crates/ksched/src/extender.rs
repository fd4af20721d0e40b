//! Programs beside the scheduler that have a say in its decisions
//! (<https://github.com/kubernetes/design-proposals-archive/blob/main/scheduling/scheduler_extender.md>).
//!
//! An [`Extender`] is asked after the plug-ins, about the nodes that they leave: it can reject some, add to the scores of
//! others, have a say about whose room is taken, and bind. It may take its time: while it is asked, no other pod is decided on,
//! as upstream. Pods that no extender is interested in are decided on as if there were none.
//!
//! With the feature `http-extenders`, `HttpExtender` speaks to those that kube-scheduler's configuration names, in the JSON of
//! `k8s.io/kube-scheduler/extender/v1`.

mod decide;
#[cfg(feature = "http-extenders")]
mod http;
#[cfg(feature = "http-extenders")]
mod tls;
#[cfg(feature = "http-extenders")]
mod wire;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::decide::decide_extended;
pub(crate) use self::decide::decide_extended_measured;
#[cfg(feature = "http-extenders")]
pub use self::{
    http::{ANSWER_BYTES_MAX, HTTP_TIMEOUT, HttpExtender, HttpExtenderOptions},
    tls::TlsOptions,
};
use crate::{
    candidate::Candidate,
    pod::PodInfo,
    snapshot::{NodeIndex, Snapshot},
};

/// The best score that an extender gives a node (upstream's `MaxExtenderPriority`); the worst is 0.
pub const EXTENDER_SCORE_MAX: i64 = 10;
/// Stands for all extenders among the plug-ins that have rejected a pod (upstream's `ExtenderName`); every event may help.
pub const EXTENDER_NAME: &str = "Extender";

/// An extender could not be asked, or gave an answer that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExtenderError {
    /// What people read.
    pub message: String,
}

impl ExtenderError {
    /// With this text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// What an extender says of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// The nodes that it leaves, of those that it was asked about.
    pub nodes: Vec<NodeIndex>,
    /// Those that would do if pods were removed, with reasons.
    pub failed: Vec<(NodeIndex, String)>,
    /// Those for which no removal of pods helps, with reasons; a node in both counts as one of these.
    pub unresolvable: Vec<(NodeIndex, String)>,
}

/// Has a say in decisions. Each question is asked only of an extender that has an answer to it: by default none.
///
/// An error makes the pod fail and be tried again after a back-off, unless the extender [can be
/// ignored](Self::is_ignorable).
#[async_trait]
pub trait Extender: Send + Sync + 'static {
    /// Which one it is, for people.
    fn name(&self) -> &str;

    /// Whether it has a say about this pod. Asked for every pod, so it must be cheap.
    fn is_interested(&self, _pod: &PodInfo) -> bool {
        true
    }

    /// Whether scheduling goes on without it when it can't be asked. Such extenders are asked last.
    fn is_ignorable(&self) -> bool {
        false
    }

    /// Which of the nodes will do. `None`: all, it does not filter.
    ///
    /// # Errors
    /// When it can't be told.
    async fn filter(
        &self,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _nodes: &[NodeIndex],
    ) -> Result<Option<Filtered>, ExtenderError> {
        Ok(None)
    }

    /// What its scores are multiplied by.
    fn weight(&self) -> i64 {
        1
    }

    /// How good nodes are, within 0 and [`EXTENDER_SCORE_MAX`]. Those without a score have 0. `None`: it gives none.
    ///
    /// # Errors
    /// When it can't be told; then its scores are left out.
    async fn prioritize(
        &self,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _nodes: &[NodeIndex],
    ) -> Result<Option<Vec<(NodeIndex, i64)>>, ExtenderError> {
        Ok(None)
    }

    /// On which of the nodes room can be made, and by whose going. `None`: it has no say about that.
    ///
    /// # Errors
    /// When it can't be told.
    async fn preempt(
        &self,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _candidates: &[Candidate],
    ) -> Result<Option<Vec<Candidate>>, ExtenderError> {
        Ok(None)
    }

    /// Binds the pod to the node in the place of the plug-ins. `false`: it does not bind.
    ///
    /// # Errors
    /// When it did not work.
    async fn bind(&self, _pod: &PodInfo, _node: &str) -> Result<bool, ExtenderError> {
        Ok(false)
    }
}

const _: Option<&dyn Extender> = None;

/// In the order in which they are asked: those last that can be ignored.
pub(crate) fn in_order(mut extenders: Vec<Arc<dyn Extender>>) -> Arc<[Arc<dyn Extender>]> {
    extenders.sort_by_key(|extender| extender.is_ignorable());
    extenders.into()
}
