//! The one place where commits become a sequence.
//!
//! Whoever finds the core free takes it, and does what others have queued meanwhile along with its own, so that under load
//! one publication serves many commits. Readers never come here.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    CommitError, Committed, RestoreError, Revision, StoreError, Txn,
    backup::Image,
    combine::{Combiner, Left, Ticket},
    core::Core,
    root::{Published, Root},
    sync::MutexGuard,
};

/// How many queued commits one publication takes along.
const BATCH_TXNS_MAX: usize = 1_024;

type Answer = Result<Result<Committed, CommitError>, Box<dyn Any + Send>>;

pub(crate) struct Sequencer {
    /// No code of others runs while it is held, index functions apart.
    core: Combiner<Core, Txn, Answer>,
    pub(crate) published: Arc<Published>,
    /// Times in the core are counted from here.
    start: Instant,
}

/// A commit that waits for whoever holds the core.
struct Waiting<'a> {
    sequencer: &'a Sequencer,
    ticket: Arc<Ticket<Answer>>,
}

impl Future for Waiting<'_> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        self.ticket.poll(context, || self.sequencer.catch_up())
    }
}

/// Sees to it, at the end of its life and whatever happened, that nothing is left that nobody does.
struct CatchUp<'a>(&'a Sequencer);

impl Drop for CatchUp<'_> {
    fn drop(&mut self) {
        self.0.catch_up();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // It may have been woken in order to go on for others.
        self.sequencer.catch_up();
    }
}

impl Sequencer {
    pub(crate) fn new(mut core: Core, start: Instant) -> Sequencer {
        let root = core.publish(Duration::ZERO);
        let published = Arc::new(Published::new(root));
        Sequencer { core: Combiner::new(core), published, start }
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    pub(crate) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    /// Commits; answers once the result is published. Without others that commit at the same time it is done at once.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        if self.published.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed.into());
        }
        let answer = match self.begin(txn) {
            Ok(answer) => answer,
            Err(ticket) => Waiting { sequencer: self, ticket }.await,
        };
        match answer {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Commits if the core is free, and leaves it to whoever has it otherwise.
    fn begin(&self, txn: Txn) -> Result<Answer, Arc<Ticket<Answer>>> {
        let _after = CatchUp(self);
        let Some(core) = self.core.try_enter() else { return Err(self.core.leave(txn)) };
        Ok(self.combine(core, |apply| apply(txn)))
    }

    /// Does what was left, unless someone else has the core. Called by everyone who has let go of it.
    fn catch_up(&self) {
        self.core.catch_up(|core| self.combine(core, |_| ()));
    }

    /// Does what was left, and then one's own, and publishes once.
    fn combine<T>(
        &self,
        mut core: MutexGuard<'_, Core>,
        own: impl FnOnce(&mut dyn FnMut(Txn) -> Answer) -> T,
    ) -> T {
        let now = self.now();
        let left = self.core.take(BATCH_TXNS_MAX);
        core.advance(now);
        // A panic of an index function is caught before it reaches the lock, and comes before anything has changed.
        let mut apply = |txn: Txn| catch_unwind(AssertUnwindSafe(|| core.apply(txn, now)));
        let mut answers = Vec::with_capacity(left.len());
        for Left { job, ticket } in left {
            answers.push((ticket, apply(job)));
        }
        let own = own(&mut apply);
        let mut wake = self.publish(core, now);
        wake.wakers.extend(answers.into_iter().filter_map(|(ticket, answer)| ticket.answer(answer)));
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
        let _after = CatchUp(self);
        let mut core = self.core.enter();
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
        let _after = CatchUp(self);
        let mut core = self.core.enter();
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
        let _after = CatchUp(self);
        let mut core = self.core.enter();
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
        let _after = CatchUp(self);
        let core = self.core.enter();
        look(&core, now)
    }

    /// Ends all watches, once they have delivered what there is.
    pub(crate) fn close(&self) {
        let _after = CatchUp(self);
        let mut wakers = Vec::new();
        {
            let _core = self.core.enter();
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
