//! Looking at the scheduler's snapshot from tasks beside it.

use std::fmt;

use tokio::sync::{mpsc, oneshot};

use crate::snapshot::Snapshot;

/// Looks at a snapshot; `true` when it need not look again.
type Look = Box<dyn FnMut(&Snapshot) -> bool + Send>;

/// Sees what the scheduler sees of the cluster, from another task; a handle. Nothing is copied for it: the scheduler's own
/// task looks on its behalf, whenever something has changed.
#[derive(Clone)]
pub struct Observer {
    looks: mpsc::UnboundedSender<Look>,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Observer {
    /// Waits until `look` has an answer. It is asked at once, and again after changes; it must be cheap. `None` when the
    /// scheduler has stopped.
    ///
    /// # Cancel safety
    /// A call that is dropped looks no more.
    pub async fn until<T: Send + 'static>(
        &self,
        mut look: impl FnMut(&Snapshot) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let mut answer = Some(answer);
        let look = Box::new(move |snapshot: &Snapshot| {
            if answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return true;
            }
            let Some(found) = look(snapshot) else { return false };
            if let Some(answer) = answer.take() {
                // Nobody wants it any more when this fails.
                let _ = answer.send(found);
            }
            true
        });
        self.looks.send(look).ok()?;
        answered.await.ok()
    }
}

/// The scheduler's side. There are no more looks than bindings under way
/// ([`REQUESTS_MAX`](crate::scheduler::REQUESTS_MAX)), as each waits for its answer.
pub(crate) struct Observed {
    asked: mpsc::UnboundedReceiver<Look>,
    looks: Vec<Look>,
    changed: bool,
}

impl Observed {
    pub(crate) fn new() -> (Observer, Self) {
        let (looks, asked) = mpsc::unbounded_channel();
        (Observer { looks }, Self { asked, looks: Vec::new(), changed: false })
    }

    /// Notes that the snapshot is another one.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// Waits for somebody who wants to look; waits forever when nobody is left who could.
    ///
    /// # Cancel safety
    /// A call that is dropped has lost nothing.
    pub(crate) async fn asked(&mut self) {
        match self.asked.recv().await {
            Some(look) => {
                self.looks.push(look);
                self.changed = true;
            }
            None => std::future::pending().await,
        }
    }

    /// Has everybody look who waits, if there is anything new.
    pub(crate) fn show(&mut self, snapshot: &Snapshot) {
        while let Ok(look) = self.asked.try_recv() {
            self.looks.push(look);
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            self.looks.retain_mut(|look| !look(snapshot));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::build::node;

    #[tokio::test]
    async fn a_look_is_repeated_until_it_has_its_answer() {
        let (observer, mut observed) = Observed::new();
        let mut snapshot = Snapshot::new();
        let mut waiting = Box::pin(observer.until(|snapshot| (snapshot.len() == 2).then(|| snapshot.len())));
        for name in ["a", "b"] {
            assert!(waiting.as_mut().now_or_never().is_none());
            observed.show(&snapshot);
            snapshot.set_node(node(name).info());
            observed.changed();
        }
        observed.show(&snapshot);
        assert_eq!(waiting.await, Some(2));
        assert!(observed.looks.is_empty());

        let mut dropped = Box::pin(observer.until(|_| None::<()>));
        assert!(dropped.as_mut().now_or_never().is_none());
        drop(dropped);
        observed.show(&snapshot);
        assert!(observed.looks.is_empty(), "nobody waits for it");

        drop(observed);
        assert_eq!(observer.until(|_| Some(())).await, None, "there is nothing to see any more");
    }
}
