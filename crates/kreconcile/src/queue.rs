//! The work queue: each item once, never twice at the same time.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use ahash::RandomState;
use tokio::{sync::Notify, time::Instant};

use crate::{
    backoff::RateLimiter,
    key::ObjectKey,
    metrics::{QueueCounts, WorkNumber},
};

/// The most items that wait for their time. Beyond it an item is made ready at once: too early does no harm to work
/// that is idempotent, and lost would.
pub const DELAYED_ITEMS_MAX: usize = 1_000_000;

/// A deduplicating, rate-limited queue with the semantics of client-go's `workqueue`:
///
/// - An item that is added several times before it is taken is taken once.
/// - An item that is added while it is being worked on is taken again after [`done`](Self::done), never at the same
///   time by two workers.
/// - [`add_rate_limited`](Self::add_rate_limited) adds an item after a wait that grows with each failure until
///   [`forget`](Self::forget).
/// - After [`shut_down`](Self::shut_down) nothing more is added, and [`take`](Self::take) gives what is ready and then
///   `None`.
///
/// Items with a higher priority are taken first, else first come, first served. All methods may be called from any
/// task; none but `take` waits. Time is tokio's.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use kreconcile::WorkQueue;
/// let queue = WorkQueue::new();
/// queue.add("a");
/// queue.add("a");
/// let item = queue.take().await.unwrap();
/// queue.done(&item);
/// assert!(queue.is_empty());
/// # });
/// ```
pub struct WorkQueue<T = ObjectKey> {
    state: Mutex<State<T>>,
    wake: Notify,
    drained: Notify,
}

struct State<T> {
    /// What can be taken: highest priority first, then in order of arrival.
    ready: BTreeMap<(std::cmp::Reverse<i32>, u64), T>,
    /// What must still be worked on.
    dirty: HashMap<T, Waiting, RandomState>,
    processing: HashMap<T, WorkNumber, RandomState>,
    delayed: BTreeMap<(Instant, u64), (T, i32)>,
    /// The place in `delayed`, so that an item waits once, until its earliest time.
    delayed_at: HashMap<T, (Instant, u64), RandomState>,
    limiter: RateLimiter<T>,
    sequence: u64,
    shutting_down: bool,
    counts: Arc<QueueCounts>,
}

/// An item that must still be worked on.
struct Waiting {
    priority: i32,
    /// The place in `ready`; none as long as the item is being worked on.
    place: Option<u64>,
    since: Instant,
}

impl<T> Drop for State<T> {
    /// What was taken and is dropped with the queue is not under way any more.
    fn drop(&mut self) {
        for (_, number) in self.processing.drain() {
            self.counts.end(number);
        }
    }
}

impl<T> fmt::Debug for WorkQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("WorkQueue")
            .field("ready", &state.ready.len())
            .field("processing", &state.processing.len())
            .field("delayed", &state.delayed.len())
            .finish_non_exhaustive()
    }
}

impl<T: Clone + Eq + Hash> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn add(&mut self, item: T, priority: i32) {
        if self.shutting_down {
            return;
        }
        self.sequence += 1;
        match self.dirty.get_mut(&item) {
            Some(waiting) => {
                if priority <= waiting.priority {
                    return;
                }
                if let Some(at) = waiting.place
                    && let Some(item) = self.ready.remove(&(std::cmp::Reverse(waiting.priority), at))
                {
                    self.ready.insert((std::cmp::Reverse(priority), at), item);
                }
                waiting.priority = priority;
            }
            None => {
                self.counts.adds.fetch_add(1, Ordering::Relaxed);
                let place = (!self.processing.contains_key(&item)).then_some(self.sequence);
                if let Some(at) = place {
                    self.ready.insert((std::cmp::Reverse(priority), at), item.clone());
                }
                self.dirty.insert(item, Waiting { priority, place, since: now() });
                self.note_depth();
            }
        }
    }

    fn note_depth(&self) {
        self.counts.depth.store(self.dirty.len() as u64, Ordering::Relaxed);
    }

    fn add_at(&mut self, item: T, at: Instant, priority: i32) {
        if self.shutting_down {
            return;
        }
        match self.delayed_at.get(&item) {
            Some(known) if known.0 <= at => return,
            Some(known) => {
                self.delayed.remove(&known.clone());
            }
            None if self.delayed.len() >= DELAYED_ITEMS_MAX => return self.add(item, priority),
            None => {}
        }
        self.sequence += 1;
        self.delayed_at.insert(item.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), (item, priority));
    }

    fn move_due(&mut self, now: Instant) {
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let (item, priority) = first.remove();
            self.delayed_at.remove(&item);
            self.add(item, priority);
        }
    }

    fn pop(&mut self) -> Option<T> {
        let (_, item) = self.ready.pop_first()?;
        let now = now();
        if let Some(waiting) = self.dirty.remove(&item) {
            self.counts.waits.note(now.saturating_duration_since(waiting.since));
        }
        let number = self.counts.begin(now);
        self.processing.insert(item.clone(), number);
        self.note_depth();
        Some(item)
    }
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    /// An empty queue with the default back-off ([`crate::backoff`]).
    #[must_use]
    pub fn new() -> Self {
        Self::with_limiter(RateLimiter::new(now()))
    }

    /// An empty queue with this back-off.
    #[must_use]
    pub fn with_limiter(limiter: RateLimiter<T>) -> Self {
        let state = State {
            ready: BTreeMap::new(),
            dirty: HashMap::default(),
            processing: HashMap::default(),
            delayed: BTreeMap::new(),
            delayed_at: HashMap::default(),
            limiter,
            sequence: 0,
            shutting_down: false,
            counts: Arc::default(),
        };
        Self { state: Mutex::new(state), wake: Notify::new(), drained: Notify::new() }
    }

    /// An empty queue that counts here.
    pub(crate) fn counting(counts: Arc<QueueCounts>) -> Self {
        let queue = Self::new();
        queue.state().counts = counts;
        queue.state().note_depth();
        queue
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item, unless it waits to be taken already.
    pub fn add(&self, item: T) {
        self.add_with_priority(item, 0);
    }

    /// Adds an item with a priority; a higher number is taken earlier. An item that waits already gets the higher one of
    /// the two.
    pub fn add_with_priority(&self, item: T, priority: i32) {
        self.state().add(item, priority);
        self.wake.notify_one();
    }

    /// Adds several items at once.
    pub fn add_all(&self, items: impl IntoIterator<Item = T>, priority: i32) {
        let mut state = self.state();
        for item in items {
            state.add(item, priority);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Adds an item once `delay` has passed. An item that waits for an earlier time keeps that time.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let Some(at) = now().checked_add(delay) else { return };
        self.state().add_at(item, at, 0);
        self.wake.notify_one();
    }

    /// Adds an item after a wait that grows with each call, until [`forget`](Self::forget). Gives the wait.
    pub fn add_rate_limited(&self, item: T) -> Duration {
        let now = now();
        let mut state = self.state();
        let delay = state.limiter.when(item.clone(), now);
        state.add_at(item, now + delay, 0);
        state.counts.retries.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.wake.notify_one();
        delay
    }

    /// The item succeeded, or is given up: its next failure waits the shortest time again.
    pub fn forget(&self, item: &T) {
        self.state().limiter.forget(item);
    }

    /// How often the item was added rate-limited since it was forgotten.
    #[must_use]
    pub fn requeues(&self, item: &T) -> u32 {
        self.state().limiter.failures(item)
    }

    /// Waits for an item and takes it. The caller must say [`done`](Self::done) afterwards, whatever came of it. `None`
    /// after a shutdown.
    ///
    /// # Cancel safety
    /// A call that is dropped takes nothing.
    pub async fn take(&self) -> Option<T> {
        loop {
            let notified = self.wake.notified();
            let due = {
                let mut state = self.state();
                state.move_due(now());
                if let Some(item) = state.pop() {
                    // Other takers may sleep until a time that is no longer the next one.
                    if !state.ready.is_empty() || !state.delayed.is_empty() || state.shutting_down {
                        self.wake.notify_one();
                    }
                    return Some(item);
                }
                if state.shutting_down {
                    self.wake.notify_one();
                    return None;
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            match due {
                None => notified.await,
                Some(at) => {
                    // Only one of the two is needed; a permit that is not used wakes the next taker for nothing.
                    let _ = tokio::time::timeout_at(at, notified).await;
                }
            }
        }
    }

    /// The item has been worked on. If it was added in the meantime it can be taken again.
    pub fn done(&self, item: &T) {
        let mut state = self.state();
        if let Some(number) = state.processing.remove(item) {
            state.counts.end(number);
        }
        let sequence = state.sequence + 1;
        if let Some(waiting) = state.dirty.get_mut(item)
            && waiting.place.is_none()
        {
            waiting.place = Some(sequence);
            let key = (std::cmp::Reverse(waiting.priority), sequence);
            state.ready.insert(key, item.clone());
            state.sequence = sequence;
        }
        let idle = state.processing.is_empty();
        drop(state);
        self.wake.notify_one();
        if idle {
            self.drained.notify_waiters();
        }
    }

    /// Adds nothing more. What is ready can still be taken.
    pub fn shut_down(&self) {
        let mut state = self.state();
        state.shutting_down = true;
        state.delayed.clear();
        state.delayed_at.clear();
        drop(state);
        self.wake.notify_one();
        self.drained.notify_waiters();
    }

    /// [`shut_down`](Self::shut_down), and waits until every item that was taken is done.
    pub async fn shut_down_with_drain(&self) {
        self.shut_down();
        loop {
            let drained = self.drained.notified();
            if self.state().processing.is_empty() {
                return;
            }
            drained.await;
        }
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.state().shutting_down
    }

    /// How many items can be taken now; items that wait for their time or are being worked on don't count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().ready.len()
    }

    /// Whether no item can be taken now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_item_is_never_worked_on_twice_at_the_same_time() {
        let queue = WorkQueue::new();
        queue.add("x");
        queue.add("x");
        assert_eq!(queue.take().await, Some("x"));
        queue.add("x");
        assert!(queue.is_empty(), "it is being worked on");
        queue.done(&"x");
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.take().await, Some("x"));
        queue.done(&"x");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn higher_priority_goes_first_and_raises_what_waits() {
        let queue = WorkQueue::new();
        for (item, priority) in [("a", 0), ("b", 0), ("c", 5), ("b", 9), ("b", 1)] {
            queue.add_with_priority(item, priority);
        }
        let mut order = Vec::new();
        while !queue.is_empty() {
            order.extend(queue.take().await);
        }
        assert_eq!(order, ["b", "c", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_items_come_at_their_earliest_time() {
        let queue = WorkQueue::new();
        let start = now();
        queue.add_after("x", Duration::from_secs(60));
        queue.add_after("y", Duration::from_secs(30));
        queue.add_after("x", Duration::from_secs(10));
        queue.add_after("x", Duration::from_secs(90));
        assert_eq!(queue.take().await, Some("x"));
        assert_eq!(start.elapsed().as_secs(), 10);
        queue.done(&"x");
        assert_eq!(queue.take().await, Some("y"));
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn every_taker_wakes_for_what_is_due() {
        let queue = Arc::new(WorkQueue::new());
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.take().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for (item, seconds) in [(1, 3), (2, 2), (3, 1)] {
            queue.add_after(item, Duration::from_secs(seconds));
        }
        let mut taken = Vec::new();
        for taker in takers {
            taken.extend(taker.await.unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_lets_what_is_ready_out_and_waits_for_what_is_taken() {
        let queue = Arc::new(WorkQueue::new());
        queue.add("ready");
        queue.add_after("later", Duration::from_secs(1));
        queue.add("taken");
        assert_eq!(queue.take().await, Some("ready"));
        let drain = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.shut_down_with_drain().await }
        });
        tokio::task::yield_now().await;
        queue.add("too late");
        assert_eq!(queue.take().await, Some("taken"));
        assert_eq!(queue.take().await, None);
        assert!(!drain.is_finished());
        queue.done(&"ready");
        queue.done(&"taken");
        drain.await.unwrap();
    }
}
