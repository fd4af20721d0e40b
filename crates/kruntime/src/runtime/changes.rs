//! Tells any number of readers which pods changed, without limit of delay and without growing.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures::StreamExt;
use tokio::sync::Notify;

use super::{ChangeStream, PodUid};

/// The side that tells. Each reader holds every pod that changed since it looked at most once, so a slow reader costs
/// at most one uid a pod.
#[derive(Debug, Default)]
pub struct Changes {
    readers: Mutex<Vec<Weak<Reader>>>,
}

#[derive(Debug, Default)]
struct Reader {
    waiting: Mutex<(VecDeque<PodUid>, HashSet<PodUid>, bool)>,
    notify: Notify,
}

impl Changes {
    /// Tells all readers that `pod` changed.
    pub fn tell(&self, pod: &PodUid) {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for reader in readers.iter().filter_map(Weak::upgrade) {
            let mut waiting = reader.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.1.insert(pod.clone()) {
                waiting.0.push_back(pod.clone());
                drop(waiting);
                reader.notify.notify_one();
            }
        }
    }

    /// The changes from now on; ends when `self` is dropped.
    pub fn subscribe(&self) -> ChangeStream {
        let reader = Arc::new(Reader::default());
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(&reader));
        futures::stream::unfold(reader, |reader| async move {
            loop {
                let (next, ended) = {
                    let mut waiting = reader.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    let next = waiting.0.pop_front();
                    if let Some(next) = &next {
                        waiting.1.remove(next);
                    }
                    (next, waiting.2)
                };
                match next {
                    Some(next) => return Some((next, reader)),
                    None if ended => return None,
                    None => reader.notify.notified().await,
                }
            }
        })
        .boxed()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let readers = self.readers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for reader in readers.iter().filter_map(Weak::upgrade) {
            reader.waiting.lock().unwrap_or_else(PoisonError::into_inner).2 = true;
            reader.notify.notify_one();
        }
    }
}
