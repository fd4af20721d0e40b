//! The one place where commits become a sequence.
//!
//! Whoever finds the core free takes it, and does what others have queued meanwhile along with its own, so that under load
//! one publication serves many commits. Readers never come here.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    CommitError, Committed, RestoreError, Revision, StoreError, Txn,
    backup::Image,
    core::Core,
    root::{Published, Root},
};

/// How many queued commits one publication takes along.
const BATCH_TXNS_MAX: usize = 1_024;

type Answer = Result<Result<Committed, CommitError>, Box<dyn Any + Send>>;

/// A commit that waits for whoever holds the core. The queue is bounded by the number of callers: each waits for its own.
struct Queued {
    txn: Txn,
    answer: Arc<Mutex<Option<Answer>>>,
}

pub(crate) struct Sequencer {
    /// Never held while code of others runs, index functions apart; held for microseconds, and not across an await.
    core: Mutex<Core>,
    queue: Mutex<Vec<Queued>>,
    pub(crate) published: Arc<Published>,
    /// Times in the core are counted from here.
    start: Instant,
}

impl Sequencer {
    pub(crate) fn new(mut core: Core, start: Instant) -> Sequencer {
        let root = core.publish(Duration::ZERO);
        let published = Arc::new(Published::new(root));
        Sequencer { core: Mutex::new(core), queue: Mutex::default(), published, start }
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    pub(crate) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic of an index function is caught before it reaches the lock, and comes before anything has changed.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits; answers once the result is published.
    pub(crate) fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        if self.published.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed.into());
        }
        let answer = match self.core.try_lock() {
            Ok(core) => self.combine(core, Some(txn)),
            Err(TryLockError::Poisoned(poisoned)) => self.combine(poisoned.into_inner(), Some(txn)),
            Err(TryLockError::WouldBlock) => self.commit_queued(txn),
        };
        match answer {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            // A queued commit is answered by whoever held the lock in between, or by its owner.
            None => Err(CommitError::UnknownOutcome),
        }
    }

    fn commit_queued(&self, txn: Txn) -> Option<Answer> {
        let answer = Arc::new(Mutex::new(None));
        self.queue().push(Queued { txn, answer: answer.clone() });
        let take = || answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // More may have been queued before than one round takes; each round takes the oldest.
        loop {
            let core = self.lock();
            if let Some(answer) = take() {
                return Some(answer);
            }
            self.combine(core, None);
            if let Some(answer) = take() {
                return Some(answer);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the queued transactions, and one's own, and publishes once.
    fn combine(&self, mut core: MutexGuard<'_, Core>, own: Option<Txn>) -> Option<Answer> {
        let now = self.now();
        let queued: Vec<Queued> = {
            let mut queue = self.queue();
            let count = queue.len().min(BATCH_TXNS_MAX);
            queue.drain(..count).collect()
        };
        core.advance(now);
        let mut apply = |txn: Txn| catch_unwind(AssertUnwindSafe(|| core.apply(txn, now)));
        let mut answers = Vec::with_capacity(queued.len());
        for Queued { txn, answer } in queued {
            answers.push((answer, apply(txn)));
        }
        let own = own.map(apply);
        let wake = self.publish(core, now);
        for (place, answer) in answers {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        }
        wake.wake();
        own
    }

    /// Publishes what has been done, and lets go of the core.
    fn publish(&self, mut core: MutexGuard<'_, Core>, now: Duration) -> Wake {
        let mut wake = Wake::default();
        if core.is_dirty() {
            let tables = core.dirty();
            let root = core.publish(now);
            wake.old = Some(self.published.swap(root));
            core.tell(&tables, &mut wake.wakers);
        }
        wake
    }

    /// Does something to the core and publishes it.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Core, Duration) -> T) -> T {
        let now = self.now();
        let mut core = self.lock();
        let result = act(&mut core, now);
        self.publish(core, now).wake();
        result
    }

    /// Fills the empty store, and tells every watch that it missed something.
    pub(crate) fn load(&self, image: Image) -> Result<Revision, RestoreError> {
        if self.published.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed.into());
        }
        let now = self.now();
        let mut core = self.lock();
        core.load(image, now)?;
        let revision = core.revision;
        let mut wake = Wake { wakers: Vec::new(), old: Some(self.published.swap(core.publish(now))) };
        for (_, table) in self.published.load().tables.iter() {
            table.hub.reset(table.log.end(), &mut wake.wakers);
        }
        drop(core);
        wake.wake();
        Ok(revision)
    }

    /// Puts what stands elsewhere in place of everything here, and tells every watch that it missed something.
    #[cfg(feature = "replica")]
    pub(crate) fn reload(&self, image: Image) -> Result<(), StoreError> {
        let now = self.now();
        let mut core = self.lock();
        core.reload_foreign(image)?;
        let mut wake = Wake { wakers: Vec::new(), old: Some(self.published.swap(core.publish(now))) };
        for (_, table) in self.published.load().tables.iter() {
            table.hub.reset(table.log.end(), &mut wake.wakers);
        }
        drop(core);
        wake.wake();
        Ok(())
    }

    /// Looks at the core.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Core, Duration) -> T) -> T {
        let now = self.now();
        look(&self.lock(), now)
    }

    /// Ends all watches, once they have delivered what there is.
    pub(crate) fn close(&self) {
        let mut wakers = Vec::new();
        {
            let _core = self.lock();
            self.published.closed.store(true, Ordering::Release);
            for (_, table) in self.published.load().tables.iter() {
                table.hub.wake_all(&mut wakers);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What is left to do after a publication, when the core is free again: waking may run foreign code, and the old root may take
/// much with it.
#[derive(Default)]
struct Wake {
    wakers: Vec<Waker>,
    old: Option<Arc<Root>>,
}

impl Wake {
    fn wake(self) {
        self.wakers.into_iter().for_each(Waker::wake);
        drop(self.old);
    }
}
