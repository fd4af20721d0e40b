//! Flat combining: whoever finds the state free takes it, and does what others have left meanwhile along with its own.
//!
//! Nobody blocks a thread to get something done: who finds the state taken leaves a job and waits for its answer as a future.
//! Whoever lets go of the state looks at the queue afterwards, so that nothing left behind is forgotten.

use std::{
    sync::{Arc, PoisonError, TryLockError},
    task::{Context, Poll, Waker},
};

use crate::sync::{Mutex, MutexGuard};

/// How many rounds one caller works for others; then one of those who wait takes over.
const ROUNDS_MAX: usize = 16;

/// A state, and the jobs that were left for whoever holds it. The queue is bounded by the number of callers: each waits for its
/// own.
pub(crate) struct Combiner<S, J, A> {
    /// Held for microseconds, and not across an await.
    state: Mutex<S>,
    queue: Mutex<Vec<Left<J, A>>>,
}

/// A job that waits for whoever holds the state.
pub(crate) struct Left<J, A> {
    pub(crate) job: J,
    pub(crate) ticket: Arc<Ticket<A>>,
}

/// What a job that was left is answered by.
pub(crate) struct Ticket<A> {
    slot: Mutex<Slot<A>>,
}

struct Slot<A> {
    answer: Option<A>,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole even where code panics: the state says so of itself, the others run none.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A> Ticket<A> {
    fn new() -> Ticket<A> {
        Ticket { slot: Mutex::new(Slot { answer: None, waker: None }) }
    }

    /// Answers; whom to wake, once no lock is held.
    pub(crate) fn answer(&self, answer: A) -> Option<Waker> {
        let mut slot = lock(&self.slot);
        slot.answer = Some(answer);
        slot.waker.take()
    }

    /// The answer; `work` is done first where there is none yet, since nobody else may be there to do it.
    pub(crate) fn poll(&self, context: &mut Context<'_>, work: impl FnOnce()) -> Poll<A> {
        {
            let mut slot = lock(&self.slot);
            if let Some(answer) = slot.answer.take() {
                return Poll::Ready(answer);
            }
            let before = slot.waker.replace(context.waker().clone());
            drop(slot);
            drop(before);
        }
        work();
        match lock(&self.slot).answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }

    fn waker(&self) -> Option<Waker> {
        lock(&self.slot).waker.take()
    }
}

impl<S, J, A> Combiner<S, J, A> {
    pub(crate) fn new(state: S) -> Combiner<S, J, A> {
        Combiner { state: Mutex::new(state), queue: Mutex::new(Vec::new()) }
    }

    /// The state, if nobody has it. Whoever gets it calls [`catch_up`](Combiner::catch_up) after letting go of it.
    pub(crate) fn try_enter(&self) -> Option<MutexGuard<'_, S>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The state, as soon as nobody else has it; to be followed by `catch_up`, too.
    pub(crate) fn enter(&self) -> MutexGuard<'_, S> {
        lock(&self.state)
    }

    /// Leaves a job. It is done by whoever has the state; whoever leaves it looks, by polling the ticket, whether that is anyone.
    pub(crate) fn leave(&self, job: J) -> Arc<Ticket<A>> {
        let ticket = Arc::new(Ticket::new());
        lock(&self.queue).push(Left { job, ticket: ticket.clone() });
        ticket
    }

    /// The oldest jobs that were left, so many at most.
    pub(crate) fn take(&self, max: usize) -> Vec<Left<J, A>> {
        let mut queue = lock(&self.queue);
        if queue.len() <= max {
            return std::mem::take(&mut *queue);
        }
        queue.drain(..max).collect()
    }

    /// Has jobs that were left done, unless someone has the state: he will come here after letting go of it. `work` takes the
    /// jobs and lets go of the state.
    pub(crate) fn catch_up<'a>(&'a self, work: impl Fn(MutexGuard<'a, S>)) {
        for _ in 0..ROUNDS_MAX {
            if lock(&self.queue).is_empty() {
                return;
            }
            match self.try_enter() {
                Some(state) => work(state),
                None => return,
            }
        }
        // Enough done for others. The one who has waited longest goes on; woken, he polls his ticket.
        let next = lock(&self.queue).first().map(|left| left.ticket.clone());
        if let Some(waker) = next.and_then(|ticket| ticket.waker()) {
            waker.wake();
        }
    }
}
