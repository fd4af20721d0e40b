//! Pods that have a node and wait for a permission.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::RandomState;
use tokio::sync::oneshot;

use crate::{plugin::Rejection, pod::PodInfo};

/// The pods that [`Permit`](crate::plugin::Permit) plug-ins have told to wait. Clones are handles on the same pods, so
/// that a plug-in, or anything else, can let them go.
#[derive(Clone, Debug, Default)]
pub struct WaitingPods {
    pods: Arc<Mutex<HashMap<Arc<str>, Waiting, RandomState>>>,
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    /// The plug-ins that have not allowed it yet.
    plugins: Vec<Arc<str>>,
    answer: oneshot::Sender<Result<(), (Arc<str>, Rejection)>>,
}

/// The outcome of waiting.
pub(crate) type Answer = oneshot::Receiver<Result<(), (Arc<str>, Rejection)>>;

impl WaitingPods {
    fn pods(&self) -> MutexGuard<'_, HashMap<Arc<str>, Waiting, RandomState>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that wait, with their nodes, ordered by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<(Arc<PodInfo>, Arc<str>)> {
        let pods = self.pods();
        let mut list: Vec<_> =
            pods.values().map(|waiting| (Arc::clone(&waiting.pod), Arc::clone(&waiting.node))).collect();
        list.sort_by(|(a, _), (b, _)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        list
    }

    /// Lets a pod go on as far as `plugin` is concerned; tells whether it waited. It is bound once all plug-ins that
    /// told it to wait have allowed it.
    pub fn allow(&self, uid: &str, plugin: &str) -> bool {
        let mut pods = self.pods();
        let Some(waiting) = pods.get_mut(uid) else { return false };
        waiting.plugins.retain(|known| **known != *plugin);
        if waiting.plugins.is_empty()
            && let Some(waiting) = pods.remove(uid)
        {
            let _ = waiting.answer.send(Ok(()));
        }
        true
    }

    /// Ends a pod's wait with a rejection by `plugin`; tells whether it waited.
    pub fn reject(&self, uid: &str, plugin: impl Into<Arc<str>>, rejection: Rejection) -> bool {
        let waiting = self.pods().remove(uid);
        waiting.is_some_and(|waiting| waiting.answer.send(Err((plugin.into(), rejection))).is_ok())
    }

    pub(crate) fn add(&self, pod: &Arc<PodInfo>, node: &Arc<str>, plugins: Vec<Arc<str>>) -> Answer {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting { pod: Arc::clone(pod), node: Arc::clone(node), plugins, answer };
        self.pods().insert(Arc::clone(&pod.uid), waiting);
        receiver
    }

    /// Ends a pod's wait without an answer; tells whether it waited and so no answer was given.
    pub(crate) fn forget(&self, uid: &str) -> bool {
        self.pods().remove(uid).is_some()
    }
}
