//! The queue's order: higher priority first, then who came first.

use std::cmp::Ordering;

use crate::{plugin::QueueSort, queue::QueuedPod};

/// Orders by `spec.priority`, then by the time at which the pod was last put into the queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrioritySort;

impl QueueSort for PrioritySort {
    fn name(&self) -> &str {
        "PrioritySort"
    }

    fn compare(&self, a: &QueuedPod, b: &QueuedPod) -> Ordering {
        b.pod.priority.cmp(&a.pod.priority).then_with(|| a.since.cmp(&b.since))
    }
}
